"""The running task: how long it has been at work, what it holds, and whether somebody still waits for it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import dspy

__all__ = ["TASK", "Task", "given_up", "hold", "waiting", "with_threads"]

T = TypeVar("T")
TASK = "promptune_task"  # the setting of DSPy that holds the running task: it travels to a program's own threads


@dataclass(eq=False)
class Task:
    """A call to make, the context to make it in, how long it has been at work, and how to let go of what it holds.

    The clock stands still while one of the task's threads or coroutines waits and none of them holds anything: then
    the task cannot go on.

    Attributes:
        ended: The error of a call that the run did not let through: what the task makes without it counts for nothing.
    """

    future: Future[Any]
    context: contextvars.Context
    function: Callable[..., Any]
    args: tuple[Any, ...]
    started: float = 0.0
    limit: float | None = None
    abandoned: bool = False
    per_call: bool = False
    ended: BaseException | None = None
    _held: dict[str, Callable[[BaseException], None]] = field(default_factory=dict)
    _waiting: int = 0
    _idle: float = 0.0
    _idle_since: float | None = None
    _excused: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def seconds(self) -> float:
        """Time at work so far."""
        with self._lock:
            end = self._idle_since or time.monotonic()
            return end - self.started - self._idle if self.started else 0.0

    def wait(self, change: int) -> None:
        """One more (1) or one less (-1) of its threads waits."""
        with self._lock:
            self._waiting += change
            self._set_clock()

    def hold(self, name: str, let_go: Callable[[BaseException], None] | None) -> None:
        """It holds something under this name, until ``let_go`` is ``None``."""
        with self._lock:
            if let_go is None:
                self._held.pop(name, None)
            else:
                self._held[name] = let_go
                if self.per_call:
                    self.started, self._idle = time.monotonic(), 0.0
            self._set_clock()

    def excuse(self, since: float) -> None:
        """The time from ``since`` until now was not its own: a server answered others first."""
        with self._lock:
            now = time.monotonic()
            self._idle += max(0.0, now - max(since, self._excused, self.started))
            self._excused = now

    def fail(self, error: BaseException) -> None:
        """It was given up: let go of what it holds, and settle it."""
        for let_go in list(self._held.values()):
            let_go(error)
        self.future.set_exception(error)

    def _set_clock(self) -> None:
        if self._waiting and not self._held:
            self._idle_since = self._idle_since or time.monotonic()
        elif self._idle_since is not None:
            self._idle += time.monotonic() - self._idle_since
            self._idle_since = None


def hold(name: str, let_go: Callable[[BaseException], None] | None) -> None:
    """The running task holds something, until ``None``; ``let_go(error)`` is called where the task is given up."""
    task: Task | None = dspy.settings.get(TASK)
    if task is not None:
        task.hold(name, let_go)


def given_up() -> bool:
    """Whether the running task was given up: nobody waits for what it would bring."""
    task: Task | None = dspy.settings.get(TASK)
    return task is not None and task.abandoned


def with_threads(call: Callable[[], T]) -> T:
    """What ``call`` returns or raises, unless the run has not let a call of the running task through meanwhile.

    Whoever gathers the results of threads or coroutines has such an error as a value among them.
    """
    task: Task | None = dspy.settings.get(TASK)
    try:
        return call()
    finally:
        if task is not None and task.ended is not None:
            raise task.ended


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Time that the running task spends in this block does not count as its work."""
    task: Task | None = dspy.settings.get(TASK)
    if task is None:
        yield
        return
    task.wait(1)
    try:
        yield
    finally:
        task.wait(-1)

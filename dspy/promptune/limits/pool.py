"""One pool of threads for all the work of a run: every (prompt, example) pair and every call of steps 1 and 2."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import dspy
from dspy.promptune.limits.task import TASK, Task, with_threads

__all__ = ["Limited", "Pool", "PoolStoppedError"]

T = TypeVar("T")
WATCH_SECONDS = 0.1  # how often tasks are looked at that may take only so long
SLOW = 2.0  # times the median of the latest tasks that one may take, if that is more than its limit
LATEST = 50
IDLE_SECONDS = 10.0  # a thread with nothing to do for so long ends; a run that needs it again starts another


class PoolStoppedError(RuntimeError):
    """Work was given to a pool after its end."""


class Pool:
    """Up to ``workers`` threads that take tasks in the order of their submission.

    Every task runs in its own copy of the context in which it was submitted, so ``dspy.context(lm=...)``, usage
    trackers and the parents of callbacks hold as they do in the caller; its ``trace`` is its own. Threads start when
    there is work, and are daemons: work that is abandoned does not keep the process alive.

    A task must not wait for another task of the same pool.

    Attributes:
        stopped: Set by :meth:`stop`.
        given_up: Tasks that took longer than their limit.
        patience: Says by how much the limits of tasks are stretched now.
        on_idle: Called when a thread finds no task, from that thread and under the pool's lock: it must only take note.
    """

    def __init__(self, workers: int, *, name: str = "promptune") -> None:
        self.workers = workers
        self.stopped = threading.Event()
        self._name = name
        self._tasks: tuple[deque[Task], deque[Task]] = (deque(), deque())
        self._ready = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._running: set[Task] = set()
        self._watched = False
        self._took: deque[float] = deque(maxlen=LATEST)
        self.given_up = 0
        self.on_idle: Callable[[], None] = lambda: None
        self.patience: Callable[[], float] = lambda: 1.0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def busy(self) -> int:
        """Number of tasks that are running."""
        return len(self._running)

    @property
    def free(self) -> int:
        """Number of tasks that would start at once if they were submitted now; negative while tasks wait."""
        with self._ready:
            return self.workers - len(self._running) - self._queued()

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run ``function(*args)`` in a copy of this context as soon as a thread is free.

        Raises:
            RuntimeError: The pool was stopped.
        """
        return self._submit(0, function, args)

    def submit_limited(
        self,
        seconds: float | None,
        function: Callable[..., T],
        *args: Any,
        filler: bool = False,
        per_call: bool = False,
    ) -> Future[T]:
        """The same with a limit: a task that is at work for longer is given up, its future fails with TimeoutError.

        A thread cannot be stopped from outside: it is replaced, and ends when its call returns, whatever that brings.

        Args:
            seconds: The limit, without the time spent ``waiting``; ``None`` for none. Where tasks that were answered
                took as long, it is twice their median.
            function: What to call.
            args: With what.
            filler: Start only when no other work waits for a thread.
            per_call: The limit is on the time since the last call to a language model began.
        """
        if seconds is not None:
            self._watch()
        return self._submit(int(filler), function, args, seconds, per_call)

    def promote(self) -> None:
        """Fillers that still wait become work like any other, behind what waits already."""
        with self._ready:
            self._tasks[0].extend(self._tasks[1])
            self._tasks[1].clear()

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """The results for ``items`` in their order; the first error is raised once everything has ended.

        For the thread that owns the run, never for a task. An interrupt cancels what has not started.
        """
        futures = [self.submit(function, item) for item in items]
        try:
            pending = set(futures)
            while pending:
                pending = wait(pending, timeout=1.0).not_done
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    def least_seconds(self) -> float:
        """How long the task that was taken up last has been at work; 0 where none is."""
        with self._ready:
            return min((task.seconds() for task in self._running), default=0.0)

    def stop(self) -> None:
        """Start nothing more: waiting tasks are canceled, running ones end by themselves and nobody waits."""
        with self._ready:
            self.stopped.set()
            queued = [task.future for tasks in self._tasks for task in tasks]
            for tasks in self._tasks:
                tasks.clear()
            self._ready.notify_all()
        for future in queued:
            future.cancel()

    def _submit(
        self,
        rank: int,
        function: Callable[..., T],
        args: tuple[Any, ...],
        limit: float | None = None,
        per_call: bool = False,
    ) -> Future[T]:
        future: Future[T] = Future()
        task = Task(future, contextvars.copy_context(), function, args, limit=limit, per_call=per_call)
        with self._ready:
            if self.stopped.is_set():
                raise PoolStoppedError("The pool was stopped: it takes no more work.")
            self._tasks[rank].append(task)
            self._staff()
        return future

    def _watch(self) -> None:
        """See to it that somebody looks for tasks beyond their limit."""
        with self._ready:
            if self._watched:
                return
            self._watched = True
        threading.Thread(target=self._keep_watch, name=f"{self._name}-watch", daemon=True).start()

    def _keep_watch(self) -> None:
        while not self.stopped.wait(WATCH_SECONDS):
            self._abandon()

    def _abandon(self) -> None:
        with self._ready:
            late = [(task, self._allowed(task)) for task in self._running]
            late = [(task, allowed) for task, allowed in late if task.seconds() > allowed]
            self.given_up += len(late)
            self._abandoned([task for task, _ in late])
        for task, allowed in late:
            told = "" if allowed == task.limit else f", stretched to {allowed:.3g}"
            task.fail(TimeoutError(f"No answer within example_timeout={task.limit:g} seconds{told}."))

    def _allowed(self, task: Task) -> float:
        """Seconds that a task may take: its limit, longer where a server loads its model or all tasks take as long."""
        if task.limit is None:
            return math.inf
        return max(self.patience() * task.limit, SLOW * median(self._took) if self._took else 0.0)

    def _abandoned(self, tasks: list[Task]) -> None:
        """Under the lock: nobody waits for these tasks any more, and others take the places of their threads."""
        for task in tasks:
            task.abandoned = True
            self._running.discard(task)
            self._threads -= 1
        self._staff()

    def give_up(self, error: BaseException) -> None:
        """Wait no longer for what is running: its futures fail with ``error``. What waits is started as before."""
        with self._ready:
            running = list(self._running)
            self._abandoned(running)
        for task in running:
            task.fail(error)

    def _queued(self) -> int:
        return len(self._tasks[0]) + len(self._tasks[1])

    def _staff(self) -> None:
        """Under the lock: see to it that somebody takes the tasks that wait."""
        wanted = self._queued()
        self._ready.notify(min(wanted, self._idle))
        for _ in range(min(wanted - self._idle, self.workers - self._threads)):
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._ready:
                if not self._queued() and not self._await_task():
                    self._threads -= 1
                    return
                task = (self._tasks[0] or self._tasks[1]).popleft()
                if not task.future.set_running_or_notify_cancel():
                    continue  # canceled while it waited; what is running can no longer be, only given up
                task.started = time.monotonic()
                self._running.add(task)
            settle = _run(task)
            with self._ready:
                self._running.discard(task)
                if task.limit is not None and not task.abandoned:
                    self._took.append(task.seconds())
                if task.abandoned:
                    return  # another thread has taken this one's place
            settle()
            del task, settle

    def _await_task(self) -> bool:
        """Wait for a task under the lock; False when the thread should end."""
        self._idle += 1
        self.on_idle()
        try:
            while not self._queued():
                if self.stopped.is_set() or not self._ready.wait(IDLE_SECONDS):
                    return bool(self._queued())
            return True
        finally:
            self._idle -= 1


@dataclass(frozen=True)
class Limited:
    """A pool whose tasks may take only so long.

    Attributes:
        pool: Where they run.
        seconds: At work, waiting for a place not counted; ``None`` forever.
        per_call: The limit is on each call to a language model that a task makes.
    """

    pool: Pool
    seconds: float | None
    per_call: bool = False

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run ``function(*args)`` when a thread is free; out of time, its future fails with a TimeoutError."""
        return self.pool.submit_limited(self.seconds, function, *args, per_call=self.per_call)


def _run(task: Task) -> Callable[[], None]:
    """Make the call; what comes back settles its future, after the thread is counted as free again."""
    future = task.future
    try:
        result = task.context.run(_call, task)
    except CancelledError as error:
        failure: BaseException = RuntimeError(f"Canceled: {error}")
    except BaseException as error:
        failure = error
    else:
        return lambda: future.set_result(result)
    return lambda: future.set_exception(failure)


def _call(task: Task) -> Any:
    with dspy.context(trace=[], **{TASK: task}):
        return with_threads(lambda: task.function(*task.args))

"""A program's own threads run in the context that they were started in, so that the run sees their calls."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import dspy
from dspy.dsp.utils.settings import dotdict, thread_local_overrides
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.limits.task import TASK, Task

__all__ = ["contexts_carried"]


@contextlib.contextmanager
def contexts_carried() -> Iterator[None]:
    """In this block, the threads that a task of a run starts work in a copy of its context.

    So does what a task submits to a ``ThreadPoolExecutor``, wherever that was made. Python starts threads in an empty
    context, where neither the run nor ``dspy.context`` is known. After the last of several blocks both classes are as
    they were, and threads that go on, as those of a server that a program has started, know of no run any more.
    """
    global _holders
    with _lock:
        _holders += 1
        _stand_in()
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _step_back()
                for thread, settings in list(_started.items()):
                    if thread.is_alive() and not settings[TASK].abandoned:
                        settings.clear()
                _started.clear()


_lock = threading.Lock()
_holders = 0
_started: WeakKeyDictionary[threading.Thread, dict[str, Any]] = WeakKeyDictionary()  # and the settings in their context
_standing_in = False
_own_start, _own_submit = threading.Thread.start, ThreadPoolExecutor.submit  # what ours stand in for


def _stand_in() -> None:
    global _standing_in, _own_start, _own_submit
    if not _standing_in:
        _standing_in, _own_start, _own_submit = True, threading.Thread.start, ThreadPoolExecutor.submit
        threading.Thread.start = _start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _submit  # type: ignore[assignment, method-assign]


def _step_back() -> None:
    """Where another library has replaced them meanwhile, ours stay below its own, and do nothing without a task."""
    global _standing_in
    if threading.Thread.start is _start and ThreadPoolExecutor.submit is _submit:
        threading.Thread.start = _own_start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _own_submit  # type: ignore[method-assign]
        _standing_in = False


def _start(self: threading.Thread) -> None:
    task: Task | None = dspy.settings.get(TASK)
    if task is not None and not _of_pool(self):
        context, settings = contextvars.copy_context(), dotdict(thread_local_overrides.get())
        context.run(thread_local_overrides.set, settings)
        self.run = partial(_run, task, context, self.run)  # type: ignore[method-assign]
        with _lock:
            _started[self] = settings
    _own_start(self)


def _run(task: Task, context: contextvars.Context, run: Callable[[], None]) -> None:
    """A thread's work; nobody hears how it ends but the task."""
    try:
        context.run(run)
    except Stopped as error:
        task.ended = error


def _of_pool(thread: threading.Thread) -> bool:
    """Whether it is a worker of a pool, which works for whoever submits."""
    return getattr(getattr(thread, "_target", None), "__module__", "") == "concurrent.futures.thread"


def _submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    if dspy.settings.get(TASK) is not None:
        fn = partial(contextvars.copy_context().run, fn)
    return _own_submit(self, fn, *args, **kwargs)

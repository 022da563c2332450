"""A program's own threads run in the context that they were started in, so that the run sees their calls."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import dspy
from dspy.dsp.utils.settings import dotdict, thread_local_overrides
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.limits.task import TASK

__all__ = ["contexts_carried"]


@contextlib.contextmanager
def contexts_carried() -> Iterator[None]:
    """In this block, the threads that a task of a run starts work in a copy of its context.

    So does what a task submits to a ``ThreadPoolExecutor``, wherever that was made. Python starts threads in an empty
    context, where neither the run nor ``dspy.context`` is known. What a task calls by ``dspy.asyncify`` waits for its
    own event loop alone: DSPy has one limit for all loops, and a loop that waits for another one is never woken.

    After the last of several blocks all is as it was, and threads that go on, as those of a server that a program has
    started, know of no run any more.
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
_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
_asyncify = importlib.import_module("dspy.utils.asyncify")
_standing_in = False
_own_start, _own_submit, _own_limiter = threading.Thread.start, ThreadPoolExecutor.submit, _asyncify.get_limiter


def _stand_in() -> None:
    global _standing_in, _own_start, _own_submit, _own_limiter
    if not _standing_in:
        _own_start, _own_submit, _own_limiter = threading.Thread.start, ThreadPoolExecutor.submit, _asyncify.get_limiter
        _standing_in, _asyncify.get_limiter = True, _limiter  # type: ignore[attr-defined]
        threading.Thread.start = _start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _submit  # type: ignore[assignment, method-assign]


def _step_back() -> None:
    """Where another library has replaced them meanwhile, ours stay below its own, and do nothing without a task."""
    global _standing_in
    ours = threading.Thread.start, ThreadPoolExecutor.submit, _asyncify.get_limiter
    if ours == (_start, _submit, _limiter):
        threading.Thread.start = _own_start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _own_submit  # type: ignore[method-assign]
        _asyncify.get_limiter = _own_limiter  # type: ignore[attr-defined]
        _standing_in = False


def _start(self: threading.Thread) -> None:
    if dspy.settings.get(TASK) is not None and not _of_pool(self):
        context, settings = contextvars.copy_context(), dotdict(thread_local_overrides.get())
        context.run(thread_local_overrides.set, settings)
        self.run = partial(_run, context, self.run)  # type: ignore[method-assign]
        with _lock:
            _started[self] = settings
    _own_start(self)


def _run(context: contextvars.Context, run: Callable[[], None]) -> None:
    """A thread's work; that it was stopped the task knows."""
    with contextlib.suppress(Stopped):
        context.run(run)


def _of_pool(thread: threading.Thread) -> bool:
    """Whether it is a worker of a pool, which works for whoever submits."""
    return getattr(getattr(thread, "_target", None), "__module__", "") == "concurrent.futures.thread"


def _submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    if dspy.settings.get(TASK) is not None:
        fn = partial(contextvars.copy_context().run, fn)
    return _own_submit(self, fn, *args, **kwargs)


def _limiter() -> Any:
    """Of the running event loop, as large as DSPy's own, which is for all loops."""
    if dspy.settings.get(TASK) is None:
        return _own_limiter()
    import anyio

    with _lock:
        own = anyio.CapacityLimiter(dspy.settings.async_max_workers)
        return _limiters.setdefault(asyncio.get_running_loop(), own)

"""What stands between a run's programs and their language models: the limit, single flight, retries, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import dspy
from dspy.clients.base_lm import BaseLM
from dspy.promptune.engine.budgets import Meter, answered_by_cache
from dspy.promptune.engine.limiter import Limiter
from dspy.promptune.engine.pool import holding, waiting
from dspy.promptune.scrub import know, secrets_of
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import (
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMTimeoutError,
    is_retryable_lm_error,
)

__all__ = ["Guard", "Stopped", "guarded", "unanswered", "unguarded"]

logger = logging.getLogger(__name__)

REFUSALS = (LMRateLimitError, LMTimeoutError)
MAX_DELAY = 60.0  # seconds between two tries, as upstream's
POLL_SECONDS = 0.02  # how often a call in an event loop looks whether it may go

_current: contextvars.ContextVar[Guard | None] = contextvars.ContextVar("promptune_guard", default=None)


def unanswered(error: BaseException) -> bool:
    """Whether it is not the prompt's fault that a call brought no answer: it says nothing about the prompt.

    The provider could not be reached or refused, its reply was no reply (half of one, a gateway's page), or it does
    not know the key. What it says of the request itself, such as that the prompt is too long, is the prompt's fault.
    """
    at_provider = isinstance(error, LMProviderError) and not isinstance(error, LMInvalidRequestError)
    return at_provider or (isinstance(error, Exception) and is_retryable_lm_error(error))


class Stopped(BaseException):
    """The run has been stopped: no more calls are made. Not an ``Exception``, so that no program can go on with it."""


@dataclass
class _Call:
    """A call between its start and its end."""

    round: int | None  # None: inside another call of the same thread, which holds the place of both
    flight: _Flight | None = None
    key: int = 0


class _Flight(threading.Event):
    """The first of several identical calls; set when it has landed, ``answered`` if its answer is in the cache."""

    answered = False


class Guard(BaseCallback):
    """Limits, shares and counts the language-model calls of one run, whatever the programs do to make them.

    It is a callback of DSPy, active in the run's own context only. Before a call it waits for a place under
    ``limiter``; a call that is identical to one in flight waits for that one first, if its answer will be in the
    cache. A call within a call (a model that asks another model) needs no place of its own. Calls made in an event
    loop cannot be held up here: they are by :func:`guarded` models, and are counted in any case.

    Attributes:
        limiter: The limit and the state of it.
        calls: Calls started, those that the cache answered included.
        shared: Calls that waited for an identical one in flight.
        retried: Calls made again after the provider could not be reached or refused.
    """

    def __init__(self, limit: int, meter: Meter | None = None) -> None:
        self.limiter = Limiter(limit)
        self.meter = meter or Meter()
        self.calls = self.shared = self.retried = 0
        self._open: dict[str, _Call] = {}
        self._flights: dict[int, _Flight] = {}
        self._lock = threading.Lock()
        self._depth = threading.local()

    @contextlib.contextmanager
    def active(self, **settings: Any) -> Iterator[None]:
        """Guard every call made in this block and in copies of its context; ``settings`` as for ``dspy.context``."""
        callbacks = [*(dspy.settings.get("callbacks") or []), self]
        token = _current.set(self)
        try:
            with dspy.context(**settings, callbacks=callbacks):
                yield
        finally:
            _current.reset(token)

    def stop(self) -> None:
        """Let no more calls through: those that wait, and those to come, raise :class:`Stopped`."""
        self.limiter.stop()

    # ------------------------------------------------------------------ DSPy's callbacks

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Wait for a place."""
        know(secrets_of(instance) | secrets_of(inputs.get("kwargs")))
        if _in_event_loop():
            taken = _admitted.get()
            _admitted.set(None)
            call = _Call(self.limiter.acquire(block=False) if taken is None else taken)
        elif getattr(self._depth, "calls", 0):
            call = _Call(None)
        else:
            call = self._admit(instance, inputs)
        if call.round is None and self.limiter.stopped:
            self._land(call)
            raise Stopped("the run was stopped")
        if not self.meter.admit():
            self._land(call)
            if call.round is not None:
                self.limiter.release(call.round)
            raise Stopped(self.meter.reached() or "the calls left are in flight")
        _cached.set(False)
        if not _in_event_loop():
            self._depth.calls = getattr(self._depth, "calls", 0) + 1
        with self._lock:
            self.calls += 1
            self._open[call_id] = call
        holding()[call_id] = partial(self._end, call_id, LMTimeoutError("Given up."))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Give the place back, and learn how the provider took the call."""
        holding().pop(call_id, None)
        if not _in_event_loop():
            self._depth.calls = max(0, getattr(self._depth, "calls", 0) - 1)
        self._end(call_id, exception)

    def _end(self, call_id: str, exception: BaseException | None) -> None:
        """A call has ended, or was given up; the first of the two counts."""
        with self._lock:
            call = self._open.pop(call_id, None)
        if call is None:
            return
        self.meter.ended(reached=not _cached.get())
        self._land(call, answered=exception is None)
        if call.round is not None:
            refused = isinstance(exception, REFUSALS) or getattr(exception, "status", None) in (429, 503, 529)
            self.limiter.release(call.round, refused=refused, retry_after=getattr(exception, "retry_after", None))

    # ------------------------------------------------------------------

    def _admit(self, instance: Any, inputs: dict[str, Any]) -> _Call:
        key = _request_key(instance, inputs)
        flight = None
        with waiting():
            if key is not None:
                flight = self._board(key)
            return _Call(self.limiter.acquire(), flight, key or 0)

    def _board(self, key: int) -> _Flight | None:
        """Announce a call, or wait until the identical one in flight has been answered; one that fails has an heir."""
        waited = False
        while True:
            with self._lock:
                flying = self._flights.get(key)
                if flying is None:
                    self._flights[key] = mine = _Flight()
                    return mine
                self.shared += not waited
            waited = True
            while not flying.wait(1.0) and not self.limiter.stopped:
                pass
            if flying.answered or self.limiter.stopped:
                return None

    def _land(self, call: _Call, *, answered: bool = False) -> None:
        if call.flight is not None:
            with self._lock:
                self._flights.pop(call.key, None)
            call.flight.answered = answered
            call.flight.set()


_cached: contextvars.ContextVar[bool] = contextvars.ContextVar("promptune_cached", default=False)
_admitted: contextvars.ContextVar[int | None] = contextvars.ContextVar("promptune_admitted", default=None)


def guarded(lm: Any) -> Any:
    """A view of a language model whose calls are retried by the run, with no place taken while it waits.

    The view is another object with the same state: what either changes, both see. Inside a run every try is a call
    of its own under the run's limit, and a refusal slows the run down; upstream would sleep in the midst of the
    call. Outside a run it behaves as the model itself. Models of other kinds are returned as they are.
    """
    if not isinstance(lm, BaseLM) or isinstance(lm, _Guarded):
        return lm
    try:
        view: Any = object.__new__(_view_class(type(lm)))
        view.__dict__ = lm.__dict__
    except (TypeError, AttributeError):  # slots, or a metaclass of its own
        return lm
    return view


def unguarded(lm: Any) -> Any:
    """The language model behind a view that :func:`guarded` made; anything else as it is."""
    if not isinstance(lm, _Guarded):
        return lm
    model: Any = object.__new__(type(lm).__mro__[2])
    model.__dict__ = lm.__dict__
    return model


class _Guarded:
    """The part of a view that differs from its model."""

    @property
    def num_retries(self) -> int:
        """None inside a run, which retries by itself."""
        return 0 if _current.get() is not None else self._own_retries()

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        self.__dict__["num_retries"] = value

    def update_history(self, entry: dict[str, Any]) -> None:
        """What the call took, for the run; then as the model itself."""
        guard = _current.get()
        if guard is not None:
            guard.meter.add(entry)
            _cached.set(answered_by_cache(entry))
        super().update_history(entry)  # type: ignore[misc]

    def _own_retries(self) -> int:
        return int(self.__dict__.get("num_retries", 0) or 0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        guard = _current.get()
        if guard is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        for attempt in range(self._own_retries() + 1):
            try:
                return super().__call__(*args, **kwargs)  # type: ignore[misc]
            except Exception as error:
                if attempt == self._own_retries() or not is_retryable_lm_error(error):
                    raise
                guard.retried += 1
                _sleep(guard, _delay(error, attempt))
        raise AssertionError("unreachable")

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        guard = _current.get()
        if guard is None:
            return await super().acall(*args, **kwargs)  # type: ignore[misc]
        for attempt in range(self._own_retries() + 1):
            while (taken := guard.limiter.try_acquire()) is None:
                if guard.limiter.stopped:
                    raise Stopped
                await asyncio.sleep(POLL_SECONDS)
            _admitted.set(taken)
            try:
                return await super().acall(*args, **kwargs)  # type: ignore[misc]
            except Exception as error:
                if attempt == self._own_retries() or not is_retryable_lm_error(error):
                    raise
                guard.retried += 1
                await asyncio.sleep(_delay(error, attempt))
        raise AssertionError("unreachable")


_views: dict[type, type] = {}


def _view_class(kind: type) -> type:
    if kind not in _views:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        _views[kind] = type(kind.__name__, (_Guarded, kind), names)
    return _views[kind]


def _delay(error: BaseException, attempt: int) -> float:
    """Seconds until the next try: what the provider says, or upstream's exponential rule."""
    told = getattr(error, "retry_after", None)
    return min(float(told), MAX_DELAY) if told is not None else min(2.0**attempt, MAX_DELAY)


def _sleep(guard: Guard, seconds: float) -> None:
    end = time.monotonic() + seconds
    with waiting():
        while (left := end - time.monotonic()) > 0:
            if guard.limiter.stopped:
                raise Stopped
            time.sleep(min(left, 0.5))


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _request_key(lm: Any, inputs: dict[str, Any]) -> int | None:
    """What makes two calls the same; ``None`` where the cache does not keep the answer."""
    kwargs = inputs.get("kwargs") or {}
    if not kwargs.get("cache", getattr(lm, "cache", False)):
        return None
    own = getattr(lm, "kwargs", None)
    return hash((getattr(lm, "model", None), repr(inputs), repr(own)))

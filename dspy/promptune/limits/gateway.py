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
from dspy.promptune.limits.budgets import BudgetMeter, answered_by_cache
from dspy.promptune.limits.concurrency import ConcurrencyLimit
from dspy.promptune.limits.task import given_up, hold, waiting
from dspy.promptune.secrets import know, secrets_of
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import (
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMTimeoutError,
    is_retryable_lm_error,
)

__all__ = ["GATEWAY", "LMGateway", "Stopped", "through_gateway", "unanswered", "without_gateway"]

logger = logging.getLogger(__name__)

REFUSALS = (LMRateLimitError, LMTimeoutError)
MAX_DELAY = 60.0  # seconds between two tries, as upstream's
POLL_SECONDS = 0.02  # how often a call in an event loop looks whether it may go
GATEWAY = "promptune_guard"  # the setting of DSPy that holds the guard: it travels to a program's own threads


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


class LMGateway(BaseCallback):
    """Limits, shares and counts the language-model calls of one run, whatever the programs do to make them.

    It is a callback of DSPy, active in the run's own context only. Before a call it waits for a place under
    ``limiter``; a call that is identical to one in flight waits for that one first, if its answer will be in the
    cache. A call within a call (a model that asks another model) needs no place of its own. Calls made in an event
    loop cannot be held up here: they are by :func:`through_gateway` models, and are counted in any case.

    Attributes:
        limiter: The limit and the state of it.
        calls: Calls started, those that the cache answered included.
        shared: Calls that waited for an identical one in flight.
        retried: Calls made again after the provider could not be reached or refused.
    """

    def __init__(self, limit: int, meter: BudgetMeter | None = None) -> None:
        self.limiter = ConcurrencyLimit(limit)
        self.meter = meter or BudgetMeter()
        self.calls = self.shared = self.retried = 0
        self._open: dict[str, _Call] = {}
        self._flights: dict[int, _Flight] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def active(self, **settings: Any) -> Iterator[None]:
        """Guard every call made in this block and in copies of its context; ``settings`` as for ``dspy.context``."""
        callbacks = [*(dspy.settings.get("callbacks") or []), self]
        with dspy.context(**settings, callbacks=callbacks, **{GATEWAY: self}):
            yield

    def stop(self) -> None:
        """Let no more calls through: those that wait, and those to come, raise :class:`Stopped`."""
        self.limiter.stop()

    # ------------------------------------------------------------------ DSPy's callbacks

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Wait for a place."""
        know(secrets_of(instance) | secrets_of(inputs.get("kwargs")))
        call = self._start(instance, inputs)
        if call.round is None and self.limiter.stopped:
            self._land(call)
            raise Stopped("the run was stopped")
        if not self.meter.admit():
            self._land(call)
            if call.round is not None:
                self.limiter.release(call.round)
            raise Stopped(self.meter.reached() or "the calls left are in flight")
        _cached.set(False)
        _within.set((*_within.get(), self))
        with self._lock:
            self.calls += 1
            self._open[call_id] = call
        hold(call_id, partial(self._end, call_id, LMTimeoutError("Given up.")))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Give the place back, and learn how the provider took the call."""
        hold(call_id, None)
        _within.set(_within.get()[:-1])
        self._end(call_id, exception)

    def _start(self, instance: Any, inputs: dict[str, Any]) -> _Call:
        if given_up():
            raise Stopped("nobody waits for this answer any more")
        if self in _within.get():
            return _Call(None)
        call = _admitted.get()
        if call is not None:
            _admitted.set(None)
            return call
        if _in_event_loop():
            return _Call(self.limiter.acquire(block=False))
        return self._admit(_request_key(instance, inputs))

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

    def _admit(self, key: int | None) -> _Call:
        """Wait until an identical call in flight has been answered, and for a place."""
        with waiting():
            flight, own = self._board(key)
            while flight is not None and not own:
                while not flight.wait(1.0) and not self.limiter.stopped:
                    pass
                flight, own = self._board(key, after=flight)
            return _Call(self.limiter.acquire(), flight, key or 0)

    async def admit(self, key: int | None) -> _Call:
        """The same for a call in an event loop, which goes on meanwhile.

        Raises:
            Stopped: The run was stopped.
        """
        flight: _Flight | None = None
        own = False
        try:
            with waiting():
                flight, own = self._board(key)
                while flight is not None and not own:
                    while not flight.is_set() and not self.limiter.stopped:
                        await asyncio.sleep(POLL_SECONDS)
                    flight, own = self._board(key, after=flight)
                while (taken := self.limiter.try_acquire()) is None:
                    if self.limiter.stopped:
                        raise Stopped("the run was stopped")
                    await asyncio.sleep(POLL_SECONDS)
        except BaseException:
            if own:
                self._land(_Call(None, flight, key or 0))
            raise
        return _Call(taken, flight, key or 0)

    def take_back(self) -> None:
        """Free the place of a call that was admitted in an event loop and never began."""
        call = _admitted.get()
        if call is not None and call.round is not None:
            _admitted.set(None)
            self._land(call)
            self.limiter.give_back()

    def _board(self, key: int | None, after: _Flight | None = None) -> tuple[_Flight | None, bool]:
        """The flight of a call, and whether it is its own; another's is to be waited for, of which one is the heir.

        ``None`` where there is nothing to share: no key, or the flight ``after`` which it comes was answered.
        """
        if key is None or (after is not None and (after.answered or self.limiter.stopped)):
            return None, False
        mine = _Flight()
        with self._lock:
            flight = self._flights.setdefault(key, mine)
            self.shared += flight is not mine and after is None
        return flight, flight is mine

    def _land(self, call: _Call, *, answered: bool = False) -> None:
        if call.flight is not None:
            with self._lock:
                self._flights.pop(call.key, None)
            call.flight.answered = answered
            call.flight.set()


_cached: contextvars.ContextVar[bool] = contextvars.ContextVar("promptune_cached", default=False)
_admitted: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("promptune_admitted", default=None)
_within: contextvars.ContextVar[tuple[LMGateway, ...]] = contextvars.ContextVar("promptune_within", default=())


def through_gateway(lm: Any) -> Any:
    """A view of a language model whose calls are retried by the run, with no place taken while it waits.

    The view is another object with the same state: what either changes, both see. Inside a run every try is a call
    of its own under the run's limit, and a refusal slows the run down; upstream would sleep in the midst of the
    call. Outside a run it behaves as the model itself. Models of other kinds are returned as they are.
    """
    if not isinstance(lm, BaseLM) or isinstance(lm, _GatewayLM):
        return lm
    try:
        view: Any = object.__new__(_view_class(type(lm)))
        view.__dict__ = lm.__dict__
    except (TypeError, AttributeError):  # slots, or a metaclass of its own
        return lm
    return view


def without_gateway(lm: Any) -> Any:
    """The language model behind a view that :func:`through_gateway` made; anything else as it is."""
    if not isinstance(lm, _GatewayLM):
        return lm
    model: Any = object.__new__(type(lm).__mro__[2])
    model.__dict__ = lm.__dict__
    return model


class _GatewayLM:
    """The part of a view that differs from its model."""

    @property
    def num_retries(self) -> int:
        """None inside a run, which retries by itself."""
        return 0 if dspy.settings.get(GATEWAY) is not None else self._own_retries()

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        self.__dict__["num_retries"] = value

    def update_history(self, entry: dict[str, Any]) -> None:
        """What the call took, for the run; then as the model itself."""
        gateway: LMGateway | None = dspy.settings.get(GATEWAY)
        if gateway is not None:
            gateway.meter.add(entry)
            _cached.set(answered_by_cache(entry))
        super().update_history(entry)  # type: ignore[misc]

    def _own_retries(self) -> int:
        return int(self.__dict__.get("num_retries", 0) or 0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        gateway: LMGateway | None = dspy.settings.get(GATEWAY)
        if gateway is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        for attempt in range(self._own_retries() + 1):
            try:
                with _among_callbacks(gateway):
                    return super().__call__(*args, **kwargs)  # type: ignore[misc]
            except Exception as error:
                if attempt == self._own_retries() or not is_retryable_lm_error(error):
                    raise
                gateway.retried += 1
                _sleep(gateway, _delay(error, attempt))
        raise AssertionError("unreachable")

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        gateway: LMGateway | None = dspy.settings.get(GATEWAY)
        if gateway is None:
            return await super().acall(*args, **kwargs)  # type: ignore[misc]
        key = _request_key(self, {**dict(zip(("prompt",), args, strict=False)), "kwargs": kwargs})
        for attempt in range(self._own_retries() + 1):
            if gateway not in _within.get():
                _admitted.set(await gateway.admit(key))
            try:
                with _among_callbacks(gateway):
                    return await super().acall(*args, **kwargs)  # type: ignore[misc]
            except Exception as error:
                gateway.take_back()
                if attempt == self._own_retries() or not is_retryable_lm_error(error):
                    raise
                gateway.retried += 1
                with waiting():
                    await asyncio.sleep(_delay(error, attempt))
        raise AssertionError("unreachable")


def _among_callbacks(gateway: LMGateway) -> contextlib.AbstractContextManager[None]:
    """Whatever callbacks a program has set, the guard is one of them in this block."""
    callbacks = dspy.settings.get("callbacks") or []
    return contextlib.nullcontext() if gateway in callbacks else dspy.context(callbacks=[*callbacks, gateway])


_views: dict[type, type] = {}


def _view_class(kind: type) -> type:
    if kind not in _views:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        _views[kind] = type(kind.__name__, (_GatewayLM, kind), names)
    return _views[kind]


def _delay(error: BaseException, attempt: int) -> float:
    """Seconds until the next try: what the provider says, or upstream's exponential rule."""
    told = getattr(error, "retry_after", None)
    return min(float(told), MAX_DELAY) if told is not None else min(2.0**attempt, MAX_DELAY)


def _sleep(gateway: LMGateway, seconds: float) -> None:
    end = time.monotonic() + seconds
    with waiting():
        while (left := end - time.monotonic()) > 0:
            if gateway.limiter.stopped:
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
    asked = {**inputs, **(inputs.get("kwargs") or {})}
    asked.pop("kwargs", None)
    if not asked.get("cache", getattr(lm, "cache", False)):
        return None
    said = sorted((name, repr(value)) for name, value in asked.items() if value is not None)
    return hash((getattr(lm, "model", None), tuple(said), repr(getattr(lm, "kwargs", None))))

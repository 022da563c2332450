"""What stands between a run's programs and their language models: the limit, single flight, retries, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import dspy
from dspy.dsp.utils.settings import dotdict, thread_local_overrides
from dspy.promptune.limits import tally as tallies
from dspy.promptune.limits.answers import of_call
from dspy.promptune.limits.budgets import SEARCH, STEP, BudgetMeter
from dspy.promptune.limits.concurrency import ConcurrencyLimit
from dspy.promptune.limits.tally import Tally
from dspy.promptune.limits.task import TASK, Task, given_up, hold, waiting
from dspy.promptune.secrets import know, secrets_of
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMRateLimitError, LMTimeoutError

__all__ = ["GATEWAY", "LMGateway", "Stopped", "expect", "in_event_loop", "inside", "request_key"]

logger = logging.getLogger(__name__)

BUSY = (429, 503, 529)  # statuses with which a provider asks for fewer calls
POLL_SECONDS = 0.02  # how often a call in an event loop looks whether it may go
LOADING = 5.0  # times its usual time that an example may take before the first answer of a run
GATEWAY = "promptune_guard"  # the setting of DSPy that holds the guard: it travels to a program's own threads


class Stopped(BaseException):
    """The run has been stopped: no more calls are made. Not an ``Exception``, so that no program swallows it."""


def stopped(why: str) -> Stopped:
    """The error for a call, with which the running task ends whatever its program makes of it, as of a future's."""
    error, task = Stopped(why), dspy.settings.get(TASK)
    if task is not None:
        task.ended = task.ended or error
    return error


@dataclass
class _Call:
    """A call between its start and its end."""

    round: int | None  # None: inside another call of the same thread, which holds the place of both
    flight: _Flight | None = None
    key: int = 0
    tally: Tally | None = None
    instance: Any = None
    task: Task | None = None
    began: float = field(default_factory=time.monotonic)
    counted: bool = True  # False: inside a call of the same model, which is counted
    step: str = SEARCH  # whose account it is on, wherever it ends


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
        answered: Whether any call was answered yet.
        retried: Calls made again after the provider could not be reached or refused.

    Args:
        limit: Calls in flight at most.
        meter: Counts what is spent, and has the limits.
        view: Makes a view of a language model that a module brings along, as ``through_gateway`` does.
    """

    def __init__(
        self, limit: int, meter: BudgetMeter | None = None, *, view: Callable[[Any], Any] = lambda lm: lm
    ) -> None:
        self.limiter = ConcurrencyLimit(limit)
        self.meter = meter or BudgetMeter()
        self.calls = self.shared = self.retried = 0
        self.answered = False
        self._open: dict[str, _Call] = {}
        self._flights: dict[int, _Flight] = {}
        self._view = view
        self._adopted: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
        self._contexts: dict[str, Any] = {}
        self._read: dict[int, int] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def active(self, **settings: Any) -> Iterator[None]:
        """Guard every call made in this block and in copies of its context; ``settings`` as for ``dspy.context``."""
        callbacks = [*(dspy.settings.get("callbacks") or []), self]
        with dspy.context(**settings, callbacks=callbacks, **{GATEWAY: self}):
            try:
                yield
            finally:
                self.release_modules()

    def stop(self) -> None:
        """Let no more calls through: those that wait, and those to come, raise :class:`Stopped`."""
        self.limiter.stop()

    # ------------------------------------------------------------------ DSPy's callbacks

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Wait for a place."""
        self.begin(call_id, instance, inputs)

    def begin(self, call_id: str, instance: Any, inputs: dict[str, Any], *, alone: bool = False) -> None:
        """The same; ``alone``: of a model that calls no callbacks itself, unless it goes on to DSPy's own way."""
        know(secrets_of(instance) | secrets_of(inputs.get("kwargs")))
        call = self._start(instance, inputs)
        if call.round is None and self.limiter.stopped:
            self._land(call)
            raise stopped("the run was stopped")
        if call.counted and not self.meter.admit():
            self._land(call)
            if call.round is not None:
                self.limiter.give_back()
            raise stopped(self.meter.refusal())
        call.instance, call.tally, call.step = instance, tallies.begin(), dspy.settings.get(STEP, SEARCH)
        call.task, call.began = dspy.settings.get(TASK), time.monotonic()
        _within.set((*_within.get(), (self, _state(instance) if alone else 0)))
        with self._lock:
            self.calls += call.counted
            self._open[call_id] = call
        hold(call_id, partial(self._end, call_id))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Give the place back, and learn how the provider took the call."""
        hold(call_id, None)
        _within.set(_within.get()[:-1])
        if exception is not None:
            of_call(exception)
        with self._lock:
            call = self._open.get(call_id)
        if call is not None and call.tally is not None:
            tallies.end(call.tally)
        self._end(call_id, exception)

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """The language models of a module, wherever it came from (a judge in the metric), are the run's views of them.

        Those that it holds are until the run ends, that of ``dspy.settings`` while the module is called.
        """
        self._adopt(instance)
        before, lm = thread_local_overrides.get(), dspy.settings.get("lm")
        view = self._view(lm)
        if view is not lm:
            self._contexts[call_id] = before
            thread_local_overrides.set(dotdict({**before, "lm": view}))

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """The settings are again what they were."""
        before = self._contexts.pop(call_id, None)
        if before is not None:
            thread_local_overrides.set(before)

    def _adopt(self, module: Any) -> None:
        for name, lm in list(getattr(module, "__dict__", {}).items()):
            view = self._view(lm)
            if view is not lm:
                with self._lock, contextlib.suppress(TypeError, AttributeError):
                    self._adopted.setdefault(module, {}).setdefault(name, lm)
                    setattr(module, name, view)

    def release_modules(self) -> None:
        """Modules have their own language models again."""
        with self._lock:
            for module, models in list(self._adopted.items()):
                for name, lm in models.items():
                    setattr(module, name, lm)
            self._adopted.clear()

    def read_history(self, tally: Tally, history: list[dict[str, Any]], known: int) -> None:
        """A model that writes its history by hand: what is new since the last look, or since ``known`` entries."""
        with self._lock:
            new = history[self._read.get(id(history), known) :]
            self._read[id(history)] = len(history)
        for entry in new:
            tally.by_hand(entry)

    def _start(self, instance: Any, inputs: dict[str, Any]) -> _Call:
        if given_up():
            raise stopped("nobody waits for this answer any more")
        if inside(self):
            return _Call(None, counted=_within.get()[-1] != (self, _state(instance)))
        call = _admitted.get()
        if call is not None:
            _admitted.set(None)
            return call
        if in_event_loop():
            return _Call(self.limiter.acquire(block=False))
        return self._admit(request_key(instance, inputs))

    def _end(self, call_id: str, exception: BaseException | None) -> None:
        """A call has ended, or was given up; the first of the two counts."""
        with self._lock:
            call = self._open.pop(call_id, None)
        if call is None:
            return
        with dspy.context(**{STEP: call.step}):
            self._charge(call, exception)
        if exception is None:
            self._excuse(call)
        self._land(call, answered=exception is None)
        if call.round is not None:
            late = isinstance(exception, (LMTimeoutError, TimeoutError))
            refused = isinstance(exception, LMRateLimitError) or getattr(exception, "status", None) in BUSY
            told = getattr(exception, "retry_after", None)
            self.limiter.release(call.round, refused=refused, late=late, retry_after=told)

    def _excuse(self, answered: _Call) -> None:
        """A call was answered: those that began later may have waited for it inside the server, as a local one lets
        them. After the first answer of all, every call may have: the model was being loaded."""
        with self._lock:
            first, self.answered = not self.answered, True
            behind = [call for call in self._open.values() if first or call.began > answered.began]
        for call in behind:
            if call.task is not None:
                call.task.excuse(call.began)

    def patience(self) -> float:
        """How many times as long an answer is waited for: until the first one a server may be loading its model."""
        return 1.0 if self.answered else LOADING

    def _charge(self, call: _Call, exception: BaseException | None) -> None:
        """What the call took."""
        tally = call.tally
        assert tally is not None
        reached, model = tally.reached(call.instance, exception), str(getattr(call.instance, "model", "?"))
        if call.counted:
            tally.counted()
            self.meter.ended(reached=reached)
        if tally.told and (tally.tokens or tally.cost):
            self.meter.took(model, tally.tokens, tally.cost)
        elif call.counted and reached and exception is None and not tally.around:
            self.meter.untold(model)

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
                        raise stopped("the run was stopped")
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


_admitted: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("promptune_admitted", default=None)
_within: contextvars.ContextVar[tuple[tuple[LMGateway, int], ...]] = contextvars.ContextVar(
    "promptune_within", default=()
)


def inside(gateway: LMGateway) -> bool:
    """Whether this context is in a call to a language model already."""
    return any(each is gateway for each, _ in _within.get())


def expect(call: _Call) -> None:
    """The next call of this context was admitted already."""
    _admitted.set(call)


def _state(instance: Any) -> int:
    """What a language model and its views have in common."""
    return id(getattr(instance, "__dict__", instance))


def in_event_loop() -> bool:
    """Whether this thread runs one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def request_key(lm: Any, inputs: dict[str, Any]) -> int | None:
    """What makes two calls the same; ``None`` where the cache does not keep the answer."""
    asked = {**inputs, **(inputs.get("kwargs") or {})}
    asked.pop("kwargs", None)
    if not asked.get("cache", getattr(lm, "cache", False)):
        return None
    said = sorted((name, repr(value)) for name, value in asked.items() if value is not None)
    return hash((getattr(lm, "model", None), tuple(said), repr(getattr(lm, "kwargs", None))))

"""Views of language models: inside a run, their calls are retried and held to its limits, however they are made."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import dspy
from dspy.clients.base_lm import BaseLM
from dspy.promptune.limits.answers import NoAnswerError, blank, may_repeat, whole
from dspy.promptune.limits.gateway import GATEWAY, LMGateway, expect, inside, request_key, stopped
from dspy.promptune.limits.tally import MODEL_CLASS, Tally
from dspy.promptune.limits.task import waiting
from dspy.promptune.limits.threads import contexts_carried
from dspy.utils.exceptions import is_retryable_lm_error

__all__ = ["OWN", "own_calls_held", "through_gateway", "without_gateway"]

OWN = "promptune_own"  # attribute of what stands in for a class's way of calling: the class's own

MAX_DELAY = 60.0  # seconds between two tries, as upstream's
SOON = 0.1  # seconds until the first new try after a reply that was none: nobody asked to be left alone


def through_gateway(lm: Any) -> Any:
    """A view of a language model whose calls are retried by the run, with no place taken while it waits.

    The view is another object with the same state: what either changes, both see. Inside a run every try is a call
    of its own under the run's limit, and a refusal slows the run down; upstream would sleep in the midst of the
    call. A reply that holds no answer is asked for again, past the cache. Outside a run it behaves as the model
    itself. Models of other kinds are returned as they are.
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
    model: Any = object.__new__(_kind(lm))
    model.__dict__ = lm.__dict__
    return model


@contextlib.contextmanager
def own_calls_held() -> Iterator[None]:
    """In this block, a run sees the calls of threads that its programs start, and of models that call in their own way.

    Language models whose class replaces DSPy's way of calling are views within a run's context: such a model tells no
    callbacks, and where a metric calls it outside of any module nothing else would notice. Outside a run's context it
    is called as ever; after the last of several blocks the classes are as they were.
    """
    global _holders
    with _lock:
        _holders += 1
        for kind in _kinds(BaseLM):
            for name in ("__call__", "acall"):
                own = vars(kind).get(name)
                if callable(own) and not hasattr(own, "__wrapped__") and not hasattr(own, OWN):
                    setattr(kind, name, _held(name, own))
                    _replaced.append((kind, name, own))
    try:
        with contexts_carried():
            yield
    finally:
        with _lock:
            _holders -= 1
            while not _holders and _replaced:
                setattr(*_replaced.pop())


_lock = threading.Lock()
_holders = 0
_replaced: list[tuple[type, str, Any]] = []


def _kinds(base: type) -> Iterator[type]:
    """All classes below this one."""
    kind: type
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _held(name: str, own: Any) -> Any:
    """Stands in for a class's own way of calling."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        view = self if dspy.settings.get(GATEWAY) is None else through_gateway(self)
        return own(self, *args, **kwargs) if view is self else getattr(view, name)(*args, **kwargs)

    setattr(call, OWN, own)
    return call


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
        tally = dspy.settings.get("usage_tracker")
        if isinstance(tally, Tally):
            tally.entry(entry, self)
        super().update_history(entry)  # type: ignore[misc]

    def _own_retries(self) -> int:
        return int(self.__dict__.get("num_retries", 0) or 0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        gateway: LMGateway | None = dspy.settings.get(GATEWAY)
        if gateway is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        args, kwargs = _whole(args), _whole(kwargs)
        for attempt in range(self._own_retries() + 1):
            try:
                with _among_callbacks(gateway), _heard(gateway, self, "__call__", args, kwargs):
                    outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
                return _answer(self, outputs, attempt)
            except Exception as error:
                if attempt == self._own_retries() or not may_repeat(error):
                    raise
                gateway.retried += 1
                kwargs = _past_cache(self, kwargs, error)
                _sleep(gateway, _delay(error, attempt))
        raise AssertionError("unreachable")

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        gateway: LMGateway | None = dspy.settings.get(GATEWAY)
        if gateway is None:
            return await super().acall(*args, **kwargs)  # type: ignore[misc]
        args, kwargs = _whole(args), _whole(kwargs)
        for attempt in range(self._own_retries() + 1):
            if not inside(gateway):
                expect(await gateway.admit(request_key(self, _inputs(args, kwargs))))
            try:
                with _among_callbacks(gateway), _heard(gateway, self, "acall", args, kwargs):
                    outputs = await super().acall(*args, **kwargs)  # type: ignore[misc]
                return _answer(self, outputs, attempt)
            except Exception as error:
                gateway.take_back()
                if attempt == self._own_retries() or not may_repeat(error):
                    raise
                gateway.retried += 1
                kwargs = _past_cache(self, kwargs, error)
                with waiting():
                    await asyncio.sleep(_delay(error, attempt))
        raise AssertionError("unreachable")


def _answer(lm: Any, outputs: Any, attempt: int) -> Any:
    """What came back, if it is an answer; ``attempt`` counts from 0."""
    if blank(outputs):
        error = NoAnswerError("The reply holds no answer: neither text nor a tool call.", model=str(lm.model))
        error.replies = attempt + 1
        raise error
    return _whole(outputs)


def _whole(value: Any) -> Any:
    """Prompts and outputs without halves of characters, which could neither be sent nor stored; all else as it is."""
    if isinstance(value, str):
        return value if value.isascii() else whole(value)
    if type(value) is dict:
        return {name: _whole(each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_whole(each) for each in value)
    return value


def _past_cache(lm: Any, kwargs: dict[str, Any], error: Exception) -> dict[str, Any]:
    """A reply without an answer is in DSPy's cache now: the next try does not look there."""
    return {**kwargs, "cache": False} if isinstance(error, NoAnswerError) and isinstance(lm, dspy.LM) else kwargs


def _among_callbacks(gateway: LMGateway) -> contextlib.AbstractContextManager[None]:
    """Whatever callbacks a program has set, the gateway is one of them in this block."""
    callbacks = dspy.settings.get("callbacks") or []
    return contextlib.nullcontext() if gateway in callbacks else dspy.context(callbacks=[*callbacks, gateway])


@contextlib.contextmanager
def _heard(gateway: LMGateway, lm: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """A class that replaces DSPy's own way of calling calls no callbacks: then the gateway is told here."""
    if hasattr(getattr(_kind(lm), name), "__wrapped__"):
        yield
        return
    call_id, history = uuid.uuid4().hex, getattr(lm, "history", [])
    gateway.begin(call_id, lm, _inputs(args, kwargs), alone=True)
    tally, known = dspy.settings.get("usage_tracker"), len(history)
    failure: BaseException | None = None
    try:
        yield
        if not tally.told:
            gateway.read_history(tally, history, known)
    except BaseException as error:
        failure = error
        raise
    finally:
        gateway.on_lm_end(call_id, None, failure)


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(("prompt",), args, strict=False)), "kwargs": kwargs}


_views: dict[type, type] = {}


def _kind(view: Any) -> type:
    """The class of a view's model."""
    kind: type = getattr(view, MODEL_CLASS)
    return kind


def _view_class(kind: type) -> type:
    if kind not in _views:
        of_model = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        _views[kind] = type(kind.__name__, (_GatewayLM, kind), {MODEL_CLASS: kind, **of_model})
    return _views[kind]


def _delay(error: Exception, attempt: int) -> float:
    """Seconds until the next try: what the provider says, or upstream's exponential rule."""
    told = getattr(error, "retry_after", None)
    if told is not None:
        return min(float(told), MAX_DELAY)
    replied = isinstance(error, NoAnswerError) or not is_retryable_lm_error(error)
    return min((SOON if replied else 1.0) * 2.0**attempt, MAX_DELAY)


def _sleep(gateway: LMGateway, seconds: float) -> None:
    end = time.monotonic() + seconds
    with waiting():
        while (left := end - time.monotonic()) > 0:
            if gateway.limiter.stopped:
                raise stopped("the run was stopped")
            time.sleep(min(left, 0.5))

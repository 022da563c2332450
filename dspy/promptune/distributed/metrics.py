"""The user's metric, as the run calls it: with as many arguments as it takes, awaited, and always a number."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
from dspy.promptune.allocation.outcome import number
from dspy.promptune.counted import counted
from dspy.promptune.errors import EvaluationError, MetricError, OptionError
from dspy.promptune.limits.gateway import in_event_loop

__all__ = ["Metric", "check_metric", "feedback_of", "of_metric", "score_of", "takes_predictor", "verdict_of"]

MARK = "_promptune_metric"  # attribute of an error that a metric ended with
ARGUMENTS = 3  # example, prediction, trace
MOST = 5  # GEPA's metrics: also the name of a predictor and its trace, which are ``None`` where only a score is wanted
OF_PREDICTOR = ("pred_name", "pred_trace")  # what GEPA calls them


class Metric:
    """A metric for DSPy's own optimizers: what it returns is the score as a float, which is false where it is 0.

    A ``dspy.Prediction(score=0.0)`` is true as an object, so a wrong answer would count as a right one.
    """

    def __init__(self, metric: Callable[..., Any]) -> None:
        self.metric = metric

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """The score, as :func:`score_of` has it."""
        try:
            return score_of(self.metric, example, prediction, trace)
        except Exception as error:
            with contextlib.suppress(AttributeError, TypeError):
                setattr(error, MARK, True)
            raise


def of_metric(error: BaseException) -> bool:
    """Whether it was a :class:`Metric` that ended with this error, and not the program."""
    return bool(getattr(error, MARK, False))


def check_metric(metric: Any) -> None:
    """Refuse what cannot score a program, before anything is called.

    Raises:
        OptionError: It is ``None``, no callable, or takes too few or too many arguments.
    """
    if not callable(metric):
        raise OptionError(f"metric={metric!r}: give a function metric(example, prediction, trace=None) -> number.")
    least, most = _arity(metric)
    if most < 2 or least > MOST:
        count = counted(least if least > MOST else most, "argument")
        raise OptionError(
            f"The metric {getattr(metric, '__name__', metric)!r} takes {count}: it is called with an example "
            "and a prediction, if it has room for it with a trace, and with None for a predictor's name and trace."
        )


def score_of(metric: Callable[..., Any], example: Any, prediction: Any, *trace: Any) -> float:
    """One example's score.

    Args:
        metric: Takes two to five arguments. What it returns may have to be awaited; it is a number, or a
            ``dspy.Prediction`` or mapping with a ``score``.
        example: With the expected outputs.
        prediction: What the program returned.
        trace: One more argument, where the metric has room for it: in step 1 the calls of the program's predictors.

    Raises:
        MetricError: It returned what is no number.
    """
    return verdict_of(metric, example, prediction, *trace)[0]


def verdict_of(metric: Callable[..., Any], example: Any, prediction: Any, *trace: Any) -> tuple[float, str]:
    """One example's score, and what the metric says about it; see :func:`score_of`.

    Raises:
        MetricError: It returned what is no number.
    """
    value = _called(metric, example, prediction, *trace)
    told = _feedback(value)
    if isinstance(value, Mapping) and "score" in value:
        value = value["score"]
    try:
        return number(value), told
    except EvaluationError as error:
        raise MetricError(str(error)) from error


def feedback_of(
    metric: Callable[..., Any],
    example: Any,
    prediction: Any,
    trace: Any = None,
    predictor: tuple[str, Any] | None = None,
) -> str:
    """What a metric says about one prediction; empty where it gives a score only, or raises.

    Args:
        metric: The user's.
        example: With its expected fields.
        prediction: Of the whole program.
        trace: Of the program, ``(predictor, inputs, outputs)`` of each call: for metrics that take a predictor. Others
            are called without one, as for a score: many return a bool alone where there is a trace.
        predictor: Name and part of the trace of the predictor that the feedback is for.
    """
    name, own = predictor or (None, None)
    try:
        if _named(metric):
            named = dict(zip(OF_PREDICTOR, (name, own), strict=True))
            return _feedback(_awaited(metric(example, prediction, trace, **named)))
        given = (trace, name, own) if takes_predictor(metric) else ()
        return _feedback(_called(metric, example, prediction, *given))
    except Exception:
        return ""


def takes_predictor(metric: Callable[..., Any]) -> bool:
    """Whether a metric takes the name of a predictor and its trace, as GEPA's do, whatever it calls them."""
    beside = _positional(_parameters(metric) or {})[ARGUMENTS:MOST]
    unset = all(each.default is None or each.default is each.empty for each in beside)
    return _named(metric) or (len(beside) == MOST - ARGUMENTS and unset)


def _named(metric: Callable[..., Any]) -> bool:
    return set(OF_PREDICTOR) <= set(_parameters(metric) or ())


def _feedback(value: Any) -> str:
    told = value["feedback"] if isinstance(value, (Mapping, dspy.Prediction)) and "feedback" in value else None
    return str(told or "")


def _called(metric: Callable[..., Any], *arguments: Any) -> Any:
    """What a metric returns for as many of the arguments as it takes, and ``None`` for those that it needs besides."""
    least, most = _arity(metric)
    return _awaited(metric(*arguments[:most], *[None] * (least - len(arguments))))


def _awaited(value: Any) -> Any:
    return _value_of(value) if inspect.isawaitable(value) else value


def _value_of(awaitable: Awaitable[Any]) -> Any:
    """What it gives; where this thread runs an event loop already, as a notebook's does, another thread awaits it."""

    async def awaited() -> Any:
        return await awaitable

    if not in_event_loop():
        return asyncio.run(awaited())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, awaited()).result()


def _arity(metric: Callable[..., Any]) -> tuple[int, int]:
    """The numbers of positional arguments that a metric needs and takes; three where it does not say."""
    parameters = _parameters(metric)
    if parameters is None:
        return ARGUMENTS, ARGUMENTS
    positional = _positional(parameters)
    needed = sum(each.default is each.empty for each in positional)
    any_number = any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
    return needed, max(ARGUMENTS, needed) if any_number else len(positional)


def _positional(parameters: Mapping[str, inspect.Parameter]) -> list[inspect.Parameter]:
    return [each for each in parameters.values() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


def _parameters(metric: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a metric; ``None`` where it does not say."""
    try:
        return inspect.signature(metric).parameters
    except (TypeError, ValueError):
        return None

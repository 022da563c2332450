"""The user's metric, as the run calls it: with as many arguments as it takes, awaited, and always a number."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dspy.promptune.allocation.outcome import number
from dspy.promptune.counted import counted
from dspy.promptune.errors import EvaluationError, MetricError, OptionError
from dspy.promptune.limits.gateway import in_event_loop

__all__ = ["Metric", "check_metric", "score_of"]

ARGUMENTS = 3  # example, prediction, trace
MOST = 5  # GEPA's metrics: also the name of a predictor and its trace, which are ``None`` here


class Metric:
    """A metric for DSPy's own optimizers: what it returns is the score as a float, which is false where it is 0.

    A ``dspy.Prediction(score=0.0)`` is true as an object, so a wrong answer would count as a right one.
    """

    def __init__(self, metric: Callable[..., Any]) -> None:
        self.metric = metric

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """The score, as :func:`score_of` has it."""
        return score_of(self.metric, example, prediction, trace)


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
    least, most = _arity(metric)
    arguments = [example, prediction, *trace][:most]
    arguments += [None] * (least - len(arguments))
    value = metric(*arguments)
    if inspect.isawaitable(value):
        value = _value_of(value)
    if isinstance(value, Mapping) and "score" in value:
        value = value["score"]
    try:
        return number(value)
    except EvaluationError as error:
        raise MetricError(str(error)) from error


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
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return ARGUMENTS, ARGUMENTS
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    needed = sum(each.default is each.empty for each in positional)
    any_number = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    return needed, max(ARGUMENTS, needed) if any_number else len(positional)

"""Metrics that say more than a number: their score, and what they say about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import dspy

__all__ = ["Scored", "feedback_of", "takes_predictor", "two_arguments"]

OF_PREDICTOR = ("pred_name", "pred_trace")


class Scored:
    """A metric as steps 1 and 3 call it: ``(example, prediction, trace=None) -> score``.

    What it returns may be a number, or a ``dspy.Prediction`` or mapping with a ``score``. A metric that requires
    ``pred_name`` and ``pred_trace`` gets ``None`` for them: the score is that of the whole program.

    Args:
        metric: The user's.
    """

    def __init__(self, metric: Callable[..., Any]) -> None:
        self.metric = metric
        self._rest = _required(metric)

    def __repr__(self) -> str:
        return repr(self.metric)

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        """The score alone; whatever has none is handed on."""
        rest = {name: None for name in self._rest if name != "trace"}
        if trace is not None or "trace" in self._rest:
            return score_of(self.metric(example, prediction, trace, **rest))
        return score_of(self.metric(example, prediction, **rest))


def two_arguments(metric: Any) -> Any:
    """The metric itself where it can be called with an example and a prediction, otherwise :class:`Scored` of it."""
    return Scored(metric) if callable(metric) and _required(metric) else metric


def score_of(result: Any) -> Any:
    """The ``score`` of a prediction or a mapping that has one; anything else as it is."""
    if isinstance(result, (dspy.Prediction, Mapping)) and "score" in result:
        return result["score"]
    return result


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
        trace: Of the program: ``(predictor, inputs, outputs)`` of each call.
        predictor: Name and part of the trace of the predictor that the feedback is for. It is passed as ``pred_name``
            and ``pred_trace`` to metrics that take them.
    """
    asked = dict(zip(OF_PREDICTOR, predictor or (None, None), strict=True)) if takes_predictor(metric) else {}
    try:
        result = metric(example, prediction, trace, **asked)
    except Exception:
        return ""
    if isinstance(result, (dspy.Prediction, Mapping)) and "feedback" in result:
        return str(result["feedback"] or "")
    return ""


def takes_predictor(metric: Any) -> bool:
    """Whether a metric takes ``pred_name`` and ``pred_trace``."""
    return all(name in _parameters(metric) for name in OF_PREDICTOR)


def _required(metric: Any) -> tuple[str, ...]:
    """Parameters without a default behind the first two."""
    behind = list(_parameters(metric).items())[2:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, each in behind if each.default is inspect.Parameter.empty and each.kind in kinds)


def _parameters(metric: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(metric).parameters
    except (TypeError, ValueError):
        return {}

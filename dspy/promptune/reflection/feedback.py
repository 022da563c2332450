"""Metrics that say more than a number: their score, and what they say about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import dspy

__all__ = ["feedback_of", "takes_predictor"]

OF_PREDICTOR = ("pred_name", "pred_trace")


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


def _parameters(metric: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(metric).parameters
    except (TypeError, ValueError):
        return {}

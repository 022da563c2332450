"""The user's metric: how it is called, and what counts as its score."""

import asyncio
import math

import numpy as np
import pytest

import dspy
from dspy.promptune.distributed.metrics import Metric, check_metric, score_of
from dspy.promptune.errors import MetricError, OptionError

EXAMPLE, PREDICTION = dspy.Example(answer="a"), dspy.Prediction(answer="a")


class Judge(dspy.Module):
    def forward(self, example, prediction, trace=None):
        return example.answer == prediction.answer


def gepa(gold, pred, trace, pred_name, pred_trace):
    assert (pred_name, pred_trace) == (None, None)
    return dspy.Prediction(score=float(gold.answer == pred.answer), feedback="fine")


async def awaited(example, prediction, trace=None):
    return example.answer == prediction.answer


METRICS = [
    gepa, awaited, Judge(), lambda e, p: e.answer == p.answer, lambda e, p, *more: len(more) < 2,
    lambda e, p, t=None: {"score": True},
    lambda e, p, t=None: np.bool_(True), lambda e, p, t=None: np.float32(1), lambda e, p, t=None, **options: 1,
]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("trace", [(), ([],), (None,)])
def test_every_form_of_a_metric_gives_a_float(metric, trace):
    """Two to five arguments, modules, coroutines, predictions with a score: each is the float 1.0."""
    check_metric(metric)
    score = score_of(metric, EXAMPLE, PREDICTION, *trace)
    assert score == 1.0 and type(score) is float


def test_a_coroutine_is_awaited_in_a_notebook_too():
    """Where an event loop runs in the caller's thread, another thread awaits the metric, with the caller's settings."""

    async def shouts(example, prediction, trace=None):
        return dspy.settings.shout

    async def cell():
        with dspy.context(shout=2):
            return score_of(shouts, EXAMPLE, PREDICTION)

    assert asyncio.run(cell()) == 2.0


@pytest.mark.parametrize("value", [None, "1", b"1", (1, "good"), {"value": 1}, [1], math.nan, math.inf, 1e308, 10**400])
def test_what_is_no_score_is_refused(value):
    """Nothing, texts, containers, and numbers that are not finite or too large are a broken metric's."""
    with pytest.raises(MetricError, match="The metric returned"):
        score_of(lambda example, prediction, trace=None: value, EXAMPLE, PREDICTION)


def test_a_prediction_without_a_score_is_refused():
    """``dspy.Prediction(value=1.0)`` has no float value."""
    with pytest.raises(MetricError, match="Prediction"):
        score_of(lambda example, prediction: dspy.Prediction(value=1.0), EXAMPLE, PREDICTION)


def test_a_prediction_that_scores_nothing_is_no_success():
    """For DSPy's optimizers a score of 0 is false, though the object that holds it is true."""
    metric = Metric(lambda example, prediction, trace=None: dspy.Prediction(score=0.0))
    assert not metric(EXAMPLE, PREDICTION, [])


@pytest.mark.parametrize("metric", [None, "exact", lambda example: 1, lambda a, b, c, d, e, f: 1])
def test_what_cannot_score_is_refused_at_the_door(metric):
    """No metric, one that is no function, and one of too few or too many arguments."""
    with pytest.raises(OptionError, match="metric"):
        check_metric(metric)

"""What a run believes of its winner: the score to expect on new examples, and how sure that is."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import numpy as np

from dspy.promptune.allocation.mixture import expected_score
from dspy.promptune.allocation.records import ScoreTable
from dspy.promptune.gp.data import Observation, condensed
from dspy.promptune.gp.model import evidence, metric_range
from dspy.promptune.samplers.qei import QEISampler
from dspy.promptune.space import Key

__all__ = ["Expectation", "expectation"]

logger = logging.getLogger(__name__)

TOPS = (1.0, 100.0)  # highest scores of metrics that say what they range over
NINETY = 1.6449  # standard deviations on each side of the mean that hold 90 % of a Gaussian


class Expectation(NamedTuple):
    """Expected score of a prompt on new examples, its 90 % interval, and the model's mean, in the metric's units."""

    expected_score: float
    interval: tuple[float, float]
    posterior_mean: float


def expectation(sampler: Any, table: ScoreTable, key: Key) -> Expectation | None:
    """What to expect of a prompt, from all scores of a run.

    Of many prompts, the one with the highest mean was lucky. It is drawn back by what all prompts say of how good
    prompts are (:func:`dspy.promptune.allocation.mixture.expected_score`), which does not depend on why a prompt was
    measured. The interval is as wide as that of the sampler's model, and ends where the metric's range does.

    Returns:
        ``None`` for samplers without such a model, without a score, or where the model fails.
    """
    if not isinstance(sampler, QEISampler) or not sampler.bound or not table.count(key):
        return None
    rows = ((other, table.row(other)) for other in table.keys())
    found = [Observation(k, math.fsum(row.values()) / len(row), tuple(row.values()), tuple(row)) for k, row in rows]
    try:
        belief, sd = sampler.belief(condensed(found), key)
        mean = expected_score(found, key)
    except (ArithmeticError, RuntimeError) as error:
        logger.warning("No expected score of the winner (%s).", error)
        return None
    half = NINETY * math.hypot(sd, math.sqrt(evidence(found).beyond.variance(key)))
    low, high = mean - half, mean + half
    means, scores = np.array([one.value for one in found]), np.concatenate([one.scores for one in found])
    if (top := metric_range(means, scores)) in TOPS and scores.min() >= 0 and scores.max() <= top:
        low, high = max(low, 0.0), min(high, top)
    return Expectation(mean, (low, high), belief)

"""What to expect of a prompt that was chosen because its scores were the highest: the distribution of true scores.

A Gaussian prior takes the best prompts to be as far above the middle as the worst are below. Prompts are not like that:
many are about as good as the best, and some fail. Here the distribution of true scores is itself estimated from all
prompts, without a shape, by maximum likelihood (Kiefer and Wolfowitz 1956, by expectation maximization on a grid; Efron
2011 on selection bias).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.model import Evidence, evidence
from dspy.promptune.gp.parts import Array

GRID = 101  # true scores that are told apart
ROUNDS = 100  # of expectation maximization: ending early leaves the estimate smooth
MARGIN = 0.005  # no prompt is believed to be right always, or never


def expected_score(observations: Sequence[Observation], key: tuple[int, ...]) -> float:
    """Mean of a prompt's true score given its scores, in the metric's units.

    Args:
        observations: One of each prompt, with its scores.
        key: A prompt among them.
    """
    data = evidence(observations)
    likelihood, values = _likelihood(data, np.array([one.size for one in observations]))
    weights = np.full(GRID, 1 / GRID)
    for _ in range(ROUNDS):
        weights *= (likelihood / (likelihood @ weights)[:, None]).mean(axis=0)
    place = next(i for i, one in enumerate(observations) if one.key == key)
    belief = likelihood[place] * weights
    return data.centre + data.unit * float(belief @ values / belief.sum()) + data.beyond.of(key)


def _likelihood(data: Evidence, sizes: Array) -> tuple[Array, Array]:
    """Of the scores of each prompt, by true score: ``(n, GRID)``; and the true scores, as ``data.values`` is given.

    Scores that are all 0 or 1 are binomial; means of others are Gaussian.
    """
    if data.binary:
        level = np.linspace(MARGIN, 1 - MARGIN, GRID)
        values = level - data.centre / data.unit
        right = sizes * (data.values + data.centre / data.unit)
        logs = right[:, None] * np.log(level) + (sizes - right)[:, None] * np.log1p(-level)
    else:
        values = np.linspace(data.values.min(), data.values.max(), GRID)
        logs = -0.5 * (data.values[:, None] - values) ** 2 / data.variances[:, None]
    likelihood: Array = np.exp(logs - logs.max(axis=1, keepdims=True))
    return likelihood, values

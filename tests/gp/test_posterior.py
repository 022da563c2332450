"""The joint posterior over a pool, against dense linear algebra."""

import dataclasses

import numpy as np
import pytest
import torch

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.errors import CommonErrors
from dspy.promptune.gp.model import PromptGP, evidence
from dspy.promptune.gp.posterior import PoolPosterior

POINTS = [np.array([[0.0], [0.4], [1.0]]), np.array([[0.0], [0.9]])]
POOL = np.array([[i, j] for i in range(3) for j in range(2)])
SEEN = [
    Observation((0, 0), 0.75, (1.0, 1.0, 0.0, 1.0), (0, 1, 2, 3)),
    Observation((1, 1), 0.25, (0.0, 1.0, 0.0, 0.0), (0, 1, 2, 3)),
    Observation((2, 0), 0.5, (1.0, 0.0), (4, 5)),
]


def beliefs(observations=SEEN, pool=POOL):
    """The posterior with the priors' hyper-parameters."""
    return PoolPosterior(PromptGP(POINTS), pool, evidence(observations))


def dense(observations):
    """Mean and covariance over the pool by the textbook formula."""
    gp, data = PromptGP(POINTS), evidence(observations)
    with torch.no_grad():
        pool, rows = torch.as_tensor(POOL), torch.as_tensor(data.rows)
        prior, cross = gp.kernel.forward(pool, pool).numpy(), gp.kernel.forward(rows, pool).numpy()
        total = gp.kernel.forward(rows, rows).numpy() + gp.noise(data).numpy()
    solved = np.linalg.solve(total, cross)
    return data.centre + solved.T @ data.values, prior - cross.T @ solved


def test_the_posterior_is_the_textbook_one():
    """Means, variances, columns and blocks of the covariance all agree with dense formulas."""
    mean, covariance = dense(SEEN)
    found = beliefs()
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx(covariance.diagonal())
    assert found.column(4) == pytest.approx(covariance[4])
    assert found.covariance(np.array([1, 5])) == pytest.approx(covariance[np.ix_([1, 5], [1, 5])])


def test_growing_by_one_observation_is_conditioning_on_it():
    """For a pending observation: Schur complement of the covariance, and means as they were."""
    _, before = dense(SEEN)
    found = beliefs()
    mean = found.mean
    found.observe(3, 0.05)
    gain = before[3] / np.sqrt(before[3, 3] + 0.05)
    assert found.variance == pytest.approx((before - np.outer(gain, gain)).diagonal())
    assert found.column(2) == pytest.approx((before - np.outer(gain, gain))[2])
    assert found.mean == pytest.approx(mean)


def test_a_value_moves_means_by_the_kalman_gain():
    """The prompt's mean moves towards the value by variance / (variance + noise)."""
    found = beliefs()
    mean, variance = found.mean[3], found.variance[3]
    found.observe(3, 0.05, value=0.9)
    assert found.mean[3] == pytest.approx(mean + variance / (variance + 0.05) * (0.9 - mean))


def test_rewinding_forgets_exactly_what_came_since():
    """Pending observations are laid on top, and taken off again."""
    found = beliefs()
    mark, mean, variance = found.mark(), found.mean, found.variance
    for j in range(40):
        found.observe(j % 6, 0.1, value=0.3, examples=(j, j + 1))
    found.rewind(mark)
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx(variance)


def difference_variance(second_examples):
    """Posterior variance of the difference of two prompts measured on four examples each."""
    observations = [
        Observation((0, 0), 0.5, (1.0, 0.0, 1.0, 0.0), (0, 1, 2, 3)),
        Observation((2, 1), 0.5, (0.0, 1.0, 0.0, 1.0), second_examples),
    ]
    data = dataclasses.replace(evidence(observations), errors=CommonErrors(0.5, (), ()))
    covariance = PoolPosterior(PromptGP(POINTS), POOL, data).covariance(np.array([0, 5]))
    return covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


def test_prompts_are_compared_more_surely_on_the_same_examples():
    """Difficulty cancels in a paired comparison; it does not where the examples differ."""
    assert difference_variance((0, 1, 2, 3)) < 0.97 * difference_variance((4, 5, 6, 7))


def test_growing_knows_which_examples_are_shared():
    """An observation added later pairs with earlier ones just as if all had been given at once."""
    pairs, apart = beliefs(), beliefs()
    pairs.observe(5, 0.06, value=0.5, examples=(0, 1, 2, 3))
    apart.observe(5, 0.06, value=0.5, examples=(20, 21, 22, 23))
    assert pairs.column(0)[5] != pytest.approx(apart.column(0)[5], rel=1e-6)


def test_metrics_of_any_range_are_understood():
    """Scores from 0 to 100 give the same beliefs in their own units, but for the prior's idea of a range."""
    scaled = [Observation(o.key, 100 * o.value, tuple(100 * s for s in o.scores), o.examples) for o in SEEN]
    found = beliefs(scaled)
    assert np.argmax(found.mean) == np.argmax(beliefs().mean)
    assert 0 < found.mean.min() < found.mean.max() < 100

"""Beliefs about a few prompts of a pool, with their whole covariance."""

import numpy as np
import pytest

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.joint import Joint, promising
from dspy.promptune.gp.model import PromptGP, evidence
from dspy.promptune.gp.posterior import PoolPosterior

POOL = np.array([[i] for i in range(30)])
PLACES = np.array([3, 8, 21, 29])


def beliefs():
    """Thirty prompts on a line, two of them measured."""
    gp = PromptGP([np.linspace(0, 2, 30)[:, None]])
    return PoolPosterior(gp, POOL, evidence([Observation((2,), 0.2), Observation((24,), 0.8)]))


def test_members_are_believed_what_the_pool_believes():
    """Means, variances and covariances."""
    posterior = beliefs()
    joint = Joint(posterior, PLACES)
    assert len(joint) == 4
    assert joint.mean == pytest.approx(posterior.mean[PLACES])
    assert joint.variance == pytest.approx(posterior.variance[PLACES])
    assert joint.column(2) == pytest.approx(posterior.column(21)[PLACES])


def test_a_member_measured_at_its_mean_changes_what_it_would_change_in_the_pool():
    """The variances shrink alike, one observation after another, and the means stay."""
    posterior = beliefs()
    joint = Joint(posterior, PLACES)
    for member, variance in ((1, 0.01), (3, 0.002), (1, 0.01)):
        joint.observe(member, variance)
        posterior.observe(int(PLACES[member]), variance)
    assert joint.mean == pytest.approx(posterior.mean[PLACES])
    assert joint.variance == pytest.approx(posterior.variance[PLACES])


def test_the_promising_are_the_optimistic_and_the_leader():
    """Highest mean + 2 sd; those apart are counted apart, and the highest mean is there in any case."""
    posterior = beliefs()
    optimistic = posterior.mean + 2 * np.sqrt(posterior.variance)
    apart = np.argsort(-optimistic)[:10]
    found = promising(posterior, 5, apart, 2)
    expected = {*np.argsort(-optimistic)[10:15], *apart[:2], int(np.argmax(posterior.mean))}
    assert set(found) == expected and list(found) == sorted(found)

"""Who is measured next, on posteriors written down by hand."""

import math

import numpy as np
import pytest

from dspy.promptune.gp.allocation import log_worth, next_member


class Fake:
    """A posterior of given means and covariance."""

    def __init__(self, mean, covariance):
        self.mean = np.array(mean, dtype=float)
        self._covariance = np.array(covariance, dtype=float)
        self.variance = self._covariance.diagonal().copy()

    def column(self, j):
        return self._covariance[j]


def worth(gap, move):
    """move * (phi(u) + u Phi(u)) with u = gap / move, the textbook expected improvement."""
    u = gap / move
    return move * (math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi) + u * 0.5 * (1 + math.erf(u / math.sqrt(2))))


def test_the_worth_of_a_measurement_is_the_expected_excess_over_the_leader():
    """Two independent prompts, worked out by hand."""
    posterior = Fake([0.6, 0.5], [[0.01, 0.0], [0.0, 0.04]])
    found = np.exp(log_worth(posterior, np.array([0.05, 0.05])))
    assert found[1] == pytest.approx(worth(-0.1, 0.04 / math.sqrt(0.09)), rel=1e-6)
    assert found[0] == pytest.approx(worth(-0.1, 0.01 / math.sqrt(0.06)), rel=1e-6)


def test_what_prompts_have_in_common_is_worth_nothing():
    """A prompt that rises and falls with the leader cannot overtake it, however uncertain both are."""
    together = Fake([0.6, 0.55], [[0.09, 0.09], [0.09, 0.09 + 1e-8]])
    apart = Fake([0.6, 0.55], [[0.09, 0.0], [0.0, 0.09]])
    noise = np.full(2, 0.05)
    assert log_worth(together, noise)[1] < log_worth(apart, noise)[1] - 50


def test_of_equally_uncertain_prompts_the_better_is_measured():
    """Means .6, .5, .3 and equal variances: the leader and the second are worth the same, the third less."""
    found = log_worth(Fake([0.6, 0.5, 0.3], 0.02 * np.eye(3)), np.full(3, 0.05))
    assert found[0] == pytest.approx(found[1])
    assert found[2] < found[1]


def test_a_leader_that_is_well_known_is_left_alone():
    """The challenger's measurement is worth more when the leader's would hardly move it."""
    assert next_member(Fake([0.6, 0.5], [[1e-4, 0], [0, 0.02]]), np.full(2, 0.05), np.zeros(2, bool)) == 1


def test_a_leader_that_is_hardly_known_is_measured_itself():
    """The challenger is known well; all doubt lies with the leader."""
    assert next_member(Fake([0.6, 0.5], [[0.02, 0], [0, 1e-4]]), np.full(2, 0.05), np.zeros(2, bool)) == 0


def test_closed_prompts_are_never_chosen():
    """Not even the one worth most; with all others certain, whatever is open."""
    posterior = Fake([0.6, 0.5, 0.1], [[0.02, 0, 0], [0, 0.02, 0], [0, 0, 0]])
    assert next_member(posterior, np.full(3, 0.05), np.array([True, False, False])) == 1
    assert next_member(posterior, np.full(3, 0.05), np.array([True, True, False])) == 2

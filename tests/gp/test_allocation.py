"""Who is measured next, on posteriors written down by hand."""

import math
import random

import numpy as np
import pytest

from dspy.promptune.gp.allocation import (
    RULES,
    Question,
    challenge,
    drawn,
    finalist,
    log_over_leader,
    log_over_mean,
    log_over_rivals,
    log_worth,
    per_call,
)


class Fake:
    """A posterior of given means and covariance."""

    def __init__(self, mean, covariance):
        self.mean = np.array(mean, dtype=float)
        self._covariance = np.array(covariance, dtype=float)
        self.variance = self._covariance.diagonal().copy()

    def __len__(self):
        return len(self.mean)

    def column(self, j):
        return self._covariance[j]


class Posterior(Fake):
    """One that joint draws can be made of."""

    def __init__(self, mean, covariance):
        super().__init__(mean, covariance)
        self.optimistic = self.mean

    def covariance(self, places):
        return self._covariance[np.ix_(places, places)]


def improvement(gap, move):
    """move * (phi(u) + u Phi(u)) with u = gap / move, the textbook expected improvement."""
    u = gap / move
    return move * (math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi) + u * 0.5 * (1 + math.erf(u / math.sqrt(2))))


def ask(n, closed=None, *, noise=0.05, block=1, whole=100):
    """A question about ``n`` prompts of equal noise."""
    closed = np.zeros(n, dtype=bool) if closed is None else np.array(closed)
    return Question(noise=np.full(n, noise), block=block, whole=whole, closed=closed, rng=random.Random(0))


def test_the_worth_of_a_measurement_is_the_expected_excess_over_the_leader():
    """Two independent prompts, both measured, worked out by hand."""
    posterior = Fake([0.6, 0.5], [[0.01, 0.0], [0.0, 0.04]])
    found = np.exp(log_over_leader(posterior, np.array([0.05, 0.05])))
    move = math.sqrt(0.04**2 / 0.09 + 0.01**2 / 0.06)
    assert found.tolist() == pytest.approx([0.0, improvement(-0.1, move)], rel=1e-6)


def test_the_worth_of_one_block_is_that_of_the_gap_it_moves():
    """A prompt's block moves it towards the leader; the leader's own is worth the largest excess it may leave."""
    posterior = Fake([0.6, 0.5], [[0.01, 0.0], [0.0, 0.04]])
    found = np.exp(log_worth(posterior, np.array([0.05, 0.05])))
    wanted = [improvement(-0.1, 0.01 / math.sqrt(0.06)), improvement(-0.1, 0.04 / 0.3)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


def test_the_excess_over_the_present_mean_needs_no_measurement_of_the_leader():
    """The leader's own block may raise it, too."""
    posterior = Fake([0.6, 0.5], [[0.01, 0.0], [0.0, 0.04]])
    found = np.exp(log_over_mean(posterior, np.array([0.05, 0.05])))
    wanted = [improvement(0.0, 0.01 / math.sqrt(0.06)), improvement(-0.1, 0.04 / 0.3)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


def test_against_one_rival_the_noisy_best_is_the_leader():
    """With two prompts, what a block of the second adds is its excess over the first, by the integral."""
    posterior = Fake([0.6, 0.5], [[0.01, 0.0], [0.0, 0.04]])
    found = np.exp(log_over_rivals(posterior, np.array([0.05, 0.05])))
    wanted = [improvement(-0.1, 0.01 / math.sqrt(0.06)), improvement(-0.1, 0.04 / 0.3)]
    assert found.tolist() == pytest.approx(wanted, rel=0.01)


def test_what_prompts_have_in_common_is_worth_nothing():
    """A prompt that rises and falls with the leader cannot overtake it, however uncertain both are."""
    together = Fake([0.6, 0.55], [[0.09, 0.09], [0.09, 0.09 + 1e-8]])
    apart = Fake([0.6, 0.55], [[0.09, 0.0], [0.0, 0.09]])
    noise = np.full(2, 0.05)
    assert log_over_leader(together, noise)[1] < log_over_leader(apart, noise)[1] - 50


def test_a_leader_that_is_well_known_is_left_alone():
    """The challenger's block moves their difference more than the leader's."""
    assert challenge(Fake([0.6, 0.5], [[1e-4, 0], [0, 0.02]]), ask(2)) == 1


def test_a_leader_that_is_hardly_known_is_measured_itself():
    """The challenger is known well; all doubt lies with the leader."""
    assert challenge(Fake([0.6, 0.5], [[0.02, 0], [0, 1e-4]]), ask(2)) == 0


def test_a_prompt_that_needs_many_blocks_is_valued_by_as_many():
    """One example of a noisy prompt moves nothing; 32 of them are worth more, each, than one of a surer prompt."""
    posterior = Fake([0.6, 0.5, 0.59999], [[1e-9, 0, 0], [0, 0.02, 0], [0, 0, 1e-5]])
    question = ask(3, noise=0.5)
    one = log_over_mean(posterior, question.noise)
    assert one[2] > one[1]
    assert per_call(posterior, question) == 1


def test_a_draw_takes_the_better_prompt_as_often_as_it_is_likely_to_be_better():
    """Of 400 draws, within three standard errors of Phi(.1 / sqrt(.02))."""
    posterior = Posterior([0.6, 0.5], [[0.01, 0.0], [0.0, 0.01]])
    question = ask(2)
    share = np.mean([drawn(posterior, question) == 0 for _ in range(400)])
    assert share == pytest.approx(0.760, abs=0.065)


def test_the_end_is_between_the_highest_means():
    """Of eight prompts the sixth mean is uncertain enough to be measured; the seventh is not looked at."""
    mean = [0.80, 0.79, 0.78, 0.77, 0.76, 0.75, 0.74, 0.73]
    posterior = Fake(mean, np.diag([1e-4] * 5 + [0.02, 0.5, 0.5]))
    everyone, closed = np.arange(8), np.zeros(8, dtype=bool)
    assert finalist(posterior, everyone, closed) == 5
    assert finalist(posterior, everyone[:5], closed) == 0
    assert finalist(posterior, everyone, np.ones(8, dtype=bool)) is None


@pytest.mark.parametrize("name", sorted(RULES))
def test_closed_prompts_are_never_chosen(name):
    """Not even the one worth most; with all others certain, whatever is open."""
    posterior = Posterior([0.6, 0.5, 0.1], [[0.02, 0, 0], [0, 0.02, 0], [0, 0, 0]])
    assert RULES[name](posterior, ask(3, [True, False, False])) in (1, 2)
    assert RULES[name](posterior, ask(3, [True, True, False])) == 2

"""Values of blocks: the closed forms against BoTorch's acquisition functions on the look-ahead model."""

import math

import numpy as np
import pytest
import torch

from dspy.promptune.errors import OptionError
from dspy.promptune.gp.allocation import (
    log_over_leader,
    log_over_mean,
    log_over_rivals,
    log_worth,
    rivals,
)
from dspy.promptune.gp.improvement import log_improvement, normal_points
from dspy.promptune.gp.lookahead import LookAheadModel, block_acquisition, covariance_of

SAMPLES = 2**14
P = 12


class Random:
    """A posterior of random means and a random covariance."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(P, P + 3)) * rng.uniform(0.01, 0.06, size=(P, 1))
        self._covariance = root @ root.T
        self.mean = rng.normal(0.6, 0.1, P)
        self.variance = self._covariance.diagonal().copy()
        self.noise = rng.uniform(0.1, 0.25, P)

    def __len__(self):
        return P

    def after(self, blocks):
        """These beliefs once blocks are measured, whose scores are not known yet: the variances shrink."""
        for place, size in blocks:
            column = self._covariance[place].copy()
            self._covariance -= np.outer(column, column) / (column[place] + self.noise[place] / size)
        self.variance = self._covariance.diagonal().copy()
        return self

    def column(self, j):
        return self._covariance[j]

    def covariance(self, places):
        return self._covariance[np.ix_(places, places)]


def by_botorch(name, posterior, blocks, pending=()):
    """BoTorch's value of some blocks."""
    function = block_acquisition(name, posterior, posterior.noise, pending=pending, samples=SAMPLES)
    with torch.no_grad():
        return float(function(torch.tensor([blocks], dtype=torch.float64))[0])


def improvement_of(posterior, blocks, *, seed=0):
    """Expected excess over the leader of the best of several prompts: in closed form for one block, else by draws."""
    leader = int(np.argmax(posterior.mean))
    places = np.array([place for place, _ in blocks])
    distinct, index = np.unique(np.append(places, leader), return_inverse=True)
    covariance = covariance_of(posterior, distinct)[np.ix_(index, index)]
    own = np.array([posterior.noise[place] / size for place, size in blocks])
    factor = np.linalg.cholesky(covariance[:-1, :-1] + np.diag(own))
    moves = np.linalg.solve(factor, covariance[:-1]).T
    gaps, moves = posterior.mean[places] - posterior.mean[leader], moves[:-1] - moves[-1]
    if len(places) == 1:
        return float(np.exp(log_improvement(gaps, np.linalg.norm(moves, axis=1), 0.0))[0])
    points = normal_points(512, len(places), seed)
    return float(np.maximum((gaps + points @ moves.T).max(axis=1), 0.0).mean())


def test_the_model_is_the_distribution_of_the_means_that_measuring_leaves_behind():
    """Covariance S[., J] (S[J, J] + N)^-1 S[J, .] by the textbook; prompts that are only compared move along."""
    posterior = Random(0)
    found = LookAheadModel(posterior, posterior.noise).posterior(
        torch.tensor([[3.0, 5.0], [7.0, 10.0], [1.0, 0.0]]).double()
    )
    seen, measured = [3, 7, 1], [3, 7]
    covariance = posterior.covariance(np.arange(P))
    inverse = np.linalg.inv(covariance[np.ix_(measured, measured)] + np.diag(posterior.noise[measured] / [5, 10]))
    wanted = covariance[np.ix_(seen, measured)] @ inverse @ covariance[np.ix_(measured, seen)]
    assert found.distribution.covariance_matrix.numpy() == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    assert found.mean.numpy().ravel() == pytest.approx(posterior.mean[seen])


BEFORE = pytest.mark.parametrize("before", range(8))  # blocks of a batch that were chosen before, or are running


def chosen(posterior, count):
    """So many blocks of the best prompts, some of them twice, and of different sizes."""
    order = np.argsort(-posterior.mean)
    return [(int(order[i % 5]), 5 * (1 + i % 3)) for i in range(count)]


@BEFORE
@pytest.mark.parametrize("seed", range(2))
def test_the_improvement_over_the_leader_is_botorchs(seed, before):
    """qExpectedImprovement of a prompt's block and the leader's, on differences to the leader."""
    posterior = Random(seed)
    posterior.after(chosen(posterior, before))
    leader = int(np.argmax(posterior.mean))
    found = np.exp(log_over_leader(posterior, posterior.noise / 20))
    for j in rivals(posterior)[1:5]:
        wanted = by_botorch("qei", posterior, [[j, 20], [leader, 20]])
        assert found[j] == pytest.approx(wanted, rel=0.02, abs=2e-6)
    assert found[leader] == 0.0


@BEFORE
@pytest.mark.parametrize("seed", range(2))
def test_the_improvement_over_the_present_mean_is_botorchs(seed, before):
    """qLogExpectedImprovement of one block; BoTorch smooths the kink, by less than 2 %."""
    posterior = Random(seed)
    posterior.after(chosen(posterior, before))
    found = log_over_mean(posterior, posterior.noise / 20)
    for j in rivals(posterior)[:5]:
        wanted = by_botorch("qlogei", posterior, [[j, 20]])
        assert math.exp(found[j]) == pytest.approx(math.exp(wanted), rel=0.05, abs=1e-6)


@BEFORE
@pytest.mark.parametrize("seed", range(2))
def test_the_improvement_over_the_uncertain_best_is_botorchs(seed, before):
    """qLogNoisyExpectedImprovement of a prompt that is not among the rivals."""
    posterior = Random(seed)
    posterior.after(chosen(posterior, before))
    found = log_over_rivals(posterior, posterior.noise / 20)
    for j in np.argsort(-posterior.mean)[8:10]:
        wanted = by_botorch("qlognei", posterior, [[j, 20]])
        assert math.exp(found[j]) == pytest.approx(math.exp(wanted), rel=0.05, abs=1e-7)


@pytest.mark.parametrize("q", range(1, 9))
def test_the_value_of_a_batch_is_botorchs_running_blocks_included(q):
    """Batches of 1 to 8 blocks beside two that are running, one of them of a prompt of the batch."""
    posterior = Random(q)
    order = np.argsort(-posterior.mean)
    blocks = [(int(order[i + 1]), 5 * (i + 1)) for i in range(q)]
    pending = [(int(order[1]), 10), (int(order[-1]), 5)]
    wanted = by_botorch("qei", posterior, [list(block) for block in blocks], pending)
    assert improvement_of(posterior, [*blocks, *pending]) == pytest.approx(wanted, rel=0.04)


def test_one_block_is_valued_in_closed_form():
    """Without the leader's own block, and without draws."""
    posterior = Random(1)
    j = int(rivals(posterior)[1])
    found = improvement_of(posterior, [(j, 20)])
    assert math.log(found) == pytest.approx(log_worth(posterior, posterior.noise / 20)[j])
    assert found == pytest.approx(by_botorch("qei", posterior, [[j, 20]]), rel=0.02)
    assert found == improvement_of(posterior, [(j, 20)], seed=5)


def test_an_unknown_acquisition_is_refused_by_name():
    """The error lists those that BoTorch has."""
    with pytest.raises(OptionError, match=r"'thompson': BoTorch's are"):
        block_acquisition("thompson", Random(0), np.ones(P))

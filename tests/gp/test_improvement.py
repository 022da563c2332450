"""Expected improvement: the closed form, and batches against BoTorch."""

import math

import numpy as np
import pytest
import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.optim import optimize_acqf_discrete
from botorch.sampling.normal import SobolQMCNormalSampler

from dspy.promptune.gp.botorch_model import PromptModel, acquisition, score_batches
from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.improvement import Batch, greedy_batch, log_improvement
from dspy.promptune.gp.model import PromptGP, evidence
from dspy.promptune.gp.posterior import PoolPosterior


def problem(seed=0, n=20, observed=15):
    """A grid of n x n prompts, some of them measured: the model, its arrays, and the same in BoTorch."""
    rng = np.random.default_rng(seed)
    gp = PromptGP([rng.normal(size=(n, 3)) / 2, rng.normal(size=(n, 3)) / 2])
    pool = np.array([[i, j] for i in range(n) for j in range(n)])
    rows = pool[rng.choice(len(pool), observed, replace=False)]
    seen = [
        Observation(tuple(r), float(p), tuple((rng.random(20) < p).astype(float)))
        for r, p in zip(rows.tolist(), rng.uniform(0.2, 0.8, observed), strict=True)
    ]
    data = evidence(seen)
    return PoolPosterior(gp, pool, data), PromptModel(gp, data)


@pytest.mark.parametrize("u", [-40.0, -8.0, -5.99, -6.01, -1.0, 0.0, 2.0])
def test_the_closed_form_is_the_integral(u):
    """Against 200,000-point quadrature of max(f - best, 0) where it does not underflow, else against the series."""
    mean, sd, best = 0.3, 0.1, 0.3 - 0.1 * u
    found = float(log_improvement(np.array([mean]), np.array([sd]), best)[0])
    z = np.linspace(max(-u, -12), max(-u, -12) + 14, 200_001)
    density = np.exp(-0.5 * (z**2 - u**2 if u < -6 else z**2)) / math.sqrt(2 * math.pi)
    value = float(np.trapezoid(np.maximum(u + z, 0) * density, z)) * sd
    expected = math.log(value) - (0.5 * u**2 if u < -6 else 0.0)
    assert found == pytest.approx(expected, abs=2e-3)


def test_without_uncertainty_only_the_plain_gain_is_left():
    """sd = 0: the logarithm of the gain, or minus infinity."""
    found = log_improvement(np.array([0.5, 0.2]), np.zeros(2), 0.4)
    assert found[0] == pytest.approx(math.log(0.1))
    assert found[1] == -np.inf


def test_alone_it_is_botorchs_analytic_log_expected_improvement():
    """At q = 1 over a whole pool, far into the tail."""
    from botorch.acquisition.analytic import LogExpectedImprovement

    posterior, model = problem()
    best = float(posterior.mean.max()) + 0.05
    ours = Batch(posterior, best, seed=0, size=1).log_gains()
    with torch.no_grad():
        theirs = LogExpectedImprovement(model, best_f=best)(torch.as_tensor(posterior.pool).double()[:, None]).numpy()
    assert ours == pytest.approx(theirs, abs=5e-3)  # BoTorch sees 1e-9 of jitter in the covariance


@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_is_as_good_as_botorchs_search_of_the_pool(seed):
    """Its joint qEI (2^14 samples) is at least 99 % of what optimize_acqf_discrete finds with qLogEI."""
    posterior, model = problem(seed)
    best = float(posterior.mean.max())
    choices = torch.as_tensor(posterior.pool).double()
    sampler = SobolQMCNormalSampler(torch.Size([512]), seed=seed)
    theirs, _ = optimize_acqf_discrete(qLogExpectedImprovement(model, best_f=best, sampler=sampler), 4, choices)
    ours = posterior.pool[greedy_batch(posterior, 4, best=best, seed=seed)]
    judge = acquisition("qei", model, best=best, seed=99, pending=None)
    judge.sampler = SobolQMCNormalSampler(torch.Size([2**14]), seed=99)
    values = score_batches(judge, [ours.astype(float), theirs.numpy()])
    assert values[0] >= 0.99 * values[1]


def test_what_has_been_chosen_is_not_worth_choosing_again():
    """After a prompt joined the batch, it adds nothing, and its near twins add less than before."""
    posterior, _ = problem()
    batch = Batch(posterior, float(posterior.mean.max()), seed=0, size=2)
    before = batch.log_gains()
    j = int(np.argmax(before))
    batch.add(j)
    after = batch.log_gains()
    assert after[j] < before[j] - 5
    assert (after <= before + 1e-6).all()


def test_pending_prompts_have_to_be_beaten_and_are_not_chosen():
    """The batch goes elsewhere when its favorite is already being evaluated."""
    posterior, _ = problem()
    best = float(posterior.mean.max())
    first = greedy_batch(posterior, 3, best=best, seed=0)
    second = greedy_batch(posterior, 3, best=best, seed=0, given=first)
    assert not set(first) & set(second)


def test_a_pool_smaller_than_the_batch_is_given_whole():
    """Asked for 8 of 4, it returns the 4."""
    gp = PromptGP([np.eye(2), np.eye(2)])
    pool = np.array([[i, j] for i in range(2) for j in range(2)])
    posterior = PoolPosterior(gp, pool, evidence([Observation((0, 0), 0.5)]))
    assert sorted(greedy_batch(posterior, 8, best=0.5, seed=0)) == [0, 1, 2, 3]


def test_improvements_that_underflow_are_still_ranked():
    """A hundred standard deviations below the best, the batch still prefers the likelier prompt."""
    posterior, _ = problem()
    best = float(posterior.mean.max() + 100 * np.sqrt(posterior.variance.max()))
    chosen = greedy_batch(posterior, 1, best=best, seed=0)[0]
    u = (posterior.mean - best) / np.sqrt(posterior.variance)
    assert chosen == int(np.argmax(u))

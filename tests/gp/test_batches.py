"""Batches by name."""

import numpy as np
import pytest

from dspy.promptune.gp.batches import BATCHES, CROWD, Request, crowded, improvement, joint_draws, shortlist
from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.model import PromptGP, evidence
from dspy.promptune.gp.posterior import PoolPosterior

POOL = np.array([[i] for i in range(30)])


def beliefs():
    """Thirty prompts on a line, four of them measured; the right end is best."""
    gp = PromptGP([np.linspace(0, 2, 30)[:, None]])
    seen = [
        Observation((i,), v, (0.0,) * round(50 * (1 - v)) + (1.0,) * round(50 * v))
        for i, v in ((2, 0.2), (12, 0.4), (24, 0.8), (27, 0.7))
    ]
    return PoolPosterior(gp, POOL, evidence(seen))


REQUEST = Request(q=5, observed=[2, 12, 24, 27], pending=[29], seed=3)


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_a_batch_has_different_prompts_and_none_that_is_pending(name):
    """Five of thirty, whatever the acquisition."""
    chosen = BATCHES[name](beliefs(), REQUEST)
    assert len(set(chosen)) == 5
    assert 29 not in chosen


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_a_batch_looks_where_it_is_promising(name):
    """Most of it lies in the better half."""
    assert sum(j >= 15 for j in BATCHES[name](beliefs(), REQUEST)) >= 3


def test_the_yardstick_is_the_best_mean_among_the_observed():
    """Not the highest observation, and not a prompt nobody measured."""
    posterior = beliefs()
    assert REQUEST.best(posterior) == posterior.mean[[2, 12, 24, 27]].max()


def test_against_noisy_rivals_the_measured_are_not_proposed_again():
    """qlognei asks what a prompt adds to the uncertain best of the measured: they add nothing to themselves."""
    assert not set(BATCHES["qlognei"](beliefs(), REQUEST)) & {2, 12, 24, 27}


def test_joint_draws_have_the_posteriors_moments():
    """Mean and covariance of 20,000 draws; their standard errors are 1/140 of a standard deviation."""
    posterior = beliefs()
    members = np.array([0, 10, 11, 29])
    draws = joint_draws(posterior, members, 20_000, np.random.default_rng(0))
    assert draws.mean(axis=0) == pytest.approx(posterior.mean[members], abs=0.005)
    assert np.cov(draws.T) == pytest.approx(posterior.covariance(members), abs=0.002)


def test_a_shortlist_keeps_the_optimistic():
    """The members with the highest mean + 2 sd, in the order of the pool."""
    posterior = beliefs()
    optimistic = posterior.mean + 2 * np.sqrt(posterior.variance)
    assert shortlist(posterior, 4).tolist() == sorted(np.argsort(-optimistic)[:4].tolist())
    assert shortlist(posterior, 99).tolist() == list(range(30))


def test_a_crowd_begins_with_the_prompt_that_one_alone_would_be_given():
    """The first of a large batch has the highest expected improvement."""
    alone = Request(q=1, observed=REQUEST.observed)
    assert crowded(beliefs(), alone) == improvement(beliefs(), alone)


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_in_a_crowd_no_prompt_is_chosen_twice(name):
    """Of 200 prompts, 80 are being evaluated and 60 more are wanted: 60 others, mostly good ones."""
    gp = PromptGP([np.linspace(0, 2, 200)[:, None]])
    seen = [Observation((i,), i / 200) for i in (10, 60, 120, 190)]
    posterior = PoolPosterior(gp, np.array([[i] for i in range(200)]), evidence(seen))
    pending = list(range(0, 160, 2))
    assert len(pending) + 60 > CROWD
    chosen = BATCHES[name](posterior, Request(q=60, observed=[10, 60, 120, 190], pending=pending, seed=1))
    assert len(set(chosen)) == 60 and not set(chosen) & set(pending)
    assert np.mean(chosen) > 100

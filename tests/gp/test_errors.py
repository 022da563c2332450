"""What the errors of prompts have in common on an example."""

import dataclasses
import itertools

import numpy as np
import pytest

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.errors import ALONE, CLOSE, DIFFICULTY, MOST, closeness, common_errors
from dspy.promptune.gp.kernel import PartsKernel
from dspy.promptune.gp.model import PromptGP, evidence
from dspy.promptune.gp.parts import project
from dspy.promptune.gp.posterior import PoolPosterior

KEYS = np.array(list(itertools.product(range(6), range(6))))
POINTS = [project(np.random.default_rng(part).normal(size=(6, 5))) for part in range(2)]


def observed(key, scores, first=0):
    """Scores of a prompt on examples in a row."""
    return Observation(key, float(np.mean(scores)), tuple(scores), tuple(range(first, first + len(scores))))


def scored(difficulty, *parts, examples=400):
    """All prompts on the same examples, whose errors have these shares in common."""
    near = [closeness(points, KEYS[:, i], KEYS[:, i]) for i, points in enumerate(POINTS)]
    common = difficulty + np.tensordot(parts, near, axes=1) + (1 - difficulty - sum(parts)) * np.eye(len(KEYS))
    errors = np.random.default_rng(0).multivariate_normal(np.zeros(len(KEYS)), common, size=examples)
    return [observed(tuple(key), row) for key, row in zip(KEYS.tolist(), errors.T, strict=True)]


def test_candidates_are_as_close_as_their_vectors():
    """The same candidate is 1, and others fall off with their distance."""
    near = closeness(np.array([[0.0], [1.0], [1.0]]), np.array([0, 1]), np.array([0, 1, 2, 0]))
    assert near == pytest.approx(np.array([[1, np.exp(-1), np.exp(-1), 1], [np.exp(-1), 1, 1, np.exp(-1)]]))


@pytest.mark.parametrize("shares", [(0.3, 0.4, 0.0), (0.2, 0.3, 0.3), (0.5, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_shares_are_found_from_the_scores(shares):
    """Difficulty and each part have the shares that the scores were drawn with."""
    found = common_errors(scored(*shares), POINTS)
    assert (found.difficulty, *found.parts) == pytest.approx(shares, abs=0.09)


def test_without_vectors_difficulty_stands_for_all():
    """It is what any two prompts have in common in the mean."""
    found = common_errors(scored(0.5, 0.0, 0.0))
    assert found.parts == ()
    assert found.difficulty == pytest.approx(0.5, abs=0.09)


def test_shares_of_which_scores_say_nothing_are_assumed():
    """No example was seen by two prompts, or by prompts with one score, or it is not known which it was."""
    alone = [observed((0, 0), [0.0, 1.0]), observed((1, 0), [1.0, 0.0], first=2), observed((2, 0), [1.0])]
    for seen in (alone, [Observation((3, 1), 0.5, (0.0, 1.0)), Observation((4, 1), 0.5)]):
        found = common_errors(seen, POINTS)
        assert (found.difficulty, *found.parts) == (DIFFICULTY, CLOSE / 2, CLOSE / 2)
        assert common_errors(seen).difficulty == ALONE


def test_prompts_with_equal_scores_still_have_noise_of_their_own():
    """Differences are never believed to be free of noise, and a covariance stays positive."""
    row = np.tile([0.0, 1.0, 1.0, 0.0], 25)
    data = evidence([observed(tuple(key), row) for key in KEYS[:8].tolist()], PartsKernel(POINTS))
    assert data.errors.total == pytest.approx(MOST)
    assert np.linalg.eigvalsh(PromptGP(POINTS).noise(data).detach().numpy()).min() > 0


def test_one_observation_more_is_as_if_it_had_been_there():
    """A posterior that grows by a block has the means and variances of one that is computed from all blocks."""
    model, blocks = PromptGP(POINTS), scored(0.2, 0.3, 0.2, examples=8)[:9]
    data = evidence(blocks, PartsKernel(POINTS))
    names = ("rows", "values", "variances", "weights")
    before = dataclasses.replace(data, **{name: getattr(data, name)[:-1] for name in names})
    whole, grown = PoolPosterior(model, KEYS, data), PoolPosterior(model, KEYS, before)
    last = blocks[-1]
    grown.observe(8, float(data.unit**2 * data.variances[-1]), last.value, last.examples)
    assert grown.mean == pytest.approx(whole.mean, abs=1e-6)
    assert grown.variance == pytest.approx(whole.variance, abs=1e-6)

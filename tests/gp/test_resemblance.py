"""Errors that prompts with the same candidates have in common."""

import numpy as np

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.model import PromptGP, alike, evidence
from dspy.promptune.gp.posterior import PoolPosterior


def observed(key, scores, first=0):
    return Observation(key, float(np.mean(scores)), tuple(scores), tuple(range(first, first + len(scores))))


def gp(parts):
    rng = np.random.default_rng(0)
    return PromptGP([rng.normal(size=(4, 2)) for _ in range(parts)])


def test_prompts_are_alike_by_the_share_of_common_candidates():
    """All parts in common is one, none is zero."""
    rows = np.array([[0, 1, 2], [0, 1, 3], [1, 2, 3]])
    assert np.allclose(alike(rows, rows), [[1, 2 / 3, 0], [2 / 3, 1, 1 / 3], [0, 1 / 3, 1]])


def test_only_prompts_of_three_parts_and_more_share_errors():
    """The noise of two means on the same examples has more in common the more candidates are the same."""
    scores = [[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    for parts, more in ((3, True), (2, False)):
        keys = [(0,) * parts, (0,) * (parts - 1) + (1,), (1,) * (parts - 1) + (2,)]
        data = evidence([observed(key, row) for key, row in zip(keys, scores, strict=True)])
        noise = gp(parts).noise(data).detach().numpy()
        assert (noise[0, 1] > noise[0, 2] + 1e-6) == more
        assert np.linalg.eigvalsh(noise).min() > 0


def test_one_observation_more_is_as_if_it_had_been_there():
    """A posterior that grows by a block has the means and variances of one that is computed from all blocks."""
    model, pool = gp(3), np.array([(i, j, k) for i in range(3) for j in range(3) for k in range(3)])
    rng = np.random.default_rng(1)
    blocks = [observed(tuple(pool[n]), rng.integers(0, 2, 5).astype(float)) for n in (0, 1, 4, 13, 26, 3)]
    data = evidence(blocks)
    whole = PoolPosterior(model, pool, data)
    first = evidence(blocks)
    for name in ("rows", "values", "variances", "weights"):
        object.__setattr__(first, name, getattr(first, name)[:-1])
    grown = PoolPosterior(model, pool, first)
    last = blocks[-1]
    grown.observe(3, float(data.variances[-1]), last.value, last.examples)
    assert np.allclose(grown.mean, whole.mean, atol=0.02)
    assert np.allclose(grown.variance, whole.variance, rtol=0.05)

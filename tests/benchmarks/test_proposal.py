"""The measurement of a proposal's cost."""

import numpy as np
import pytest

from benchmarks.proposal import Case, measure, problem


def test_a_problem_is_the_same_for_every_method():
    """Ours and BoTorch's rows are measured on the same pool, vectors and scores."""
    one, other = (problem(Case(method, 200, 20, 16)) for method in ("ours", "botorch"))
    assert one.pool == other.pool
    assert one.scores == other.scores
    assert all(np.array_equal(a, b) for a, b in zip(one.vectors, other.vectors, strict=True))
    assert set(one.observed) <= set(one.pool)


@pytest.mark.slow
def test_the_referee_has_our_posterior_and_no_better_batch():
    """BoTorch's model agrees with ours to 1e-6, and its batch is worth no more than 1 % above ours."""
    ours, referee = (measure(Case(method, 200, 20, 16)) for method in ("ours", "botorch"))
    assert referee["gap"] < 1e-6
    assert ours["value"] >= 0.99 * referee["value"]
    assert ours["value"] == pytest.approx(referee["value"], rel=0.05)

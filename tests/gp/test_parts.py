"""Projecting the vectors of a part: the scale, the cut, and what has no directions."""

import numpy as np
import pytest

from dspy.promptune.gp.parts import project


def mean_squared_distance(points):
    """Over all pairs of different rows."""
    gaps = ((points[:, None] - points[None]) ** 2).sum(-1)
    return gaps[np.triu_indices(len(points), 1)].mean()


def test_the_typical_squared_distance_between_candidates_is_one():
    """Lengthscales of different parts and embedders speak of the same unit."""
    vectors = np.random.default_rng(0).normal(size=(30, 8)) + 5.0
    assert mean_squared_distance(project(vectors)) == pytest.approx(1.0)


def test_the_length_of_a_vector_says_nothing():
    """Only directions count, as for cosine similarity."""
    vectors = np.random.default_rng(0).normal(size=(10, 4))
    longer = vectors * np.linspace(1, 9, 10)[:, None]
    assert np.allclose(np.abs(project(vectors)), np.abs(project(longer)))


def test_wide_vectors_are_cut_to_the_directions_that_vary_most():
    """Of 100 columns, at most as many as asked for are left."""
    assert project(np.random.default_rng(0).normal(size=(50, 100)), max_dims=7).shape == (50, 7)


@pytest.mark.parametrize("vectors", [np.ones((1, 3)), np.ones((4, 3)), np.zeros((4, 3))])
def test_candidates_that_do_not_differ_are_one_point(vectors):
    """A single candidate, equal ones, and empty vectors all give zeros, not NaN."""
    points = project(vectors)
    assert points.shape[0] == len(vectors)
    assert not points.any()

"""Beliefs about a few prompts with their whole covariance: many decisions in a row, each at little cost."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.posterior import PoolPosterior, first_highest

NEAR = 4  # promising positions for each place of a random batch

Places = NDArray[np.intp]
"""Positions in a pool."""


class Joint:
    """Joint Gaussian of the true scores of some members of a pool; observing one costs the square of their number.

    Args:
        posterior: Beliefs about the pool.
        members: Positions in the pool, ``(m,)``; from here on a member is its position in this array.

    Attributes:
        mean: ``(m,)``.
        covariance: ``(m, m)``.
    """

    def __init__(self, posterior: PoolPosterior, members: Places) -> None:
        self.mean: Array = posterior.mean[members]
        self.covariance: Array = posterior.covariance(members)
        self._noise: Array = posterior.noise(1)[members]

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def variance(self) -> Array:
        """Variances ``(m,)``, never below zero."""
        variances: Array = np.maximum(self.covariance.diagonal(), 0.0)
        return variances

    def noise(self, size: int) -> Array:
        """Variance of a mean of ``size`` further scores of each member about its true score, ``(m,)``."""
        return self._noise / size

    def column(self, j: int) -> Array:
        """Covariances of member ``j`` with all members, ``(m,)``."""
        column: Array = self.covariance[j]
        return column

    def observe(self, j: int, variance: float) -> None:
        """Take member ``j`` as measured at its mean, with noise of this variance: uncertainties shrink, means stay."""
        column = self.covariance[j] / np.sqrt(max(self.covariance[j, j], 0.0) + variance)
        self.covariance -= np.outer(column, column)


def promising(posterior: PoolPosterior, size: int, apart: Places | None = None, most: int = 0) -> Places:
    """Positions of the ``size`` members with the highest ``mean + 2 sd``, and of the highest mean.

    Args:
        posterior: Beliefs about the pool.
        size: How many.
        apart: Positions that do not count among them: of these, the ``most`` most promising are taken besides.
        most: See ``apart``.
    """
    order = np.argsort(-posterior.optimistic, kind="stable")
    aside = np.isin(order, [] if apart is None else apart)
    leader = first_highest(posterior.mean)
    return np.unique(np.concatenate([order[~aside][:size], order[aside][:most], [leader]]))


def random_batches(
    optimistic: Array, free: Sequence[int], size: int, count: int, rng: random.Random
) -> list[list[int]]:
    """Batches of different positions by chance, every other one of the most promising positions only.

    Args:
        optimistic: ``(P,)`` what each member may be worth.
        free: Positions that may be chosen, at least ``size``.
        size: Of a batch.
        count: Batches.
        rng: Draws them.
    """
    best = sorted(free, key=lambda j: -optimistic[j])[: NEAR * size]
    return [rng.sample(best if i % 2 else list(free), size) for i in range(count)]

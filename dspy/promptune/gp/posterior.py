"""What is believed about every prompt of a pool, jointly, and how one more observation changes it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from dspy.promptune.gp.model import Evidence, PromptGP
from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.threads import one_thread

STRIPE = 500_000  # entries of a covariance computed at once
LEVELS = (0.05, 0.95)  # a prompt's next scores are never taken for certain
TIE = 1e-9  # values closer than this share of the highest are equal


@dataclass(frozen=True)
class Mark:
    """A point in the growth of a posterior, to come back to."""

    n: int
    mean: Array
    variance: Array


class PoolPosterior:
    """Gaussian posterior of the true scores of a pool of prompts, in the metric's units.

    Kept as the Cholesky factor ``L`` of the covariance of what was observed and ``A = L^-1 K(observed, pool)``: an
    observation adds one row to each (Rasmussen and Williams 2006, algorithm 2.1, grown row by row), and a column of
    the posterior covariance costs one product. Nothing of size pool x pool is kept.

    Args:
        gp: Prior and noise.
        pool: ``(P, parts)`` candidate indices.
        data: What was observed, prompts of the pool or not.

    Attributes:
        mean: ``(P,)``.
        variance: ``(P,)``, never below zero.
    """

    def __init__(self, gp: PromptGP, pool: Array, data: Evidence) -> None:
        self.pool = pool
        self._gp = gp
        self._centre, self._unit, self._ends = data.centre, data.unit, data.ends
        self._beyond: Array = np.array([data.beyond.of(tuple(row)) for row in pool.tolist()] if data.beyond else 0.0)
        self._per_score = None if data.binary else self._unit**2 * data.per_score
        self._errors, self._common = data.errors, data.common
        self._keys = _grown(data.rows, 16)
        self._n = len(data)
        self._weights = _grown(data.weights, 16)
        self._columns = dict(data.columns)
        with torch.no_grad():
            noise = gp.noise(data).numpy()
        factor = _cholesky(self._kernel(data.rows, data.rows) + noise)
        prior = self._kernel(data.rows, pool)
        cross = solve_triangular(factor, prior, lower=True, check_finite=False)
        self._white = _grown(solve_triangular(factor, data.values, lower=True, check_finite=False), 16)
        self._factor = np.zeros((len(self._white), len(self._white)))
        self._factor[: self._n, : self._n] = factor
        self._cross, self._prior = _grown(cross, 16), _grown(prior, 16)
        self._rows_of: dict[int, Array] = {}
        self._expected: Array = gp.kernel.expected(torch.as_tensor(pool)).numpy()
        self._mean = self._expected + cross.T @ self._white[: self._n]
        self._variance = self._diagonal() - np.einsum("ij,ij->j", cross, cross)

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def unit(self) -> float:
        """Length of the metric's range: 1 for scores from 0 to 1, 100 for percentages."""
        return self._unit

    @property
    def mean(self) -> Array:
        """Posterior means ``(P,)``."""
        means: Array = self._centre + self._unit * self._mean + self._beyond
        return means

    @property
    def variance(self) -> Array:
        """Posterior variances ``(P,)``."""
        variances: Array = self._unit**2 * np.maximum(self._variance, 0.0)
        return variances

    @property
    def optimistic(self) -> Array:
        """Two standard deviations above each mean, ``(P,)``: what a member may be worth."""
        bounds: Array = self.mean + 2 * np.sqrt(self.variance)
        return bounds

    def noise(self, size: int) -> Array:
        """Variance of a mean of ``size`` further scores of each member about its true score, ``(P,)``."""
        if self._per_score is not None:
            return np.full(len(self), self._per_score / size)
        level = np.clip(self.mean / self._unit, *LEVELS)
        return self._unit**2 * level * (1 - level) / size

    def column(self, j: int) -> Array:
        """Posterior covariances of pool member ``j`` with all members, ``(P,)``."""
        cross = self._cross[: self._n]
        return self._unit**2 * (self._row(j) - cross[:, j] @ cross)

    def covariance(self, members: NDArray[np.intp]) -> Array:
        """Joint posterior covariance of some members (their positions in the pool), ``(m, m)``."""
        cross = self._cross[: self._n, members]
        rows = self.pool[members]
        return self._unit**2 * (self._kernel(rows, rows) - cross.T @ cross)

    def observe(self, j: int, variance: float, value: float | None = None, examples: Sequence[int] = ()) -> None:
        """Add one observation of pool member ``j``.

        Args:
            j: Position in the pool.
            variance: Of the observed mean about the true score, all noise together, in squared units of the metric.
            value: The observed mean; ``None`` for a pending one: the variances shrink and the means stay.
            examples: The validation examples behind the mean; empty where unknown.
        """
        share = self._shares(examples)
        n = self._n
        self._reserve(n + 1)
        prior, own = self._row(j), variance / self._unit**2
        if len(examples):
            own += self._errors.total * (self._common / len(examples) - own)
        shared = self._common * self._errors.between(self._keys[:n], self.pool[j : j + 1])[:, 0]
        cross = self._prior[:n, j] + shared * (self._weights[:n] @ share)
        row = solve_triangular(self._factor[:n, :n], cross, lower=True, check_finite=False) if n else cross
        pivot = np.sqrt(max(float(prior[j]) + own - float(row @ row), 1e-10))
        new = (prior - row @ self._cross[:n]) / pivot
        white = 0.0
        if value is not None:
            low, high = self._ends
            residual = (min(max(value, low), high) - self._centre) / self._unit - self._expected[j]
            white = (residual - float(row @ self._white[:n])) / pivot
        self._factor[n, :n], self._factor[n, n] = row, pivot
        self._cross[n], self._prior[n], self._white[n], self._weights[n] = new, prior, white, share
        self._keys[n] = self.pool[j]
        self._n = n + 1
        self._mean = self._mean + new * white
        self._variance = self._variance - new**2

    def mark(self) -> Mark:
        """Remember the present state, for :meth:`rewind`."""
        return Mark(self._n, self._mean, self._variance)

    def rewind(self, mark: Mark) -> None:
        """Forget every observation since ``mark``."""
        self._n, self._mean, self._variance = mark.n, mark.mean, mark.variance

    def _shares(self, examples: Sequence[int]) -> Array:
        """Weights of examples in a mean, with columns for those never seen before."""
        new = [example for example in examples if example not in self._columns]
        self._columns.update(zip(new, itertools.count(len(self._columns)), strict=False))
        if len(self._columns) > self._weights.shape[1]:
            self._weights = np.pad(self._weights, ((0, 0), (0, len(new) + 32)))
        share = np.zeros(self._weights.shape[1])
        for example in examples:
            share[self._columns[example]] += 1 / len(examples)
        return share

    def _row(self, j: int) -> Array:
        """Prior covariances of member ``j`` with the pool, ``(P,)``."""
        if j not in self._rows_of:
            self._rows_of[j] = self._kernel(self.pool[j : j + 1], self.pool)[0]
        return self._rows_of[j]

    def _kernel(self, first: Array, second: Array) -> Array:
        """Prior covariances ``(n, m)``, in stripes: a kernel needs some ten temporaries of the size of its result."""
        width = max(1, STRIPE // max(len(first), 1))
        rows, columns = torch.as_tensor(first), torch.as_tensor(second)
        result = np.empty((len(first), len(second)))
        with torch.no_grad(), one_thread():
            for start in range(0, len(second), width):
                stripe = columns[start : start + width]
                result[:, start : start + width] = self._gp.kernel.forward(rows, stripe).numpy()
        return result

    def _diagonal(self) -> Array:
        rows = torch.as_tensor(self.pool)
        with torch.no_grad(), one_thread():
            return self._gp.kernel.forward(rows, rows, diag=True).numpy()

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._white):
            return
        more = max(16, rows // 4)
        self._weights, self._white = _grown(self._weights, more), _grown(self._white, more)
        self._keys = _grown(self._keys, more)
        self._cross, self._prior = _grown(self._cross, more), _grown(self._prior, more)
        self._factor = np.pad(self._factor, ((0, more), (0, more)))


def _grown(rows: Array, more: int) -> Array:
    """A copy with room for ``more`` rows."""
    return np.concatenate([rows, np.zeros((more, *rows.shape[1:]), dtype=rows.dtype)])


def _cholesky(matrix: Array) -> Array:
    """Lower factor, by torch: its threads are ours to limit."""
    with one_thread():
        factor: Array = torch.linalg.cholesky(torch.as_tensor(matrix)).numpy()
    return factor


def highest(values: Array | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which values are the highest but for rounding.

    Prompts of which the same is known have the same value, and rounding, which differs between processors and between
    units of the metric, does not choose between them.
    """
    top = float(values.max())
    return np.asarray(values >= top - TIE * abs(top))


def first_highest(values: Array | NDArray[np.bool_]) -> int:
    """Position of the first of the :func:`highest` values."""
    return int(np.argmax(highest(values)))

"""Expected improvement over a pool, one prompt at a time and in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.posterior import PoolPosterior, first_highest

SAMPLES = 128  # Sobol points in at most q - 1 dimensions; the last dimension is integrated exactly
_TAIL = -6.0  # below it the closed form cancels; the asymptotic series is good to 1e-4 there
_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


def log_improvement(mean: Array, sd: Array, best: Array | float) -> Array:
    """Logarithm of the expected improvement of ``Normal(mean, sd^2)`` over ``best``, elementwise.

    ``log(sd * h(u))`` with ``u = (mean - best) / sd`` and ``h(u) = phi(u) + u Phi(u)`` (Jones et al. 1998), which
    underflows below ``u = -38``; in the tail ``h(u) ~ phi(u) / u^2 * (1 - 3 / u^2 + 15 / u^4)`` (the remedy of Ament
    et al. 2023). ``sd = 0`` gives the logarithm of the plain improvement, ``-inf`` where there is none.
    """
    gain = np.asarray(mean - best, dtype=np.float64)
    sd = np.broadcast_to(np.asarray(sd, dtype=np.float64), gain.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = gain / sd
        density = np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
        body = np.log(np.maximum(density + u * ndtr(u), 0.0))
        if bool((u < _TAIL).any()):
            inverse = 1 / np.minimum(u, _TAIL) ** 2
            tail = -0.5 * u**2 - _LOG_ROOT_TWO_PI + np.log(inverse) + np.log1p(inverse * (15 * inverse - 3))
            body = np.where(u < _TAIL, tail, body)
        result: Array = np.where(sd > 0, body + np.log(sd), np.log(np.maximum(gain, 0.0)))
    return result


def normal_points(count: int, dims: int, seed: int) -> Array:
    """Scrambled Sobol points of a standard normal distribution, ``(count, dims)``; ``count`` is a power of two."""
    from scipy.stats import qmc  # 0.4 seconds, which most searches can do without

    points: Array = ndtri(np.clip(qmc.Sobol(dims, seed=seed).random(count), 1e-9, 1 - 1e-9))
    return points


class Batch:
    """A batch under construction: joint samples of its members, and what each further prompt would add.

    Members' scores are Sobol samples; the score of a prompt that is not yet a member is Gaussian given each sample,
    so its improvement is in closed form and only ``q - 1`` dimensions are ever sampled.

    Args:
        posterior: Beliefs over the pool.
        best: What a member has to beat.
        seed: Of the Sobol scrambling.
        size: Members at most.
    """

    def __init__(self, posterior: PoolPosterior, best: float, *, seed: int, size: int) -> None:
        self.members: list[int] = []
        self._posterior = posterior
        self._mean, self._variance = posterior.mean, posterior.variance
        self._floor = 1e-10 * float(self._variance.max(initial=0.0)) + 1e-18
        self._factors = np.zeros((0, len(posterior)))
        self._normal = normal_points(SAMPLES, max(size, 1), seed)
        self._best: Array = np.full(SAMPLES, best)

    def add(self, j: int) -> None:
        """Make pool member ``j`` a member of the batch: from now on it has to be beaten too."""
        mean = self._means(slice(j, j + 1))[:, 0]
        sd = math.sqrt(max(float(self._variance[j]), 0.0))
        b = len(self.members)
        if self._variance[j] > self._floor:
            factor = (self._posterior.column(j) - self._factors[:, j] @ self._factors) / sd
            self._variance = np.maximum(self._variance - factor**2, 0.0)
        else:
            sd, factor = 0.0, np.zeros(len(self._posterior))
        self._best = np.maximum(self._best, mean + sd * self._normal[:, b])
        self._factors = np.vstack([self._factors, factor])
        self._variance[j] = 0.0
        self.members.append(j)

    def log_gains(self) -> Array:
        """Logarithm of what each pool member would add to the expected improvement of the batch, ``(P,)``."""
        sd = np.sqrt(np.where(self._variance > self._floor, self._variance, 0.0))
        if not self.members:
            return log_improvement(self._mean, sd, float(self._best[0]))
        logs = log_improvement(self._means(slice(None)), sd[None, :], self._best[:, None])
        top = logs.max(axis=0)
        safe = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            gains: Array = safe + np.log(np.exp(logs - safe).mean(axis=0))
        return gains

    def _means(self, columns: slice) -> Array:
        """Means of pool members given each sample of the batch, ``(SAMPLES, columns)``."""
        result: Array = self._mean[columns] + self._normal[:, : len(self.members)] @ self._factors[:, columns]
        return result


def greedy_batch(posterior: PoolPosterior, q: int, *, best: float, seed: int, given: Sequence[int] = ()) -> list[int]:
    """Choose up to ``q`` pool members, each adding most to the expected improvement of the batch over ``best``.

    Args:
        posterior: Beliefs over the pool.
        q: Size of the batch.
        best: What to improve on; ``-inf`` only with members ``given``.
        seed: Of the quasi-random samples.
        given: Members to be beaten as well, such as those being evaluated; they are not chosen again.
    """
    batch = Batch(posterior, best, seed=seed, size=q + len(given))
    for j in given:
        batch.add(j)
    out = np.zeros(len(posterior), dtype=bool)
    out[list(given)] = True
    chosen: list[int] = []
    while len(chosen) < q and not out.all():
        gains = np.where(out, -np.inf, batch.log_gains())
        j = first_highest(gains if np.isfinite(gains).any() else ~out)
        batch.add(j)
        chosen.append(j)
        out[j] = True
    return chosen

"""Batches by name of acquisition: greedy on the joint posterior, or the best of random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dspy.promptune.gp.data import FLOOR
from dspy.promptune.gp.improvement import greedy_batch, log_improvement
from dspy.promptune.gp.joint import Joint, Places, promising
from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.posterior import PoolPosterior, first_highest
from dspy.promptune.gp.threads import one_thread

RIVALS = 16  # observed prompts that may be the best, at most; more add nothing that samples can see
DRAWN = 1000  # members of a joint draw at most: its cost grows with the cube
CROWD = 64  # prompts at once; beyond it what a batch costs by joint samples, the square of its size, is too much
LOOKED, AWAITED = 384, 128  # in a crowd: members that may be chosen, and members being evaluated that count


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a batch is wanted for.

    Attributes:
        q: Prompts wanted.
        observed: Positions in the pool of prompts that were measured.
        pending: Positions of prompts being evaluated.
        seed: Of the samples.
    """

    q: int
    observed: Sequence[int]
    pending: Sequence[int] = ()
    seed: int = 0

    def best(self, posterior: PoolPosterior) -> float:
        """The highest posterior mean among the observed: the luckiest observation would be a worse yardstick."""
        return float(posterior.mean[list(self.observed)].max())


def improvement(posterior: PoolPosterior, request: Request) -> list[int]:
    """Greedy batch of expected improvement over the best posterior mean; by logarithms, so it never underflows."""
    if request.q + len(request.pending) > CROWD:
        return crowded(posterior, request)
    return greedy_batch(
        posterior, request.q, best=request.best(posterior), seed=request.seed, given=list(request.pending)
    )


def noisy_improvement(posterior: PoolPosterior, request: Request) -> list[int]:
    """Greedy batch of expected improvement over the best of the observed, which is itself uncertain."""
    if request.q + len(request.pending) > CROWD:
        return crowded(posterior, request)
    observed = np.array(request.observed)
    rivals = observed[np.argsort(-posterior.optimistic[observed])[:RIVALS]].tolist()
    given = list(dict.fromkeys([*rivals, *request.pending]))
    return greedy_batch(posterior, request.q, best=-np.inf, seed=request.seed, given=given)


def crowded(posterior: PoolPosterior, request: Request) -> list[int]:
    """A large batch of expected improvement over the best posterior mean, one member given those before it.

    Members of the batch and pending ones count as measured at their means (Desautels et al. 2014): nothing is sampled,
    and a member costs the same however many there are.
    """
    places = promising(posterior, LOOKED, np.array(request.pending, dtype=np.intp), AWAITED)
    joint, best = Joint(posterior, places), request.best(posterior)
    out = np.isin(places, request.pending)
    for place in np.flatnonzero(out):
        joint.observe(int(place), FLOOR)
    chosen: list[int] = []
    while len(chosen) < request.q and not out.all():
        gains = np.where(out, -np.inf, log_improvement(joint.mean, np.sqrt(joint.variance), best))
        j = first_highest(gains if np.isfinite(gains).any() else ~out)
        joint.observe(j, FLOOR)
        chosen.append(int(places[j]))
        out[j] = True
    return chosen


def thompson(posterior: PoolPosterior, request: Request) -> list[int]:
    """The maxima of joint draws, each different from those before and from the pending."""
    members = shortlist(posterior, DRAWN)
    draws = joint_draws(posterior, members, request.q, np.random.default_rng(request.seed))
    taken = set(request.pending)
    chosen: list[int] = []
    for draw in draws:
        order = members[np.argsort(-draw)]
        free = [int(j) for j in order if j not in taken]
        if free:
            chosen.append(free[0])
            taken.add(free[0])
    return chosen


BATCHES: dict[str, Callable[[PoolPosterior, Request], list[int]]] = {
    "qei": improvement,
    "qlogei": improvement,
    "qlognei": noisy_improvement,
    "thompson": thompson,
}
"""Acquisition to greedy batch. ``qei`` and ``qlogei`` have the same maximum, and are maximized by the same search."""


def shortlist(posterior: PoolPosterior, size: int) -> Places:
    """Positions of the ``size`` members with the highest ``mean + 2 sd``: others are not the maximum of a draw."""
    if len(posterior) <= size:
        return np.arange(len(posterior))
    return np.sort(np.argpartition(-posterior.optimistic, size)[:size])


def joint_draws(posterior: PoolPosterior, members: Places, n: int, rng: np.random.Generator) -> Array:
    """``n`` joint draws of the true scores of some members, ``(n, m)``."""
    covariance = posterior.covariance(members)
    jitter = 1e-8 * max(float(covariance.diagonal().max()), 1e-12)
    with one_thread():
        factor = torch.linalg.cholesky(torch.as_tensor(covariance + jitter * np.eye(len(members)))).numpy()
    draws: Array = posterior.mean[members] + rng.standard_normal((n, len(members))) @ factor.T
    return draws

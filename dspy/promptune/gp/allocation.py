"""Which prompt gets the next examples, when the aim is to name the best one: acquisitions of blocks in closed form.

Every value is that of BoTorch's acquisition function of the same name on
:class:`dspy.promptune.gp.lookahead.LookAheadModel`; tests hold them to it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.gp.batches import joint_draws, shortlist
from dspy.promptune.gp.improvement import log_improvement
from dspy.promptune.gp.joint import Joint
from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.posterior import PoolPosterior, first_highest

Beliefs = PoolPosterior | Joint

RIVALS = 8  # prompts of which any may turn out to be the best; more change no value that can be seen
SIZES = (1, 2, 4, 8, 16, 32)  # blocks in a row that a prompt is valued by; the best number per call counts
TAIL, STEPS = 6.5, 79  # the integral over a standard normal: from -TAIL to TAIL, at so many places
DRAWN = 150  # prompts in a joint draw at most
FINALISTS, OPTIMISM = 6, 1.5  # prompts between which the end of a race decides, and standard deviations above a mean


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the next block is chosen for.

    Attributes:
        noise: ``(P,)`` variance of one further score of each prompt about its true score.
        block: Examples in a block.
        whole: Examples in the validation set.
        closed: ``(P,)`` true where a prompt cannot be measured any more; not true for all.
        rng: Of random draws.
    """

    noise: Array
    block: int
    whole: int
    closed: NDArray[np.bool_]
    rng: random.Random


def log_over_leader(posterior: Beliefs, noise: Array) -> Array:
    """Logarithm of each prompt's expected excess over the leader after both are measured, ``(P,)``; ``-inf`` for it.

    The leader has the highest mean. Only differences count: what prompts have in common is no improvement.

    Args:
        posterior: Beliefs about the pool.
        noise: ``(P,)`` variance of the measurement of each prompt.
    """
    mean, variance = posterior.mean, posterior.variance
    leader = first_highest(mean)
    shared, own = posterior.column(leader), float(variance[leader])
    first, second = variance - shared, shared - own
    a, b = variance + noise, own + float(noise[leader])
    moved = first**2 * b - 2 * first * second * shared + second**2 * a
    gap = np.maximum(moved, 0.0) / np.maximum(a * b - shared**2, 1e-300)
    values = log_improvement(mean, np.sqrt(gap), float(mean[leader]))
    values[leader] = -np.inf
    return values


def log_worth(posterior: Beliefs, noise: Array) -> Array:
    """Logarithm of how much one more measurement of each pool member is expected to improve the leader, ``(P,)``.

    The leader ``l`` has the highest posterior mean. Measuring member ``j`` moves the gap between the two means by a
    Gaussian of standard deviation ``|cov(f_j - f_l, f_j)| / sqrt(var f_j + noise_j)``; the worth is the expected
    excess of ``j`` over ``l`` afterwards (the knowledge gradient of Frazier et al. 2009 between two alternatives).
    Only differences count, so that what all prompts have in common, such as hard examples, cannot look like a
    chance. The worth of measuring the leader itself is the largest excess that any other member then has.

    Args:
        posterior: Beliefs over the pool.
        noise: ``(P,)`` variance of the next measurement of each member.
    """
    mean, variance = posterior.mean, posterior.variance
    leader = first_highest(mean)
    shared = posterior.column(leader)
    moves = np.abs(variance - shared) / np.sqrt(variance + noise)
    worth = log_improvement(mean, moves, float(mean[leader]))
    own = np.abs(variance[leader] - shared) / np.sqrt(variance[leader] + noise[leader])
    others = log_improvement(mean, own, float(mean[leader]))
    others[leader] = -np.inf
    worth[leader] = others.max()
    return worth


def log_over_mean(posterior: Beliefs, noise: Array) -> Array:
    """Logarithm of each prompt's expected excess over the highest mean as it is now, ``(P,)``, after it is measured."""
    variance = posterior.variance
    moves = variance / np.sqrt(np.maximum(variance + noise, 1e-300))
    return log_improvement(posterior.mean, moves, float(posterior.mean.max()))


def log_over_rivals(posterior: Beliefs, noise: Array) -> Array:
    """Logarithm of what measuring each prompt adds to its expected excess over the best of its rivals, ``(P,)``.

    Rivals are the :data:`RIVALS` prompts with the highest means but itself; their means move with the measurement.
    """
    mean, deviation = posterior.mean, np.sqrt(np.maximum(posterior.variance + noise, 1e-300))
    best = rivals(posterior)
    z = np.linspace(-TAIL, TAIL, STEPS)[:, None]
    weight = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    envelope = np.full((STEPS, len(mean)), -np.inf)
    for rival in best:
        line = mean[rival] + z * (posterior.column(rival) / deviation)
        line[:, rival] = -np.inf
        envelope = np.maximum(envelope, line)
    excess = np.maximum(mean + z * (posterior.variance / deviation) - envelope, 0.0)
    now = np.zeros(len(mean))
    now[best[0]] = mean[best[0]] - mean[best[1]] if len(best) > 1 else 0.0
    with np.errstate(divide="ignore"):
        values: Array = np.log(np.maximum((weight * excess).sum(axis=0) - now, 0.0))
    return values


def rivals(posterior: Beliefs) -> NDArray[np.intp]:
    """Positions of the :data:`RIVALS` highest means, the highest first."""
    order: NDArray[np.intp] = np.argsort(-posterior.mean, kind="stable")[:RIVALS]
    return order


def challenge(posterior: Beliefs, question: Question) -> int:
    """The leader or its challenger: the prompt with the highest expected improvement over it by full evaluations.

    Of the two, the one whose next block moves their difference most (top-two expected improvement, Qin et al. 2017).
    """
    values = log_over_leader(posterior, question.noise / question.whole)
    challenger = _highest(values, posterior, question.closed)
    leader = first_highest(posterior.mean)
    if question.closed[leader]:
        return challenger
    shared, variance = float(posterior.column(leader)[challenger]), posterior.variance
    pair = np.array([leader, challenger])
    moves = np.abs(variance[pair] - shared) / np.sqrt(variance[pair] + question.noise[pair] / question.block)
    return leader if moves[0] > moves[1] else challenger


def most_moving(posterior: Beliefs, question: Question) -> int:
    """The prompt whose next block should improve the leader most (:func:`log_worth`): new ones get their turn."""
    return _highest(log_worth(posterior, question.noise / question.block), posterior, question.closed)


def per_call(posterior: Beliefs, question: Question) -> int:
    """The prompt with the highest expected improvement per call, by the best number of blocks (KG*)."""
    values = [
        log_over_mean(posterior, question.noise / (question.block * n)) - np.log(n)
        for n in SIZES
        if n == 1 or n * question.block <= question.whole
    ]
    return _highest(np.max(values, axis=0), posterior, question.closed)


def among_rivals(posterior: Beliefs, question: Question) -> int:
    """The prompt whose block improves most on the best of its uncertain rivals."""
    values = log_over_rivals(posterior, question.noise / question.block)
    return _highest(values, posterior, question.closed)


def drawn(posterior: Beliefs, question: Question) -> int:
    """The maximum of one joint draw of the true scores."""
    rng = np.random.default_rng(question.rng.getrandbits(64))
    if isinstance(posterior, Joint):
        members = np.arange(len(posterior))
        values = rng.multivariate_normal(posterior.mean, posterior.covariance, method="eigh")
    else:
        members = shortlist(posterior, DRAWN)
        values = joint_draws(posterior, members, 1, rng)[0]
    everywhere = np.full(len(posterior), -np.inf)
    everywhere[members] = values
    return _highest(everywhere, posterior, question.closed)


RULES: dict[str, Callable[[Beliefs, Question], int]] = {
    "qei": challenge,
    "qlogei": per_call,
    "qlognei": among_rivals,
    "thompson": drawn,
}
"""Acquisition to the prompt that gets the next block."""


def finalist(posterior: Beliefs, members: NDArray[np.intp], closed: NDArray[np.bool_]) -> int | None:
    """Of the :data:`FINALISTS` open members with the highest means, the one with the highest mean plus uncertainty.

    Args:
        posterior: Beliefs about the pool.
        members: Positions that may win.
        closed: ``(P,)`` true where a prompt cannot be measured any more.

    Returns:
        ``None`` where all members are closed.
    """
    members = members[~closed[members]]
    if not len(members):
        return None
    best = members[np.argsort(-posterior.mean[members], kind="stable")[:FINALISTS]]
    return int(best[first_highest(posterior.mean[best] + OPTIMISM * np.sqrt(posterior.variance[best]))])


def _highest(values: Array, posterior: Beliefs, closed: NDArray[np.bool_]) -> int:
    """The open prompt with the highest value; where none has any, the most uncertain."""
    values = np.where(closed, -np.inf, values)
    if np.isfinite(values).any():
        return first_highest(values)
    return first_highest(np.where(closed, -np.inf, posterior.variance))

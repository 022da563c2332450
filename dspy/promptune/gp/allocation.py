"""Which prompt to measure next when the aim is to name the best one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.gp.improvement import log_improvement
from dspy.promptune.gp.joint import Joint
from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.posterior import PoolPosterior


def log_worth(posterior: PoolPosterior | Joint, noise: Array) -> Array:
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
    leader = int(np.argmax(mean))
    shared = posterior.column(leader)
    moves = np.abs(variance - shared) / np.sqrt(variance + noise)
    worth = log_improvement(mean, moves, float(mean[leader]))
    own = np.abs(variance[leader] - shared) / np.sqrt(variance[leader] + noise[leader])
    others = log_improvement(mean, own, float(mean[leader]))
    others[leader] = -np.inf
    worth[leader] = others.max()
    return worth


def next_member(posterior: PoolPosterior | Joint, noise: Array, closed: NDArray[np.bool_]) -> int:
    """The pool member whose measurement is worth most.

    Args:
        posterior: Beliefs over the pool.
        noise: ``(P,)`` variance of the next measurement of each member.
        closed: ``(P,)`` true where a member cannot be measured any more; not true for all.
    """
    worth = np.where(closed, -np.inf, log_worth(posterior, noise))
    if np.isfinite(worth).any():
        return int(np.argmax(worth))
    return int(np.argmax(np.where(closed, -np.inf, posterior.variance)))

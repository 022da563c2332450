"""What the errors of different prompts have in common on an example: its difficulty, and how close the prompts are.

A score of prompt ``k`` on example ``e`` is ``f(k) + d(e) + sum_i g_i(k, e) + error``. The difficulty ``d`` is the same
for all prompts. ``g_i`` belongs to the candidate of part ``i``: prompts have it in common as far as their candidates
are close, and wholly where they are the same. Which share of a score's variance each of them has is estimated from the
run's own scores: the products of two prompts' deviations on one example, regressed on how close the two are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.parts import Array
from dspy.promptune.space import Key

DIFFICULTY, CLOSE = 0.25, 0.40  # shares where nothing is known: of difficulty, and of all parts together
ALONE = 0.45  # of difficulty, where it stands for what is close as well
TRUST, TRUST_PARTS = 3.0, 0.5  # examples' worth of evidence for the first, and for the others
MOST = 0.95  # of the variance, at most: differences between prompts are never believed to be free of noise
STRIPE = 64  # prompts that are compared with all at once


@dataclass(frozen=True)
class CommonErrors:
    """Shares of the variance of one score about its prompt's mean.

    Attributes:
        difficulty: Of the example, whichever the prompt.
        parts: For each part, of what prompts with the same candidate have in common.
        points: For each part, ``(n_candidates, r)`` from :func:`dspy.promptune.gp.parts.project`.
    """

    difficulty: float
    parts: tuple[float, ...]
    points: Sequence[Array]

    @property
    def total(self) -> float:
        """Of all of them together: what two prompts with the same candidates would have in common."""
        return self.difficulty + sum(self.parts)

    def between(self, first: Array, second: Array) -> Array:
        """Share that prompts have in common, ``(n, m)``, from their candidates ``(n, parts)`` and ``(m, parts)``."""
        common = np.full((len(first), len(second)), self.difficulty)
        for i, share in enumerate(self.parts):
            if share:
                common += share * closeness(self.points[i], first[:, i], second[:, i])
        return common


def closeness(points: Array, first: Array, second: Array) -> Array:
    """``exp(-distance)`` of candidates of a part, ``(n, m)``: 1 where they are the same.

    Args:
        points: ``(n_candidates, r)``.
        first: ``(n,)`` candidates.
        second: ``(m,)``.
    """
    if len(second) > 1:  # the same few candidates again and again
        (one, at), (other, to) = (np.unique(each, return_inverse=True) for each in (first, second))
        return _near(points, one, other)[at[:, None], to]
    return _near(points, first, second)


def _near(points: Array, first: Array, second: Array) -> Array:
    a, b = points[first], points[second]
    squared = np.einsum("ij,ij->i", a, a)[:, None] + np.einsum("ij,ij->i", b, b) - 2 * a @ b.T
    near: Array = np.exp(-np.sqrt(np.maximum(squared, 0.0)))
    near[first[:, None] == second] = 1.0
    return near


def common_errors(observations: Sequence[Observation], points: Sequence[Array] = ()) -> CommonErrors:
    """The shares, shrunk to common values where few examples were seen by several prompts.

    Args:
        observations: Those without scores or examples say nothing of it.
        points: For each part, ``(n_candidates, r)``; without, the shares of parts are not asked for.
    """
    prior = np.array([DIFFICULTY, *[CLOSE / len(points)] * len(points)] if len(points) else [ALONE])
    keys, deviations, seen = _deviations(observations)
    prompts = seen.sum(axis=0)
    evidence = float((1 - 1 / prompts).sum()) - 1
    shares = prior
    if evidence > 0 and deviations.any():
        moments, products = _moments(keys, deviations, seen, points)
        trust = np.array([TRUST, *[TRUST_PARTS] * len(points)])
        found = np.linalg.solve(evidence * moments + np.diag(trust), evidence * products + trust * prior)
        found = np.maximum(found, 0.0)
        shares = found * MOST / max(float(found.sum()), MOST)
    return CommonErrors(float(shares[0]), tuple(shares[1:].tolist()), points)


def _deviations(observations: Sequence[Observation]) -> tuple[Array, Array, Array]:
    """Prompts with two scores and more ``(n, parts)``; their scores less their mean, of variance 1, and 1 where there
    is a score: ``(n, examples)`` both."""
    rows: dict[Key, dict[int, float]] = {}
    for one in observations:
        rows.setdefault(one.key, {}).update(zip(one.examples or (), one.scores or (), strict=False))
    rows = {key: row for key, row in rows.items() if len(row) > 1}
    columns = {example: j for j, example in enumerate(sorted({example for row in rows.values() for example in row}))}
    deviations, seen = np.zeros((2, len(rows), len(columns)))
    for i, row in enumerate(rows.values()):
        places, scores = [columns[example] for example in row], np.array(list(row.values()))
        deviations[i, places] = scores - scores.mean()
        seen[i, places] = 1.0
    freedom = max(float(seen.sum()) - len(rows), 1.0)
    spread = float(np.sqrt((deviations**2).sum() / freedom))
    return np.array(list(rows), dtype=np.int64), deviations / (spread or 1.0), seen


def _moments(keys: Array, deviations: Array, seen: Array, points: Sequence[Array]) -> tuple[Array, Array]:
    """Mean products, over all examples of all pairs, of closeness with closeness, and with what deviations share."""
    size, pairs, scores = len(points) + 1, 0.0, seen.sum(axis=1)
    moments, products = np.zeros((size, size)), np.zeros(size)
    for start in range(0, len(keys), STRIPE):
        rows = slice(start, start + STRIPE)
        near = [closeness(part, keys[rows, i], keys[:, i]) for i, part in enumerate(points)]
        count = seen[rows] @ seen.T
        fewer = np.minimum(scores[rows, None], scores)  # deviations from a mean of so few have less in common
        product = deviations[rows] @ deviations.T * fewer / (fewer - 1)
        own = np.arange(len(count))
        count[own, start + own] = product[own, start + own] = 0.0
        features = np.stack([np.ones_like(count), *near]).reshape(size, -1)
        moments += features * count.reshape(-1) @ features.T
        products += features @ product.reshape(-1)
        pairs += float(count.sum())
    return moments / pairs, products / pairs

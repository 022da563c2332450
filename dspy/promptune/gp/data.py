"""What has been measured of prompts: means of per-example scores, each with its own noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dspy.promptune.gp.parts import Array
from dspy.promptune.space import Key

FLOOR = 1e-4  # smallest variance of an observed mean: a posterior never becomes singular
SPREAD = (0.2, 5.0)  # the same of the variance of a score that is 0 or 1: ten right answers do not make it nothing
SHRINK = 4.0  # examples' worth of trust in the common level, where a prompt's own scores are few
MANY, KEPT = 800, 400  # a model's cost grows with the cube of its observations: of more than MANY, KEPT are taken


@dataclass(frozen=True)
class Observation:
    """One measurement of a prompt.

    Attributes:
        key: The prompt.
        value: Mean of the scores.
        scores: The per-example scores behind ``value``; ``None`` where only the mean is known.
        examples: Which validation examples they belong to, in the same order; ``None`` where that is not known.
    """

    key: Key
    value: float
    scores: tuple[float, ...] | None = None
    examples: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of scores behind the value; 0 where that is not known."""
        return 0 if self.scores is None else len(self.scores)


def variances(observations: Sequence[Observation]) -> Array:
    """Variance of each observed mean about the prompt's true score, ``(n,)``; NaN where no scores were given.

    Scores that are all 0 or 1 are binomial: ``p (1 - p) / size``, with ``p`` from all of the prompt's scores, shrunk
    to the mean of all prompts so that a lucky prompt is not believed to be sure. Graded scores have their sample
    variance, shrunk likewise. Nothing is below ``FLOOR``.
    """
    pooled: dict[Key, list[float]] = {}
    for one in observations:
        pooled.setdefault(one.key, []).extend(one.scores or ())
    everything = np.array([score for scores in pooled.values() for score in scores], dtype=np.float64)
    if not len(everything):
        return np.full(len(observations), np.nan)
    spread = _spreads(pooled, everything)
    noise = [max(spread[one.key] / one.size, FLOOR) if one.size else np.nan for one in observations]
    return np.array(noise, dtype=np.float64)


def _spreads(pooled: dict[Key, list[float]], everything: Array) -> dict[Key, float]:
    """Variance of one score about its prompt's mean, by prompt."""
    level = float(everything.mean())
    if bool(np.isin(everything, (0.0, 1.0)).all()):
        shrunk = {key: (sum(scores) + SHRINK * level) / (len(scores) + SHRINK) for key, scores in pooled.items()}
        return {key: p * (1 - p) for key, p in shrunk.items()}
    squares = {key: float(np.var(scores)) * len(scores) for key, scores in pooled.items() if scores}
    degrees = {key: len(pooled[key]) - 1 for key in squares}
    freedom = sum(degrees.values())
    common = sum(squares.values()) / freedom if freedom else float(everything.var())
    return {key: (squares[key] + SHRINK * common) / (degrees[key] + SHRINK) for key in squares}


def weights(observations: Sequence[Observation]) -> tuple[Array, dict[int, int]]:
    """Share of each example in each observed mean.

    Returns:
        ``(n, examples seen)``, rows of zeros where examples are not known; and the column of each example.
    """
    seen = sorted({example for one in observations for example in one.examples or ()})
    column = {example: j for j, example in enumerate(seen)}
    table = np.zeros((len(observations), len(seen)))
    for i, one in enumerate(observations):
        for example in one.examples or ():
            table[i, column[example]] += 1 / len(one.examples or ())
    return table, column


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """What scores far beyond the others add to the mean of a prompt on new examples.

    Few scores of a prompt say little of how many such it has: its own share is drawn to that of all, the more the less
    prompts differ in it (the empirical Bayes estimate of Efron and Morris 1975; a variance between prompts is believed
    in where Cochran's Q is three standard deviations above what it would be without).

    Attributes:
        common: Mean over all scores of what is beyond the ends.
        within: Variance of that about a prompt's mean.
        between: Variance of these means.
        size: Number of scores.
        own: ``(mean, number of scores)`` of each prompt.
    """

    common: float = 0.0
    within: float = 0.0
    between: float = 0.0
    size: int = 0
    own: Mapping[Key, tuple[float, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.size > 0

    def of(self, key: Key) -> float:
        """What is to be added for a prompt."""
        return self.common + self._trust(key) * (self.own.get(key, (0.0, 0))[0] - self.common)

    def variance(self, key: Key) -> float:
        """How sure that is."""
        trust, n = self._trust(key), self.own.get(key, (0.0, 0))[1]
        return self.within * (trust**2 / max(n, 1) + (1 - trust) ** 2 / max(self.size, 1))

    def _trust(self, key: Key) -> float:
        n = self.own.get(key, (0.0, 0))[1]
        return n * self.between / (n * self.between + self.within) if n and self.between else 0.0


def beyond(observations: Sequence[Observation], ends: tuple[float, float]) -> Beyond:
    """What the scores have beyond ``ends``."""
    found: dict[Key, list[float]] = {}
    for one in observations:
        found.setdefault(one.key, []).extend(one.scores or ())
    parts = {key: np.array(scores) - np.clip(scores, *ends) for key, scores in found.items() if scores}
    everything = np.concatenate([*parts.values(), np.empty(0)])
    if not everything.any():
        return Beyond()
    own = {key: (float(part.mean()), len(part)) for key, part in parts.items()}
    means, counts = np.array(list(own.values())).T
    common, within = float(everything.mean()), float(everything.var())
    squares, degrees, between = float(counts @ (means - common) ** 2), len(own) - 1, 0.0
    if squares > within * (degrees + 3 * math.sqrt(2 * degrees)) > 0:
        between = (squares - degrees * within) / (len(everything) - float(counts @ counts) / len(everything))
    return Beyond(common=common, within=within, between=between, size=len(everything), own=own)


def condensed(observations: Sequence[Observation]) -> list[Observation]:
    """The observations as they are, up to ``MANY``; of more, what all say of each of ``KEPT`` prompts.

    Half of these prompts have the highest means, shrunk to the common level where scores are few. The others are
    spread evenly over the rest, in their order, so that what is bad stays known.
    """
    if len(observations) <= MANY:
        return list(observations)
    same: dict[Key, list[Observation]] = {}
    for one in observations:
        same.setdefault(one.key, []).append(one)
    prompts = [_together(ones) for ones in same.values()]
    if len(prompts) <= KEPT:
        return prompts
    level = math.fsum(one.value for one in prompts) / len(prompts)
    sizes = np.array([max(1, one.size) for one in prompts])
    standing = (np.array([one.value for one in prompts]) * sizes + SHRINK * level) / (sizes + SHRINK)
    ranked = np.argsort(-standing, kind="stable")
    rest = np.sort(ranked[KEPT // 2 :])
    spread = rest[np.linspace(0, len(rest) - 1, KEPT - KEPT // 2).round().astype(int)]
    return [prompts[i] for i in np.union1d(ranked[: KEPT // 2], spread)]


def _together(ones: Sequence[Observation]) -> Observation:
    """All observations of one prompt as one; an example counts once."""
    if len(ones) == 1:
        return ones[0]
    key = ones[0].key
    if any(one.scores is None for one in ones):
        return Observation(key, math.fsum(one.value for one in ones) / len(ones))
    if any(one.examples is None for one in ones):
        scores = tuple(score for one in ones for score in one.scores or ())
        return Observation(key, math.fsum(scores) / len(scores), scores)
    row = {i: score for one in ones for i, score in zip(one.examples or (), one.scores or (), strict=True)}
    return Observation(key, math.fsum(row.values()) / len(row), tuple(row.values()), tuple(row))

"""What the model believes of a run's prompts at its end: for the map, the effects and the interval of the winner."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.errors import EmbeddingError
from dspy.promptune.report.record import RunRecord
from dspy.promptune.space import Key

__all__ = ["Believed", "believed"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
POOL = 800  # combinations that are looked at, those measured first
NAMED = ("minilm", "ngram", "onehot")


@dataclass(frozen=True)
class Believed:
    """Posterior of a pool of prompts.

    Attributes:
        keys: The pool: all prompts that were measured, and others of the space.
        mean: ``(P,)`` posterior means.
        sd: ``(P,)`` posterior standard deviations.
        place: ``(P, 2)`` projection of the prompts' vectors: near prompts are alike.
        embedder: What the vectors are from.
    """

    keys: tuple[Key, ...]
    mean: Array
    sd: Array
    place: Array
    embedder: str

    def at(self, key: Key) -> tuple[float, float]:
        """Posterior mean and standard deviation of a prompt of the pool."""
        i = self.keys.index(key)
        return float(self.mean[i]), float(self.sd[i])


def believed(record: RunRecord) -> Believed:
    """Fit the model to all that a run has measured.

    The run's own embedder is used where its name says which it is; otherwise hashed n-grams, and ``embedder`` says so.
    """
    from dspy.promptune.features import embed_parts
    from dspy.promptune.gp.surrogate import Surrogate

    name = record.facts.get("embedder") or "minilm"
    name = name if name in NAMED else "ngram"
    try:
        vectors = embed_parts(record.space, name)
    except EmbeddingError as error:
        logger.warning("%s The figures are drawn with n-grams.", error)
        name = "ngram"
        vectors = embed_parts(record.space, name)
    surrogate = Surrogate(vectors)
    measured = dict.fromkeys([record.default, *record.rows])
    keys = tuple(record.space.pool(max(POOL, len(measured)), random.Random(0), measured))
    posterior = surrogate.posterior(record.observations, keys)
    points = [getattr(surrogate.gp.kernel, f"points_{i}").numpy() for i in range(len(vectors))]
    place = _plane(np.hstack([part[[key[i] for key in keys]] for i, part in enumerate(points)]))
    return Believed(keys, posterior.mean, np.sqrt(posterior.variance), place, name)


def _plane(vectors: Array) -> Array:
    """The two principal directions, ``(P, 2)``; zeros where there are fewer."""
    rows = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    plane = np.zeros((len(rows), 2))
    kept = min(2, len(singular))
    plane[:, :kept] = left[:, :kept] * singular[:kept]
    return plane


def main_effects(record: RunRecord, beliefs: Believed) -> list[list[tuple[int, float, float]]]:
    """By part: ``(candidate, effect, examples scored)``; the effect is the mean of the prompts with the candidate."""
    level = float(beliefs.mean.mean())
    found = []
    for part, size in enumerate(record.space.sizes):
        rows = []
        for index in range(size):
            members = [i for i, key in enumerate(beliefs.keys) if key[part] == index]
            scored = sum(len(row) for key, row in record.rows.items() if key[part] == index)
            if members:
                rows.append((index, float(beliefs.mean[members].mean()) - level, float(scored)))
        found.append(rows)
    return found

"""What the model believes of the prompts at the end of a run: posterior, who is best, effects."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.errors import EmbeddingError
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from dspy.promptune.findings.record import RunRecord
    from dspy.promptune.gp.posterior import PoolPosterior

__all__ = ["Beliefs", "Effect", "believe", "effects_of"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
CONTENDERS, DRAWS = 200, 4000  # combinations that may be the best, and joint draws of their scores
POOL = 1500  # combinations believed about: the whole of most spaces
NAMED = ("minilm", "ngram", "onehot")  # embedders that a name stands for


@dataclass(frozen=True)
class Beliefs:
    """Beliefs about some combinations, those measured first among them.

    Attributes:
        keys: ``P`` combinations.
        mean: Posterior means ``(P,)``.
        sd: Posterior standard deviations ``(P,)``.
        p_best: Probability ``(P,)`` that none of the combinations is better.
        embedder: Which embedder it is by.
        substitute: Why it is not the run's own, where it is not.
    """

    keys: list[Key]
    mean: Array
    sd: Array
    p_best: Array
    embedder: str
    substitute: str | None = None

    def of(self, key: Key) -> tuple[float, float, float] | None:
        """Mean, standard deviation and probability of being best of one combination, if it is among them."""
        j = self._positions.get(key)
        return None if j is None else (float(self.mean[j]), float(self.sd[j]), float(self.p_best[j]))

    @cached_property
    def _positions(self) -> dict[Key, int]:
        return {key: j for j, key in enumerate(self.keys)}


@dataclass(frozen=True)
class Effect:
    """Of each candidate of a part: the posterior mean over all else (``mean``), and by how much it varies (``sd``)."""

    part: int
    mean: Array
    sd: Array


def believe(record: RunRecord) -> Beliefs | None:
    """The posterior of a run's observations; ``None`` where it cannot be computed."""
    from dspy.promptune.gp.parts import MAX_DIMS
    from dspy.promptune.gp.surrogate import Surrogate

    vectors, embedder, why = _vectors(record)
    keys = list(dict.fromkeys([*record.rows, *record.space.pool(POOL, random.Random(0), list(record.rows))]))
    try:
        dims = 10**6 if embedder == "onehot" else MAX_DIMS
        surrogate = Surrogate(vectors, dims, record.space.parts)
        posterior = surrogate.posterior(record.observations, keys)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        logger.warning("No posterior for the report: %s", error)
        return None
    mean = np.clip(posterior.mean, 0.0, 1.0) if record.scale.percent else posterior.mean  # the model knows no bounds
    return Beliefs(keys, mean, np.sqrt(posterior.variance), _p_best(posterior), embedder, why)


def _vectors(record: RunRecord) -> tuple[list[Array], str, str | None]:
    """Vectors of the candidates by the run's embedder, or by n-grams where that cannot be had."""
    from dspy.promptune.features import embed_parts
    from dspy.promptune.identity.manifest import embedder_name

    own: Any = record.embedder
    if own is None:
        return embed_parts(record.space, "ngram"), "ngram", "the run's sampler does not read texts"
    name = embedder_name(own)
    if isinstance(own, str) and own not in NAMED:
        why = f"the run's own, {name}, cannot be rebuilt from its name"
        return embed_parts(record.space, "ngram"), "ngram", why
    try:
        return embed_parts(record.space, own), name, None
    except EmbeddingError as error:
        logger.warning("The report's estimates are by n-grams: %s", error)
        return embed_parts(record.space, "ngram"), "ngram", f"the run's own, {name}, failed"


def _p_best(posterior: PoolPosterior) -> Array:
    """How often each member is the best of joint draws; those far below the leaders never are."""
    mean, sd = posterior.mean, np.sqrt(posterior.variance)
    members = np.argsort(-(mean + 3 * sd), kind="stable")[:CONTENDERS]
    covariance = posterior.covariance(members)
    values, directions = np.linalg.eigh((covariance + covariance.T) / 2)
    noise = np.random.default_rng(0).standard_normal((DRAWS, len(members)))
    draws = mean[members] + noise * np.sqrt(np.maximum(values, 0.0)) @ directions.T
    found = np.zeros(len(mean))
    found[members] = np.bincount(draws.argmax(axis=1), minlength=len(members)) / DRAWS
    return found


# ---------------------------------------------------------------------- effects


def effects_of(beliefs: Beliefs, sizes: Sequence[int]) -> list[Effect]:
    """Main effects of every part with a choice; equal candidates are one choice."""
    rows = np.array(beliefs.keys, dtype=np.int64)
    parts = [part for part, size in enumerate(sizes) if size > 1]
    found = [Effect(part, *_by_candidate(beliefs, rows[:, part], sizes[part])) for part in parts]
    return [effect for effect in found if np.isfinite(effect.mean).sum() > 1]


def _by_candidate(beliefs: Beliefs, column: NDArray[np.int64], size: int) -> tuple[Array, Array]:
    groups = [beliefs.mean[column == j] for j in range(size)]
    means = np.array([group.mean() if len(group) else np.nan for group in groups])
    return means, np.array([group.std() if len(group) else np.nan for group in groups])

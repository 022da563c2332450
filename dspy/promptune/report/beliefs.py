"""What the model believes of the prompts at the end of a run: posterior, projection, effects."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.errors import EmbeddingError
from dspy.promptune.space import Key, PromptSpace

if TYPE_CHECKING:
    from dspy.promptune.report.record import RunRecord

__all__ = ["Beliefs", "Effect", "Interaction", "believe", "effects_of"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
POOL = 1500  # combinations believed about: the whole of most spaces
NAMED = ("minilm", "ngram", "onehot")  # embedders that a name stands for


@dataclass(frozen=True)
class Beliefs:
    """Beliefs about some combinations, those measured first among them.

    Attributes:
        keys: ``P`` combinations.
        mean: Posterior means ``(P,)``.
        sd: Posterior standard deviations ``(P,)``.
        place: ``(P, 2)``: where a combination lies on the map, from the embeddings of its texts.
        embedder: Which embedder it is by.
        substitute: Why it is not the run's own, where it is not.
    """

    keys: list[Key]
    mean: Array
    sd: Array
    place: Array
    embedder: str
    substitute: str | None = None


@dataclass(frozen=True)
class Effect:
    """Of each candidate of a part: the posterior mean over all else (``mean``), and by how much it varies (``sd``)."""

    part: int
    mean: Array
    sd: Array


@dataclass(frozen=True)
class Interaction:
    """Of two parts: what their candidates bring together beyond what each brings; NaN where nothing is believed."""

    rows: int
    columns: int
    excess: Array
    mean: Array


def believe(record: RunRecord) -> Beliefs | None:
    """The posterior of a run's observations; ``None`` where it cannot be computed."""
    from dspy.promptune.gp.parts import MAX_DIMS
    from dspy.promptune.gp.surrogate import Surrogate

    vectors, embedder, why = _vectors(record)
    keys = list(dict.fromkeys([*record.rows, *record.space.pool(POOL, random.Random(0), list(record.rows))]))
    try:
        surrogate = Surrogate(vectors, 10**6 if embedder == "onehot" else MAX_DIMS)
        posterior = surrogate.posterior(record.observations, keys)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        logger.warning("No posterior for the report: %s", error)
        return None
    return Beliefs(
        keys, posterior.mean, np.sqrt(posterior.variance), _project(record.space, vectors, keys), embedder, why
    )


def _vectors(record: RunRecord) -> tuple[list[Array], str, str | None]:
    """Vectors of the candidates by the run's embedder, or by n-grams where that cannot be had."""
    from dspy.promptune.features import embed_parts
    from dspy.promptune.storage.manifest import embedder_name

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
        logger.warning("The report's map is by n-grams: %s", error)
        return embed_parts(record.space, "ngram"), "ngram", f"the run's own, {name}, failed"


def _project(space: PromptSpace, vectors: Sequence[Array], keys: Sequence[Key]) -> Array:
    """The two directions in which the combinations' vectors differ most, every part weighing the same: ``(P, 2)``."""
    parts = []
    for column, part in enumerate(vectors):
        centred = part - part.mean(axis=0)
        scale = float(np.sqrt((centred**2).sum(axis=1).mean()))
        if scale > 0:
            parts.append((centred / scale)[[key[column] for key in keys]])
    if not parts:
        return np.zeros((len(keys), 2))
    table = np.concatenate(parts, axis=1)
    left, sizes, _ = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    flat = (left * sizes)[:, :2]
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))


# ---------------------------------------------------------------------- effects


def effects_of(beliefs: Beliefs, sizes: Sequence[int]) -> tuple[list[Effect], Interaction | None]:
    """Main effects of every part with a choice, and the strongest interaction of two parts."""
    rows = np.array(beliefs.keys, dtype=np.int64)
    parts = [part for part, size in enumerate(sizes) if size > 1]
    effects = [Effect(part, *_by_candidate(beliefs, rows[:, part], sizes[part])) for part in parts]
    pairs = [_interaction(beliefs, rows, (a, b), sizes) for a, b in itertools.combinations(parts, 2)]
    return effects, max(pairs, key=_strength, default=None)


def _by_candidate(beliefs: Beliefs, column: NDArray[np.int64], size: int) -> tuple[Array, Array]:
    groups = [beliefs.mean[column == j] for j in range(size)]
    means = np.array([group.mean() if len(group) else np.nan for group in groups])
    return means, np.array([group.std() if len(group) else np.nan for group in groups])


def _interaction(beliefs: Beliefs, rows: NDArray[np.int64], pair: tuple[int, int], sizes: Sequence[int]) -> Interaction:
    shape = sizes[pair[0]], sizes[pair[1]]
    total, count = np.zeros(shape), np.zeros(shape)
    where = rows[:, pair[0]], rows[:, pair[1]]
    np.add.at(total, where, beliefs.mean)
    np.add.at(count, where, 1)
    known = count > 0
    table = total / np.maximum(count, 1)
    level = float(table[known].mean())
    filled = np.where(known, table, level)
    down, across = filled.mean(axis=1, keepdims=True), filled.mean(axis=0, keepdims=True)
    excess = np.where(known, filled - down - across + filled.mean(), np.nan)
    return Interaction(pair[0], pair[1], excess, np.where(known, table, np.nan))


def _strength(found: Interaction) -> float:
    return float(np.nanvar(found.excess))

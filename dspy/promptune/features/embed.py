"""One door for all embedders: texts in, one finite vector a text out, each distinct text embedded once a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
from cachetools import LRUCache, cached
from numpy.typing import NDArray

from dspy.promptune.counted import counted
from dspy.promptune.errors import EmbeddingError
from dspy.promptune.features.minilm import embed_minilm
from dspy.promptune.features.ngram import embed_ngrams
from dspy.promptune.options import EmbedderName
from dspy.promptune.secrets import cause, know, said, secrets_of
from dspy.promptune.space import PromptSpace

__all__ = ["EmbedderLike", "embed_parts"]

Vectors = NDArray[np.float64]
EmbedderLike: TypeAlias = EmbedderName | Callable[[list[str]], Any]
"""``"minilm"``, ``"ngram"``, ``"onehot"``, a ``dspy.Embedder``, or any callable from ``n`` texts to ``n`` vectors."""

BATCH = 256
"""Texts handed to an embedder at once; hosted models take up to 2,048, a ``dspy.Embedder`` cuts smaller by itself."""

HOSTED_CHARACTERS, MINILM_CHARACTERS = 4_000, 700
"""A longer text is embedded in pieces and gets their mean: hosted models refuse some 8,000 tokens, MiniLM reads 256."""

MAX_PIECES = 64
"""Pieces read of one text, spread evenly over a longer one."""

KEPT_TEXTS, KEPT_EMBEDDERS = 10_000, 8
"""Bounds of the cache: at most 10,000 vectors of each of the 8 embedders used last (30 MB each at 384 columns)."""


def embed_parts(space: PromptSpace, embedder: EmbedderLike = "minilm") -> list[Vectors]:
    """The vectors of a space's candidates, part by part: the sum of the candidates, never their product.

    Args:
        space: The prompt space.
        embedder: ``"minilm"`` (packaged sentence embedder, offline), ``"ngram"`` (hashed n-grams, nothing to load),
            ``"onehot"`` (no likeness between texts at all), a ``dspy.Embedder`` or a callable. A callable gets at
            most 256 distinct texts and returns as many rows. A text without a visible character, such as the demo
            set of a zero-shot prompt, reaches it as ``"(empty)"``, because hosted models refuse empty input.

    Returns:
        One array a part, in the order of ``space.names``: row ``j`` is candidate ``j``. Equal texts have equal rows.

    Raises:
        EmbeddingError: Unknown name; an embedder that raises, or returns another number of rows, ragged rows,
            something that is not numbers, NaN or infinity.
    """
    parts = [space.texts(i) for i in range(len(space.names))]
    if isinstance(embedder, str) and embedder == "onehot":
        return [_onehot(texts) for texts in parts]
    vectors = _embed_all([text for texts in parts for text in texts], embedder)
    return np.split(vectors, np.cumsum([len(texts) for texts in parts])[:-1])


def _embed_all(texts: Sequence[str], embedder: EmbedderLike) -> Vectors:
    """Vectors of ``n`` texts, in their order, as an ``n x d`` array; only distinct texts never seen are embedded."""
    shown = [text if text.strip() else "(empty)" for text in texts]
    found = _store(embedder).vectors(list(dict.fromkeys(shown)), _function(embedder))
    widths = sorted({len(vector) for vector in found.values()})
    if len(widths) > 1:
        raise EmbeddingError(
            f"The embedder {embedder!r} returned vectors of {widths} columns in different batches: all vectors must "
            "have the same width. Repair the embedder, or pass embedder='minilm'."
        )
    return np.stack([found[text] for text in shown])


def _onehot(texts: Sequence[str]) -> Vectors:
    columns = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return np.eye(len(columns))[[columns[text] for text in texts]]


def _function(embedder: EmbedderLike) -> Callable[[list[str]], Any]:
    from dspy.clients.embedding import Embedder

    if isinstance(embedder, str):
        named = {"minilm": lambda texts: _in_pieces(texts, embed_minilm, MINILM_CHARACTERS), "ngram": embed_ngrams}
        if embedder not in named:
            known = ", ".join(sorted([*named, "onehot"]))
            raise EmbeddingError(
                f"embedder={embedder!r} is not known: use one of {known}, a callable, or a dspy.Embedder for a "
                "hosted model, such as dspy.Embedder('openai/text-embedding-3-small')."
            )
        return named[embedder]
    if not callable(embedder):
        raise EmbeddingError(
            f"embedder={embedder!r} is {type(embedder).__name__}: pass a name, a dspy.Embedder or a callable that "
            "turns a list of n texts into n vectors."
        )
    if isinstance(embedder, Embedder):
        return lambda texts: _in_pieces(texts, embedder, HOSTED_CHARACTERS)
    return embedder


def _in_pieces(texts: list[str], embedder: Callable[[list[str]], Any], characters: int) -> Vectors:
    """Vectors of ``n`` texts, each the mean over its pieces: ``n x d``."""
    cut = [_pieces(text, characters) for text in texts]
    ends = np.cumsum([len(pieces) for pieces in cut])[:-1]
    vectors = _checked([piece for pieces in cut for piece in pieces], embedder)
    return np.stack([rows.mean(axis=0) for rows in np.split(vectors, ends)])


def _pieces(text: str, characters: int) -> list[str]:
    """Pieces of nearly equal length, at most ``characters`` long, in order; of a very long text every so many."""
    count = max(1, -(-len(text) // characters))
    ends = [len(text) * i // count for i in range(count + 1)]
    chosen = range(count) if count <= MAX_PIECES else [count * i // MAX_PIECES for i in range(MAX_PIECES)]
    return [text[ends[i] : ends[i + 1]] for i in chosen]


class _Store:
    """The vectors of one embedder. The lock is held while it works, so no text is embedded twice."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept: LRUCache[str, Vectors] = LRUCache(KEPT_TEXTS)

    def vectors(self, texts: list[str], function: Callable[[list[str]], Any]) -> dict[str, Vectors]:
        """The vector of each of the distinct ``texts``, those of unknown ones from ``function``."""
        with self._lock:
            found = {text: self._kept[text] for text in texts if text in self._kept}
            missing = [text for text in texts if text not in found]
            for start in range(0, len(missing), BATCH):
                batch = missing[start : start + BATCH]
                found.update(zip(batch, _checked(batch, function), strict=True))
            self._kept.update(found)
            return found


@cached(LRUCache(KEPT_EMBEDDERS), lock=threading.Lock())
def _shared_store(embedder: Hashable) -> _Store:
    return _Store()


def _store(embedder: EmbedderLike) -> _Store:
    """The store of an embedder, told apart by equality; one that cannot be hashed gets a store of its own each time."""
    try:
        hash(embedder)
    except TypeError:
        return _Store()
    store: _Store = _shared_store(embedder)
    return store


def _checked(texts: list[str], function: Callable[[list[str]], Any]) -> Vectors:
    """The embedder's answer for ``n`` texts, checked: ``n x d``, finite, float64."""
    who = f"The embedder {getattr(function, '__name__', None) or repr(function)}"
    try:
        answer = function(list(texts))
        vectors = np.array(answer, dtype=np.float64)
    except EmbeddingError:
        raise
    except Exception as error:
        know(secrets_of(function))
        raise EmbeddingError(
            f"{who} failed on {counted(len(texts), 'text')} ({said(error)}). It must turn a list of n texts "
            "into n vectors of equal width; try it alone on these texts, or pass embedder='minilm'."
        ) from cause(error)
    given, rows = counted(len(texts), "text"), counted(len(texts), "row")
    if vectors.ndim != 2 or len(vectors) != len(texts) or vectors.shape[1] == 0:
        raise EmbeddingError(
            f"{who} returned shape {vectors.shape} for {given}: it must return {rows} of equal width, one "
            "vector a text, in the order of the texts."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise EmbeddingError(
            f"{who} returned NaN or infinity for {len(bad)} of {given}, first for "
            f"{texts[bad[0]][:80]!r}: every value must be finite. Repair the embedder, or pass embedder='minilm'."
        )
    return vectors

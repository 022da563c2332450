"""Hashed n-grams: vectors that know spelling but no meaning, with nothing to install and nothing to load."""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["embed_ngrams"]

WIDTH = 512
"""Columns of a vector."""

MAX_CHARACTERS = 100_000
"""Only the start of a longer text is read: an n-gram is hashed in Python, at about a microsecond each."""


def embed_ngrams(texts: Sequence[str]) -> NDArray[np.float64]:
    """Signed hashed counts of words, word pairs and character trigrams to pentagrams.

    A count ``c`` weighs ``1 + log(c)``. The hash is CRC-32, so vectors are the same in every process.

    Args:
        texts: ``n`` texts of any language.

    Returns:
        An ``n x 512`` array of rows of length one. A text without any letter or digit counts as one word.
    """
    vectors = np.array([_vector(text[:MAX_CHARACTERS].lower()) for text in texts]).reshape(-1, WIDTH)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _vector(text: str) -> NDArray[np.float64]:
    vector = np.zeros(WIDTH)
    for gram, count in Counter(_grams(text)).items():
        code = zlib.crc32(gram.encode("utf-8", "surrogatepass"))
        sign = 1.0 if code >> 31 else -1.0
        vector[code % WIDTH] += sign * (1.0 + np.log(count))
    return vector


def _grams(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text) or [text]
    yield from words
    yield from (f"{left} {right}" for left, right in itertools.pairwise(words))
    for word in words:
        padded = f"<{word}>"
        for size in (3, 4, 5):
            yield from (padded[i : i + size] for i in range(len(padded) - size + 1))

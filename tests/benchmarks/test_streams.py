"""The replay of recorded streams."""

import numpy as np
import pytest

from benchmarks.streams import METHODS, Stream, value

RATES = np.linspace(0.1, 0.95, 12)


@pytest.fixture
def stream():
    """A dozen instructions, each better than the one before, on 300 examples."""
    rng = np.random.default_rng(0)
    matrix = (rng.random((len(RATES), 300)) < RATES[:, None]).astype(float)
    texts = {0: [f"Say it {'very ' * i}well." for i in range(len(RATES))]}
    return Stream("made up", texts, lambda key: matrix[key[0]])


@pytest.mark.parametrize(("method", "least"), [("open", 0.8), ("closed", 0.8), ("gate", 0.3)])
def test_every_method_finds_what_is_much_better(stream, method, least):
    """With enough calls the last instruction is returned; the gate, which sees three examples, lets some child pass."""
    curve = METHODS[method](stream, 0, 900)
    assert curve[-1][0] <= 900
    assert value(curve, 900) > least


def test_examples_that_judge_are_not_validated_on(stream):
    """The three groups have no example in common."""
    groups = stream.split(3)
    assert sum(map(len, groups)) == len(set().union(*groups)) == 300

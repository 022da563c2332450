"""Numbers of things in messages, log lines and reports."""

import pytest

from dspy.promptune.counted import counted


@pytest.mark.parametrize(
    "number, words", [(0, "0 calls"), (1, "1 call"), (1.0, "1 call"), (2, "2 calls"), (2340.4, "2,340 calls")]
)
def test_exactly_one_is_singular(number, words):
    """A noun is in the plural unless there is one of it, and thousands are set apart."""
    assert counted(number, "call") == words

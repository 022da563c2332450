"""Numbers of things in messages, log lines and reports."""

import pytest

from dspy.promptune.counted import counted, score_text


@pytest.mark.parametrize(
    "number, words", [(0, "0 calls"), (1, "1 call"), (1.0, "1 call"), (2, "2 calls"), (2340.4, "2,340 calls")]
)
def test_exactly_one_is_singular(number, words):
    """A noun is in the plural unless there is one of it, and thousands are set apart."""
    assert counted(number, "call") == words


@pytest.mark.parametrize(
    "score, percent, words",
    [(0.8333, True, "83.3 %"), (75.8333, False, "75.83"), (-0.5, False, "-0.5"), (12345.6, False, "12,346")],
)
def test_scores_are_told_in_percent_or_as_they_are(score, percent, words):
    """A metric from 0 to 1 is told in percent, another in its own units."""
    assert score_text(score, percent) == words

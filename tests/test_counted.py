"""Numbers of things in messages, log lines and reports."""

import pytest

from dspy.promptune.counted import counted, dollars, score_text


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


@pytest.mark.parametrize(
    "amount, words", [(0, "$0.00"), (1234.5, "$1,234.50"), (0.21, "$0.21"), (0.0032, "$0.003"), (0.00009, "$0.00009")]
)
def test_less_than_a_cent_is_not_told_as_nothing(amount, words):
    """Dollars have two places, and as many more as it takes to show that there are any."""
    assert dollars(amount) == words

"""The benchmark of replies that are no answers."""

import pytest

from benchmarks.replies import compiled, row
from tests.server.replies import NO_ANSWERS

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore:dspy.LM")]


@pytest.mark.slow
def test_replies_that_are_no_answers_change_no_score_and_no_winner():
    """With a fifth of the replies being none, no score is wrong, no trial fails, and the winner is the same."""
    line = row("mixed", tuple(NO_ANSWERS.values()), 0.2, compiled(0.5))
    _, kind, rate, wrong, failed, same, requests, _ = [cell.strip() for cell in line.split("|")]
    assert (kind, rate, failed, same) == ("mixed", "20%", "0", "yes")
    assert wrong.startswith("0 of ") and float(requests) > 1.1

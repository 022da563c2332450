"""The end of a job that was taken up more than once."""

from dspy.promptune.allocation.outcome import Outcome


def test_a_job_whose_rest_came_from_another_keeps_its_scores_and_the_parent_of_its_callbacks():
    """Of two parts, the scores are joined and seconds add up; a part that evaluated nothing has no parent to give."""
    first = Outcome(scores={0: 1.0}, seconds=2.0, call_id="first")
    joined = Outcome().after(first)
    assert (joined.scores, joined.seconds, joined.call_id) == ({0: 1.0}, 2.0, "first")
    assert Outcome(scores={1: 0.0}, call_id="second").after(first).call_id == "second"

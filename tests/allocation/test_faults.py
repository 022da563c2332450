"""Whose fault failed evaluations are: the prompt's, or an example's."""

import pytest

from dspy.promptune.allocation.faults import Faults
from dspy.promptune.allocation.records import Job, ScoreTable

A, B, C = (0,), (1,), (2,)
ALL = range(8)


class Trial:
    """Evaluates prompts as a policy would; every prompt fails on the ``broken`` examples."""

    def __init__(self, *broken):
        self.broken, self.table, self.calls = set(broken), ScoreTable(), 0
        self.faults = Faults(self.table)

    def __call__(self, key, examples):
        """Whether the evaluation of a prompt ended well."""
        job = Job(self.calls, key, tuple(examples), "block")
        self.calls += 1
        if self.broken & set(examples):
            self.faults.failed(job)
            return False
        for example in examples:
            self.table.add(key, example, 1.0)
        self.faults.told(job)
        return True

    def whole(self, key):
        """Evaluate a prompt until nothing is left, and say how often it failed."""
        before = self.calls
        failures = 0
        while key not in self.faults.out and (found := self.faults.open(key, self.table.missing(key, ALL))):
            failures += not self(key, found)
            assert self.calls - before < 20
        return failures


@pytest.mark.parametrize("examples", [(0, 1), (2, 3)])
def test_two_failures_where_others_have_scores_are_the_prompts_own(examples):
    """On examples that other prompts are scored on, the same twice or not, no example explains the failures."""
    trial = Trial()
    trial(B, ALL)
    trial.broken = set(ALL)
    trial(A, (0, 1))
    assert A not in trial.faults.out
    trial(A, examples)
    assert trial.faults.out == {A}


def test_a_prompt_that_fails_everywhere_is_out_after_three_failures():
    """With no scores at all, it takes a failure of all, of one, and of the others."""
    trial = Trial(*ALL)
    assert trial.whole(A) == 3 and trial.faults.out == {A} and not trial.faults.examples


@pytest.mark.parametrize("broken", [(0,), (5,), (7,), (2, 6), (1, 2, 3)])
def test_an_example_on_which_every_prompt_fails_is_left_out(broken):
    """Two prompts find it, the third does not meet it, and all are scored on every other example."""
    trial = Trial(*broken)
    for key in (A, B):
        trial.whole(key)
    for key in (A, B):  # what failed with an example that was left out later is forgotten
        trial.whole(key)
    assert trial.faults.examples == set(broken) and not trial.faults.out
    assert trial.whole(C) == 0
    assert all(trial.table.row(key).keys() == set(ALL) - set(broken) for key in (A, B, C))


def test_one_prompt_leaves_out_nothing():
    """An example that one prompt fails on stays among those of the others, whose scores show whose fault it is."""
    trial = Trial(3)
    trial.whole(A)
    assert trial.faults.whole(ALL) == trial.faults.open(B, ALL) == [0, 1, 2, 4, 5, 6, 7] and not trial.faults.examples
    assert trial.faults.open(B, [3]) == [3]
    trial.broken = set()
    assert trial(B, ALL) and A in trial.faults.out


def test_what_failed_once_can_be_tried_on_the_rest():
    """A failed block is put aside while there are other examples."""
    trial = Trial(1)
    trial(A, (0, 1, 2))
    (other,) = trial.faults.open(A, list(ALL))  # one only: it has not succeeded yet
    assert other > 2 and trial(A, [other])
    assert sorted([other, *trial.faults.open(A, trial.table.missing(A, ALL))]) == [3, 4, 5, 6, 7]
    assert len(trial.faults.doubtful(A, list(ALL))) == 1

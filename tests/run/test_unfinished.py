"""Evaluations that a run leaves behind when it is stopped."""

import logging

import pytest

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.errors import EvaluationError
from dspy.promptune.run.failures import unfinished
from dspy.promptune.run.loop import SearchLoop
from dspy.promptune.run.schedule import Schedule
from dspy.promptune.run.search import Run
from tests.tables import Table


class Stopping:
    """Scores whole jobs, the ``last`` of which stops the run; what is running then is told that it was stopped."""

    def __init__(self, table, last):
        self.table, self.last, self.open, self.told = table, last, [], 0

    def room(self, running):
        return running < 4

    def start(self, job, missing, done):
        self.open.append((job, list(missing), done))

    def tend(self, *, ending):
        job, missing, done = self.open.pop(0)
        scores = self.table(self.table.space.params(job.key), missing)
        self.told += 1
        if self.told == self.last:
            self.driver.stop("interrupted")
        done(job, Outcome(scores=dict(zip(missing, scores, strict=True))))

    def stop(self):
        words = [EvaluationError("The run was stopped before this evaluation ended."), ValueError("no luck")]
        for job, _, done in self.open[:2]:
            done(job, Outcome(error=words.pop(0)))
        del self.open[:2]


def test_what_is_cut_short_by_the_end_is_not_counted_as_failed(monkeypatch, caplog):
    """Of the evaluations under way at the end only the one with an error of its own has failed, and the log says so."""
    monkeypatch.setattr("dspy.promptune.run.loop.TICK_SECONDS", 0.0)
    monkeypatch.setattr("dspy.promptune.run.loop.GRACE_SECONDS", 0.2)
    caplog.set_level(logging.INFO, "dspy")
    logging.getLogger("dspy").addHandler(caplog.handler)
    table = Table(instructions=3, demos=3, n_examples=20)
    budget = {"n_examples": 20, "max_calls": 400, "minibatch_size": None, "full_every": 5}
    parts = Run(table.space, "random", budget, seed=0, options={})
    work = Stopping(table, last=2)
    work.driver = driver = SearchLoop(parts.jobs, work, Schedule(n_jobs=4, ahead=1))
    found = parts.result(driver, driver.run())
    logging.getLogger("dspy").removeHandler(caplog.handler)
    errors = [trial.user_attrs["error"] for trial in found.trials if trial.state.name == "FAIL"]
    assert found.ended == "interrupted" and driver.log.failed == 1 and len(errors) > 2
    assert [error for error in errors if not unfinished(error)] == ["ValueError: no luck"]
    assert sum("did not finish: EvaluationError: The run was stopped" in each for each in caplog.messages) == 1
    assert sum("failed: ValueError: no luck" in each for each in caplog.messages) == 1


@pytest.mark.parametrize("error", [None, "", "EvaluationError: The metric broke.", "ValueError: Not finished: x"])
def test_an_error_of_the_program_is_a_failure(error):
    """Whatever a program, a metric or a provider says counts as a failure."""
    assert not unfinished(error)

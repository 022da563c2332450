"""One record of a run, whether it is in memory or read back from its storage."""

import json
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from dspy.promptune import PromptSpace, search
from dspy.promptune.cli import main
from dspy.promptune.findings.clock import clock_of, lanes_of
from dspy.promptune.findings.headline import duration
from dspy.promptune.findings.record import record_of
from dspy.promptune.findings.statistics import difference, interval
from dspy.promptune.findings.verdict import Verdict
from dspy.promptune.report.page import page
from dspy.promptune.run.tables import trial_rows
from tests.report.conftest import Table

BEGIN = datetime(2026, 1, 1)


def study_of(path, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


def trial(start, end, **noted):
    """A finished trial, by seconds."""
    return optuna.trial.FrozenTrial(
        number=0, state=optuna.trial.TrialState.COMPLETE, value=1.0, values=None, trial_id=0, intermediate_values={},
        datetime_start=BEGIN + timedelta(seconds=start), datetime_complete=BEGIN + timedelta(seconds=end),
        params={"x": 0}, distributions={"x": CategoricalDistribution([0])}, user_attrs=noted, system_attrs={},
    )  # fmt: skip


def test_memory_and_storage_give_the_same_record(stored):
    """Evaluations, scores, history, winner and texts are the same from the run and from its database."""
    here, there = record_of(stored[1].optimization_run), record_of(study_of(stored[0], "Predict"))
    assert here.evaluations == there.evaluations and here.history == there.history and here.best == there.best
    assert here.rows == there.rows and not here.replayed and not there.replayed
    parts = range(len(here.space.names))
    assert [here.space.texts(i) for i in parts] == [there.space.texts(i) for i in parts]
    assert here.calls == stored[1].optimization_run.calls


def test_the_history_ends_with_the_winner(stored):
    """The last entry of the history is the run's winner, and calls and seconds only grow."""
    record = record_of(stored[1].optimization_run)
    calls, seconds = [m.calls for m in record.history], [m.seconds for m in record.history]
    assert record.history[-1].key == record.best
    assert calls == sorted(calls) and seconds == sorted(seconds) and seconds[-1] <= record.seconds


def test_an_unfinished_run_is_shown_as_far_as_it_came(tmp_path):
    """A stored run without its last words has a history made from its scores, and says so."""
    path = str(tmp_path / "runs.db")
    Table().search(storage=path)
    study = study_of(path, "search")
    for name in ("history", "best", "ended"):
        study._storage.set_study_user_attr(study._study_id, name, None)
    record = record_of(study_of(path, "search"))
    assert record.replayed and record.ended is None and record.best in record.rows
    assert record.history[-1].calls == record.calls


def test_every_proposal_is_timed():
    """Each trial that was proposed says when that began and how long it took, and ends after it."""
    run = Table().search(sampler="tpe")
    assert all(each.user_attrs["proposing"] >= 0 for each in run.trials)
    for each in record_of(run).evaluations:
        span = each.span
        assert 0 <= span.proposed <= span.asked <= span.begun <= span.ended


def test_lanes_never_overlap():
    """Stretches that overlap get lanes of their own, and a lane is used again as soon as it is free."""
    assert lanes_of([(0, 2), (1, 3), (2, 4), (3, 5)]) == [0, 1, 0, 1]
    assert lanes_of([(0, 9), (1, 2), (1, 2), (3, 4)]) == [0, 1, 2, 1]


def test_idle_stretches_are_cut_out():
    """Hours between two starts of a run are in no time of the record, and are told."""
    clock = clock_of([trial(0, 4, seconds=3.0), trial(7200, 7206, seconds=6.0)])
    assert clock.idle == 7196 and clock.seconds == 10
    assert [span.begun for span in clock.spans] == [1, 4] and [span.ended for span in clock.spans] == [4, 10]


def test_intervals():
    """Wilson's for right and wrong, Student's for graded scores, between 0 and 1 as these are; none for too few."""
    low, high = interval([1.0] * 8 + [0.0] * 2)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # Wilson (1927) for 8 of 10
    low, high = interval([2.0, 4.0, 6.0])
    assert (round(low, 2), round(high, 2)) == (-0.97, 8.97)  # 4 +- 4.303 * 1.155
    low, high = interval([0.2, 0.4, 0.6])
    assert (low, round(high, 3)) == (0.0, 0.897)
    assert all(each != each for each in interval([]))


def test_a_difference_is_paired():
    """Only examples that both have count, and a constant gain has no width where scores have no bounds."""
    found = difference({1: 0.0, 2: 0.5, 3: 1.0}, {2: 0.75, 3: 1.25, 4: 0.0})
    assert (found.mean, found.low, found.high, found.n) == (0.25, 0.25, 0.25, 2)
    assert difference({1: 0.0}, {2: 1.0}) is None
    few = difference({1: 0.0, 2: 0.0}, {1: 1.0, 2: 0.0})
    assert (few.low, few.high) == (-1.0, 1.0)  # 0.5 +- 12.71 * 0.5, and no score is below 0 or above 1
    four = difference(dict.fromkeys(range(4), 0.0), {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0})
    assert (round(four.low, 3), round(four.high, 3)) == (-0.546, 1.0)  # 0.25 - 3.182 * 0.25


@pytest.mark.parametrize(
    ("error", "state"),
    [
        ("RuntimeError: no service", "failed"),
        (None, "failed"),
        ("EvaluationError: Not finished: interrupted.", "unfinished"),
        ("EvaluationError: The run was stopped before this evaluation ended.", "unfinished"),
        ("The process ended before this evaluation did.", "unfinished"),
        ("TakenError: Another driver began to evaluate these examples at the same moment.", "unfinished"),
    ],
)
def test_what_was_cut_short_has_not_failed(error, state, tmp_path, capsys):
    """Trials that were interrupted, killed or left to another process are told apart from those that failed."""
    path = str(tmp_path / "runs.db")
    Table().search(storage=path, max_calls=40)
    study = study_of(path, "search")
    number = study.ask(study.trials[0].distributions).number
    noted = {"kind": "block", "examples": [1, 2], **({} if error is None else {"error": error})}
    for name, value in noted.items():
        study._storage.set_trial_user_attr(study.trials[number]._trial_id, name, value)
    study.tell(number, state=optuna.trial.TrialState.FAIL)
    record = record_of(study_of(path, "search"))
    assert [each.number for each in record.having(state)] == [number]
    assert any(line.startswith("Failed") for line in Verdict(record).lines()) == (state == "failed")
    text = page(record)
    assert ("neither scored nor failed: 1 trial." in text) == (state == "unfinished")
    assert ("<p>No trial failed" in text) == (state == "unfinished")
    assert main(["runs", path, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert {name: row[name] for name in ("failed", "unfinished")} == {"failed": 0, "unfinished": 0, state: 1}


def test_equal_scores_are_not_certain():
    """A few equal graded scores or gains have an interval, which is the narrower the more of them there are."""
    widths = [high - low for low, high in (interval([0.5] * n) for n in (2, 5, 20, 100))]
    assert widths == sorted(widths, reverse=True) and widths[0] == 1.0 and 0.2 < widths[1] < 0.6 and widths[-1] < 0.03
    four = difference(dict.fromkeys(range(4), 0.0), dict.fromkeys(range(4), 1.0))
    assert (four.mean, round(four.low, 2), four.high) == (1.0, 0.52, 1.0)
    most = interval([1.0] * 9 + [0.99])
    assert 0.99 < most[0] < most[1] == 1.0
    assert interval([2.5] * 4) == (2.5, 2.5)  # in units of which nobody knows how far they go


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.2 s"), (99, "99.0 s"), (125, "2 min 05 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds, words):
    """Seconds are said as people say them."""
    assert duration(seconds) == words


def test_a_proposal_that_was_not_followed_is_no_failed_evaluation(tmp_path, capsys):
    """TPE proposes what is not allowed: such a trial is FAILED in the study, says why, and is counted nowhere else."""
    given = {"n_examples": 5, "max_calls": 60, "sampler": "tpe", "seed": 0, "storage": tmp_path / "runs.db"}
    space = PromptSpace({0: list("abcd")}, {0: list("abcd")}, allowed=[(i, i) for i in range(4)])
    run = search(space, lambda params, examples: [1.0] * len(examples), **given)
    overruled = [each for each in trial_rows(run.trials) if each["overruled"]]
    assert overruled and all(each["state"] == "FAIL" and "not allowed" in each["overruled"] for each in overruled)
    record = record_of(run)
    assert not record.having("failed") and len(record.evaluations) == len(run.trials) - len(overruled)
    assert main(["runs", str(tmp_path / "runs.db"), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert (said["failed"], said["trials"]) == (0, len(record.evaluations))
    assert main(["prune", str(tmp_path / "runs.db")]) == 1
    assert f"({len(record.evaluations)} trials)" in capsys.readouterr().err

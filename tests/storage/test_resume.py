"""Searches that are taken up again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import dspy.promptune.identity.process as process_module
import dspy.promptune.storage.lease as lease_module
from dspy.promptune import EvaluationError, OptionError, PromptSpace, StorageError, search
from dspy.promptune.run.streak import MIN_STREAK
from tests.tables import Table

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """The process is gone: nothing catches this."""


def run(table, storage, max_calls=60, **options):
    """A search of the table in a storage."""
    given = {"sampler": "random", "minibatch_size": 4, "seed": 2, "study_name": "one", "resume": True, **options}
    return search(table.space, table, n_examples=table.n_examples, max_calls=max_calls, storage=storage, **given)


def studies(place):
    """The studies in a file, by name, read with Optuna alone."""
    storage = f"sqlite:///{place}"
    if place.endswith(".log"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    return {each.study_name: optuna.load_study(study_name=each.study_name, storage=storage) for each in
            optuna.get_all_study_summaries(storage)}  # fmt: skip


def test_nothing_is_paid_twice(table, place):
    """A run that is taken up with a larger budget pays for the difference only, and knows all its trials."""
    first = run(table, place, 60)
    second = run(table, place, 100)
    assert (first.calls, second.calls) == (60, 100)
    assert len(table.paid) == len(set(table.paid)) == 100
    assert [trial.number for trial in second.trials] == list(range(len(second.trials)))
    assert len(second.trials) > len(first.trials)


def test_a_finished_run_is_read_back(table, place):
    """Taking up a run that is over costs nothing and gives the same winner."""
    first = run(table, place, 60)
    paid = len(table.paid)
    again = run(table, place, 60)
    assert len(table.paid) == paid
    assert (again.best_params, again.best_score, again.calls) == (first.best_params, first.best_score, 60)


def test_our_sampler_goes_on(table, tmp_path):
    """The racing of our own sampler is taken up as well."""
    for budget in (40, 90):
        found = run(table, str(tmp_path / "runs.db"), budget, sampler="onehot", minibatch_size=None)
        assert found.calls == budget
    assert len(table.paid) == len(set(table.paid)) == 90


def test_the_study_tells_the_whole_run(table, place):
    """Options, versions, candidates, scores, times and proposals are in Optuna's own columns, as JSON."""
    found = run(table, place, 60)
    study = studies(place)["one"]
    attributes = study.user_attrs
    assert attributes["options"]["sampler"] == "random" and attributes["options"]["seed"] == 2
    assert attributes["versions"]["upstream"] and attributes["versions"]["fork"].startswith("promptune")
    assert attributes["candidates"]["0_predictor_instruction"] == table.space.texts(0)
    assert attributes["best"] == found.best_params and attributes["ended"] == found.ended
    for trial in study.trials:
        key = table.space.key(trial.params)
        truth = [table.scores[key][example] for example in trial.user_attrs["examples"]]
        assert trial.user_attrs["scores"] == truth
        assert trial.value == pytest.approx(sum(truth) / len(truth))
        assert trial.user_attrs["seconds"] >= 0
        assert all(table.scores[key][example] == score for example, score in trial.intermediate_values.items())
    json.dumps(attributes)


def test_a_running_trial_is_on_disk(table, place):
    """A proposal that is being evaluated is a RUNNING trial with its parameters."""
    seen = []

    def evaluate(params, examples):
        if not seen:
            trials = studies(place)["one"].trials
            seen.extend((trial.state.name, dict(trial.params) == params) for trial in trials)
        return table(params, examples)

    evaluate.__qualname__ = "evaluate"
    search(table.space, evaluate, n_examples=12, max_calls=20, sampler="random", storage=place, study_name="one")
    assert seen == [("RUNNING", True)]


def test_partly_evaluated_prompts_keep_their_scores(table, tmp_path):
    """Examples scored before the process died are not paid again, though their trial never ended."""
    place = str(tmp_path / "runs.db")
    code = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from dspy.promptune.storage.study_store import open_study_store
        from dspy.promptune.identity.manifest import search_manifest
        from dspy.promptune.run.search import Run
        from tests.tables import Table
        table = Table(instructions=4, demos=3, n_examples=12)
        store = open_study_store({place!r}, "one", True, "search")
        store.begin(search_manifest(table.space, table, 12, {{}}))
        budget = dict(n_examples=12, max_calls=60, minibatch_size=4, full_every=0)
        job = Run(table.space, "random", budget, seed=2, options={{}}, store=store).jobs.next()
        store.keep_scores(job, {{job.examples[0]: table.scores[job.key][job.examples[0]]}})
        print(*job.key, job.examples[0], flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    *key, example = map(int, done.stdout.split())
    found = run(table, place, 144)
    assert (tuple(key), example) not in table.paid and len(set(table.paid)) == len(table.paid) == found.calls - 1
    stale = found.trials[0]
    assert stale.state.name == "FAIL" and "The process ended" in stale.user_attrs["error"]


def test_a_study_that_is_there_is_not_overwritten(table, place):
    """Without ``resume`` a name that is taken is refused, with the two ways out."""
    run(table, place)
    with pytest.raises(StorageError, match="resume=True continues it, another study_name"):
        run(table, place, resume=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"instructions": 5}, "candidates.0_predictor_instruction"),
        ({"demos": 4}, "candidates.0_predictor_demos"),
        ({"n_examples": 13}, "n_examples was 12, is 13"),
    ],
)
def test_another_search_is_refused(table, tmp_path, change, named):
    """What makes old scores incomparable is named; the study stays as it was."""
    place = str(tmp_path / "runs.db")
    before = run(table, place)
    other = Table(**{"instructions": 4, "demos": 3, "n_examples": 12, **change})
    with pytest.raises(StorageError, match=named):
        run(other, place)
    assert not other.paid
    assert len(studies(place)["one"].trials) == len(before.trials)


def test_a_change_can_be_forced(table, tmp_path, caught):
    """``resume="force"`` goes on in spite of a difference, and says which."""
    place = str(tmp_path / "runs.db")
    run(table, place, 60)
    table.n_examples = 11
    found = run(table, place, 80, resume="force")
    assert found.calls == 80 and "n_examples was 12, is 11" in caught.text


def test_another_number_of_candidates_cannot_be_forced(table, place):
    """Trials of a larger space cannot go on in a smaller one: refused, and the study continues as it was."""
    run(table, place, 60)
    smaller = Table(instructions=3, demos=3, n_examples=12)
    with pytest.raises(StorageError, match=r"candidates\.0_predictor_instruction has 4 there, not 3"):
        run(smaller, place, 80, resume="force")
    assert run(table, place, 80).calls == 80 and not smaller.paid


def test_a_foreign_study_is_left_alone(table, tmp_path):
    """A study that was not made here, with trials in it, is refused."""
    place = str(tmp_path / "runs.db")
    optuna.create_study(storage=f"sqlite:///{place}", study_name="one").optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(StorageError, match="not made by promptune"):
        run(table, place)


def test_two_runs_at_once_are_refused(table, place):
    """While a run is going on in this process, a second one on its study is refused; afterwards it is not."""
    inside, go_on, first = threading.Event(), threading.Event(), []

    def evaluate(params, examples):
        inside.set()
        assert go_on.wait(30)
        return table(params, examples)

    evaluate.__qualname__, evaluate.__module__ = Table.__qualname__, Table.__module__
    options = {"n_examples": 12, "max_calls": 20, "sampler": "random", "storage": place, "study_name": "one"}
    thread = threading.Thread(target=lambda: first.append(search(table.space, evaluate, **options)))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(StorageError, match="is being run by this process"):
        run(table, place)
    go_on.set()
    thread.join(30)
    again = search(table.space, evaluate, **{**options, "max_calls": 30}, resume=True)
    assert first[0].calls == 20 and again.calls == 30


@pytest.mark.parametrize("place", [pytest.param("runs.db", marks=pytest.mark.slow), "runs.log"], indirect=True)
def test_a_run_in_another_process_is_refused_until_it_is_gone(table, place):
    """A living process holds its study, a killed one does not."""
    code = f"""
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from dspy.promptune import search
        from tests.tables import Table
        table = Table(instructions=4, demos=3, n_examples=12)
        class Slow:
            def extend(self, pairs):
                print("in", flush=True)
                time.sleep(60)
        table.paid = Slow()
        search(table.space, table, n_examples=12, max_calls=20, sampler="random", storage={place!r}, study_name="one")
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(StorageError, match=f"is being run by process {other.pid} on this machine"):
            run(table, place)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        other.stdout.close()
    found = run(table, place, 30)
    assert found.calls == 30 and found.trials[0].state.name == "FAIL"


@pytest.mark.parametrize("given", [{"study_name": "x"}, {"resume": True}, {"resume": "force"}])
def test_options_of_a_storage_need_one(table, given):
    """``study_name`` and ``resume`` without ``storage`` are refused."""
    with pytest.raises(OptionError, match="needs storage="):
        search(table.space, table, n_examples=12, max_calls=20, sampler="random", **given)


@example(lives=[["failed"] * 5])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=st.lists(st.lists(st.sampled_from(["finished", "failed", "killed"]), max_size=6), max_size=4))
def test_any_interleaving_can_be_resumed(lives):
    """However evaluations finished, failed and died: the next start goes on within the budget, and pays for nothing
    it has."""
    storage = optuna.storages.InMemoryStorage()
    table = Table(instructions=3, demos=2, n_examples=6)
    lost, failed = [], []

    def start(outcomes):
        left = iter(outcomes)

        def evaluate(params, examples):
            outcome = next(left, "finished")
            if outcome == "failed":
                failed.extend(examples)
                raise ValueError("no answer")
            scores = table(params, examples)
            if outcome == "killed":
                lost.extend(table.paid[-len(examples) :])
                raise Killed
            return scores

        return search(
            table.space, evaluate, n_examples=6, max_calls=30, sampler="random", minibatch_size=3, seed=1,
            storage=storage, study_name="one", resume=True,
        )  # fmt: skip

    for outcomes in lives:
        try:
            start(outcomes)
        except Killed:
            continue
        except EvaluationError:  # it gave up, as a run does after so many failures in a row
            assert outcomes.count("failed") >= MIN_STREAK
    try:
        found = start([])
    except EvaluationError:
        assert len(failed) == 30 and len(table.paid) == len(lost)
        return
    assert found.calls + len(failed) == 30 or found.ended == "nothing is left to evaluate"
    kept = list(table.paid)
    for pair in lost:
        kept.remove(pair)
    assert len(kept) == len(set(kept)) == found.calls
    assert {trial.state.name for trial in found.trials} <= {"COMPLETE", "FAIL"}
    assert all(trial.value is None for trial in found.trials if trial.state.name == "FAIL")


@pytest.mark.parametrize("proc", [True, False])
def test_a_process_is_known_to_live_on_any_system(monkeypatch, proc):
    """With and without ``/proc`` a living process holds its note; one that has ended, or has its number, does not."""
    if not proc:
        monkeypatch.setattr(process_module, "_stat", lambda pid: None)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    note = {**lease_module.Lease().note(), "pid": child.pid, "process_start": process_module.process_start(child.pid)}
    try:
        assert lease_module.holder(note) == f"process {child.pid} on this machine"
        assert lease_module.holder({**note, "process_start": 1.0}) is None
    finally:
        child.kill()
    time.sleep(0.2)
    assert lease_module.holder(note) is None  # it is dead, though nobody has waited for it
    child.wait()
    assert lease_module.holder(note) is None
    assert lease_module.holder({"token": 1, "pid": "x", "seen": "y"}) is None


@pytest.mark.parametrize("seed", [1, 4, 7])
def test_a_run_that_has_ended_keeps_its_winner_among_equals(tmp_path, seed):
    """Taken up again with nothing to do, a run whose prompts are level returns the one that it returned before."""
    space = PromptSpace({0: [f"text {i}" for i in range(4)]}, {0: [[], [{"q": "1"}], [{"q": "2"}]]})

    def evaluate(params, examples):
        turn = 2 * params["0_predictor_demos"]
        return [float((example + turn) % 3 == 0) for example in examples]

    options = {"n_examples": 12, "max_calls": 144, "seed": seed, "embedder": "ngram", "n_jobs": 3}
    first, again = (
        search(space, evaluate, storage=tmp_path / "run.db", resume=True, **options).best_params for _ in range(2)
    )
    assert again == first

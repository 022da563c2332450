"""Several drivers on one study: each pair of prompt and example is evaluated by one, and all have the same winner."""

import time
from pathlib import Path

import optuna
import pytest

import dspy.promptune.run.loop as driver_module
import dspy.promptune.storage.drivers as drivers_module
import dspy.promptune.storage.held_study as held_study
from dspy.promptune import OptionError, StorageError, search
from dspy.promptune.allocation.records import Assignment
from dspy.promptune.identity.manifest import search_manifest
from dspy.promptune.limits.budgets import BudgetLimits, BudgetMeter
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.run.search import Run
from dspy.promptune.storage.study_store import OBJECTIVE, open_study_store
from tests.tables import Table
from tests.threads import at_once

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 80
BLOCKS = {"sampler": "onehot", "minibatch_size": None}
MINIBATCHES = {"sampler": "random", "minibatch_size": 4}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody waits long for anybody."""
    monkeypatch.setattr(drivers_module, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(held_study, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr(driver_module, "TICK_SECONDS", 0.05)


class SearchLoop:
    """One driver of the study "one" whose jobs are asked for and told by hand."""

    def __init__(self, table, storage, sampler="random", minibatch_size=4, max_calls=100):
        self.store = open_study_store(storage, "one", False, "search", share=True)
        self.store.begin(search_manifest(table.space, table, table.n_examples, {}))
        budget = {"n_examples": 12, "max_calls": max_calls, "minibatch_size": minibatch_size, "full_every": 0}
        self.run = Run(table.space, sampler, budget, seed=2, options={}, store=self.store)
        self.peers = self.run.sharing
        self.peers.begin()
        self._truth = table.scores

    def tell(self, job):
        scores = [self._truth[job.key][example] for example in job.examples]
        for example, score in zip(job.examples, scores, strict=True):
            self.run.table.add(job.key, example, score)
        self.run.jobs.tell(job, scores)

    def claim(self, key, examples):
        return self.run.jobs.claim([self.run.whole_or_block(key, examples)])[0]

    def die(self):
        """As killed: nothing more is written, and the process is not there any more."""
        self.store._writer.close()
        self.store._lease.release()


@pytest.fixture
def memory():
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def two(table, memory):
    """Two drivers of one study."""
    both = [SearchLoop(table, memory) for _ in range(2)]
    yield both
    for each in both:
        each.store.close()


def together(table, storage, count=2, **options):
    """Searches of one study in so many threads: what each found, and what it paid for."""

    def one():
        mine = []

        def evaluate(params, examples):
            time.sleep(0.002)
            key = table.space.key(params)
            mine.extend((key, example) for example in examples)
            return [table.scores[key][example] for example in examples]

        evaluate.__qualname__, evaluate.__module__ = Table.__qualname__, Table.__module__
        given = {"n_examples": 12, "max_calls": BUDGET, "seed": 2, "n_jobs": 2, "study_name": "one", **options}
        return search(table.space, evaluate, storage=storage, share=True, **given), mine

    found, paid = zip(*at_once(*[one] * count), strict=True)
    return found, paid


@pytest.mark.parametrize("options", [BLOCKS, MINIBATCHES], ids=["blocks", "minibatches"])
def test_together_they_pay_for_each_pair_once(table, memory, options):
    """Drivers stay within one budget, score no pair twice, know all trials, and return the same prompt."""
    found, paid = together(table, memory, **options)
    pairs = [pair for mine in paid for pair in mine]
    assert len(pairs) == len(set(pairs)) <= BUDGET
    assert {run.calls for run in found} == {len(pairs)} and len(pairs) > 0.9 * BUDGET
    assert len({(str(run.best_params), run.best_score) for run in found}) == 1
    assert len({len(run.trials) for run in found}) == 1
    assert {trial.state.name for trial in found[0].trials} <= {"COMPLETE", "FAIL"}
    assert all(paid)


def test_a_driver_that_begins_meanwhile_is_no_other_program(table):
    """What another driver writes first, between two reads of a new study, does not make the study a foreign one."""

    class Meanwhile(optuna.storages.InMemoryStorage):
        def get_study_user_attrs(self, study_id):
            found = dict(super().get_study_user_attrs(study_id))
            self.set_study_user_attr(study_id, "format", 1)
            self.set_study_system_attr(study_id, *OBJECTIVE)
            return found

    storage = Meanwhile()
    optuna.create_study(study_name="one", storage=storage, direction="maximize")
    given = {"n_examples": 12, "max_calls": 24, "seed": 2, "study_name": "one"}
    assert search(table.space, table, storage=storage, share=True, **given).calls == 24


def test_together_in_one_file(table, tmp_path):
    """The same in a SQLite file."""
    found, paid = together(table, str(tmp_path / "runs.db"), **MINIBATCHES)
    pairs = [pair for mine in paid for pair in mine]
    assert len(pairs) == len(set(pairs)) == found[0].calls == found[1].calls
    assert found[0].best_params == found[1].best_params


def test_what_others_evaluate_is_theirs(two, table):
    """A job whose examples another driver's earlier job has waits for that; what it brings is paid for."""
    first, second = two
    job = first.claim((0, 0), [0, 1, 2])
    late = second.claim((0, 0), [2, 3])
    first.peers.look()
    assert second.peers.held(late) == {2} and first.peers.held(job) == set()
    assert second.run.jobs.ledger.claimed() == first.run.jobs.ledger.claimed() == 5
    first.tell(job)
    assert second.peers.look()
    assert second.peers.held(late) == set() and second.run.table.row((0, 0)).keys() == {0, 1, 2}


def test_a_trial_without_a_claim_is_waited_for(two, table, memory):
    """As long as an earlier trial does not say what it is for, all examples of its prompt are taken as its own."""
    first, second = two
    first.run.jobs.trials.open(Assignment((0, 0), (0,), "block"))
    job = second.claim((0, 0), [0, 1])
    other = second.claim((1, 0), [0, 1])
    assert second.peers.held(job) == {0, 1} and second.peers.held(other) == set()


def test_the_last_calls_are_claimed_once(table, memory):
    """Of two drivers that claim the last calls at the same moment, the one whose trial is later gives it up."""
    first, second = (SearchLoop(table, memory, max_calls=4) for _ in range(2))
    assert len(first.run.jobs.next().examples) == 4
    assert second.run.jobs.next() is None
    trials = memory.get_all_trials(second.run.study._study_id)
    assert [trial.state.name for trial in trials] == ["RUNNING", "FAIL"]
    assert "another driver" in trials[1].user_attrs["error"]
    for each in (first, second):
        each.store.close()


def test_trials_of_a_dead_driver_are_closed(two, memory):
    """The trials of a driver that is gone are FAILED by another, which has what they scored and may do the rest."""
    first, second = two
    job = first.claim((0, 0), [0, 1, 2])
    first.store.keep_scores(job, {0: 1.0})
    waits = second.claim((0, 0), [0, 1])
    first.die()
    assert second.peers.look() and second.peers.held(waits) == set()
    assert second.run.table.row((0, 0)) == {0: 1.0}
    assert memory.get_all_trials(second.run.study._study_id)[job.number].state.name == "FAIL"


def test_a_living_driver_keeps_its_trials(two, memory, monkeypatch):
    """A driver on another machine whose clock is hours off lives as long as its note changes, and for a minute more."""
    first, second = two
    first.claim((0, 0), [0])
    name = drivers_module.DRIVER + first.store.drivers.token
    note = {**memory.get_study_system_attrs(0)[name], "host": "elsewhere", "seen": 5.0}
    memory.set_study_system_attr(0, name, note)
    second.store.refresh()
    assert not second.peers.look() and second.store.drivers.living()
    monkeypatch.setattr(drivers_module, "STALE_SECONDS", 0.0)
    assert second.peers.look()


def test_a_run_that_does_not_share_is_refused(two, table, memory):
    """Without ``share`` a study that is being run is refused, and the message names the option."""
    with pytest.raises(StorageError, match=r"being run by this process: .*share=True"):
        search(table.space, table, n_examples=12, max_calls=20, storage=memory, study_name="one", resume=True)


def test_a_run_that_is_not_shared_cannot_be_joined(table, memory):
    """``share=True`` does not take part in a run that was started without it."""
    store = open_study_store(memory, "one", False, "search")
    store.begin(search_manifest(table.space, table, table.n_examples, {}))
    with pytest.raises(StorageError, match="being run by this process without share=True"):
        SearchLoop(table, memory)
    store.close()


def test_another_run_cannot_join(two, memory):
    """A search of another space is refused, and what has changed is named."""
    with pytest.raises(StorageError, match=r"is another run: .*candidates"):
        SearchLoop(Table(instructions=5, demos=3, n_examples=12), memory)


def test_where_sharing_is_not_possible(table, tmp_path):
    """In memory and in a journal there is no sharing."""
    with pytest.raises(OptionError, match="share=True needs storage="):
        search(table.space, table, n_examples=12, max_calls=20, share=True)
    with pytest.raises(StorageError, match="is a journal"):
        search(table.space, table, n_examples=12, max_calls=20, share=True, storage=str(tmp_path / "runs.log"))


def test_an_interrupt_ends_the_wait_for_candidates(table, memory, monkeypatch):
    """Whoever waits until another driver has made them need not wait for that one to be interrupted."""
    manifest = search_manifest(table.space, table, table.n_examples, {})
    first, second = (open_study_store(memory, "one", False, "search", share=True) for _ in range(2))
    first.begin(manifest)
    monkeypatch.setattr(held_study, "pressed", lambda: True)
    with pytest.raises(Stopped, match="interrupted before"):
        second.begin(manifest)
    first.close()


def test_a_file_is_for_one_machine(two, table, tmp_path):
    """A driver that sees another machine's note in a file is refused."""
    place = str(tmp_path / "runs.db")
    first = SearchLoop(table, place)
    note = {**first.store._lease.note(), "host": "elsewhere", "share": True, "open": True}
    first.store._write_note(drivers_module.DRIVER + "theirs", note)
    with pytest.raises(StorageError, match="a file that elsewhere writes as well"):
        SearchLoop(table, place)
    first.store.close()


def test_limits_are_for_all():
    """What others have spent counts for a driver's limits, and is not written as its own."""
    meter = BudgetMeter(BudgetLimits(max_lm_calls=10))
    meter.elsewhere({"search": {"calls": 8}})
    for _ in range(2):
        assert meter.admit()
        meter.ended()
    assert not meter.admit()
    assert meter.spent()["search"]["calls"] == 10 and meter.own()["search"]["calls"] == 2


def test_what_another_driver_may_spend_is_not_shown_as_spent():
    """It counts for the limits until that driver says what it took."""
    meter = BudgetMeter(BudgetLimits(max_lm_calls=10))
    meter.elsewhere({"search": {"calls": 9, "tokens": 50}}, {"search": {"calls": 4}})
    assert meter.spent()["search"]["calls"] == 5 and meter.spent()["search"]["tokens"] == 50
    assert meter.admit() and not meter.admit()


def test_who_comes_late_has_the_same_winner(table, memory):
    """A driver that starts when all is done pays for nothing and returns what the others did."""
    (first, _), _ = together(table, memory, **MINIBATCHES)
    (late,), (nothing,) = together(table, memory, count=1, **MINIBATCHES)
    assert not nothing and (late.best_params, late.calls) == (first.best_params, first.calls)

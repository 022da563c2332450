"""The loop of a run: what it does depends on the order of events, and on nothing else."""

import random
import signal
import sys

import pytest

from dspy.promptune import PromptSpace, search
from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.interrupts import Interrupt, interrupts
from dspy.promptune.run.loop import SearchLoop
from dspy.promptune.run.schedule import Limits, Schedule
from dspy.promptune.run.search import Run

SEARCH = sys.modules[Run.__module__]  # whose name is hidden by the function's


class ScriptedWork:
    """Ends jobs in the order that ``choose`` says, one whenever the driver waits."""

    def __init__(self, table, choose, n_jobs):
        self.table, self.choose, self.n_jobs = table, choose, n_jobs
        self.open = {}
        self.most = 0

    def room(self, running):
        return running < self.n_jobs

    def start(self, job, missing, done):
        self.open[job.number] = (job, list(missing), done)
        self.most = max(self.most, len(self.open))

    def tend(self, *, ending):
        if self.open:
            job, missing, done = self.open.pop(self.choose(sorted(self.open)))
            scores = self.table(self.table.space.params(job.key), missing)
            done(job, Outcome(scores=dict(zip(missing, scores, strict=True))))

    def stop(self):
        pass


def run(table, choose, monkeypatch, *, schedule=None, sampler="onehot"):
    monkeypatch.setattr("dspy.promptune.run.loop.TICK_SECONDS", 0.0)
    budget = {"n_examples": table.n_examples, "max_calls": 120, "minibatch_size": None, "full_every": 5}
    parts = Run(table.space, sampler, budget, seed=0, options={})
    work = ScriptedWork(table, choose, 4)
    driver = SearchLoop(parts.jobs, work, schedule or Schedule(n_jobs=4, ahead=1))
    return parts.result(driver, driver.run()), work


def test_the_same_order_of_completion_gives_the_same_trials(table, monkeypatch):
    """An asynchronous run is repeated exactly by ending its jobs in the order that it recorded."""
    first, _ = run(table, random.Random(1).choice, monkeypatch)
    ends = iter([number for what, number in first.order if what != "ask"])
    again, _ = run(table, lambda numbers: next(ends), monkeypatch)
    assert again.order == first.order and again.history == first.history
    assert [(t.params, t.user_attrs["scores"]) for t in again.trials] == [
        (t.params, t.user_attrs["scores"]) for t in first.trials
    ]


def test_another_order_gives_another_run(table, monkeypatch):
    """The order of completion matters where running jobs are waited for one by one."""
    orders = [run(table, random.Random(seed).choice, monkeypatch)[0].order for seed in (1, 2)]
    assert orders[0] != orders[1]


def test_in_batches_the_order_of_completion_does_not_matter(table, monkeypatch):
    """Batches are told in the order of their trials, whichever ends first."""
    runs = [run(table, choose, monkeypatch, schedule=Schedule(n_jobs=4, batch=4))[0] for choose in (min, max)]
    assert [(t.params, t.value) for t in runs[0].trials] == [(t.params, t.value) for t in runs[1].trials]


def test_a_proposal_is_ready_when_a_place_becomes_free(table, monkeypatch):
    """Without batches one job is asked for before there is room for it, and never more than ``n_jobs`` run."""
    found, work = run(table, min, monkeypatch)
    under_way, most = 0, 0
    for what, _ in found.order:
        under_way += 1 if what == "ask" else -1
        most = max(most, under_way)
    assert most == 5 and work.most == 4


def test_room_is_filled_before_a_job_has_ended(table, monkeypatch):
    """Woken up, the driver starts as many jobs as there is room for, whether one has ended or not."""
    running = []

    class Widening(ScriptedWork):
        def tend(self, *, ending):
            running.append(len(self.open))
            if self.n_jobs == 1:
                self.n_jobs = 3
                driver.wake()
            else:
                super().tend(ending=ending)

    monkeypatch.setattr("dspy.promptune.run.loop.TICK_SECONDS", 0.0)
    budget = {"n_examples": 40, "max_calls": 40, "minibatch_size": 5, "full_every": 0}
    parts = Run(table.space, "random", budget, seed=0, options={})
    driver = SearchLoop(parts.jobs, Widening(table, min, 1), Schedule(n_jobs=1))
    driver.run()
    assert running[:2] == [1, 3]


def test_jobs_that_share_examples_do_not_evaluate_them_twice(table, monkeypatch):
    """A pair that is being evaluated is waited for by other jobs that need it."""
    space = table.space
    key = next(iter(space.keys()))
    budget = {"n_examples": 40, "max_calls": 40, "minibatch_size": None, "full_every": 0}
    parts = Run(space, "onehot", budget, seed=0, options={})
    started = []

    class Noting(ScriptedWork):
        def start(self, job, missing, done):
            started.append((job.number, list(missing)))
            super().start(job, missing, done)

    monkeypatch.setattr("dspy.promptune.run.loop.TICK_SECONDS", 0.0)
    work = Noting(table, min, 3)
    first = [(key, range(6)), (key, range(3, 9)), (key, range(2, 5))]
    driver = SearchLoop(
        parts.jobs, work, Schedule(n_jobs=3),
        first=lambda: [parts.whole_or_block(*each) for each in first],
    )  # fmt: skip
    driver.run()
    assert started[:2] == [(0, [0, 1, 2, 3, 4, 5]), (1, [6, 7, 8])]
    assert all(number != 2 for number, _ in started) and len(table.paid) == len(set(table.paid)) == 40
    assert {t.number: len(t.user_attrs["scores"]) for t in parts.study.trials[:3]} == {0: 6, 1: 6, 2: 3}


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_the_last_stragglers_are_not_waited_for(table, monkeypatch, n_jobs):
    """A job that is cut at the end counts with the examples it has, and the run asks for nothing more."""
    monkeypatch.setattr("dspy.promptune.run.loop.TICK_SECONDS", 0.0)
    budget = {"n_examples": 40, "max_calls": 30, "minibatch_size": None, "full_every": 0}
    parts = Run(table.space, "onehot", budget, seed=0, options={})

    class Cutting(ScriptedWork):
        def tend(self, *, ending):
            if not ending:
                return super().tend(ending=ending)
            for job, missing, done in list(self.open.values()):
                scores = self.table(self.table.space.params(job.key), missing[:-1])
                done(job, Outcome(scores=dict(zip(missing[:-1], scores, strict=True)), cut=True))
            self.open.clear()

    driver = SearchLoop(parts.jobs, Cutting(table, min, n_jobs), Schedule(n_jobs=n_jobs), limits=Limits(max_calls=30))
    found = parts.result(driver, driver.run())
    assert 30 - n_jobs <= found.calls < 30
    assert all(trial.state.name == "COMPLETE" for trial in found.trials)


def test_the_second_interrupt_raises():
    """Ctrl-C once says so, twice raises at once, and afterwards the handler is the one before."""
    before, said = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt), interrupts(lambda: said.append("first")):
            signal.raise_signal(signal.SIGINT)
            assert said == ["first"]
            signal.raise_signal(signal.SIGINT)
        assert said == ["first"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_kept_for_whoever_can_end_the_run(python_hears_interrupts):
    """Ctrl-C that comes while a run is being put together is told to it, and the second raises inside other blocks."""
    told = []
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt), interrupts(interrupt):
        signal.raise_signal(signal.SIGINT)
        interrupt.then(told.append)
        assert told == ["interrupted"]
        with interrupts(lambda: told.append("of a block inside")):
            signal.raise_signal(signal.SIGINT)
    assert told == ["interrupted"]
    with interrupts(lambda: told.append("of the next run")):
        signal.raise_signal(signal.SIGINT)
    assert told[1:] == ["of the next run"]


@pytest.mark.parametrize("phase", ["open_study_store", "search_manifest", "shown"])
def test_a_search_that_is_interrupted_gives_the_best_of_earlier_starts(
    monkeypatch, tmp_path, python_hears_interrupts, phase
):
    """Ctrl-C while a search is opened, loaded or closed gives the best so far, which earlier starts may have scored."""
    space, asked = PromptSpace({0: ["a", "b", "c", "d"]}), []

    def evaluate(params, examples):
        asked.append(params)
        return [params["0_predictor_instruction"] / 4] * len(examples)

    options = {"n_examples": 4, "sampler": "random", "seed": 0, "storage": tmp_path / "run.db", "minibatch_size": 4}
    before = search(space, evaluate, max_calls=8, **options)
    count, original = len(asked), getattr(SEARCH, phase)

    def pressed(*args, **given):
        signal.raise_signal(signal.SIGINT)
        return original(*args, **given)

    monkeypatch.setattr(SEARCH, phase, pressed)
    found = search(space, evaluate, max_calls=12, resume="force", **options)
    assert found.best_score >= before.best_score
    assert (found.ended == "interrupted" and len(asked) == count) or phase == "shown"

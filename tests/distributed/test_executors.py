"""``compile(executor=...)`` on real processes: what comes back, what holds, and what is refused."""

import contextvars
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import dspy
from dspy.promptune import EvaluationError, OptionError
from dspy.promptune.distributed.payload import JobPayload
from dspy.promptune.distributed.stopping import StopMark, StoppableMeter
from dspy.promptune.limits.budgets import BudgetLimits
from tests.compile.hazards import check_raised_counts_as_wrong
from tests.server import Faults, LMServer, TaskRule, max_in_flight
from tests.storage.lives import QUESTIONS
from tests.storage.lives import compiled as one_compile

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]
KEY = "sk-a-key-of-its-own-1234"


def executors(request, name):
    fixture = request.getfixturevalue(name)
    return fixture.get_executor() if hasattr(fixture, "get_executor") else fixture


@pytest.mark.parametrize("name", ["processes", pytest.param("cluster", marks=pytest.mark.slow)])
def test_a_compile_on_workers_is_the_compile(request, name, compiled, server):
    """On processes and on Dask a compile gives the trials, scores and usage of one in threads, within its limits."""
    found = compiled(executors(request, name), schedule="batch", max_concurrency=5)
    in_flight = max_in_flight(server.records())
    requests = server.requests
    expected = compiled(None, schedule="batch", max_concurrency=5)
    trials = lambda program: [  # noqa: E731
        (trial.params, trial.values, trial.user_attrs["examples"]) for trial in program.optimization_run.trials
    ]
    assert trials(found) == trials(expected)
    assert found.score == expected.score
    assert in_flight <= 5
    assert requests == server.requests
    spent = [program.optimization_run.spent["search"] for program in (found, expected)]
    assert [each["tokens"] for each in spent] == [spent[0]["tokens"]] * 2 and spent[0]["tokens"] > 0


class CarryingPool(ThreadPoolExecutor):
    """A pool that carries the context of whoever submits, as tracing does."""

    def submit(self, function, *args, **options):
        return super().submit(contextvars.copy_context().run, function, *args, **options)


def test_an_executor_may_carry_the_context(compiled, server):
    """A block that runs in the run's own context neither waits for the run's limits nor counts its calls twice."""
    with CarryingPool(2) as threads:
        found = compiled(threads, schedule="batch", max_concurrency=2)
    assert found.optimization_run.ended == "the budget is spent"
    assert sum(each.get("calls", 0) for each in found.optimization_run.spent.values()) == server.requests


def test_results_do_not_depend_on_who_evaluates_them(compiled):
    """A thread pool is an executor like any other."""
    with ThreadPoolExecutor(2) as threads:
        found = compiled(threads, schedule="batch")
    assert found.optimization_run.calls > 0 and 0 <= found.score <= 100


def strict(example, prediction, trace=None):
    """Raises where the answer is wrong."""
    return {True: 1.0}[example.answer == prediction.answer]


def test_a_metric_that_raises_elsewhere_counts_as_here(compiled, caplog):
    """Once a prompt was given a score by workers, no evaluation of it fails because the metric raises."""
    with ThreadPoolExecutor(2) as threads:
        options = {"sampler": "qei", "embedder": "ngram", "minibatch_size": None, "num_trials": 8}
        run = compiled(threads, metric=strict, n_jobs=1, **options).optimization_run
    check_raised_counts_as_wrong(run, caplog.text)


@pytest.mark.slow
def test_workers_evaluate_what_was_written_meanwhile(processes, compiled):
    """Workers have no list of candidates of their own: a text of the search is scored by them as any other."""
    run = compiled(processes, sampler="qei", embedder="ngram", minibatch_size=None, reflect=True).optimization_run
    part = run.lineage[0]["part"]
    assert run.lineage[0]["index"] in {trial.params[part] for trial in run.trials if trial.values}


def test_budgets_hold_across_workers(processes, compiled, server):
    """Workers make no call beyond ``max_lm_calls``, and the run ends with what it has."""
    found = compiled(processes, max_lm_calls=80, num_trials=30)
    assert server.requests <= 80
    spent = found.optimization_run.spent
    assert sum(each.get("calls", 0) for each in spent.values()) == server.requests
    assert "max_lm_calls" in found.optimization_run.ended


def test_an_unknown_price_is_said_once(compiled, server, caplog):
    """A model without a price is named once, however many blocks call it on however many workers."""
    lm = dspy.LM("openai/a-model-of-mine", api_base=server.url, api_key="none", cache=False)
    with ThreadPoolExecutor(2) as executor:
        compiled(executor, lm=lm, max_cost=1.0)
    assert caplog.text.count("The price of openai/a-model-of-mine is not known") == 1


def test_a_metric_that_raises_is_scored_as_in_threads(processes, compiled):
    """Examples on which the metric raises count as failures; too many of them fail the trial, with its reason."""

    def picky(example, prediction, trace=None):
        if example.question.endswith("7"):
            raise ValueError("no sevens")
        return example.answer == prediction.answer

    found = compiled(processes, metric=picky, schedule="batch")
    expected = compiled(None, metric=picky, schedule="batch")
    values, others = (
        [(trial.values, trial.user_attrs.get("errors")) for trial in each.optimization_run.trials]
        for each in (found, expected)
    )
    assert values == others
    with pytest.raises(EvaluationError, match="no score today"):
        compiled(processes, metric=lambda example, prediction, trace=None: True if trace else no_score())


def no_score():
    raise ValueError("no score today")


class Holds(dspy.Module):
    def __init__(self, **held):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, question):
        return self.answer(question=question)


def test_what_cannot_be_pickled_is_named_before_any_call(processes, compiled, server):
    """A lock in the program, or in what the metric holds, is named with its way there, and nothing is paid."""
    with pytest.raises(OptionError, match=r"program\.tools\['guard'\] \(lock\) cannot be pickled"):
        compiled(processes, program=Holds(tools={"guard": threading.Lock()}))
    held = threading.Lock()
    with pytest.raises(OptionError, match=r"metric with its variable held \(lock\)"):
        compiled(processes, metric=lambda example, prediction, trace=None: bool(held))
    assert server.requests == 0


@pytest.mark.parametrize("given", [{"executor": "dask"}, {"executor_keys": "environment"}, {"executor_keys": "vault"}])
def test_what_is_no_executor_is_refused(given, compiled):
    """An executor of another kind, and keys without an executor or from elsewhere, are refused at the door."""
    with pytest.raises(OptionError, match="executor"):
        compiled(given.pop("executor", None), **given)


@pytest.mark.slow
def test_keys_travel_and_are_not_shown(cluster, compiled, caplog, capfd, tmp_path):
    """The key is in no log line, no output and no study, though the workers use it; parcels print no content."""
    caplog.set_level(logging.DEBUG)
    compiled(cluster.get_executor(), storage=str(tmp_path / "runs.db"), num_trials=2)
    out = capfd.readouterr()
    everything = caplog.text + out.out + out.err + (tmp_path / "runs.db").read_bytes().decode("latin1")
    assert KEY not in everything
    payload = JobPayload(ticket="t", frame=KEY.encode(), program=b"", examples=b"", threads=1)
    assert KEY not in repr(payload) and pickle.loads(pickle.dumps(payload)) == payload


def test_keys_may_stay_at_home():
    """With ``executor_keys="environment"`` no key is in what travels; without, the workers have it."""
    from dspy.promptune.distributed.payload import PayloadBuilder
    from dspy.promptune.distributed.programs import EvaluationRules

    rules = EvaluationRules(metric=lambda example, prediction, trace=None: True, valset=[])
    lm = dspy.LM("openai/x", api_key=KEY, extra_headers={"Authorization": f"Bearer {KEY}"})
    with dspy.context(lm=lm):
        assert KEY.encode() in PayloadBuilder(rules).frame()
        assert KEY.encode() not in PayloadBuilder(rules, "environment").frame()
        keyless = PayloadBuilder(rules, "environment")
        keyless.frame()
        with pytest.raises(OptionError, match="holds a key"):
            keyless.program(Holds(note=f"my key is {KEY}"))
    assert lm.kwargs["api_key"] == KEY


def test_a_dead_pool_is_said(compiled):
    """A pool whose process was killed fails the trials that were out, and the run says why it cannot go on."""
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    with pool, pytest.raises(EvaluationError, match="The worker was lost"):
        compiled(pool, metric=deadly)


def test_a_pool_that_does_not_start_is_refused_before_the_first_call(compiled, server):
    """One that is dead already, and one that was shut down."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as dead:
        dead.submit(int).result()
        os.kill(next(iter(dead._processes)), signal.SIGKILL)
        with pytest.raises(OptionError, match="workers do not start"):
            compiled(dead)
    ended = ThreadPoolExecutor(2)
    ended.shutdown()
    with pytest.raises(OptionError, match="not shut down"):
        compiled(ended)
    assert server.requests == 0


def test_a_pause_that_a_provider_asks_for_is_waited_for():
    """One refusal with Retry-After, while nothing else is out, fails no trial: it is no limit that was spent."""
    late = list(QUESTIONS)[25]

    def rule(messages, attempt):
        return "429" if attempt == 0 and late in str(messages[-1]) else None

    faults = Faults(rule=rule, retry_after=1.0)
    with LMServer(TaskRule(QUESTIONS), faults=faults) as server, ThreadPoolExecutor(1) as pool:
        run = one_compile(server.url, None, resume=False, executor=pool, n_jobs=1, num_trials=4).optimization_run
    assert {trial.state.name for trial in run.trials} == {"COMPLETE"} and run.ended == "the budget is spent"


class Watched(ThreadPoolExecutor):
    """A pool that knows which of its futures somebody still holds."""

    def __init__(self, threads):
        super().__init__(threads)
        self.futures = []

    def submit(self, *given, **named):
        self.futures.append(weakref.ref(future := super().submit(*given, **named)))
        return future


def test_what_has_come_back_is_let_go(compiled):
    """Dask computes a result again for whoever holds its future when a worker is lost."""
    gc.disable()
    try:
        with Watched(2) as pool:
            compiled(pool)
        assert len(pool.futures) > 10 and not any(future() for future in pool.futures)
    finally:
        gc.enable()


def deadly(example, prediction, trace=None):
    """Ends the process that it is called in, where that is a worker."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def sometimes(example, prediction, trace=None):
    """Returns nothing for one example."""
    return None if example.question == "question 20" else 1.0


def test_a_metric_that_returns_nothing_on_a_worker_ends_the_run(compiled, processes):
    """A broken metric is an error of the run wherever it is called."""
    with pytest.raises(EvaluationError, match="The metric returned None"):
        compiled(processes, metric=sometimes)


@pytest.mark.parametrize("name", ["processes", pytest.param("cluster", marks=pytest.mark.slow)])
def test_after_an_interrupt_workers_begin_no_call(request, name, compiled, server, python_hears_interrupts):
    """Ctrl-C ends blocks that workers are evaluating, and those they have not begun: only calls in flight are made."""
    pressed = []

    def press():
        while server.requests < 45 and time.monotonic() < began + 60:
            time.sleep(0.005)
        pressed.append(server.requests)
        os.kill(os.getpid(), signal.SIGINT)

    def slow(example, prediction, trace=None):
        time.sleep(0.25)
        return example.answer == prediction.answer

    executor, began = executors(request, name), time.monotonic()
    server.reset()
    threading.Thread(target=press, daemon=True).start()
    found = compiled(executor, metric=slow, num_trials=30, minibatch_size=16)
    assert found.optimization_run.ended == "interrupted"
    asked = server.requests
    assert asked <= pressed[0] + 8  # as many as are in flight at most
    time.sleep(0.5)
    assert server.requests == asked


def test_a_block_whose_run_was_stopped_makes_no_call():
    """The mark of a stopped run ends what its blocks may spend, and is gone with the run."""
    mark, stopped = StopMark(), []
    meter = StoppableMeter(BudgetLimits(max_lm_calls=5), mark.path)
    meter.on_stop = lambda: stopped.append(True)
    assert meter.admit() and not stopped
    mark.set()
    mark.set()
    assert not meter.admit() and stopped and meter.refusal() == "the run was stopped"
    path = Path(mark.path)
    assert path.exists()
    del mark
    assert not path.exists()


def test_a_block_whose_run_was_killed_makes_no_call(monkeypatch):
    """A worker whose parent process has died during a block spends nothing more; one that had none goes on."""
    alive = [True]
    parent = SimpleNamespace(is_alive=lambda: alive[0])
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    meter = StoppableMeter(BudgetLimits(), "")
    assert meter.admit()
    alive[0] = False
    assert not meter.admit() and StoppableMeter(BudgetLimits(), "").admit()

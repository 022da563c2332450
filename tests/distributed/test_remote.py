"""The driver's side of an executor: places, allowances, stops, and records that come twice."""

import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

import dspy
from dspy.promptune.allocation.records import Job
from dspy.promptune.distributed.payload import PayloadBuilder
from dspy.promptune.distributed.programs import EvaluationRules, ProgramCache
from dspy.promptune.distributed.remote import RemoteEvaluator
from dspy.promptune.errors import MetricError
from dspy.promptune.limits.allowance import WorkerAllowances
from dspy.promptune.limits.budgets import BudgetLimits, BudgetMeter
from dspy.promptune.limits.gateway import LMGateway
from dspy.promptune.limits.pool import Pool
from tests.distributed.conftest import EXAMPLES

GATE = threading.Event()
SEEN = []


def gated(example, prediction, trace=None):
    """Waits for the gate; found by workers of this process under its name."""
    SEEN.append(example.question)
    GATE.wait(30)
    return True


@pytest.fixture
def work(server):
    """Work on one thread, two examples at once, four places."""
    GATE.clear()
    SEEN.clear()
    rules = EvaluationRules(metric=gated, valset=EXAMPLES[:40])
    with (
        ThreadPoolExecutor(1) as executor,
        Pool(2) as pool,
        dspy.context(lm=dspy.LM("openai/x", api_base=server.url, api_key="none", cache=False)),
    ):
        yield RemoteEvaluator(
            ProgramCache(dspy.Predict("question -> answer"), ()), rules, executor, pool=pool, gateway=LMGateway(4),
            threads=2, n_jobs=2, builder=PayloadBuilder(rules),
        )  # fmt: skip
        GATE.set()


def begun(work):
    """A job of 40 examples, and its end."""
    ended, over = [], threading.Event()

    def done(job, outcome):
        ended.append(outcome)
        over.set()

    work.start(Job(0, (), tuple(range(40)), "full"), range(40), done)
    return ended, over


def test_a_stop_reaches_the_workers(work):
    """After a stop nothing more is sent, and a block that no worker had begun never is; what was out still counts."""
    ended, over = begun(work)
    while not SEEN:
        time.sleep(0.01)
    assert len(work._out) == 2
    work.cancel()
    GATE.set()
    assert over.wait(30)
    assert 0 < len(ended[0].scores) <= 8 and len(SEEN) == len(ended[0].scores)
    assert ended[0].error is not None and work._limiter.in_flight == 0


def test_a_record_that_comes_twice_counts_once(work):
    """The second arrival of a block gives back no places, spends nothing and changes no score."""
    landed = []
    inner = work._landed

    def twice(block, record):
        inner(block, record)
        before = (dict(block.going.outcome.spent), work._limiter.in_flight, block.going.blocks)
        inner(block, record)
        landed.append(before == (dict(block.going.outcome.spent), work._limiter.in_flight, block.going.blocks))

    work._landed = twice
    GATE.set()
    ended, over = begun(work)
    assert over.wait(60)
    assert len(ended) == 1 and len(ended[0].scores) == len(SEEN) == 40
    assert work._limiter.in_flight == 0 and work._limiter.peak <= 4


def test_allowances_never_exceed_what_is_left():
    """What is out counts as spent: all allowances together stay within the limit, and a lost one is spent."""
    meter = BudgetMeter(BudgetLimits(max_lm_calls=30))
    allowances = WorkerAllowances(meter, calls_per_example=1)
    out = []
    while (caps := allowances.take(5, 4)) is not None:
        out.append(caps)
    assert sum(each.max_lm_calls for each in out) <= 30
    allowances.lose(out[0])
    assert meter.left("max_lm_calls") == 30 - out[0].max_lm_calls
    allowances.settle(out[1], {"calls": 3})
    assert allowances.take(5, 4).max_lm_calls <= out[1].max_lm_calls - 3


class Foreign(Executor):
    """An executor that returns something else than what the block returned."""

    def __init__(self, change):
        self.change = change

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_result(self.change(function(*args, **kwargs)))
        return future


STRANGE = [
    lambda record: None,
    lambda record: {"scores": {0: 1.0}},
    lambda record: replace(record, scores={99: 1.0}),
    lambda record: replace(record, scores={0: "one"}),
    lambda record: replace(record, counts={"calls": None}),
    lambda record: replace(record, spent={"cost": float("nan")}),
]


@pytest.mark.parametrize("change", STRANGE)
def test_a_record_that_cannot_be_used_is_a_lost_block(work, change):
    """Whatever an executor returns, the job ends, may be tried again, and holds no place."""
    work._executor = Foreign(change)
    GATE.set()
    ended, over = begun(work)
    assert over.wait(30)
    assert not ended[0].scores and ended[0].transient and "The worker was lost" in str(ended[0].error)
    assert work._limiter.in_flight == 0


def test_scores_that_cannot_be_kept_fail_their_job(work):
    """A storage that raises while a block's scores are taken in does not leave the job waiting forever."""

    def full(job, scores):
        raise OSError("disk full")

    work._keep = full
    GATE.set()
    ended, over = begun(work)
    assert over.wait(30)
    assert not ended[0].scores and "disk full" in str(ended[0].error) and work._limiter.in_flight == 0


def test_a_metric_that_is_broken_on_a_worker_is_broken_here(work):
    """The record says that it was the metric which returned no number: the run ends, and no other block is sent."""
    sent = []

    def broken(record):
        sent.append(record)
        return replace(record, error="The metric returned None", broken=True)

    work._executor = Foreign(broken)
    GATE.set()
    ended, over = begun(work)
    assert over.wait(30)
    assert isinstance(ended[0].error, MetricError) and len(sent) <= 2

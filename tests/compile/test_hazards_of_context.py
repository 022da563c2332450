"""The hazards of evaluating prompts concurrently with DSPy: each on the naive form, and gone here.

The letters are those of docs/hazards.md. A naive form is what the obvious code does: upstream's pieces in a plain
thread pool. Ours is a whole compile unless one part says it all. This file: J to S, what threads share.
"""

import contextvars
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import dspy
from dspy.promptune import PromptSpace
from dspy.promptune.candidates.proposing import ProposeOptions, propose_instructions
from dspy.promptune.errors import EvaluationError
from dspy.promptune.limits.pool import Pool
from dspy.propose import GroundedProposer
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback
from tests.compile.hazards import ANSWERS, TRAINSET, VALSET, compiled, metric, naive_pool, rule_lm, served
from tests.server import Latency, LMServer, Quality, TaskRule

pytestmark = [
    pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:dspy.LM"),
]


@pytest.fixture
def cached():
    """An empty cache in memory, for the time of a test."""
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.cache = before


def test_j_identical_calls_in_flight_are_made_once(cached):
    """J: candidates that share a prompt all pay for it when they run at once; here a cached call is made once."""
    with LMServer(TaskRule(ANSWERS, quality=Quality(0.5)), latency=Latency(0.05)) as server:
        with dspy.context(lm=served(server)):
            naive_pool(dspy.Predict("question -> answer"))
        assert server.requests > len(VALSET)
        server.reset()
        dspy.cache.reset_memory_cache()
        compiled(served(server), Two())
        asked = Counter(record.key for record in server.records() if record.label in ("plan", "answer"))
        assert set(asked.values()) == {1}


class Two(dspy.Module):
    """Two predictors; many candidates share the first one's prompt."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> plan")
        self.last = dspy.Predict("question, plan -> answer")

    def forward(self, question):
        return self.last(question=question, plan=self.first(question=question).plan)


def test_k_and_s_usage_in_workers_is_counted():
    """K, S: a tracker around Evaluate sees nothing, nor do its predictions; around a compile, every call."""
    with LMServer(TaskRule(ANSWERS, quality=Quality(0.5))) as server:
        lm = served(server, cache=False)
        with dspy.context(lm=lm), dspy.track_usage() as tracker:
            dspy.Evaluate(devset=VALSET, metric=metric, num_threads=4, display_progress=False)(
                dspy.Predict("question -> answer")
            )
            assert dspy.Predict("question -> answer")(question="question 1").get_lm_usage() is None
        assert len(tracker.usage_data["openai/gpt-4o-mini"]) == 1
        server.reset()
        with dspy.track_usage() as tracker:
            compiled(lm)
        assert len(tracker.usage_data["openai/gpt-4o-mini"]) == server.requests


def test_l_calls_are_not_counted_by_slices_of_history():
    """L: between two looks at ``lm.history`` other candidates have written to it; a program's own history is clean."""
    lm, barrier = rule_lm(), threading.Barrier(2)
    programs = [dspy.Predict("question -> answer") for _ in range(2)]

    def evaluate(program):
        barrier.wait(5)
        start = len(lm.history)
        for example in VALSET[:3]:
            program(question=example.question)
            barrier.wait(5)
        return len(lm.history[start:])

    with dspy.context(lm=lm), Pool(2) as pool:
        sliced = pool.map(evaluate, programs)
    assert max(sliced) > 3
    assert [len(program.history) for program in programs] == [3, 3]


def test_m_workers_leave_the_trace_alone():
    """M: threads in a copied context append to the caller's one trace; here each task has its own."""
    with dspy.context(lm=rule_lm(), trace=[]):
        naive_pool(dspy.Predict("question -> answer"))
        assert len(dspy.settings.trace) > 0
    with dspy.context(trace=[]):
        compiled(rule_lm())
        assert dspy.settings.trace == []


class Parents(BaseCallback):
    """Takes note of evaluations, and of what was under way when a module started."""

    def __init__(self):
        self.evaluations, self.parents = set(), []

    def on_evaluate_start(self, call_id, instance, inputs):
        self.evaluations.add(call_id)

    def on_module_start(self, call_id, instance, inputs):
        self.parents.append(ACTIVE_CALL_ID.get())


def test_n_callbacks_know_their_parents():
    """N: in a plain pool a module's callback has no parent; here it is its evaluation, or the compile."""
    handler = Parents()
    with dspy.context(lm=rule_lm()), ThreadPoolExecutor(1) as pool:
        program = dspy.Predict("question -> answer", callbacks=[handler])
        program.lm = rule_lm()
        token = ACTIVE_CALL_ID.set("outer")
        pool.submit(program, question="question 1").result()
        ACTIVE_CALL_ID.reset(token)
    assert handler.parents == [None]
    handler = Parents()
    with dspy.context(callbacks=[handler]):
        program = compiled(rule_lm())
    assert handler.evaluations
    assert None not in handler.parents
    assert sum(parent in handler.evaluations for parent in handler.parents) >= program.optimization_run.calls


def test_o_programs_do_not_share_lists_of_demos():
    """O: one list of demos set in two programs is one list; programs of a space have their own."""
    demos = [{"question": "q", "answer": "a"}]
    one, two = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")
    one.demos = two.demos = demos
    one.demos.append("x")
    assert "x" in two.demos
    space = PromptSpace({0: ["a", "b"]}, {0: [[], demos[:1]]})
    built = [space.build(dspy.Predict("question -> answer"), key) for key in ((0, 1), (1, 1))]
    built[0].demos.append("y")
    assert "y" not in built[1].demos and "y" not in space.parts[1].candidates[1]


class Configuring(dspy.Predict):
    """A program that changes the global settings while it runs."""

    def forward(self, **inputs):
        dspy.configure(max_errors=3)
        return super().forward(**inputs)


def test_p_configure_in_a_worker_is_refused_and_said():
    """P: ``dspy.configure`` in a worker raises, as upstream; here the error reaches the user instead of a 0.0."""
    dspy.configure(max_errors=dspy.settings.max_errors)  # this thread owns the settings
    with dspy.context(lm=rule_lm()):
        assert naive_pool(Configuring("question -> answer")) == [0.0] * 4
    with pytest.raises(EvaluationError, match="settings"):
        compiled(rule_lm(), Configuring("question -> answer"))


LEFT = contextvars.ContextVar("left", default=0)


class Leaving(dspy.Predict):
    """A program that leaves something behind in its context."""

    def forward(self, **inputs):
        LEFT.set(LEFT.get() + 1)
        return super().forward(**inputs)


def test_q_one_thread_is_isolated_as_well():
    """Q: with ``num_threads=1`` Evaluate runs in the caller's own context; here it never does."""

    def evaluate():
        with dspy.context(lm=rule_lm()):
            dspy.Evaluate(devset=VALSET, metric=metric, num_threads=1, display_progress=False)(
                Leaving("question -> answer")
            )
        return LEFT.get()

    assert contextvars.copy_context().run(evaluate) == len(VALSET)
    compiled(rule_lm(), Leaving("question -> answer"), num_threads=1, n_jobs=1)
    assert LEFT.get() == 0


def test_r_proposals_do_not_share_a_proposer():
    """R: the order of calls to one GroundedProposer decides what each draws; here threads change nothing."""
    program, lm = dspy.Predict("question -> answer"), rule_lm()

    def naive(order):
        proposer = GroundedProposer(lm, program, TRAINSET, rng=random.Random(0), use_dataset_summary=False)
        with dspy.context(lm=lm):
            return {
                i: proposer.propose_instruction_for_predictor(program, program, 0, None, i, {}, tip="") for i in order
            }

    assert naive([1, 2]) != naive([2, 1])

    def ours(workers):
        given = ProposeOptions(prompt_model=lm, num_candidates=4)
        with dspy.context(lm=lm), Pool(workers) as pool:
            return propose_instructions(program, TRAINSET, None, options=given, rng=random.Random(0), pool=pool)

    assert ours(1) == ours(16)

"""The hazards of evaluating prompts concurrently with DSPy: each on the naive form, and gone here.

The letters are those of docs/hazards.md. A naive form is what the obvious code does: upstream's pieces in a plain
thread pool. Ours is a whole compile unless one part says it all. This file: A to I, scores and schedules.
"""

import contextlib
import io
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import tqdm

import dspy
from dspy._upstream.teleprompt.mipro_optimizer_v2 import MIPROv2 as Upstream
from dspy.promptune import PromptSpace, search
from dspy.promptune.errors import EvaluationError
from dspy.teleprompt.utils import create_minibatch
from dspy.utils.parallelizer import ParallelExecutor
from tests.compile.hazards import TRAINSET, VALSET, compiled, metric, naive_pool, rule_lm

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:dspy.LM"),
]


def test_a_settings_follow_into_workers():
    """A: a plain thread does not know ``dspy.context(lm=...)`` and scores 0.0; here every call reaches that model."""
    lm = rule_lm()
    with dspy.context(lm=lm):
        assert naive_pool(dspy.Predict("question -> answer"), carry=False) == [0.0] * 4
    assert not lm.calls
    program = compiled(lm)
    assert program.score > 0
    assert len([call for call in lm.calls if call.label == "answer"]) >= program.optimization_run.calls


def test_b_a_failed_evaluation_is_no_bad_prompt():
    """B: upstream makes any exception a score of 0.0; here the trial is FAILED, and no number stands for it."""

    def raising(example, prediction, trace=None):
        raise RuntimeError("broken")

    with dspy.context(lm=rule_lm()):
        assert naive_pool(dspy.Predict("question -> answer"), copies=1, max_errors=1, metric=raising) == [0.0]

    def evaluate(params, examples):
        if params["0_predictor_instruction"] == 1:
            raise RuntimeError("broken")
        return [-1.0 - params["0_predictor_instruction"] / 10] * len(examples)

    space = PromptSpace({0: ["a", "b", "c"]})
    run = search(space, evaluate, n_examples=4, max_calls=40, sampler="random", seed=0, minibatch_size=2)
    failed = [trial for trial in run.trials if trial.params["0_predictor_instruction"] == 1]
    assert failed and all(trial.state is optuna.trial.TrialState.FAIL and trial.value is None for trial in failed)
    assert run.best_params == {"0_predictor_instruction": 0}


def test_c_no_progress_bars_in_workers(monkeypatch):
    """C: a bar that is made while another thread clears tqdm's set of bars raises; no evaluation here makes one."""
    made = []
    build = tqdm.tqdm.__new__

    def clearing(cls, *args, **kwargs):
        bar = build(cls, *args, **kwargs)
        made.append(threading.current_thread())
        tqdm.tqdm._instances.clear()  # what another Evaluate does at this moment
        return bar

    monkeypatch.setattr(tqdm.tqdm, "__new__", clearing)
    with dspy.context(lm=rule_lm()):
        assert naive_pool(dspy.Predict("question -> answer")) == [0.0] * 4
    made.clear()
    assert compiled(rule_lm()).score > 0
    assert set(made) <= {threading.main_thread()}


INTERRUPTED = """
import atexit
import logging
import signal
from tests.compile.hazards import *

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it

lm = rule_lm(seconds=0.1)
seen = []

def announcing(example, prediction, trace=None):
    seen.append(example)
    if len(seen) == 8:
        print("go", flush=True)
    return metric(example, prediction)

class FirstTrial(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("Trial 0 "):
            print("go", flush=True)

def bootstrapping(example, prediction, trace=None):
    if trace is not None and not seen:
        seen.append(example)
        print("go", flush=True)
    return metric(example, prediction)

atexit.register(lambda: print(len(lm.calls), flush=True))
with dspy.context(lm=lm):
    {act}
print("returned", flush=True)
"""


def interrupt(act):
    """Interrupt a script once it says that it got going: whether it returned, its calls, how long it went on."""
    code = INTERRUPTED.format(act=act)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], **options) as child:
        assert child.stdout.readline().startswith("go")
        child.send_signal(signal.SIGINT)
        begin = time.monotonic()
        out, log = child.communicate(timeout=60)
        lines = out.split()
    print(log[-2000:])
    return "returned" in lines, int(lines[-1]), time.monotonic() - begin


@pytest.mark.slow
def test_d_an_interrupt_does_not_end_a_plain_pool():
    """D: interrupted, plain pools continue their calls and return nothing."""
    returned, calls, _ = interrupt('naive_pool(dspy.Predict("question -> answer"), threads=1, metric=announcing)')
    assert not returned and calls >= 2 * len(VALSET)  # all of them, where hazard C does not strike first


def test_d_an_interrupt_ends_the_run_and_keeps_the_best():
    """D: interrupted, a compile starts nothing new and returns the best so far."""
    returned, calls, _ = interrupt('logging.getLogger("dspy").addHandler(FirstTrial()); compiled(lm, num_threads=1)')
    assert returned and calls < 120


@pytest.mark.slow
def test_d_an_interrupt_while_candidates_are_made_gives_the_program_back():
    """D: interrupted in step 1, a compile makes no more calls and returns the program as it was."""
    returned, calls, _ = interrupt("compiled(lm, metric=bootstrapping, num_threads=1)")
    assert returned and calls < 20


def test_e_one_limit_for_all_calls():
    """E: nested pools multiply the user's number of threads; here ``max_concurrency`` holds for all calls of a run."""
    lm = rule_lm(seconds=0.02)
    with dspy.context(lm=lm):
        naive_pool(dspy.Predict("question -> answer"), threads=4)
    assert lm.level.most > 4
    lm = rule_lm(seconds=0.02)
    compiled(lm, num_threads=8, max_concurrency=4)
    assert lm.level.most == 4


def test_f_a_dead_model_ends_the_run():
    """F: every candidate spends its own ``max_errors`` on a dead model, and scores 0.0; here the run ends, early."""

    def dead(call):
        raise ValueError("dead")

    lm = rule_lm(fault=dead)
    with dspy.context(lm=lm):
        assert naive_pool(dspy.Predict("question -> answer"), max_errors=6) == [0.0] * 4
    assert len(lm.calls) >= 4 * 6
    lm = rule_lm(fault=dead)
    with pytest.raises(EvaluationError, match="dead"):
        compiled(lm)
    assert len([call for call in lm.calls if call.label == "answer"]) < 60


def test_g_a_slow_example_is_evaluated_once():
    """G: the executor of Evaluate starts a slow item again and again; here there is one evaluation of it."""
    slow = threading.Lock()
    ran = []

    def item(number):
        with slow:
            ran.append(number)
        time.sleep(2.6 if number == 0 else 0)

    ParallelExecutor(num_threads=4, timeout=0.5, straggler_limit=3, disable_progress_bar=True).execute(item, [0, 1])
    assert ran.count(0) > 1

    def late(call):
        if "question 20\n" in call.messages[-1]["content"]:
            time.sleep(0.5)

    lm = rule_lm(fault=late)
    compiled(lm)
    evaluations = Counter(repr(call.messages) for call in lm.calls if call.label == "answer")
    assert max(evaluations[text] for text in evaluations if "question 20" in text) == 1


def test_h_draws_do_not_depend_on_threads():
    """H: a shared generator gives minibatches in the order of threads; here equal seeds give equal trials."""

    def draw(order):
        rng, batches = random.Random(0), {}
        for candidate in order:
            batches[candidate] = [example.question for example in create_minibatch(VALSET, 4, rng)]
        return batches

    assert draw([0, 1]) != draw([1, 0])

    def trials(pause):
        def evaluate(params, examples):
            time.sleep(random.Random(f"{pause}{params}{examples}").random() / 100)
            return [(sum(params.values()) + example) % 3 / 2 for example in examples]

        space = PromptSpace({0: list("abcdef")}, {0: list("uvwxyz")})
        run = search(
            space,
            evaluate,
            n_examples=20,
            max_calls=300,
            sampler="tpe",
            seed=3,
            n_jobs=4,
            schedule="batch",
            minibatch_size=5,
        )
        return [(trial.params, trial.user_attrs["examples"], trial.value) for trial in run.trials]

    assert trials(1) == trials(2)


def test_i_trials_are_numbered_one_after_another(monkeypatch):
    """I: upstream's objective run by several jobs loses entries of ``trial_logs``; here the keys are 1, 2, 3, ..."""
    optimize = optuna.study.Study.optimize
    monkeypatch.setattr(optuna.study.Study, "optimize", lambda self, *a, **k: optimize(self, *a, **{**k, "n_jobs": 4}))
    lm = rule_lm(seconds=0.005)
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    with dspy.context(lm=lm), contextlib.redirect_stdout(io.StringIO()):
        naive = Upstream(metric=metric, auto=None, num_candidates=3, num_threads=2, seed=1, max_bootstrapped_demos=2)
        found = naive.compile(program, trainset=TRAINSET, valset=VALSET, num_trials=12, minibatch_size=8)
    assert len(found.trial_logs) < 12 + 12 // 5 + 2
    monkeypatch.undo()
    logs = compiled(rule_lm()).trial_logs
    assert list(logs) == list(range(1, len(logs) + 1))

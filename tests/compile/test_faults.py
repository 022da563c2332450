"""What programs, metrics and judges do wrong, and what becomes of it in a compile."""

import asyncio
import itertools
import logging
import math
import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter

import pytest
from optuna.trial import TrialState

import dspy
from dspy.promptune import EvaluationError, OptionError
from dspy.promptune.errors import MetricError
from dspy.promptune.findings.record import record_of
from dspy.utils.exceptions import LMAuthError, LMBillingError, LMServerError
from tests.errors import UnreadableError
from tests.server import LMServer, Quality, RuleLM, TaskRule, max_in_flight

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(60)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
TRAINSET, VALSET = EXAMPLES[:12], EXAMPLES[12:36]
MODELS = ("gpt-4o-mini", "gpt-4o")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:dspy.LM"),
]


def exact(example, prediction, trace=None):
    return example.answer == prediction.answer


def rule_lm(quality=0.5, **options):
    return RuleLM(TaskRule(ANSWERS, quality=Quality(quality)), **options)


def compiled(lm=None, program=None, *, metric=exact, init=None, trainset=TRAINSET, valset=VALSET, **options):
    """A small compile by this package."""
    options = {"sampler": "random", "n_jobs": 4, "num_trials": 4, "minibatch_size": 8, **options}
    options = {name: value for name, value in options.items() if value is not None}
    init = {"auto": None, "num_candidates": 3, "num_threads": 4, "max_bootstrapped_demos": 2, "seed": 1, **(init or {})}
    with dspy.context(lm=lm or rule_lm()):
        optimizer = dspy.MIPROv2(metric=metric, **init)
        program = program or dspy.Predict("question -> answer")
        return optimizer.compile(program, trainset=trainset, valset=valset, disable_progress_bar=True, **options)


# ---------------------------------------------------------------------- metrics


class Judge:
    """Asks a model for a verdict; the model fails at every ``every``-th call."""

    def __init__(self, every):
        self.calls, self.every, self.lock = 0, every, threading.Lock()
        self.lm = RuleLM(lambda messages: "[[ ## verdict ## ]]\nyes\n\n[[ ## completed ## ]]", fault=self.fault)

    def fault(self, call):
        with self.lock:
            self.calls += 1
            failing = self.calls % self.every == 0
        if failing:
            raise LMServerError("overloaded", retry_after=0.0)

    def __call__(self, example, prediction, trace=None):
        judge = dspy.Predict("gold, given -> verdict")
        judge.set_lm(self.lm)
        return judge(gold=example.answer, given=prediction.answer).verdict == "yes"


def test_a_judge_that_fails_now_and_then_costs_no_point():
    """A judge that is out of reach is asked again, alone: no score is lower for it, no program is run again."""
    lm, judge = rule_lm(), Judge(every=7)
    found = compiled(lm, metric=judge)
    run = found.optimization_run
    assert found.score == 100.0 and run.best_score == 1.0
    assert all(trial.value == 1.0 for trial in run.trials if trial.state == TrialState.COMPLETE)
    assert judge.calls > run.calls
    assert len([call for call in lm.calls if call.label == "answer"]) < 1.1 * run.calls + 40


def test_a_judge_that_is_down_ends_the_run():
    """A judge that never answers fails the evaluations: no prompt is scored 0 for it."""
    with pytest.raises(EvaluationError, match="overloaded"):
        compiled(metric=Judge(every=1), init={"max_errors": 100})


@pytest.mark.parametrize("broken", [None, "1.0", (1.0, "feedback"), 1e308])
def test_a_metric_that_returns_no_number_now_and_then_is_broken(broken):
    """One validation example whose score is no number ends the run, whatever the others scored."""

    def metric(example, prediction, trace=None):
        return broken if example.question == "question 20" else 1.0

    with pytest.raises(EvaluationError, match="The metric returned"):
        compiled(metric=metric, init={"max_errors": 100})


def test_a_metric_that_returns_no_number_in_step_1_is_broken():
    """Nothing more is paid for once a metric has returned a tuple for a training example."""
    lm = rule_lm()
    with pytest.raises(EvaluationError, match="The metric returned a tuple"):
        compiled(lm, metric=lambda example, prediction, trace=None: (True, "feedback"))
    assert len(lm.calls) < 60


@pytest.mark.parametrize("broken", [math.nan, -math.inf, 1e308, "1.0"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("n_jobs", [1, 4])
def test_a_broken_metric_costs_no_more_than_the_calls_in_flight(broken, asynchronous, n_jobs):
    """The first score that is no number ends steps 1 to 3: what is in flight then is all that is still called."""
    lm, made = rule_lm(), []

    def metric(example, prediction, trace=None):
        made.append(len(lm.calls))
        return broken

    async def later(example, prediction, trace=None):
        return metric(example, prediction)

    with pytest.raises(MetricError, match="The metric returned"):
        compiled(lm, metric=later if asynchronous else metric, n_jobs=n_jobs)
    threads = 4 * n_jobs + max(2, n_jobs // 2)  # those to spare among them
    assert made and len(lm.calls) <= made[0] + threads


def wrong_demos(program):
    """Demos of all candidates that were bootstrapped from wrong answers."""
    demos = [
        demo
        for part in program.optimization_run.space.parts
        if part.name.endswith("demos")
        for each in part.candidates
        for demo in each
    ]
    return [demo for demo in demos if demo.get("augmented") and ANSWERS[demo.question] != demo.answer]


def test_a_prediction_that_scores_nothing_makes_no_demo():
    """A metric that returns ``Prediction(score=0.0)`` for wrong answers makes demos of right ones only."""

    def metric(example, prediction, trace=None):
        return dspy.Prediction(score=float(example.answer == prediction.answer), feedback="because")

    found = compiled(rule_lm(0.3), metric=metric)
    assert not wrong_demos(found) and found.score > 0


def test_a_metric_of_five_arguments_and_an_asynchronous_one():
    """Both score as the plain metric does."""

    def gepa(gold, pred, trace, pred_name, pred_trace):
        return gold.answer == pred.answer

    async def awaited(example, prediction, trace=None):
        await asyncio.sleep(0)
        return example.answer == prediction.answer

    scores = [compiled(metric=metric, schedule="batch").score for metric in (exact, gepa, awaited)]
    assert scores[0] == scores[1] == scores[2] > 0


# ---------------------------------------------------------------------- programs


class Stubborn(dspy.Module):
    """Raises on every tenth question, whatever the prompt."""

    def __init__(self, error):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.error = error

    def forward(self, question):
        if question.endswith("7"):
            raise self.error(f"no answer to {question}")
        return self.answer(question=question)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, ValueError, UnreadableError])
def test_whatever_a_program_raises_is_a_failure_of_that_example(error):
    """In steps 1 and 3 an example on which the program raises fails by itself, be it no ``Exception``."""
    found = compiled(program=Stubborn(error), minibatch=False)
    trials = found.optimization_run.trials
    assert found.score > 0 and all(trial.state == TrialState.COMPLETE for trial in trials)
    assert max(trial.user_attrs.get("errors", 0) for trial in trials) == 2


# ---------------------------------------------------------------------- the door


class Locked(dspy.Module):
    """A program that cannot be copied, with one predictor under two names."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.again = [self.answer]
        self.lock = threading.Lock()

    def forward(self, question):
        return self.answer(question=question)


class BesideALock(dspy.Module):
    """A program with a predictor in a dictionary that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.box = {"lock": threading.Lock(), "answer": dspy.Predict("question -> answer")}

    def forward(self, question):
        return self.box["answer"](question=question)


class Awaited(dspy.Module):
    """A program that can only be awaited."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    async def aforward(self, question):
        return await self.answer.acall(question=question)


class Nested(dspy.Module):
    """A program with a predictor where DSPy does not look."""

    def __init__(self, seen=True):
        super().__init__()
        if seen:
            self.answer = dspy.Predict("question -> answer")
        self.steps = {"first": [dspy.Predict("question -> plan")]}

    def forward(self, question):
        self.steps["first"][0](question=question)
        return self.answer(question=question)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": None}, "metric=None"),
        ({"minibatch_full_eval_steps": 0}, "minibatch_full_eval_steps=0"),
        ({"minibatch_size": 0}, "minibatch_size=0: it must be an integer of at least 1"),
        ({"init": {"num_threads": "4"}}, "num_threads='4': it must be an integer of at least 1"),
        ({"trainset": [dspy.Example(question="q", answer="a")] * 3}, "Example 0 of trainset.*with_inputs"),
        ({"valset": [*VALSET, {"question": "q"}]}, "Example 24 of valset is a dict"),
        ({"valset": "question"}, "list of dspy.Example"),
        ({"program": Locked()}, "2 predictors instead of 1"),
        ({"program": BesideALock()}, "shares 1 predictor with it"),
        ({"program": Awaited()}, r"no forward\(\), .*dspy\.syncify"),
        ({"program": Nested(seen=False)}, "steps"),
    ],
)
def test_what_cannot_be_optimized_is_refused_before_any_call(options, message):
    """The message names the option or the part of the program, and nothing was called by then."""
    lm = rule_lm()
    with pytest.raises(ValueError, match=message):
        compiled(lm, **options)
    assert not lm.calls


@pytest.mark.parametrize("name", ["prompt_model", "reflection_lm"])
@pytest.mark.parametrize(
    ("given", "message"),
    [("openai/gpt-4o", "='openai/gpt-4o' is a text: give .*dspy.LM"), (str.upper, "=.* give a language model, .*LM")],
)
def test_what_is_no_language_model_is_refused(name, given, message):
    """The name of a model, or a function, in the place of one is refused before any call, with the remedy."""
    named, lm = {name: given}, rule_lm()
    first, second = (named, {}) if name == "prompt_model" else ({}, {**named, "reflect": True})
    with dspy.context(lm=lm), pytest.raises(OptionError, match=name + message):
        dspy.MIPROv2(metric=lambda e, p, t=None: True, **first).compile(
            dspy.Predict("question -> answer"), trainset=VALSET, sampler="qei", **second
        )
    assert not lm.calls


def test_hidden_predictors_are_said(caplog):
    """A program that is optimized in part only says which predictors are not seen."""
    with caplog.at_level(logging.WARNING, logger="dspy.promptune"):
        compiled(program=Nested())
    assert "in part only" in caplog.text and "steps['first'][0]" in caplog.text


class Half(dspy.Module):
    """One of its two modules is compiled, and so frozen."""

    def __init__(self):
        super().__init__()
        self.done, self.answer = dspy.ChainOfThought("question -> hint"), dspy.Predict("question -> answer")
        self.done._compiled = True

    def forward(self, question):
        return self.answer(question=question)


def test_a_frozen_module_is_not_hidden(caplog):
    """What is frozen on purpose is not optimized, and no warning says that DSPy does not see it."""
    with caplog.at_level(logging.WARNING, logger="dspy.promptune"):
        compiled(program=Half())
    assert "in part only" not in caplog.text


@pytest.mark.parametrize("teacher", [dspy.ChainOfThought("question -> answer"), Half()])
def test_a_teacher_of_another_kind_costs_no_call(teacher):
    """It is refused with upstream's words, before the first call."""
    lm = rule_lm()
    with pytest.raises(AssertionError, match="Student and teacher must"):
        compiled(lm, teacher=teacher)
    assert not lm.calls


def test_what_an_earlier_compile_attached_hides_nothing(caplog):
    """A program that was optimized before is optimized again without a word about the programs in its record."""
    first = compiled()
    with caplog.at_level(logging.WARNING, logger="dspy.promptune"):
        compiled(program=first)
    assert "in part only" not in caplog.text


def test_a_run_that_ends_early_leaves_python_well():
    """While PyTorch is still being loaded, a program that always fails ends the process like any other error."""
    script = (
        "import dspy\n"
        "class Broken(dspy.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.answer = dspy.Predict('question -> answer')\n"
        "    def forward(self, question):\n"
        "        raise ValueError('broken')\n"
        "data = [dspy.Example(question=str(i), answer='a').with_inputs('question') for i in range(20)]\n"
        "try:\n"
        "    dspy.configure(lm=dspy.LM('openai/none'))\n"
        "    optimizer = dspy.MIPROv2(metric=lambda e, p, t=None: True)\n"
        "    optimizer.compile(Broken(), trainset=data, sampler='qei', n_jobs=4)\n"
        "except dspy.promptune.EvaluationError as error:\n"
        "    print('ended:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("ended: "), done.stderr[-500:]


def test_generators_are_data_sets():
    """A data set may be anything that can be read once."""
    found = compiled(trainset=(each for each in TRAINSET), valset=iter(VALSET), schedule="batch")
    assert found.score == compiled(schedule="batch").score > 0


# ---------------------------------------------------------------------- steps 1 and 2


class OwnCall(RuleLM):
    """A model class with a ``__call__`` of its own, as users write them: no callbacks, a history by hand."""

    def __call__(self, prompt=None, messages=None, **kwargs):
        reply = self.forward(prompt=prompt, messages=messages, **kwargs)
        usage, text = {"total_tokens": 5}, reply.choices[0].message.content
        self.history.append({"messages": messages, "outputs": [text], "usage": usage, "cost": 0.01, "model": "own"})
        return [text]


def failing(label, error, times=10**6):
    """A fault of calls that ask for one thing."""
    left = [times]

    def fault(call):
        if call.label == label and left[0] > 0:
            left[0] -= 1
            raise error

    return fault


def test_a_run_without_one_proposal_stops_before_it_searches():
    """Where every proposal fails the run says why, and evaluates nothing but what ran meanwhile."""
    lm = rule_lm(fault=failing("proposed_instruction", LMAuthError("no such key")))
    with pytest.raises(EvaluationError, match=r"Not one of 2 instructions could be proposed.*no such key") as caught:
        compiled(lm)
    assert isinstance(caught.value.__cause__, LMAuthError)
    assert len([call for call in lm.calls if call.label == "answer"]) < 24 + 12 + 10


def refused(call):
    """A fault of a prompt model whose key is wrong, while the task model answers."""
    if call.label != "answer":
        raise LMAuthError("no such key")


def scored(calls):
    """Calls that a validation example has taken."""
    asked = [re.findall(r"question (\d+)", call.messages[-1]["content"]) for call in calls if call.label == "answer"]
    return sum(int(numbers[-1]) >= len(TRAINSET) for numbers in asked)


@pytest.mark.parametrize("kind", [RuleLM, OwnCall])
@pytest.mark.parametrize("options", [{}, {"max_bootstrapped_demos": 0, "max_labeled_demos": 0}, {"n_jobs": 8}])
@pytest.mark.parametrize("reflect", [{}, {"reflect": True}, {"reflect": True, "schedule": "batch"}])
def test_a_prompt_model_that_never_answers_costs_no_evaluation(kind, options, reflect):
    """Nothing of step 3 begins before step 2 has had an answer: no validation example is paid for."""
    lm = kind(TaskRule(ANSWERS, quality=Quality(0.5)), fault=refused)
    with pytest.raises(EvaluationError, match=r"Not one of \d instructions could be proposed.*no such key"):
        compiled(lm, sampler="qei", embedder="ngram", minibatch_size=None, **options, **reflect)
    assert scored(lm.calls) == 0


def test_a_teacher_that_never_answers_costs_no_evaluation():
    """Nothing of step 3 begins before step 1 has had an answer either."""
    lm, teacher = rule_lm(), rule_lm(fault=failing("answer", LMAuthError("no such key")))
    with pytest.raises(EvaluationError, match=r"of the trainset failed.*no such key"):
        compiled(lm, init={"teacher_settings": {"lm": teacher}}, n_jobs=8)
    assert scored(lm.calls) == 0


@pytest.mark.parametrize("kind", [RuleLM, OwnCall])
def test_step_3_begins_while_step_2_is_at_work(kind):
    """Where the models answer, validation examples are evaluated before the first instruction is proposed."""
    lm = kind(TaskRule(ANSWERS, quality=Quality(0.5)), seconds=0.01)
    compiled(lm)
    labels = [call.label for call in lm.calls]
    assert scored(lm.calls[: labels.index("proposed_instruction")]) > 0


def test_a_run_with_one_proposal_goes_on():
    """One instruction that came is enough to search with."""
    lm = rule_lm(fault=failing("proposed_instruction", LMAuthError("no such key"), times=3))
    found = compiled(lm, init={"num_candidates": 4})
    assert found.score > 0


def test_a_trainset_on_which_everything_fails_stops_the_run():
    """A teacher that fails on every example, few as they are, is no basis for demos."""
    with pytest.raises(EvaluationError, match=r"of the trainset.* failed"):
        compiled(program=Stubborn(ValueError), trainset=[EXAMPLES[7]] * 3)


@pytest.mark.parametrize("demos", [0, 2])
def test_answers_that_no_demo_set_can_read_may_be_read_later(caplog, demos):
    """Where a model answers in prose until an instruction tells it not to, that instruction is found."""
    task = TaskRule(ANSWERS, quality=Quality(1.0))

    def rule(messages):
        asked = str(messages)
        told = "proposed_instruction" in asked or "observations" in asked or "Rollout" in asked
        return task(messages) if told else "Well, that depends."

    init = {"max_bootstrapped_demos": demos, "max_labeled_demos": demos}
    with caplog.at_level(logging.WARNING, logger="dspy.promptune"):
        found = compiled(RuleLM(rule), init=init, trainset=TRAINSET[:3])
    assert "in a form that can be read: there are no bootstrapped demos" in caplog.text
    assert found.score == 100.0 and "Rollout" in found.signature.instructions


def test_a_trainset_without_one_right_answer_is_said(caplog):
    """Demos were asked for and none could be made: the run goes on, and says so."""
    with caplog.at_level(logging.WARNING, logger="dspy.promptune"):
        compiled(metric=lambda example, prediction, trace=None: 0.0)
    assert "there are no bootstrapped demos" in caplog.text


def test_labeled_demos_are_shown_to_the_proposer():
    """In a run with labeled demos only, the proposer sees them."""
    lm = rule_lm()
    compiled(lm, init={"max_bootstrapped_demos": 0, "max_labeled_demos": 3})
    asked = [str(call.messages) for call in lm.calls if call.label == "proposed_instruction"]
    assert asked and not any("No task demos provided" in text for text in asked)


def test_a_call_that_hangs_in_steps_1_and_2_is_given_up():
    """A call that never answers costs its example or its proposal, and ends after ``example_timeout``."""
    gate, hung = threading.Event(), set()

    def fault(call):
        if call.label in ("answer", "observations", "proposed_instruction") and call.label not in hung:
            hung.add(call.label)
            gate.wait(60)

    lm, begin = rule_lm(fault=fault), time.monotonic()
    try:
        found = compiled(lm, example_timeout=0.3)
    finally:
        gate.set()
    assert hung == {"answer", "observations", "proposed_instruction"}
    assert found.score > 0 and time.monotonic() - begin < 30
    made, spent = Counter(call.label for call in lm.calls), found.optimization_run.spent
    proposing = sum(count for label, count in made.items() if label != "answer")
    assert spent["propose"]["calls"] == proposing and "reflect" not in spent  # a call that is given up is its step's
    assert sum(step.get("calls", 0) for step in spent.values()) == made.total()


def test_half_a_character_is_no_fault(tmp_path):
    """Characters cut in halves, in what a model says or in the data, can be sent, scored and stored."""
    rule = TaskRule(ANSWERS, quality=Quality(0.9))

    def halves(messages):
        text = rule(messages)
        return text.replace("The ", "The \ud83d ").replace("Read ", "Read \udc00 ").replace("maybe", "may\ud83dbe")

    trainset = [*TRAINSET[1:], dspy.Example(question="question \udc00", answer="may\ud83dbe").with_inputs("question")]
    valset = [*VALSET[1:], dspy.Example(question="\ud83d", answer="\udc00").with_inputs("question")]
    storage = str(tmp_path / "run.db")
    found = compiled(RuleLM(halves), trainset=trainset, valset=valset, storage=storage, init={"max_labeled_demos": 12})
    assert found.score > 50
    assert all(trial.state == TrialState.COMPLETE for trial in found.optimization_run.trials)
    instructions = found.optimization_run.space.parts[0].candidates
    assert any("\ufffd" in text for text in instructions) and all(text.encode() for text in instructions)


# ---------------------------------------------------------------------- Ctrl-C


PHASES = [
    "dspy.promptune.compile.optimizer.compile_program",
    "dspy.promptune.compile.optimizer.check_embedder",
    "dspy.promptune.compile.optimizer.open_run_store",
    "dspy.promptune.storage.run_store.RunStore.begin",
    "dspy.promptune.compile.engine.Engine.begin",
    "dspy.promptune.compile.engine.Engine.await_loaded",
    "dspy.promptune.compile.engine._run",
    "dspy.promptune.compile.recorder.Recorder.begin",
    "dspy.promptune.compile.engine._finished",
    "dspy.promptune.compile.engine.Engine.stop",
    "dspy.promptune.storage.run_store.RunStore.close",
]


def pressing(monkeypatch, phase, times):
    """Ctrl-C as this function begins."""
    where, _, name = phase.rpartition(".")
    owner = pkgutil.resolve_name(where)
    original, left = getattr(owner, name), [times]

    def pressed(*args, **options):
        while left[0]:
            left[0] -= 1
            signal.raise_signal(signal.SIGINT)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, pressed)
    return left


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_gives_the_best_so_far_in_every_phase(monkeypatch, python_hears_interrupts, phase):
    """Once, whatever the run is doing: a program comes back, and the handler of before is there again."""
    left = pressing(monkeypatch, phase, 1)
    found = compiled()
    assert left == [0] and isinstance(found, dspy.Predict)
    assert found.optimization_run.ended


def test_what_an_interrupted_evaluation_scored_is_kept(caplog, python_hears_interrupts):
    """Scores of an evaluation that never ended are in the record, which has as many as were paid for."""
    seen, asked = [], {example.question for example in VALSET}

    def pressing_metric(example, prediction, trace=None):
        if example.question in asked:
            seen.append(example)
            if len(seen) == len(VALSET) + 8 + 2:
                signal.raise_signal(signal.SIGINT)
                while "Interrupted" not in caplog.text:
                    time.sleep(0.01)
        return exact(example, prediction)

    lm, one = rule_lm(seconds=0.03), {"num_threads": 1}
    run = compiled(lm, metric=pressing_metric, init=one, n_jobs=1).optimization_run
    states = [trial.state for trial in run.trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert sum(len(row) for row in record_of(run).rows.values()) == run.calls > len(VALSET) + 8


@pytest.mark.parametrize("error", [LMBillingError, LMAuthError])
def test_an_account_that_is_refused_ends_the_run_soon(error):
    """A quota that is used up in mid-run ends it with what it has, after two evaluations and what was in flight."""
    made = itertools.count(1)

    def fault(call):
        if next(made) > 70:
            raise error("no more calls of this account")

    lm = rule_lm(fault=fault)
    found = compiled(lm, n_jobs=8, num_trials=12)
    assert f"got no answer in a row, the last with {error.__name__}" in found.optimization_run.ended
    assert found.optimization_run.calls > 24 and len(lm.calls) <= 70 + (8 + 2) * 8 * 2  # jobs, examples, attempts
    assert not any(trial.user_attrs.get("lost") and "account" in trial.user_attrs["error"]
                   for trial in found.optimization_run.trials)  # fmt: skip


class Insisting(dspy.Module):
    """Asks twelve times, one after another."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        return [self.answer(question=question) for _ in range(12)][-1]


def test_programs_that_an_interrupt_finds_at_work_make_no_more_calls(python_hears_interrupts):
    """What the result says was spent is all that was called, at once and half a second later."""
    seen, lm, asked = [], rule_lm(seconds=0.02), {example.question for example in VALSET}

    def pressing_metric(example, prediction, trace=None):
        if example.question in asked:
            seen.append(example)
            if len(seen) == len(VALSET) + 4:
                signal.raise_signal(signal.SIGINT)
        return exact(example, prediction)

    run = compiled(lm, Insisting(), metric=pressing_metric).optimization_run
    spent = sum(step.get("calls") or 0 for step in run.spent.values())
    time.sleep(0.5)
    assert run.ended == "interrupted" and spent == len(lm.calls)


@pytest.mark.parametrize("phase", PHASES)
def test_a_second_interrupt_stops_in_every_phase(monkeypatch, python_hears_interrupts, phase):
    """Twice is KeyboardInterrupt."""
    left = pressing(monkeypatch, phase, 2)
    with pytest.raises(KeyboardInterrupt):
        compiled()
    assert left == [0]


# ---------------------------------------------------------------------- every model counts


def spent(found, kind):
    return sum(amounts.get(kind, 0) for amounts in found.optimization_run.spent.values())


def test_a_model_with_its_own_call_keeps_to_the_limits():
    """Calls in flight, calls, tokens and dollars of a model that calls no callbacks are held and counted."""
    lm = OwnCall(TaskRule(ANSWERS, quality=Quality(0.5)), seconds=0.005)
    found = compiled(lm, max_concurrency=3, max_lm_calls=90)
    assert lm.level.most == 3 and len(lm.calls) <= 90
    assert spent(found, "calls") == len(lm.calls)
    assert spent(found, "tokens") == 5 * len(lm.calls) and spent(found, "cost") == pytest.approx(0.01 * len(lm.calls))


class Holds(dspy.Module):
    """A program that holds a model itself."""

    def __init__(self, lm, way):
        super().__init__()
        self.big, self.way = lm, way
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        if self.way == "raw":
            self.big("say hello")
            return self.answer(question=question)
        with dspy.context(lm=self.big):
            return self.answer(question=question)


@pytest.mark.parametrize("way", ["raw", "context", "judge", "asynchronous judge"])
@pytest.mark.parametrize("history", [True, False])
def test_what_another_model_takes_is_counted(way, history):
    """A model of the program's or the metric's own: its requests, tokens and dollars are in the run's sums."""
    rule = TaskRule(ANSWERS, quality=Quality(1.0))
    with LMServer(rule) as server:
        small, big = (dspy.LM(f"openai/{name}", api_base=server.url, api_key="none", cache=False) for name in MODELS)

        def judged(example, prediction, trace=None):
            judge = dspy.Predict("question -> answer")
            judge.set_lm(big)
            return judge(question=example.question).answer == prediction.answer

        async def awaited(example, prediction, trace=None):
            judge = dspy.Predict("question -> answer")
            judge.set_lm(big)
            several = await asyncio.gather(*(judge.acall(question=example.question) for _ in range(3)))
            return several[0].answer == prediction.answer

        program = Holds(big, way) if way in ("raw", "context") else None
        metric = {"judge": judged, "asynchronous judge": awaited}.get(way, exact)
        with dspy.context(disable_history=not history):
            found = compiled(small, program, metric=metric, num_trials=2, max_concurrency=3)
        records = server.records()
    assert spent(found, "calls") == len(records) and max_in_flight(records) <= 3
    assert spent(found, "tokens") > 0 and spent(found, "cost") > len(records) * 1e-6
    assert not hasattr(getattr(found, "big", None), "_own_retries")


def test_answers_of_the_cache_are_no_calls(monkeypatch):
    """A judge whose answers DSPy's cache has takes no call, no token and no dollar."""
    monkeypatch.setattr(dspy, "cache", dspy.clients.Cache(False, True, None))
    with LMServer(TaskRule(ANSWERS, quality=Quality(1.0))) as server:
        small, big = (dspy.LM(f"openai/{name}", api_base=server.url, api_key="none") for name in MODELS)

        def judged(example, prediction, trace=None):
            judge = dspy.Predict("question -> answer")
            judge.set_lm(big)
            return judge(question=example.question).answer == prediction.answer

        found = compiled(small, metric=judged)
        assert spent(found, "calls") == server.requests < found.optimization_run.calls * 2


# ---------------------------------------------------------------------- replies without anything in them


@pytest.mark.parametrize("n_jobs", [1, 4])
@pytest.mark.parametrize("share", [8, 4])
def test_an_empty_reply_that_stays_so_is_not_asked_for_again_and_again(n_jobs, share):
    """Where a model has nothing to say to some prompts on some examples, that is a wrong answer after a few replies."""
    task, asked = TaskRule(ANSWERS, quality=Quality(0.8)), Counter()

    def rule(messages):
        text = str(messages)
        if "Rollout" not in text or "proposed_instruction" in text or zlib.crc32(text.encode()) % share:
            return task(messages)
        asked[text] += 1
        return ""

    lm = RuleLM(rule, seconds=0.005)
    run = compiled(lm, sampler="qei", embedder="ngram", minibatch_size=None, n_jobs=n_jobs).optimization_run
    states = Counter(trial.state for trial in run.trials)
    assert len(asked) > 8 // share and sum(asked.values()) <= 12 * len(asked)
    assert states[TrialState.COMPLETE] > states.total() / 2 and "could not be read" in str(run.verdict())


def test_a_storage_that_breaks_before_the_first_trial_ends_the_run_with_what_it_has(tmp_path):
    """A database that is damaged while instructions are proposed costs none of the scores that there are by then."""
    task, file, cut = TaskRule(ANSWERS, quality=Quality(0.5)), tmp_path / "runs.db", []

    def rule(messages):
        if "proposed_instruction" in str(messages) and not cut:
            cut.append(os.truncate(file, file.stat().st_size // 2))
        return task(messages)

    found = compiled(RuleLM(rule), sampler="qei", embedder="ngram", minibatch_size=None, storage=file)
    run = found.optimization_run
    assert "cannot be used" in run.ended and run.calls >= len(VALSET) and found.score > 0

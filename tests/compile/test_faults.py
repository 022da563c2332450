"""What programs, metrics and judges do wrong, and what becomes of it in a compile."""

import asyncio
import threading

import pytest
from optuna.trial import TrialState

import dspy
from dspy.promptune import EvaluationError, OptionError
from dspy.utils.exceptions import LMServerError
from tests.server import Quality, RuleLM, TaskRule

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(60)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
TRAINSET, VALSET = EXAMPLES[:12], EXAMPLES[12:36]

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


def wrong_demos(program):
    """Demos of all candidates that were bootstrapped from wrong answers."""
    demos = [demo for part in program.optimization_run.space.parts if part.name.endswith("demos") for each in
             part.candidates for demo in each]
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


def test_no_metric_is_refused_before_any_call():
    """``metric=None`` cannot score a program."""
    lm = rule_lm()
    with pytest.raises(OptionError, match="metric=None"):
        compiled(lm, metric=None)
    assert not lm.calls


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


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, ValueError])
def test_whatever_a_program_raises_is_a_failure_of_that_example(error):
    """In steps 1 and 3 an example on which the program raises fails by itself, be it no ``Exception``."""
    found = compiled(program=Stubborn(error), minibatch=False)
    trials = found.optimization_run.trials
    assert found.score > 0 and all(trial.state == TrialState.COMPLETE for trial in trials)
    assert max(trial.user_attrs.get("errors", 0) for trial in trials) == 2

"""Which language model answers what, and what answers count as."""

import pytest

import dspy
from tests.compile.hazards import TRAINSET, VALSET, check_raised_counts_as_wrong, metric, rule_lm
from tests.server import Quality, RuleLM, TaskRule

pytestmark = pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")

WAYS = [
    {"sampler": "qei"},
    {"sampler": "qei", "schedule": "batch"},
    {"sampler": "qei", "reflect": True},
    {"sampler": "thompson"},
    {"sampler": "tpe"},
    {"sampler": "qei", "minibatch_size": 8},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("default", [True, False])
def test_the_task_model_alone_runs_the_program(options, default):
    """Every answer is of ``task_model``; the prompt model writes; the model of the settings, if any, is not asked."""
    task, writer, other = rule_lm(), rule_lm(), rule_lm()
    with dspy.context(lm=other if default else None):
        optimizer = dspy.MIPROv2(
            metric=metric, auto=None, num_candidates=3, num_threads=4, max_bootstrapped_demos=2, seed=1,
            task_model=task, prompt_model=writer,
        )  # fmt: skip
        program = optimizer.compile(
            dspy.Predict("question -> answer"), trainset=TRAINSET, valset=VALSET, num_trials=6, n_jobs=4,
            embedder="ngram" if options["sampler"] != "tpe" else None, disable_progress_bar=True, **options,
        )  # fmt: skip
    assert not other.calls
    assert {call.label for call in task.calls} == {"answer"}
    assert "answer" not in {call.label for call in writer.calls}
    states = {trial.state.name for trial in program.optimization_run.trials}
    assert "COMPLETE" in states and "FAIL" not in states


@pytest.mark.parametrize("seed", [1, 3, 6])
def test_a_metric_that_raises_for_wrong_answers_scores_them_as_wrong(seed, caplog):
    """Once a prompt was given a score, no evaluation of it fails as ``int(...)`` does; no example is left out."""
    answers = {f"question {i}": str(i % 7) for i in range(70)}
    examples = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in answers.items()]

    def number(example, prediction, trace=None):
        return int(prediction.answer) == int(example.answer)

    lm = RuleLM(TaskRule(answers, quality=Quality(0.3), wrong=("unclear",)))
    with dspy.context(lm=lm):
        optimizer = dspy.MIPROv2(metric=number, auto=None, num_candidates=4, num_threads=4, seed=seed)
        program = optimizer.compile(
            dspy.Predict("question -> answer"), trainset=examples[:30], valset=examples[30:], num_trials=6,
            sampler="qei", embedder="ngram", disable_progress_bar=True,
        )  # fmt: skip
    check_raised_counts_as_wrong(program.optimization_run, caplog.text)

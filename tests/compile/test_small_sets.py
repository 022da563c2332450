"""Few validation examples: our samplers race on them, and prompts that are refused for good do no harm."""

import pytest

import dspy
from dspy.utils.exceptions import LMInvalidRequestError
from tests.server import Quality, RuleLM, TaskRule

ANSWERS = {f"What is the code of item {i}?": str(i % 5) for i in range(100)}
DATA = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
BUDGETS = {10: 11 * 10, 50: 11 * 50, 60: 10 * 35 + 3 * 60}  # upstream's of auto="light" with as many examples


def exact(example, prediction, trace=None):
    """Right or wrong."""
    return example.answer == prediction.answer


def compiled(n_examples, *, fault=None, seed=1, **options):
    lm = RuleLM(TaskRule(ANSWERS, quality=Quality(0.5)), fault=fault or (lambda call: None))
    with dspy.context(lm=lm):
        found = dspy.MIPROv2(metric=exact, auto="light", num_threads=4, seed=seed).compile(
            dspy.Predict("question -> answer"), trainset=DATA[:30], valset=DATA[30 : 30 + n_examples],
            **{"sampler": "onehot", "n_jobs": 2, "disable_progress_bar": True, **options},
        )  # fmt: skip
    return found, lm


def kinds(program):
    return {trial.user_attrs["kind"] for trial in program.optimization_run.trials}


@pytest.mark.parametrize("n_examples", sorted(BUDGETS))
def test_our_sampler_races_whatever_the_size(n_examples):
    """Upstream's ``auto`` gives up minibatches below 51 examples; blocks are smaller still, and its budget stays."""
    found, _ = compiled(n_examples)
    run = found.optimization_run
    assert "block" in kinds(found) and BUDGETS[n_examples] - 5 <= run.calls <= BUDGETS[n_examples]


def test_the_estimate_is_of_the_same_budget(caplog):
    """What is said before the first call is what the search is given."""
    with caplog.at_level("INFO"):
        compiled(10)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("Estimate") and "110 to search" in line for line in said)
    assert any("at most 110 examples scored" in line for line in said)


@pytest.mark.parametrize(
    ("given", "kind"),
    [({"minibatch": False}, "full"), ({"minibatch_size": 4}, "minibatch"), ({"sampler": "tpe"}, "full")],
)
def test_what_the_user_says_is_obeyed(given, kind):
    """``minibatch=False`` and an explicit size are the user's word; other samplers follow upstream."""
    found, _ = compiled(20, **given)
    assert "block" not in kinds(found) and kind in kinds(found)


@pytest.mark.parametrize("options", [{"sampler": "tpe"}, {"sampler": "random"}, {"sampler": None, "n_jobs": 4}])
def test_whole_evaluations_decide_who_wins(options):
    """With other samplers and few examples every trial is whole, and the best of them is returned."""
    found, _ = compiled(20, **options)
    whole = {t.value for t in found.optimization_run.trials if len(t.user_attrs.get("scores", ())) == 20}
    assert len(whole) > 2 and found.score == pytest.approx(100 * max(whole))


@pytest.mark.parametrize("minibatch", [True, False])
@pytest.mark.parametrize("sampler", ["onehot", "tpe", "random"])
def test_prompts_that_are_refused_for_good_end_no_run(sampler, minibatch):
    """All proposed instructions are refused: the run ends within its budget, with a prompt that is not."""
    refused = []

    def refuse(call):
        if call.label == "answer" and "Rollout" in str(call.messages):
            refused.append(call)
            raise LMInvalidRequestError("content filter")

    found, _ = compiled(20, fault=refuse, sampler=sampler, minibatch=minibatch)
    run = found.optimization_run
    assert run.ended in ("the budget is spent", "nothing is left to evaluate")
    assert run.best_params["0_predictor_instruction"] == 0 and found.score > 0
    assert refused and run.calls + len(refused) <= 11 * 20 + 2 * 10  # what was in flight at the end beside it

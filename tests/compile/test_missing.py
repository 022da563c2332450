"""What steps 1 and 2 could not make is in the result, its verdict and its report, however often the run is started."""

import dspy
from dspy.promptune.cli import main
from dspy.promptune.report.page import summary
from dspy.utils.exceptions import LMInvalidRequestError
from tests.server import Quality, RuleLM, TaskRule
from tests.server.rules import chat_text

ANSWERS = {f"question {i}": ["yes", "no"][i % 2] for i in range(40)}
DATA = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
REFUSED = ("Keep the instruction clear", "high stakes", "persona")
OPTIONS = {"sampler": "onehot", "n_jobs": 2, "num_trials": 4, "disable_progress_bar": True}


def exact(example, prediction, trace=None):
    """Right or wrong."""
    return example.answer == prediction.answer


def refuse(call):
    """One training example is refused, and so is each proposal with one of three tips."""
    if call.label == "answer" and "question 3\n" in call.messages[-1]["content"]:
        raise LMInvalidRequestError("content filter")
    if call.label == "proposed_instruction" and any(tip in str(call.messages) for tip in REFUSED):
        raise LMInvalidRequestError("proposal refused")


class Mute(RuleLM):
    """Gives an empty instruction for three tips, in every rollout."""

    def forward(self, *args, **kwargs):
        answer = super().forward(*args, **kwargs)
        if any(tip in str(kwargs.get("messages", args)) for tip in REFUSED):
            answer.choices[0].message.content = chat_text({"proposed_instruction": ""})
        return answer


def compiled(lm, **options):
    with dspy.context(lm=lm):
        optimizer = dspy.MIPROv2(metric=exact, auto=None, num_candidates=8, num_threads=2, seed=1)
        return optimizer.compile(
            dspy.Predict("question -> answer"), trainset=DATA[:12], valset=DATA[12:], **OPTIONS, **options
        )


def model(kind=RuleLM, fault=None):
    return kind(TaskRule(ANSWERS, quality=Quality(0.5)), fault=fault or (lambda call: None))


def test_what_could_not_be_made_is_in_the_result_and_the_report(tmp_path):
    """Failed examples of step 1 and proposals of step 2 are named with their error in result, verdict and report."""
    run = compiled(model(fault=refuse)).optimization_run
    first, second = ([line for line in run.facts["missing"] if line.startswith(f"Step {i}: ")] for i in (1, 2))
    assert first and all("of demo set" in line and "content filter" in line for line in first)
    assert second and all("of predictor 0" in line and "proposal refused" in line for line in second)
    assert len(run.space.texts(0)) == 8 - len(second)
    verdict = [line for line in run.verdict() if line.startswith("Missing ")]
    assert verdict[0].endswith(run.facts["missing"][0])
    page = run.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert second[0].split(":")[1] in page and first[0].split(":")[1] in summary(run)


def test_a_run_without_losses_does_not_speak_of_them():
    """Where everything came, nothing is missing."""
    run = compiled(model()).optimization_run
    assert "missing" not in run.facts and not any("Missing" in line for line in run.verdict())


def test_an_empty_proposal_is_no_candidate():
    """A model that says nothing is asked again, and then its proposal is missing, not the empty text."""
    run = compiled(model(Mute)).optimization_run
    assert run.facts["missing"] and all("an empty instruction" in line for line in run.facts["missing"])
    assert all(run.space.texts(0))


def test_a_run_that_is_taken_up_again_remembers_what_is_missing(tmp_path, capsys):
    """Steps 1 and 2 are not done twice, and what they went without is said by each start and by ``show``."""
    path = str(tmp_path / "runs.db")
    options = {"storage": path, "resume": True}
    before = compiled(model(fault=refuse), **options, max_lm_calls=120).optimization_run.facts["missing"]
    after = compiled(model(), **options).optimization_run
    assert before and after.facts["missing"] == before
    assert main(["show", path]) == 0
    assert all(line in capsys.readouterr().out for line in before[:1])

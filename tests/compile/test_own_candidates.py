"""Users' own instructions and demo sets, and metrics that say more than a number."""

import numpy as np
import pytest

import dspy
from dspy.promptune import OptionError
from dspy.promptune.distributed.metrics import feedback_of
from tests.compile.test_compile import Chain, compiled, exact, rule_lm

OWN = ["Answer briefly.", "Answer with care."]
DEMOS = [[dspy.Example(question="question 0", answer="yes")], [{"question": "question 1", "answer": "no"}]]


def five(gold, pred, trace, pred_name, pred_trace):
    """A metric in GEPA's form without defaults."""
    return dspy.Prediction(score=float(gold.answer == pred.answer), feedback=f"for {pred_name}")


def test_own_candidates_stand_behind_the_proposed_ones():
    """The user's instructions and demo sets have the last indices of the searched space."""
    program = compiled(instructions=OWN, demo_sets=DEMOS)
    parts = {part.name: part.candidates for part in program.optimization_run.space.parts}
    assert parts["0_predictor_instruction"][-2:] == tuple(OWN)
    assert parts["0_predictor_demos"][-2:] == tuple(DEMOS)
    assert len(parts["0_predictor_instruction"]) > 2


def test_candidates_that_are_proposed_stay_as_they_are():
    """With the user's candidates beside them, the proposed ones are those of a compile without."""
    with_own, without = compiled(instructions=OWN, demo_sets=DEMOS), compiled()
    for mine, theirs in zip(with_own.optimization_run.space.parts, without.optimization_run.space.parts, strict=True):
        assert mine.candidates[: len(theirs)] == theirs.candidates


def test_own_candidates_of_one_predictor_by_name_or_number():
    """Of two predictors only the one that is named has more candidates."""
    for name in ("answer", 1):
        sizes = compiled(program=Chain(), instructions={name: OWN}).optimization_run.space.sizes
        plain = compiled(program=Chain()).optimization_run.space.sizes
        assert (sizes[0], sizes[2]) == (plain[0], plain[2] + 2)


def test_own_candidates_of_two_predictors_at_once():
    """What is given by name or by number stands behind that predictor's proposed candidates."""
    instructions, demos = {"answer": OWN, 0: ["Plan first."]}, {"plan": DEMOS[:1], 1: DEMOS}
    run = compiled(program=Chain(), instructions=instructions, demo_sets=demos).optimization_run
    parts = {part.name: part.candidates for part in run.space.parts}
    assert parts["0_predictor_instruction"][-1:] == ("Plan first.",)
    assert parts["1_predictor_instruction"][-2:] == tuple(OWN)
    assert parts["0_predictor_demos"][-1:] == (DEMOS[0],)
    assert parts["1_predictor_demos"][-2:] == tuple(DEMOS)


@pytest.mark.parametrize("again", ["Answer briefly. ", " Answer briefly.", "\nAnswer briefly.\r\n"])
def test_an_instruction_that_makes_the_same_prompt_is_not_repeated(again):
    """Spaces and line ends that DSPy takes off, or that end a text, make no other candidate."""
    program = compiled(instructions=[OWN[0], again, OWN[1]], max_bootstrapped_demos=0, max_labeled_demos=0)
    assert program.optimization_run.space.parts[0].candidates[-2:] == tuple(OWN)


def test_demo_sets_may_hold_arrays():
    """Arrays in the user's demos are compared by what they hold: of two equal sets one is a candidate."""
    sets = [[dspy.Example(question=np.arange(3), answer=str(i))] for i in (0, 1, 0)]
    found = compiled(demo_sets=sets).optimization_run.space.parts[1].candidates
    assert [each[0].answer for each in found[-2:]] == ["0", "1"] and found[-3] != sets[0]


def test_a_zero_shot_compile_takes_demo_sets():
    """Without demos of its own the search has the empty set and the user's."""
    program = compiled(demo_sets=DEMOS, max_bootstrapped_demos=0, max_labeled_demos=0)
    assert program.optimization_run.space.parts[1].candidates == ([], *DEMOS)


def test_a_zero_shot_compile_keeps_the_demos_of_the_program():
    """What the program has of its own is the first set, with or without the user's; as upstream no call is without."""
    own, searched = dspy.Example(question="question 9", answer="its own"), []
    for options in ({}, {"demo_sets": [[*DEMOS[0], own]]}):
        lm, program = rule_lm(), dspy.Predict("question -> answer")
        program.demos = [own]
        found = compiled(lm, program=program, max_bootstrapped_demos=0, max_labeled_demos=0, **options)
        searched.append(found.optimization_run.space.parts)
        asked = [str(call.messages) for call in lm.calls if call.label == "answer"]
        assert asked and all("its own" in text for text in asked)
    assert len(searched[0]) == 1 and searched[1][1].candidates == ([own], [*DEMOS[0], own])


@pytest.mark.parametrize(
    ("options", "program", "message"),
    [
        ({"instructions": OWN}, Chain(), "2 predictors"),
        ({"instructions": {"plain": OWN}}, Chain(), "'plain' is unknown; there are plan, answer"),
        ({"instructions": [" "]}, None, "no instruction"),
        ({"instructions": "Answer."}, None, r"list of candidates, such as \['Answer.'\]"),
        ({"instructions": ["Answer \ud800"]}, None, "half a character"),
        ({"demo_sets": [[{"question": "\ud800", "answer": "yes"}]]}, None, "half a character"),
        ({"demo_sets": ["Answer."]}, None, "no demo set"),
        ({"demo_sets": [[3]]}, None, "no demo set"),
        ({"demo_sets": [[*DEMOS[0], {"foo": "1"}]]}, None, r"'foo': '1'.* has no field .*: give question, answer"),
        ({"demo_sets": {"plan": DEMOS, "answer": [[{"reason": "so"}]]}}, Chain(), "no field of its predictor"),
        ({"demo_sets": {0: DEMOS, "plan": DEMOS}}, Chain(), "'plan' is there twice, as 'plan' and as 0"),
        ({"instructions": {"answer": OWN, 1: OWN}}, Chain(), "1 is there twice, as 'answer' and as 1"),
        ({"instructions": np.array(OWN)}, None, "give a list of candidates, such as list"),
        ({"demo_sets": np.array(OWN)}, None, "give a list of candidates, such as list"),
    ],
)
def test_what_is_no_candidate_is_refused_before_the_first_call(options, program, message):
    """The option, the value and the remedy are said."""
    with pytest.raises(OptionError, match=message):
        compiled(program=program, **options)


@pytest.mark.parametrize("metric", [five, lambda e, p, t=None: dspy.Prediction(score=exact(e, p), feedback="no")])
def test_metrics_with_feedback_give_the_scores_of_plain_ones(metric):
    """Steps 1 and 3 read the score: same demo sets, same trials."""
    said, plain = compiled(init={"metric": metric}, schedule="batch"), compiled(schedule="batch")
    assert said.optimization_run.space.parts[1].candidates == plain.optimization_run.space.parts[1].candidates
    assert [t.value for t in said.optimization_run.trials] == [t.value for t in plain.optimization_run.trials]


async def awaited(example, prediction):
    return {"score": 0.0, "feedback": "hm"}


@pytest.mark.parametrize(
    "metric",
    [
        lambda e, p: dspy.Prediction(score=0.0, feedback="hm"),
        lambda e, p, trace=None: False if trace is not None else dspy.Prediction(score=0.0, feedback="hm"),
        lambda gold, pred, trace, _name, _trace: dspy.Prediction(score=0.0, feedback="hm" if _name else ""),
        lambda e, p, trace=None, weight=1.0, strict=False: {"score": weight / 2, "feedback": "hm"},
        awaited,
    ],
)
def test_metrics_of_every_form_are_heard(metric):
    """Two to five arguments, whatever their names, with and without a trace, awaited or not."""
    example, prediction = dspy.Example(answer="yes"), dspy.Prediction(answer="no")
    assert feedback_of(metric, example, prediction, [("a call",)], ("plan", [])) == "hm"


def test_feedback_is_asked_for_each_predictor():
    """A metric in GEPA's form hears the predictor's name; one that raises says nothing."""
    example, prediction = dspy.Example(answer="yes"), dspy.Prediction(answer="no")
    assert feedback_of(five, example, prediction, None, ("plan", [])) == "for plan"
    assert feedback_of(exact, example, prediction) == ""
    assert feedback_of(lambda e, p, t: 1 / 0, example, prediction) == ""

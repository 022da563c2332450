"""The made-up world of the benchmark is what it says."""

import math

import pytest

import dspy
from benchmarks.warehouse import Lineage, SortAndPlace, Warehouse, metric
from benchmarks.worlds import share


@pytest.mark.parametrize("steps", [1, 2])
def test_the_true_score_is_what_many_answers_come_to(steps):
    """The closed form is within four standard errors (0.5 / sqrt(600) each at most) of the mean of 600 answers."""
    world, program = Warehouse(3), SortAndPlace(steps)
    with dspy.context(lm=world):
        scores = [metric(example, program(**example.inputs())) for example in world.examples(0, 600)]
    assert abs(sum(scores) / 600 - world.true_score(program)) < 4 * 0.5 / 600**0.5


def test_rules_are_seen_only_where_the_right_answer_stands():
    """An instruction written without examples has no rules; with all answers in sight it has many right ones."""
    world = Warehouse(0, insight=1.0, error=0.0)
    shown = "\n".join(f"{e.note} Right are {e.kind} and {e.shelf}." for e in world.examples(0, 60))
    blind, seeing = (world(prompt=text)[0] for text in ("Write an instruction.", shown))
    assert "Put" not in blind
    program = SortAndPlace(1)
    program.place.signature = program.place.signature.with_instructions(seeing)
    assert world.true_score(program) > world.true_score(SortAndPlace(1)) + 0.1


def test_gains_add_up_over_generations():
    """Where every text is a little better, each generation is .1 above the one that it was written from."""
    world, program, scores = Lineage(0, luck=1.0), SortAndPlace(1), []
    text = "Say the shelf."
    for _ in range(3):
        program.place.signature = program.place.signature.with_instructions(text)
        scores.append(world.true_score(program))
        text = world(prompt=f"Improve this instruction: {text}")[0]
    assert scores == pytest.approx([0.45, 0.55, 0.65])


def test_the_share_of_rollouts_lies_between_those_that_were_run():
    """What a method needs for a score is read on lines between its budgets, and is endless for what it never has."""
    curve = [(400, 0.6), (200, 0.5)]
    needed = [share(curve, score) for score in (0.45, 0.5, 0.55, 0.6, 0.61)]
    assert needed == pytest.approx([200, 200, 300, 400, math.inf])

"""When a text is written: decided from beliefs and counts alone."""

import random

import numpy as np
import pytest

from dspy.promptune import PromptSpace
from dspy.promptune.allocation.writing import Text, WritingPolicy, WritingState
from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.surrogate import Surrogate


def told(scores, unit=1.0):
    """An open space of so many texts, unlike each other, the pool, and beliefs after these scores of each, in units."""
    space = PromptSpace({0: [f"text {i}" for i in range(2)]}).open()
    policy = WritingPolicy(space, random.Random(0))
    for i in range(2, len(scores)):
        index = space.append("0_predictor_instruction", f"text {i}")
        policy.wrote(Text("0_predictor_instruction", index, (0,), calls=4, at=40 + 10 * i))
    rows = [[unit * score for score in row] for row in scores]
    seen = [Observation((i,), float(np.mean(row)), tuple(row), tuple(range(len(row)))) for i, row in enumerate(rows)]
    pool = [(i,) for i in range(len(scores))]
    return policy, pool, Surrogate([np.eye(len(scores))]).posterior(seen, pool)


def state(**values):
    return WritingState(**{"max_calls": 600, "left": 400, "spent": 200, "written": 10, "in_flight": 0, **values})


HALF, ALL, NONE = [0.0, 1.0] * 20, [1.0] * 40, [0.0] * 40


def test_a_text_is_asked_for_while_nothing_is_known_of_texts():
    """With all calls before it, a run whose prompts are well known writes from one of them."""
    decision = (found := told([HALF, HALF]))[0].next(state(), *found[1:])
    assert decision is not None
    assert decision.part == "0_predictor_instruction"
    assert decision.parent in [(0,), (1,)]


@pytest.mark.parametrize(
    "values", [{"in_flight": 1}, {"left": 100}, {"written": 30}, {"spent": 45}], ids=lambda values: next(iter(values))
)
def test_nothing_is_asked_for_when_it_must_not_be(values):
    """While as many are written as may be, at the end, beyond the unproven share, and right after another text."""
    policy, pool, posterior = told([HALF, HALF])
    policy.wrote(Text("0_predictor_instruction", 1, (0,), at=40))
    assert policy.next(state(**values), pool, posterior) is None


def test_what_is_being_written_counts_for_the_share():
    """With many at once, a run whose texts are not known yet to bring anything takes no more than its 5 %."""
    for so_far, in_flight, may in ((0, 6, True), (0, 7, False), (16, 2, True), (16, 3, False)):
        policy, pool, posterior = told([HALF, HALF])
        if so_far:
            policy.wrote(Text("0_predictor_instruction", 1, (0,), calls=4, at=-10_000))
        values = state(written=so_far, in_flight=in_flight, places=16)
        assert (policy.next(values, pool, posterior) is not None) is may


def test_a_text_that_has_proved_better_frees_the_share():
    """Beyond 5 % of the calls, only a run whose texts are better than all else goes on to write; likely is enough."""
    likely, level = ([1.0] * right + [0.0] * (40 - right) for right in (23, 21))
    for scores, proven in ((ALL, True), (likely, True), (level, False), (NONE, False)):
        policy, pool, posterior = told([HALF, HALF, scores])
        assert policy.proven(pool, posterior) is proven
        assert (policy.next(state(written=60), pool, posterior) is not None) is proven


def test_the_record_says_what_the_next_text_may_bring():
    """After good children the mean is above zero, after bad ones below; without any it is zero."""
    runs = [told(scores) for scores in ([HALF, HALF], [HALF, HALF, ALL], [HALF, HALF, NONE])]
    means = [policy.record(*beliefs)[0] for policy, *beliefs in runs]
    assert means[2] < 0 == means[0] < means[1]


@pytest.mark.parametrize("scores", [[HALF, HALF], [HALF, HALF, ALL], [HALF, HALF, NONE]])
def test_percentages_are_no_reason_to_write_less(scores):
    """What the next text may bring, and whether it is worth it, is the same in percent."""
    (policy, *beliefs), (other, *percent) = told(scores), told(scores, 100.0)
    assert np.array(other.record(*percent)) == pytest.approx(100 * np.array(policy.record(*beliefs)))
    for left in (200, 300, 400):
        assert other._worth_it(state(left=left), *percent) == policy._worth_it(state(left=left), *beliefs)


def test_parents_are_drawn_by_what_they_may_be_worth():
    """A prompt that is surely better is always the parent; of two alike each is now and then."""
    policy, pool, posterior = told([ALL, NONE])
    assert {policy._parent(pool, posterior) for _ in range(50)} == {(0,)}
    policy, pool, posterior = told([HALF, HALF])
    assert {policy._parent(pool, posterior) for _ in range(50)} == {(0,), (1,)}


def test_a_predictor_that_is_never_called_has_no_turn():
    """Nothing more is asked for it, and that nothing came of it makes no request for the others rarer."""
    space = PromptSpace({i: [f"text {i}"] for i in range(3)}).open()
    policy, (first, second, third) = WritingPolicy(space, random.Random(0)), space.names
    policy.wrote(Text(first, -1, (0, 0, 0), refused="a copy"))
    policy.wrote(Text(second, -1, (0, 0, 0), refused="never called", failed=True, uncalled=True))
    assert policy.fruitless == 1
    assert sorted(policy._next_part() for _ in range(4)) == [first, first, third, third]
    for part in (first, third):
        policy.wrote(Text(part, -1, (0, 0, 0), refused="never called", failed=True, uncalled=True))
    assert policy._next_part() is None

"""Several texts of one answer: which of them is looked at first."""

import random

import pytest

from dspy.promptune import PromptSpace, make_sampler
from dspy.promptune.allocation.policy import Budget
from dspy.promptune.allocation.racing import LOOK, RacingPolicy
from dspy.promptune.allocation.records import Job, ScoreTable

N, GOOD, BAD = 40, "count the red apples", "sing"


def embedded(texts):
    """Texts are as close as they share the two words that matter."""
    return [[float("red" in text), float("sing" in text), 0.1] for text in texts]


@pytest.fixture
def policy():
    """A race in which one text is right on 20 examples, and the other wrong."""
    space = PromptSpace({0: [GOOD, BAD]}).open()
    table, sampler = ScoreTable(), make_sampler("qei", space=space, seed=0, embedder=embedded, min_cold_start=2)
    for example in range(20):
        table.add((0,), example, 1.0)
        table.add((1,), example, 0.0)
    return RacingPolicy(sampler, space, table, Budget(n_examples=N, max_calls=400), rng=random.Random(0))


def written(policy, *texts):
    """Texts that came with one answer."""
    for i, text in enumerate(texts):
        index = policy._space.append("0_predictor_instruction", text, 0)
        policy.grown((index,), sibling=i > 0)


def looked_at(policy):
    """The text that the next job is for; the job runs and ends."""
    one = policy.next_job(300)
    job = Job(policy._table.calls, one.key, one.examples, one.kind)
    policy.started(job)
    for example in one.examples:
        policy._table.add(one.key, example, 1.0)
    policy.told(job, [1.0] * len(one.examples))
    return policy._space.parts[0].candidates[one.key[0]]


@pytest.mark.parametrize("order", [1, -1])
def test_of_siblings_the_most_promising_is_looked_at(policy, order):
    """Whatever the order in which they came, the text that is close to the best prompt is scored before the other."""
    written(policy, *["sing it", "count what is red"][::order])
    assert looked_at(policy) == "count what is red"


def test_each_answer_has_a_look_of_its_own(policy):
    """A second answer does not take the place of the first: one text of each is scored, the first answer's first."""
    written(policy, "sing it", "sing well")
    written(policy, "red it is")
    policy._block = LOOK
    seen = [looked_at(policy) for _ in range(2)]
    assert seen[0] in ("sing it", "sing well") and seen[1] == "red it is"

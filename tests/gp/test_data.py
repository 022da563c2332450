"""Noise of an observed mean from the scores behind it."""

import numpy as np
import pytest

from dspy.promptune.gp.data import (
    FLOOR,
    KEPT,
    MANY,
    SHRINK,
    Observation,
    condensed,
    variances,
    weights,
)


def seen(key, scores, examples=None):
    """An observation of a prompt with these scores."""
    return Observation((key,), float(np.mean(scores)), tuple(scores), examples)


def test_zeros_and_ones_have_binomial_noise_shrunk_to_the_common_level():
    """p (1 - p) / size, with p drawn to the mean of all scores by SHRINK examples' worth."""
    both = [seen(0, [1.0, 1.0, 1.0, 1.0]), seen(1, [0.0, 1.0])]
    level = 5 / 6
    lucky, other = (4 + SHRINK * level) / (4 + SHRINK), (1 + SHRINK * level) / (2 + SHRINK)
    assert variances(both) == pytest.approx([lucky * (1 - lucky) / 4, other * (1 - other) / 2])


def test_repeats_of_a_prompt_agree_on_its_noise():
    """The p of a prompt comes from all of its scores, so two equal blocks have equal noise."""
    noise = variances([seen(0, [1.0, 1.0]), seen(0, [0.0, 0.0]), seen(1, [0.0, 1.0])])
    assert noise[0] == noise[1]


def test_graded_scores_have_their_sample_variance():
    """With many scores, shrinking to the common variance hardly matters."""
    scores = np.random.default_rng(0).uniform(0, 1, 400)
    assert variances([seen(0, scores)])[0] == pytest.approx(scores.var() / 400, rel=0.02)


def test_noise_is_never_zero():
    """A thousand equal scores still leave the floor."""
    assert variances([seen(0, [1.0] * 1000)])[0] == FLOOR


def test_a_mean_without_scores_has_unknown_noise():
    """NaN stands for unknown, whether or not other observations have scores."""
    alone = variances([Observation((0,), 0.5)])
    beside = variances([Observation((0,), 0.5), seen(1, [0.0, 1.0])])
    assert np.isnan(alone).tolist() == [True]
    assert np.isnan(beside).tolist() == [True, False]


def test_examples_share_a_mean_equally():
    """Each example has 1/size of its mean; observations without examples have none."""
    table, columns = weights([seen(0, [0.0, 1.0], (7, 3)), seen(1, [1.0], (3,)), seen(2, [1.0])])
    assert columns == {3: 0, 7: 1}
    assert table.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]


def test_observations_that_a_model_can_bear_stay_as_they_are():
    """Up to MANY, repeats of a prompt among them."""
    few = [seen(i % 7, [0.0, 1.0], (i, i + 1)) for i in range(MANY)]
    assert condensed(few) == few


def test_of_many_observations_each_prompt_has_one_in_which_an_example_counts_once():
    """Two minibatches with an example in common are the scores of the examples in either."""
    many = [seen(i % 300, [0.0, 1.0], (i, 10_000)) for i in range(MANY + 1)]
    found = condensed(many)
    assert [one.key for one in found] == [(i,) for i in range(300)]
    assert found[5] == seen(5, [0.0, 1.0, 0.0, 0.0], (5, 10_000, 305, 605))


def test_observations_without_examples_or_scores_are_averaged():
    """Scores that cannot be told apart all count; means without scores count alike."""
    plain = [Observation((i % 2,), i / MANY) for i in range(MANY)]
    found = condensed([*plain, seen(2, [0.0]), seen(2, [1.0])])
    assert found[2] == seen(2, [0.0, 1.0])
    assert found[0] == Observation((0,), pytest.approx(0.5, abs=0.01))


def test_of_many_prompts_the_best_and_a_spread_of_the_others_are_kept():
    """All of the top half of KEPT, and others from one end to the other."""
    many = [seen(i, [i / 2000] * 5) for i in range(2000)]
    keys = [one.key[0] for one in condensed(many)]
    assert len(keys) == KEPT and keys == sorted(keys)
    assert keys[-KEPT // 2 :] == list(range(2000 - KEPT // 2, 2000))
    assert keys[0] == 0 and max(np.diff(keys)) < 12

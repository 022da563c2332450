"""What to expect of the best of many."""

import numpy as np
import pytest

from dspy.promptune.allocation.mixture import expected_score
from dspy.promptune.gp.data import Observation


def observed(truths, rng, *, graded=False, unit=1.0, size=20):
    """``size`` scores of each prompt: right or wrong, or spread about the true score."""
    for j, truth in enumerate(truths):
        drawn = np.clip(rng.normal(truth, 0.3, size), -1, 2) if graded else rng.random(size) < truth
        scores = unit * drawn.astype(float)
        yield Observation((j,), float(scores.mean()), tuple(scores), tuple(range(size)))


@pytest.mark.parametrize("graded", [False, True], ids=["right or wrong", "graded"])
def test_the_best_of_many_good_prompts_among_bad_ones_is_not_flattered(graded):
    """Forty prompts of .6 and twenty of .2: of what luck adds to the best mean, at most a quarter is left."""
    rng, means, expected = np.random.default_rng(0), [], []
    for _ in range(30):
        found = list(observed([0.6] * 40 + [0.2] * 20, rng, graded=graded))
        best = max(found, key=lambda one: one.value)
        means.append(best.value)
        expected.append(expected_score(found, best.key))
    luck = np.mean(means) - 0.6
    assert luck > 0.1
    assert abs(np.mean(expected) - 0.6) < luck / 4


def test_units_change_nothing_but_the_unit():
    """Percentages are expected in percent."""
    one, hundred = (
        list(observed([0.3, 0.5, 0.7], np.random.default_rng(1), unit=unit)) for unit in (1.0, 100.0)
    )  # fmt: skip
    assert expected_score(hundred, (2,)) == pytest.approx(100 * expected_score(one, (2,)))


def test_one_prompt_is_expected_to_score_what_it_scored():
    """Without others there is nothing to draw it to, and equal scores are no reason to fail."""
    (alone,) = observed([0.5], np.random.default_rng(2))
    assert expected_score([alone], (0,)) == pytest.approx(alone.value, abs=0.02)
    same = [Observation((j,), 0.25, (0.25,) * 4, (0, 1, 2, 3)) for j in range(3)]
    assert expected_score(same, (1,)) == pytest.approx(0.25)

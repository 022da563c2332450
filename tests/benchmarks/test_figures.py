"""The numbers of the regret benchmark."""

import math

import numpy as np
import pytest

from benchmarks.figures import area, at, curves, geometric_mean, mean_and_error, reach, reach_interval


def test_a_curve_holds_the_last_prompt_that_the_run_would_return():
    """Before the first entry a run is worth a blind pick; after it, its last entry at or before the place."""
    rows = curves([[(10, 0.5), (25, 0.7)], [(40, 0.9)]], budget=40, start=0.1)
    assert rows.tolist() == [[0.5, 0.5, 0.7, 0.7], [0.1, 0.1, 0.1, 0.9]]
    assert at(rows, 30).tolist() == [0.7, 0.1]
    assert at(rows, 1000).tolist() == [0.7, 0.9]


def test_calls_to_a_target_are_a_share_of_the_budget():
    """The mean curve over seeds has .4 at the second of four places, .9 nowhere."""
    rows = np.array([[0.1, 0.5, 0.5, 0.8], [0.1, 0.3, 0.3, 0.8]])
    assert reach(rows, 0.4) == 0.5
    assert math.isinf(reach(rows, 0.9))


def test_the_interval_of_identical_seeds_has_no_width():
    """Where all seeds agree, drawing them again changes nothing."""
    rows = np.tile([0.1, 0.4, 0.6], (5, 1))
    target = np.tile([0.0, 0.2, 0.4], (7, 1))
    assert reach_interval(rows, target, np.random.default_rng(0)) == (2 / 3, 2 / 3)


def test_area_is_the_mean_regret():
    """Regret averaged over the calls: .5 and .1 below the best make .3."""
    assert area(np.array([[0.4, 0.8]]), best=0.9) == pytest.approx([0.3])


def test_mean_error_and_geometric_mean():
    """Hand-computed: the standard error of 1, 2, 3 is 1 / sqrt(3), and the geometric mean of 1/4 and 1 is 1/2."""
    assert mean_and_error(np.array([1.0, 2.0, 3.0])) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert math.isnan(mean_and_error(np.array([1.0]))[1])
    assert geometric_mean([0.25, 1.0]) == pytest.approx(0.5)

"""What a run believes of its winner."""

import numpy as np
import pytest

from dspy.promptune import PromptSpace, search
from tests.tables import Table


@pytest.fixture(scope="module")
def runs():
    """Twelve searches among fifty prompts with few calls, and the true score of each winner."""
    found = []
    for seed in range(12):
        table = Table(10, 5, n_examples=60, seed=seed)
        run = search(table.space, table, n_examples=60, max_calls=250, sampler="onehot", seed=seed)
        found.append((run, table.worth[table.space.key(run.best_params)]))
    return found


@pytest.mark.slow
def test_the_expected_score_takes_off_what_was_luck(runs):
    """The mean of its own scores flatters the winner; the expected score is nearer to the truth in the mean."""
    flattery = np.mean([run.best_score - truth for run, truth in runs])
    bias = np.mean([run.expected_score - truth for run, truth in runs])
    assert abs(bias) < abs(flattery)


@pytest.mark.slow
def test_the_interval_holds_the_expected_score_and_most_truths(runs):
    """Nine in ten are wanted; of twelve, at least nine."""
    for run, _ in runs:
        low, high = run.interval
        assert 0.0 <= low < run.expected_score < high <= 1.0
    assert sum(run.interval[0] <= truth <= run.interval[1] for run, truth in runs) >= 9


def test_percentages_are_expected_in_percent():
    """The same scores times a hundred give the same search and a hundred times the score."""
    table = Table(6, 3)
    one, hundred = (
        search(
            table.space,
            lambda params, examples, times=times: [times * score for score in table(params, examples)],
            n_examples=40, max_calls=120, sampler="onehot", seed=0,
        )
        for times in (1.0, 100.0)
    )  # fmt: skip
    assert hundred.best_params == one.best_params
    assert hundred.expected_score == pytest.approx(100 * one.expected_score)
    assert hundred.posterior_mean == pytest.approx(100 * one.posterior_mean)
    assert hundred.interval == pytest.approx([100 * end for end in one.interval])


@pytest.mark.parametrize("times", [1.0, 100.0])
def test_the_interval_ends_where_the_metric_does(times):
    """A prompt that is always right is expected to be right at most always, in percent as well."""
    space = PromptSpace({0: ["never", "always"]})
    run = search(
        space, lambda params, examples: [times * params[space.names[0]] for _ in examples],
        n_examples=12, max_calls=24, sampler="onehot", seed=0,
    )  # fmt: skip
    assert run.interval[0] < run.expected_score < run.interval[1] == times


def test_samplers_without_a_model_expect_nothing(table):
    """TPE has no posterior."""
    run = search(table.space, table, n_examples=40, max_calls=80, sampler="tpe", seed=0)
    assert (run.expected_score, run.interval, run.posterior_mean) == (None, None, None)

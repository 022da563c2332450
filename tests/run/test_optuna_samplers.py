"""Samplers of Optuna's that end a study by themselves."""

import pytest
from optuna.samplers import BruteForceSampler, GridSampler

from dspy.promptune import OptionError, PromptSpace, search

SPACE = PromptSpace({0: list("abc")}, {0: [[{"question": "x"}], [{"question": "y"}]]})


def evaluate(params, examples):
    return [float(params["0_predictor_instruction"] == 1)] * len(examples)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_sampler_that_has_been_through_leaves_the_rest_to_the_run(n_jobs):
    """A brute-force search of six combinations ends when each has all its scores, with the best of them."""
    found = search(SPACE, evaluate, n_examples=6, max_calls=100, sampler=BruteForceSampler(seed=0), n_jobs=n_jobs)
    assert found.ended == "nothing is left to evaluate" and found.calls == 36
    assert found.best_params["0_predictor_instruction"] == 1


def test_a_sampler_that_knows_only_its_own_trials_is_refused():
    """A grid has no place for trials that it did not propose, which is said before anything is evaluated."""
    with pytest.raises(OptionError, match="GridSampler counts"):
        search(SPACE, evaluate, n_examples=6, max_calls=10, sampler=GridSampler({"a": [1]}))

"""Our sampler through plain Optuna: ask, tell, best."""

import copy
import logging
import math
import pickle
import random

import numpy as np
import optuna
import pytest
import torch

from dspy.promptune import PromptSpace, QEISampler
from dspy.promptune.gp.model import PromptGP
from dspy.promptune.samplers.trials import measured

WORDS = ["count", "think", "answer", "step", "brief", "sure", "list", "check"]


def line(texts):
    """An embedder that knows where on a line each text lies: its number of letters."""
    return np.array([[math.cos(len(t) / 8), math.sin(len(t) / 8)] for t in texts])


def by_length(n, demos=None):
    """Instructions of 1 to n letters."""
    return PromptSpace({0: ["x" * (i + 1) for i in range(n)]}, demos)


def start(space, direction="maximize", **options):
    """A study and its sampler."""
    options = {"embedder": line, "seed": 0, "batch_size": 4, **options}
    sampler = QEISampler(space, **options)
    return optuna.create_study(direction=direction, sampler=sampler), sampler


def tell(study, space, score, examples=10, seed=0):
    """Ask for one prompt and tell its scores; returns the key."""
    trial = study.ask(space.distributions())
    key = space.key(trial.params)
    rng = random.Random(f"{seed}-{trial.number}")
    scores = [float(rng.random() < score(key)) for _ in range(examples)]
    trial.set_user_attr("scores", scores)
    study.tell(trial, sum(scores) / examples)
    return key


def test_the_best_of_a_smooth_space_is_found_in_a_few_rounds():
    """Of 60 prompts whose score peaks at one of them, 24 evaluations of 10 examples find one near the peak."""
    space = by_length(60)
    study, sampler = start(space)
    for _ in range(24):
        tell(study, space, lambda key: math.exp(-(((key[0] - 41) / 10) ** 2)))
    assert abs(sampler.best(study)["0_predictor_instruction"] - 41) <= 6


def test_the_winner_is_not_the_luckiest():
    """Three right of three is believed less than eighty-eight of a hundred."""
    space = PromptSpace({0: ["a", "bb" * 9]})
    study, sampler = start(space)
    for index, scores in ((0, [1.0] * 3), (1, [1.0] * 88 + [0.0] * 12), (0, [0.0] * 3)):
        trial = optuna.trial.create_trial(
            params={"0_predictor_instruction": index},
            distributions=space.distributions(),
            value=sum(scores) / len(scores),
            user_attrs={"scores": scores},
        )
        study.add_trial(trial)
    assert sampler.best(study) == {"0_predictor_instruction": 1}


def test_prompts_that_are_running_are_not_proposed_again():
    """Eight asked at once are eight different prompts."""
    space = by_length(40)
    study, _ = start(space)
    for _ in range(6):
        tell(study, space, lambda key: key[0] / 40)
    keys = [space.key(study.ask(space.distributions()).params) for _ in range(8)]
    assert len(set(keys)) == 8


def test_the_same_seed_gives_the_same_proposals():
    """Seed 0 is a seed like any other."""

    def proposals(seed):
        space = by_length(30)
        study, _ = start(space, seed=seed)
        return [tell(study, space, lambda key: key[0] / 30) for _ in range(12)]

    assert proposals(0) == proposals(0)
    assert proposals(0) != proposals(1)


def test_failed_trials_and_values_that_are_not_numbers_are_ignored():
    """Only finite results count; the rest neither stops the search nor moves its beliefs."""
    space = by_length(20)
    study, sampler = start(space)
    for state in (optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED):
        study.tell(study.ask(space.distributions()), state=state)
    study.tell(study.ask(space.distributions()), float("nan"), skip_if_finished=True)
    with pytest.raises(ValueError, match="No result yet"):
        sampler.best(study)
    told = [tell(study, space, lambda key: 0.5) for _ in range(8)]
    assert space.key(sampler.best(study)) in told


@pytest.mark.parametrize("scores", ["broken", [], [float("nan")], [None, 1.0], 3])
def test_scores_that_make_no_sense_are_left_aside(scores):
    """The value still counts, with noise inferred."""
    space = by_length(8)
    study, sampler = start(space, min_cold_start=1)
    for i in range(4):
        trial = study.ask(space.distributions())
        trial.set_user_attr("scores", scores)
        study.tell(trial, 0.1 * i)
    study.ask(space.distributions())
    assert space.key(sampler.best(study)) in space


@pytest.mark.parametrize("score", [lambda key: 0.0, lambda key: 1.0])
@pytest.mark.parametrize("n", [1, 2, 12])
def test_spaces_without_a_difference_are_searched_without_complaint(n, score):
    """One candidate only, or all equal: proposals go on, and the best is one of them."""
    space = PromptSpace({0: ["same text"] * n}, {0: ["the same demos"]})
    study, sampler = start(space)
    for _ in range(10):
        tell(study, space, score)
    assert space.key(sampler.best(study)) in space


def test_equal_texts_share_their_results():
    """Two candidates with one text are one prompt: what either index was told counts for it, and the first is named."""
    space = PromptSpace({0: ["twin", "other", "twin"]})
    study, sampler = start(space)
    for index, p in ((0, 0.6), (1, 0.7), (2, 0.9)) * 5:
        scores = [1.0] * round(40 * p) + [0.0] * round(40 * (1 - p))
        study.add_trial(
            optuna.trial.create_trial(
                params={"0_predictor_instruction": index},
                distributions=space.distributions(),
                value=p,
                user_attrs={"scores": scores},
            )
        )
    assert sampler.best(study) == {"0_predictor_instruction": 0}
    assert {one.key for one in measured(study, space)} == {(0,), (1,)}


def test_minimizing_turns_everything_round():
    """A study that minimizes has its best at the lowest value."""
    space = by_length(30)
    study, sampler = start(space, direction="minimize")
    for _ in range(20):
        tell(study, space, lambda key: key[0] / 30)
    assert sampler.best(study)["0_predictor_instruction"] < 10


def test_only_allowed_combinations_are_proposed():
    """Of 100 combinations, the ten on the diagonal are allowed."""
    space = PromptSpace({0: [w * 2 for w in WORDS[:5]] * 2}, {0: WORDS[:5] * 2}, allowed=[(i, i) for i in range(10)])
    study, _ = start(space)
    assert all(tell(study, space, lambda key: 0.5) in space for _ in range(15))


def test_a_space_far_larger_than_the_pool_is_searched():
    """34 million combinations: the pool follows the leaders, and results improve on random."""
    texts = ["x" * (i + 1) for i in range(18)]
    space = PromptSpace(dict.fromkeys(range(3), texts), dict.fromkeys(range(3), texts))
    study, sampler = start(space, max_space_size=200, batch_size=8)
    keys = [tell(study, space, lambda key: sum(key) / 102, examples=40) for _ in range(48)]
    assert sum(space.key(sampler.best(study))) > 70  # of 102; a random combination has 51, with deviation 12.7
    assert np.mean([sum(key) for key in keys[-16:]]) > np.mean([sum(key) for key in keys[:8]])


@pytest.mark.parametrize(
    "options",
    [{"acquisition": a} for a in ("qlogei", "qlognei", "thompson")]
    + [{"n_batches": 20}, {"n_batches": 20, "greedy": False}, {"n_batches": 5, "acquisition": "qlognei"}],
)
def test_every_way_of_proposing_proposes(options):
    """All acquisitions and batch searches run on real results with prompts pending."""
    space = by_length(25)
    study, _ = start(space, **options)
    for _ in range(6):
        tell(study, space, lambda key: key[0] / 25)
    asked = [space.key(study.ask(space.distributions()).params) for _ in range(8)]
    assert len(set(asked)) >= 7  # random batches and repeats may meet


def test_torch_is_left_as_it_was():
    """Neither the global generator nor the number of threads is disturbed by a proposal."""
    space = by_length(25)
    study, sampler = start(space, n_batches=8)
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for _ in range(8):
        tell(study, space, lambda key: key[0] / 25)
    sampler.best(study)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_fit_that_fails_is_reported_and_the_search_goes_on(monkeypatch, caplog):
    """The previous hyper-parameters stay."""

    def broken(self, data):
        raise ArithmeticError("singular")

    monkeypatch.setattr(PromptGP, "fit", broken)
    space = by_length(20)
    study, _ = start(space)
    with caplog.at_level(logging.WARNING):
        keys = [tell(study, space, lambda key: key[0] / 20) for _ in range(10)]
    assert len(keys) == 10
    assert "previous hyper-parameters stay" in caplog.text


def test_a_posterior_that_fails_falls_back_to_chance(monkeypatch, caplog):
    """Random prompts, the best average, and a warning."""

    def broken(self, data):
        raise RuntimeError("not positive definite")

    monkeypatch.setattr(PromptGP, "noise", broken)
    space = by_length(20)
    study, sampler = start(space)
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            tell(study, space, lambda key: key[0] / 20)
        best = sampler.best(study)
    assert study.best_trial.params == best
    assert "random instead" in caplog.text


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("told", [0, 8])
def test_a_sampler_and_its_study_can_be_copied_and_go_on_alike(copied, told):
    """From the first proposal on, the copy of a study proposes what the study itself does."""
    space = by_length(30)
    study, _ = start(space, embedder="onehot")
    for _ in range(told):
        tell(study, space, lambda key: key[0] / 30)
    other = copied(study)
    asked = [[one.ask(space.distributions()).params for _ in range(4)] for one in (study, other)]
    assert asked[0] == asked[1]


def test_candidates_that_are_appended_are_believed_in_by_their_likeness():
    """After growing, a new text that resembles the good one has a higher mean than one that resembles a bad one."""
    space = PromptSpace({0: ["count the words", "sing a song", "draw a horse"]}).open()
    sampler = QEISampler(space, seed=0, embedder="ngram", min_cold_start=1, batch_size=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for index, scores in enumerate(([1.0] * 20, [0.0] * 20, [0.0] * 20)):
        trial = optuna.trial.create_trial(
            value=scores[0], params=space.params((index,)), distributions=space.distributions(),
            user_attrs={"scores": scores},
        )  # fmt: skip
        study.add_trial(trial)
    space.append("0_predictor_instruction", "paint a horse")
    space.append("0_predictor_instruction", "count the words twice")
    sampler.grow()
    bad, good = sampler.surrogate.posterior(measured(study, space), [(3,), (4,)]).mean
    assert good > bad + 0.05
    assert study.ask(space.distributions()).params["0_predictor_instruction"] in range(5)


def test_a_plain_study_goes_on_with_candidates_that_were_appended():
    """Nobody need tell the sampler that its space has grown."""
    space = by_length(3).open()
    study, sampler = start(space, min_cold_start=1)
    for _ in range(6):
        tell(study, space, lambda key: 0.5)
    space.append("0_predictor_instruction", "x" * 9)
    keys = {tell(study, space, lambda key: 0.2 + 0.2 * key[0]) for _ in range(12)}
    assert (3,) in keys and sampler.best(study) == {"0_predictor_instruction": 3}


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_the_told_value_counts_beside_its_scores(unit):
    """A value that is less than the mean of its scores, for a price of the prompt, is what is searched for."""
    space = by_length(8)
    study, sampler = start(space, embedder="onehot")
    for number in range(32):
        trial = study.ask(space.distributions())
        (index,) = space.key(trial.params)
        rng = random.Random(number)
        scores = [unit * (rng.random() < 0.5 + 0.02 * index) for _ in range(25)]
        trial.set_user_attr("scores", scores)
        study.tell(trial, sum(scores) / 25 - 0.15 * unit * index)
    assert sampler.best(study) == {"0_predictor_instruction": 0}


def test_a_sampler_of_other_texts_reads_those_of_its_run():
    """A sampler that was built for a space is for another one of the same size by its options alone."""
    sampler = QEISampler(by_length(3), embedder=line, seed=0, batch_size=7)
    space = PromptSpace({0: ["a", "b", "c"]}, allowed=[(0,), (2,)])
    bound = sampler.bind(space)
    assert bound.space is space and bound.options.batch_size == 7 and bound.embedder is line
    assert sampler.bind(sampler.space) is sampler


@pytest.mark.parametrize("acquisition", ["qei", "qlogei", "qlognei", "thompson"])
def test_others_are_proposed_where_all_that_was_measured_is_out_of_the_running(acquisition):
    """Two prompts have results, and both fail twice after that: the third is asked for, by every acquisition."""
    space = by_length(3)
    study, _ = start(space, acquisition=acquisition, min_cold_start=1)
    for state, repeats in (("COMPLETE", 1), ("FAIL", 2)):
        for index in (0, 1) * repeats:
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState[state],
                    params={"0_predictor_instruction": index},
                    distributions=space.distributions(),
                    value=0.5 + index / 4 if state == "COMPLETE" else None,
                )
            )
    assert space.key(study.ask(space.distributions()).params) == (2,)

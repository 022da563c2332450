"""The table of samplers: names, options, and what is refused."""

import optuna
import pytest

from dspy.promptune import OptionError, PromptSpace, QEISampler, make_sampler
from dspy.promptune.samplers.factory import SAMPLERS

SPACE = PromptSpace({0: ["Answer.", "Think."]}, {0: ["", "q: 1"]})
OURS = {"qei", "qlogei", "qlognei", "thompson", "botorch"}


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - OURS))
def test_every_name_builds_a_sampler_that_proposes(name):
    """Each entry of the table, asked once, gives a combination of the space."""
    study = optuna.create_study(sampler=make_sampler(name, space=SPACE, seed=0))
    assert SPACE.key(study.ask(SPACE.distributions()).params) in SPACE


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_names_are_one_class_with_another_acquisition(name):
    """The names differ in how a batch is found, and in nothing else."""
    sampler = make_sampler(name, space=SPACE, seed=0, embedder="onehot")
    assert isinstance(sampler, QEISampler)
    assert sampler.options.acquisition == ("qei" if name == "botorch" else name)
    assert sampler.options.greedy == (name != "botorch")


@pytest.mark.parametrize("seed", [-1, 2**40 + 3])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_any_integer_is_a_seed(name, seed):
    """Seeds that NumPy does not know propose too, and the same seed the same."""
    options = {"embedder": "onehot"} if name in OURS else {}

    def proposed():
        study = optuna.create_study(sampler=make_sampler(name, space=SPACE, seed=seed, **options))
        return [study.ask(SPACE.distributions()).params for _ in range(3)]

    assert proposed() == proposed()


def test_own_sampler_takes_any_integer_as_its_seed():
    """A sampler that is built by hand is no other than one by name."""
    assert QEISampler(SPACE, seed=-1, embedder="onehot").space is SPACE


def test_none_is_upstreams_sampler():
    """MIPROv2 without a sampler searches by Optuna's TPE."""
    assert isinstance(make_sampler(None, space=SPACE, seed=0), optuna.samplers.TPESampler)


def test_a_sampler_passes_through():
    """What is built already is returned as it is."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    assert make_sampler(sampler, space=SPACE) is sampler


def test_a_callable_builds_from_the_space():
    """A user's own builder gets the space."""
    built = make_sampler(lambda space: QEISampler(space, embedder="onehot", seed=3), space=SPACE)
    assert built.space is SPACE


def test_an_unknown_name_lists_the_known():
    """The message holds the value and every name of the table."""
    with pytest.raises(OptionError, match=r"'qie' is unknown.*tpe, qei, .*random"):
        make_sampler("qie", space=SPACE)


@pytest.mark.parametrize(
    ("name", "option"), [("qei", "n_startup_trials"), ("tpe", "n_batches"), ("random", "batch_size")]
)
def test_an_option_that_the_sampler_does_not_take_is_refused_by_name(name, option):
    """Options of one sampler mean nothing to another."""
    with pytest.raises(OptionError, match=f"Option {option}=5"):
        make_sampler(name, space=SPACE, **{option: 5})


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("max_space_size", 1), ("n_batches", -1), ("min_cold_start", 0), ("batch_size", True)],
)
def test_values_out_of_range_say_the_value_and_the_rule(option, value):
    """batch_size=0: it must be an integer of at least 1."""
    with pytest.raises(OptionError, match=f"{option}={value}: it must be an integer of at least"):
        make_sampler("qei", space=SPACE, **{option: value})


def test_an_unknown_acquisition_lists_the_known():
    """As for samplers."""
    with pytest.raises(OptionError, match="'ucb': it must be one of qei, qlogei, qlognei, thompson"):
        QEISampler(SPACE, acquisition="ucb")


def test_a_name_that_stands_for_an_option_does_not_take_it_again():
    """sampler="qlogei" with acquisition="qei" is a contradiction."""
    with pytest.raises(OptionError, match="acquisition='qei'"):
        make_sampler("qlogei", space=SPACE, acquisition="qei")
    assert make_sampler("qlogei", space=SPACE, acquisition="qlogei").options.acquisition == "qlogei"


@pytest.mark.parametrize("thing", [optuna.samplers.RandomSampler(), lambda space: None, 7])
def test_options_beside_a_built_sampler_and_strange_builders_are_refused(thing):
    """Neither is silently ignored."""
    options = {"batch_size": 2} if isinstance(thing, optuna.samplers.BaseSampler) else {}
    with pytest.raises(OptionError):
        make_sampler(thing, space=SPACE, **options)

"""Every sampler name and option acts in every mode of a search, or is refused by name."""

from functools import cache

import numpy as np
import pytest

from dspy.promptune import OptionError, PromptSpace, search
from dspy.promptune.gp import botorch_model, lookahead

SPACE = PromptSpace({0: [f"{'very ' * i}careful" for i in range(10)]}, {0: [[{"q": "x" * i}] for i in range(3)]})
EXAMPLES = 12
OURS = ("qei", "qlogei", "qlognei", "thompson", "onehot", "botorch")
NAMES = (*OURS, "tpe", "gp", "random")
SCORED = ("qei", "qlogei", "qlognei", "onehot")  # build a batch step by step, and score random ones beside it
MODES = {
    "race": {"max_calls": 60},
    "minibatch": {"max_calls": 42, "minibatch_size": 6},
    "full": {"max_calls": 84, "minibatch_size": EXAMPLES},
}


def by_letters(texts):
    """An embedder that counts."""
    return np.array([[len(text), text.count("x")] for text in texts], dtype=float)


OPTIONS = {
    "max_space_size": 6,
    "n_batches": 8,
    "batch_size": 5,
    "min_cold_start": 10,
    "embedder": by_letters,
    "acquisition": "thompson",
}


def evaluate(params, examples):
    """Better in the middle, the same every time."""
    a, b = params.values()
    rate = 0.9 - 0.06 * abs(a - 7) - 0.1 * abs(b - 2)
    return [float(np.random.default_rng([a, b, example]).random() < rate) for example in examples]


def trials(name, mode, **options):
    """What a seeded search evaluates."""
    if name in OURS and name != "onehot":
        options = {"embedder": "ngram", **options}
    budget = MODES[mode] if name in OURS else {**MODES[mode], "max_calls": 100}  # Optuna's draw ten at random first
    given = {"sampler": name, "seed": 3, "n_examples": EXAMPLES, **budget, **options}
    found = search(SPACE, evaluate, **given)
    return [(trial.params, trial.user_attrs["examples"]) for trial in found.trials]


plain = cache(trials)


CASES = [
    pytest.param(name, option, mode, marks=[pytest.mark.slow] if mode == "minibatch" else [])
    for name in NAMES
    for option in OPTIONS
    for mode in MODES
    if (name, option) != ("random", "batch_size")  # chance looks at no result, whoever is asked together
    and not (option == "n_batches" and name in OURS and (mode != "race" or name in SCORED))  # judged by the next test
]


@pytest.mark.parametrize(("name", "option", "mode"), CASES)
def test_an_option_changes_the_trials_or_is_refused_by_name(name, option, mode):
    """A seeded run with the option differs from one without it, or the error names the option."""
    value = "qei" if option == "acquisition" and name == "thompson" else OPTIONS[option]
    more = {"batch_size": 4} if option == "n_batches" and name in OURS else {}  # one prompt is best by itself
    try:
        found = trials(name, mode, **{option: value}, **more)
    except OptionError as error:
        assert option in str(error)
    else:
        assert found != plain(name, mode, **more)


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("mode", MODES)
def test_random_batches_are_scored_beside_the_greedy_one(name, mode, monkeypatch):
    """All eight, at every proposal; where the greedy batch is the best of the nine, the trials stay as they were."""
    counts, score = set(), botorch_model.score_batches
    for module in (botorch_model, lookahead):
        monkeypatch.setattr(module, "score_batches", lambda f, all: counts.add(len(all)) or score(f, all))
    trials(name, mode, n_batches=8, batch_size=4)
    assert counts == {9}


@pytest.mark.parametrize("mode", MODES)
def test_every_name_searches_in_its_own_way(mode):
    """What a name says is what chooses: in a race no two of ours give the same trials."""
    found = [plain(name, mode, batch_size=4) for name in ("qei", "qlogei", "qlognei", "thompson", "onehot", "botorch")]
    same = [(i, j) for i in range(len(found)) for j in range(i) if found[i] == found[j]]
    assert set(same) <= (set() if mode == "race" else {(1, 0)})  # whole prompts: a logarithm has the same maximum


def test_five_options_at_once_are_obeyed():
    """The call of the first issue: each of the five, left out, gives other trials."""
    options = {"max_space_size": 6, "n_batches": 20, "batch_size": 4, "min_cold_start": 9, "schedule": "batch"}
    options["max_calls"] = 100
    whole = trials("qei", "race", n_jobs=2, **options)
    for name in ("max_space_size", "n_batches", "batch_size", "min_cold_start"):
        less = {key: value for key, value in options.items() if key != name}
        assert trials("qei", "race", n_jobs=2, **less) != whole, name


@pytest.mark.parametrize("unit", [1e-9, 1e4, 1e9])
@pytest.mark.parametrize("name", SCORED)
def test_batches_are_scored_whatever_the_metric_is_counted_in(name, unit):
    """Random batches beside ours, of scores that are tiny or huge, end no search."""
    space, rng = PromptSpace({0: [f"text {i}" for i in range(8)]}), np.random.default_rng(0)
    scores = unit * (rng.random((8, 3)) < 0.3)
    found = search(
        space, lambda params, examples: scores[params["0_predictor_instruction"], list(examples)], n_examples=3,
        max_calls=24, sampler=name, n_batches=5, seed=0, embedder="ngram" if name != "onehot" else "onehot",
    )  # fmt: skip
    assert found.calls == 24

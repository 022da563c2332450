"""Fitting the hyper-parameters."""

import importlib
import warnings

import numpy as np
import pytest

import dspy.promptune.gp as wing
from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.model import PromptGP, evidence
from dspy.promptune.gp.surrogate import Surrogate


def grid(effect, noise=0.02, seed=0):
    """Noisy values of a 6 x 4 grid whose score is ``effect(position of the instruction)``."""
    rng = np.random.default_rng(seed)
    points = [np.linspace(0, 1.5, 6)[:, None], np.linspace(0, 1.5, 4)[:, None]]
    seen = [
        Observation((i, j), float(np.clip(effect(points[0][i, 0]) + rng.normal(0, noise), 0, 1)))
        for i in range(6)
        for j in range(4)
    ]
    return PromptGP(points), evidence(seen)


def test_a_fit_explains_the_data_better_than_the_priors():
    """The loss goes down, and stays finite."""
    gp, data = grid(lambda x: 0.3 + 0.3 * x)
    before = float(gp.loss(data).detach())
    gp.fit(data)
    assert float(gp.loss(data).detach()) < before - 1


def test_a_fit_finds_out_which_part_matters():
    """Where only the instruction moves the score, its component grows and that of the demos shrinks."""
    gp, data = grid(lambda x: 0.2 + 0.4 * x)
    gp.fit(data)
    instruction, demos = gp.kernel.log_smooth.detach().exp().tolist()
    assert instruction > 2 * demos


def test_the_gradient_is_that_of_the_loss():
    """Central differences agree for every hyper-parameter."""
    gp, data = grid(lambda x: 0.5 * x)
    at = gp.hyperparameters() + 0.1
    _, gradient = gp._objective(at, data)
    for i in range(len(at)):
        step = np.eye(len(at))[i] * 1e-5
        slope = (gp._objective(at + step, data)[0] - gp._objective(at - step, data)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_fit_that_fails_keeps_the_previous_hyperparameters(monkeypatch):
    """The error says so, and the values are as before."""
    gp, data = grid(lambda x: x)
    before = gp.hyperparameters()
    monkeypatch.setattr(gp, "loss", lambda data: sum(p.sum() for p in gp.parameters()) * float("nan"))
    with pytest.raises(ArithmeticError, match="24 observations"):
        gp.fit(data)
    assert gp.hyperparameters().tolist() == before.tolist()


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [3.0, 3.0], [-7.0], [0.0]])
def test_values_that_do_not_differ_have_a_unit(values):
    """Constant data is standardised without dividing by zero."""
    data = evidence([Observation((i, 0), value) for i, value in enumerate(values)])
    assert np.isfinite(data.values).all()
    assert data.unit > 0


def percentages(binary):
    """The same measurements as scores from 0 to 1, and as percentages."""
    rng = np.random.default_rng(4)
    rows = [rng.random(20) for _ in range(6)]
    rows = [(row < 0.3 + 0.1 * i).astype(float) if binary else row for i, row in enumerate(rows)]
    return (
        evidence(
            [
                Observation((i, 0), times * float(row.mean()), tuple(times * row), tuple(range(20)))
                for i, row in enumerate(rows)
            ]
        )
        for times in (1.0, 100.0)
    )


@pytest.mark.parametrize("binary", [True, False])
def test_percentages_are_believed_as_much_as_scores_up_to_one(binary):
    """Values, variances, difficulty and the kind of the scores are equal; only the unit differs."""
    one, hundred = percentages(binary)
    assert (one.unit, hundred.unit) == (1.0, 100.0)
    assert hundred.values == pytest.approx(one.values)
    assert hundred.variances == pytest.approx(one.variances)
    assert (hundred.per_score, hundred.common, hundred.errors.difficulty) == pytest.approx(
        (one.per_score, one.common, one.errors.difficulty)
    )
    assert hundred.binary == one.binary == binary


def test_other_scores_have_the_range_they_were_seen_in():
    """A metric from -2 to 3 has five units."""
    data = evidence([Observation((0, 0), 0.5, (-2.0, 3.0)), Observation((1, 0), 1.0, (1.0, 1.0))])
    assert data.unit == pytest.approx(5.0)


def test_small_scores_are_told_apart_like_others():
    """A metric of a hundredth of another leads to the same beliefs in a hundredth; zeros alone have the unit 1."""
    rng = np.random.default_rng(1)
    rows = [0.3 + 0.1 * i + 0.2 * rng.random(20) for i in range(6)]
    means = []
    for times in (1.0, 0.01):
        seen = [
            Observation((i,), times * row.mean(), tuple(times * row), tuple(range(20))) for i, row in enumerate(rows)
        ]
        means.append(Surrogate([np.eye(6)]).posterior(seen, [(i,) for i in range(6)]).mean)
    assert means[1] == pytest.approx(means[0] / 100, rel=0.1)
    assert np.argmax(means[1]) == 5
    assert evidence([Observation((0,), 0.0, (0.0, 0.0))]).unit == 1.0


@pytest.mark.parametrize("offset", [0.85, 1500.0, -1500.0, 1e6])
def test_scores_that_take_up_little_of_their_range_are_told_apart_like_others(offset):
    """Scores between 0 and .1 above a number of any size lead to the beliefs of scores from 0 to 1."""
    rng = np.random.default_rng(1)
    rows = [np.append(0.05 * i + 0.5 * rng.random(18), (0.0, 1.0)) for i in range(6)]
    means = []
    for level, times in ((0.0, 1.0), (offset, 0.1)):
        seen = [level + times * row for row in rows]
        seen = [Observation((i,), row.mean(), tuple(row), tuple(range(20))) for i, row in enumerate(seen)]
        means.append(Surrogate([np.eye(6)]).posterior(seen, [(i,) for i in range(6)]).mean)
    assert (means[1] - offset) / 0.1 == pytest.approx(means[0], abs=0.01)


@pytest.mark.parametrize("penalty", [-100.0, -1e9])
@pytest.mark.parametrize("often", [1, 6])
def test_scores_far_beyond_the_others_leave_these_told_apart(penalty, often):
    """A penalty among scores of 0 and 1 is its prompt's own where it comes often, and once is everybody's luck."""
    rows = [[float(e < 5 + 3 * i) for e in range(20)] for i in range(5)]
    rows[4][:often] = [penalty] * often
    seen = [Observation((i,), float(np.mean(row)), tuple(row), tuple(range(20))) for i, row in enumerate(rows)]
    data = evidence(seen)
    assert data.unit == 11.0 and data.beyond.own[(4,)] == (pytest.approx(often * (penalty + 10) / 20), 20)
    mean = Surrogate([np.eye(5)]).posterior(seen, [(i,) for i in range(5)]).mean
    assert mean[0] < mean[1] < mean[2] < mean[3] and mean[3] - mean[0] > 0.2
    assert (mean[4] < penalty / 10) == (often == 6)
    assert data.beyond.of((9,)) == pytest.approx(data.beyond.common)  # of a prompt without scores
    assert not evidence(seen[:4]).beyond


def test_what_pytorch_says_of_gpytorch_is_not_shown():
    """PyTorch's warning about what gpytorch does when it is imported is not shown, another FutureWarning is."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        importlib.reload(wing)
        warnings.warn("`torch.jit.script` is deprecated. Use `torch.compile`.", FutureWarning, stacklevel=1)
        warnings.warn("Something else is deprecated.", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in shown] == ["Something else is deprecated."]

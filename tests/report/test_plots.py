"""The figures as functions of a run."""

import numpy as np
import optuna
import pytest

from dspy.promptune import OptionError, PromptSpace, plots, search
from dspy.promptune.findings.beliefs import effects_of
from dspy.promptune.findings.record import record_of
from dspy.promptune.report.compared import labels
from tests.report.conftest import Table

FIGURES = [getattr(plots, name) for name in plots.__all__]


@pytest.fixture(scope="module")
def run():
    return Table().search(sampler="qei", embedder="ngram", minibatch_size=None, n_jobs=2)


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_takes_a_run_or_a_stored_study(figure, run, stored):
    """Every function returns plotly's figure with something in it, from memory and from storage."""
    study = optuna.load_study(study_name="Predict", storage=f"sqlite:///{stored[0]}")
    for each in (run, study):
        found = figure(each)
        assert type(found).__name__ == "Figure" and any(trace.hovertext is not None for trace in found.data)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_run_with_nothing_scored_has_empty_figures(figure, tmp_path):
    """Of a stored run that ended before its first result, each figure says that there is nothing, or what failed."""
    path = str(tmp_path / "runs.db")
    with pytest.raises(Exception, match="Every evaluation failed"):
        Table(broken=(0, 1, 2, 3)).search(storage=path)
    found = figure(optuna.load_study(study_name="search", storage=f"sqlite:///{path}"))
    assert found.layout.annotations or {trace.name for trace in found.data} <= {"failed", "proposal", "waiting"}


def test_best_so_far_ends_at_the_winners_score(run):
    """Both lines end with the score of the winner, at all calls or at the end of the time."""
    record = record_of(run)
    for against, end in (("calls", record.calls), ("seconds", record.seconds)):
        line = plots.best_so_far(run, against).data[-1]
        assert line.x[-1] == end and line.y[-1] == pytest.approx(100 * run.best_score)
    with pytest.raises(OptionError, match="calls, seconds"):
        plots.best_so_far(run, "days")


def test_the_timeline_has_every_trial(run):
    """Each evaluation is one bar of its lane, as long as it took; each proposal is in the lane of proposals."""
    bars = {trace.name: trace for trace in plots.timeline(run).data}
    drawn = sum(len(trace.x) for name, trace in bars.items() if name not in ("waiting", "proposal"))
    assert drawn == len(run.trials)
    assert set(bars["proposal"].y) == {-1} and len(bars["proposal"].x) > 0


def test_the_matrix_shows_what_is_expected(run):
    """Cells are posterior means with the number of examples behind them, the best row and column first."""
    record = record_of(run)
    (matrix,) = plots.estimates(run).data
    assert np.shape(matrix.z) == record.space.sizes
    means = 100 * record.beliefs.mean
    assert np.max(np.array(matrix.z)) == pytest.approx(means.max()) and matrix.zmax - matrix.zmin >= 10
    assert sum(int(cell.split()[0]) for row in matrix.text for cell in row if cell) == record.calls
    assert [cell for row in matrix.text for cell in row if "★" in cell] == [f"{len(record.rows[record.best])} ★"]
    rows = np.array(matrix.z, dtype=float).mean(axis=1)
    assert list(rows) == sorted(rows, reverse=True)


def test_several_predictors_are_a_list():
    """With more than two parts to choose, the prompts that were tried are listed with the interval of each."""
    space = PromptSpace({i: ["a", "b", "c"] for i in range(2)}, {i: [[], [{"q": "1"}]] for i in range(2)})
    run = search(
        space, lambda params, examples: [float(sum(params.values()) > 2)] * len(examples),
        n_examples=10, max_calls=120, sampler="onehot", seed=1,
    )  # fmt: skip
    (points,) = plots.estimates(run).data
    record = record_of(run)
    assert len(points.x) == min(30, len(record.rows)) and list(points.x) == sorted(points.x, reverse=True)
    assert all(width > 0 for width in points.error_x.array)


def test_who_is_best_is_a_probability(run):
    """The probabilities of being best are shares of joint draws: they sum to 1, and the highest mean stands out."""
    beliefs = record_of(run).beliefs
    assert beliefs.p_best.sum() == pytest.approx(1.0) and beliefs.p_best.min() >= 0
    assert beliefs.p_best[beliefs.mean.argmax()] > 1 / len(beliefs.keys)


def test_no_score_is_expected_above_the_highest():
    """Where several prompts are right on every example, 100 % is expected of them and not a little more."""
    space = PromptSpace({i: ["a", "b", "c"] for i in range(2)})
    levels = [0.5, 0.8, 1.0, 1.0, 1.0]
    run = search(
        space, lambda params, examples: [levels[sum(params.values())]] * len(examples),
        n_examples=20, max_calls=60, sampler="onehot", seed=0,
    )  # fmt: skip
    assert record_of(run).beliefs.mean.max() == 1.0


def test_labels_differ_where_texts_begin_alike():
    """Of texts that begin alike a label has the part that tells them apart; a short text is all there."""
    texts = [f"Read the input with care, follow guideline {word}, and answer." for word in ("alpha", "beta")]
    assert labels([*texts, "Sort  it."], 17) == ["…alpha, and answer…", "…beta, and answer.", "Sort it."]
    assert labels(texts, 60)[0].startswith("Read the input") and labels(["", "a" * 30], 9) == ["(none)", "a" * 9 + "…"]
    run = Table().search(sampler="qei", embedder="ngram")
    narrow = plots.effects(run).layout.meta["narrow"]
    assert len(set(narrow.values())) == len(narrow) == 7 and "I1 …second way." in narrow.values()


def test_hover_texts_are_escaped(stored):
    """Markup in a prompt reaches plotly as text, and an axis never shows a prompt."""
    for figure in (plots.estimates, plots.spending, plots.effects):
        said = figure(stored[1].optimization_run).to_json()
        assert "&lt;b&gt;the&lt;/b&gt;" in said.encode().decode("unicode_escape") and "<script" not in said


def test_an_embedder_that_cannot_be_rebuilt_is_replaced(tmp_path):
    """A run by a callable is mapped by it while it is there, and by n-grams, as the page says, once it is stored."""

    def lengths(texts):
        return [[float(len(text)), float(text.count("e"))] for text in texts]

    path = str(tmp_path / "runs.db")
    run = Table().search(sampler="qei", embedder=lengths, minibatch_size=None, storage=path)
    assert record_of(run).beliefs.substitute is None
    beliefs = record_of(optuna.load_study(study_name="search", storage=f"sqlite:///{path}")).beliefs
    assert beliefs.embedder == "ngram" and "lengths" in beliefs.substitute


def test_effects_average_to_the_mean_belief(run):
    """The effects of a part average to the mean of all that is believed, where every combination is."""
    record = record_of(run)
    effects = effects_of(record.beliefs, record.space.sizes)
    assert [effect.part for effect in effects] == [0, 1]
    for effect in effects:
        assert effect.mean.mean() == pytest.approx(record.beliefs.mean.mean())


def test_the_spending_is_all_that_was_paid(run):
    """The bars of the prompts add up to the calls of the run."""
    bars = [trace for trace in plots.spending(run).data if trace.name in ("block", "minibatch", "full")]
    assert sum(sum(trace.x) for trace in bars) == run.calls

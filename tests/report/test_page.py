"""The report of a run, without a browser."""

import itertools
import math
import pickle
import subprocess
import sys

import pytest

from dspy.promptune import PromptSpace, plots, search
from dspy.promptune.errors import OptionError, StorageError
from dspy.promptune.report.page import _diff, page, summary
from dspy.promptune.report.record import record_of, space_of
from dspy.promptune.runs import main
from tests.report.conftest import MARKUP

FIGURES = [plots.best_so_far, plots.timeline, plots.prompt_map, plots.effects, plots.spending]


def searched(evaluate=None, demos=True, **options):
    """A small search of a table."""
    space = PromptSpace(
        {0: [f"Do it way {i}, {word}." for i, word in enumerate("now later never slowly well badly".split())]},
        {0: [[], [{"q": "1+1", "a": "2"}], [{"q": "2+2", "a": "4"}]]} if demos else None,
    )
    known = evaluate or (lambda params, examples: [float((7 * i + sum(params.values())) % 5 > 1) for i in examples])
    return search(space, known, n_examples=30, max_calls=120, seed=0, embedder="ngram", **options)


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_is_drawn_of_a_run(figure, stored):
    """Each figure of a compile, of its stored study, and of a search without demos has something to show."""
    for run in (stored[1].optimization_run, studied(stored[0]), searched(demos=False)):
        drawn = figure(run)
        assert drawn.layout.title.text
        assert any(len(trace.x if trace.x is not None else trace.z) for trace in drawn.data)


def studied(path):
    """The study of a stored run."""
    import optuna

    return optuna.load_study(study_name=None, storage=f"sqlite:///{path}")


def test_a_stored_run_is_the_same_run(stored):
    """Read back from its storage, a run has the same winner, scores, calls and history."""
    live, read = record_of(stored[1].optimization_run), record_of(studied(stored[0]))
    assert (live.best, live.rows, live.calls, live.history) == (read.best, read.rows, read.calls, read.history)
    assert live.space.texts(0) == read.space.texts(0) and live.space.texts(1) == read.space.texts(1)
    assert live.facts["metric"] == read.facts["metric"]


def test_the_headline_is_true(stored):
    """Before, after and the examples scored are those of the run."""
    program, record = stored[1], record_of(stored[1].optimization_run)
    assert 100 * record.mean(record.best) == pytest.approx(program.score, abs=0.01)
    assert f"{program.score:.1f} %" in page(program.optimization_run)
    assert record.calls == program.optimization_run.calls
    assert 0 < record.busy / record.seconds <= 3


def test_every_evaluation_has_its_lane(stored):
    """In the timeline no two evaluations overlap in one lane, and no trial is missing."""
    bars = [trace for trace in plots.timeline(stored[1].optimization_run).data if trace.name != "proposed, waiting"]
    spans = sorted((y, b, b + x) for t in bars for x, b, y in zip(t.x, t.base, t.y, strict=True))
    assert len(spans) == len(stored[1].optimization_run.trials)
    assert all(a[0] != b[0] or a[2] <= b[1] + 0.01 for a, b in itertools.pairwise(spans))


def test_markup_in_a_prompt_stays_text(stored):
    """A prompt's markup is escaped in the page, in its figures and in the summary."""
    text = page(stored[1].optimization_run)
    assert "document.title = 'hacked'" not in text.replace("&#x27;", "?") and "<b>the</b>" not in text
    assert "&lt;script&gt;" in text and MARKUP not in text
    assert "<script>" not in summary(stored[1].optimization_run)


def test_a_diff_marks_words():
    """What was removed and added is marked word by word, escaped."""
    assert _diff("Answer it.", "Answer <it> well.") == (
        "Answer <ins>&lt;</ins>it<ins>&gt; well</ins>."
    )


def test_failures_are_listed():
    """A trial that failed is in the page with its error."""

    def moody(params, examples):
        if params["0_predictor_instruction"] == 1:
            raise ValueError("no <luck> today")
        return [float(i % 2) for i in examples]

    run = searched(moody)
    assert "no &lt;luck&gt; today" in page(run) and "failed" in {trace.name for trace in plots.timeline(run).data}


def test_the_command_writes_the_report(stored, tmp_path, capsys):
    """``report`` writes a page that needs no network; a folder that is not there is named."""
    target = tmp_path / "report.html"
    assert main(["report", str(stored[0]), "-o", str(target)]) == 0
    text = target.read_text()
    assert 'src="http' not in text and "@import" not in text and "<link" not in text
    assert main(["report", str(stored[0]), "-o", str(tmp_path / "no" / "report.html")]) == 1
    assert "has no folder" in capsys.readouterr().err


def test_what_is_no_run_is_refused():
    """A study of somebody else has no report, and the error says why."""
    import optuna

    study = optuna.create_study(direction="maximize")
    with pytest.raises(StorageError, match="holds no candidates"):
        record_of(study)
    study.set_user_attr("candidates", {"0_predictor_instruction": ["a"]})
    with pytest.raises(StorageError, match="no finished evaluation"):
        record_of(study)


def test_a_run_that_was_killed_has_a_report(stored):
    """Without its last words (best, history) a stored run is told by its averages."""
    import optuna

    whole = studied(stored[0])
    study = optuna.create_study(direction="maximize")
    study.add_trials(whole.trials)
    study.set_user_attr("candidates", whole.user_attrs["candidates"])
    record = record_of(study)
    assert record.ended == "not ended" and record.history and not math.isnan(record.mean(record.best))
    assert "not ended" in page(study)


def test_the_notebook_shows_the_headline(stored):
    """The run's own HTML is a small table with the score."""
    shown = stored[1].optimization_run._repr_html_()
    assert shown.startswith("<table>") and f"{stored[1].score:.1f} %" in shown


def test_a_run_still_travels(stored):
    """A pickled run has its report too."""
    run = pickle.loads(pickle.dumps(stored[1].optimization_run))
    assert record_of(run).best == record_of(stored[1].optimization_run).best


def test_an_unknown_axis_is_refused():
    """``against`` is one of two words."""
    with pytest.raises(OptionError, match="'time'"):
        plots.best_so_far(searched(), against="time")


def test_candidates_become_a_space_again():
    """Instructions and demo sets of several predictors keep their order."""
    space = space_of({"1_predictor_instruction": ["c"], "0_predictor_instruction": ["a", "b"]})
    assert space.names == ("0_predictor_instruction", "1_predictor_instruction") and space.texts(0) == ["a", "b"]


def test_plotly_is_loaded_late():
    """Importing the figures loads neither plotly nor torch."""
    code = "import sys, dspy.promptune.plots; print([n for n in ('plotly', 'torch') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

"""The page of a run, without a browser: what is in it, and that texts stay texts."""

import json
import pickle
import re
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import optuna
import pytest

from dspy.promptune import OptionError, PromptSpace, StorageError, search
from dspy.promptune.cli import main
from dspy.promptune.findings.record import record_of
from dspy.promptune.report.compared import compared
from dspy.promptune.report.page import page, summary
from tests.report.conftest import MARKUP, Table


@pytest.fixture(scope="module")
def text(stored):
    return page(stored[1].optimization_run)


def visible(text):
    """The page without plotly's code and without scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def cards(text):
    """The numbers of the headline, but for the wall time, which is written a moment before the end."""
    found = dict(re.findall(r'class="name">(.*?)</span><span class="value">(.*?)</span>', text))
    return {name: value for name, value in found.items() if name != "wall time"}


def test_the_headline_has_the_runs_numbers(stored, text):
    """Before, after, examples, calls and trials on the page are those of the run."""
    program = stored[1]
    record = record_of(program.optimization_run)
    shown = cards(text)
    before = [each for each in program.candidate_programs if each["program"].signature.instructions == MARKUP]
    assert shown["after"] == f"{program.score:.1f} %"
    assert shown["before"] in {f"{each['score']:.1f} %" for each in before if not each["program"].demos}
    assert f"{program.optimization_run.calls:,} examples scored" in text
    assert shown["failed"] == "0 examples" and len(program.optimization_run.trials) == len(record.evaluations)
    assert shown["language-model calls"] == f"{sum(each.get('calls', 0) for each in record.spent.values()):,.0f}"


def test_nothing_comes_from_elsewhere(text):
    """The page has no address that a browser would fetch."""
    shown = visible(text)
    assert "<link" not in text and not re.search(r"src=|href=\"[^#]", shown.replace("img src=x onerror", ""))
    assert "default-src 'none'" in text


def test_texts_stay_texts(stored, text):
    """An instruction with tags, entities and a script is escaped in the page, its JSON, and the notebook's summary."""
    assert "&lt;script&gt;document.title = 2&lt;/script&gt;" in visible(text)
    run = stored[1].optimization_run
    as_it_came = replace(run, best_params=dict.fromkeys(run.best_params, 0))
    for shown in (visible(text), summary(as_it_came)):
        assert "<script" not in shown
        assert "<img" not in shown
        assert "&amp;amp;" in shown
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, flags=re.DOTALL)
    assert len(blocks) == 5 and all("<" not in block for block in blocks)
    assert any("&lt;img src=x" in json.dumps(json.loads(block)) for block in blocks)


def test_what_a_browser_would_act_on_is_written_out():
    """Control characters and marks that turn the direction of text are escapes in the page and in the summary."""
    space = PromptSpace({0: ["Say it.", "Tell \x00\x1b[31m \u202eit."]})
    run = search(space, lambda params, examples: [1.0] * len(examples), n_examples=4, max_calls=8, embedder="ngram")
    for shown in (visible(page(run)), summary(replace(run, best_params={"0_predictor_instruction": 1}))):
        assert not re.search("[\x00\x1b\u202e]", shown) and r"\x00\x1b[31m \u202eit." in shown


def test_what_is_needed_to_reproduce_is_there(text):
    """Versions, seed, settings, options, metric and the call itself are on the page."""
    shown = visible(text)
    for part in ("versions", "settings", "options", "language model", "data"):
        assert f"<summary>{part}</summary>" in shown
    assert "sampler=&#39;qei&#39;" in shown and "n_jobs=2" in shown and "seed=1" in shown and "conftest.exact" in shown


def test_failures_are_listed_with_their_errors():
    """A trial that failed is in the table of failures with its error, escaped."""
    shown = page(Table(broken=(1,)).search(full_eval_steps=0))
    table = shown.partition('id="failures"')[2].partition("</table>")[0]
    failed = re.findall(r"instruction 1 with demo set \d", table)
    assert failed and "No &lt;b&gt;luck&lt;/b&gt;." in table and f">{len(failed)} trials<" in shown


def test_a_stored_run_gives_the_same_page(stored, text, tmp_path, capsys):
    """The command writes the report of a stored run: same headline, winner and best-so-far as the run in memory."""
    target = tmp_path / "report.html"
    assert main(["report", stored[0], "-o", str(target)]) == 0
    again = target.read_text(encoding="utf-8")
    winner = re.compile(r"<h2>The winning prompt</h2>(.*?)</section>", re.DOTALL)
    assert cards(again) == cards(text) and winner.findall(again) == winner.findall(text)
    curves = [re.search(r'data-for="best">(.*?)</script>', each, re.DOTALL).group(1) for each in (again, text)]
    assert curves[0] == curves[1] and "report.html" in capsys.readouterr().out


def test_a_watched_report_renews_itself_until_the_run_ends(tmp_path, capsys):
    """``report --watch`` beside a run writes a page that loads itself again, and at the end the one that stays."""
    table, storage, target = Table(), str(tmp_path / "runs.db"), tmp_path / "watched.html"
    watching = threading.Thread(target=main, args=(["report", storage, "-o", str(target), "--watch", "1"],))
    pages, asked = [], []

    def evaluate(params, examples):
        asked.append(params)
        if len(asked) == 5:
            watching.start()
            while not (target.exists() and target.stat().st_size > 10**6):
                time.sleep(0.01)
            pages.append(target.read_text(encoding="utf-8"))
        return table(params, examples)

    search(table.space, evaluate, n_examples=20, max_calls=60, minibatch_size=5, seed=0, storage=storage)
    watching.join()
    pages.append(target.read_text(encoding="utf-8"))
    renewed = '<meta http-equiv="refresh" content="1">'
    assert renewed in pages[0] and "has not ended" in pages[0]
    assert renewed not in pages[1] and "the budget is spent" in pages[1]
    assert "trials in" in capsys.readouterr().out


def test_a_watched_run_that_raised_is_not_watched_for_ever(tmp_path, capsys):
    """``report --watch`` on a run that nobody runs any more writes the page once, and says what became of the run."""
    storage, target = str(tmp_path / "runs.db"), str(tmp_path / "watched.html")

    def evaluate(params, examples):
        if params["0_predictor_instruction"]:
            raise ValueError("no service")
        return [1.0] * len(examples)

    table = Table()
    search(table.space, evaluate, n_examples=20, max_calls=40, minibatch_size=5, seed=0, storage=storage)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{storage}")
    assert main(["report", storage, "-o", target, "--watch", "1"]) == 0
    assert f"The run ended: {study.user_attrs['ended']}" in capsys.readouterr().out
    with sqlite3.connect(storage) as base:
        base.execute("DELETE FROM study_user_attributes WHERE key = 'ended'")
    assert main(["report", storage, "-o", target, "--watch", "1"]) == 0
    text = capsys.readouterr().out
    assert (
        "Nobody runs it any more" in text and "resume=True continues it." in text and "ValueError: no service" in text
    )


def test_a_watch_waits_for_the_first_candidates(stored, tmp_path, capsys, monkeypatch):
    """``report --watch`` beside a run whose steps 1 and 2 are not done says so, and goes on."""
    holders, naps = iter(["process 1"] * 2), []
    storage = str(tmp_path / "runs.db")
    study = optuna.create_study(study_name="young", storage=f"sqlite:///{storage}")
    shown = dict(optuna.load_study(study_name="Predict", storage=f"sqlite:///{stored[0]}").user_attrs)

    def sleep(seconds):
        naps.append(seconds)
        for name, value in shown.items():
            study.set_user_attr(name, value)

    monkeypatch.setattr("dspy.promptune.cli._held", lambda study: next(holders, None))
    monkeypatch.setattr("time.sleep", sleep)
    assert main(["report", storage, "-o", str(tmp_path / "young.html"), "--watch", "3"]) == 0
    text = capsys.readouterr().out
    assert "No report yet: the candidates are being made" in text and "0 trials in" in text and naps == [3, 3]


def test_a_run_without_its_study_gives_the_same_page(stored, text):
    """A run that was pickled with its program has lost its study, not its report."""
    again = page(pickle.loads(pickle.dumps(stored[1].optimization_run)))
    assert visible(again) == visible(text)


def test_a_secret_in_an_error_is_not_shown():
    """What looks like a key in the error of a failed trial does not get into the page."""
    shown = page(Table(broken=(1,), error="refused for sk-wertyuiopsdfghjklxcvbnm").search(full_eval_steps=0))
    assert "refused for [removed]" in shown and "wertyuiop" not in shown


def test_what_is_no_run_is_refused(tmp_path):
    """A value that is no run, another tool's study, and a folder that is not there are each named."""
    with pytest.raises(StorageError, match="int is no run"):
        page(3)
    with pytest.raises(StorageError, match="has no candidates"):
        page(optuna.create_study(study_name="theirs"))
    with pytest.raises(OptionError, match=r"create .*nowhere first"):
        Table().search().report(tmp_path / "nowhere" / "report.html")


def test_plotly_is_asked_for_where_it_is_missing():
    """Without plotly the report's error says what to install, and the notebook's summary does without."""
    code = (
        "import sys; sys.modules['plotly'] = None\n"
        "from tests.report.conftest import Table\n"
        "run = Table().search()\n"
        "assert 'before' in run._repr_html_()\n"
        "try: run.report('x.html')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "OptionError Figures and reports need plotly" in done.stdout and "pip install" in done.stdout


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("Answer the question.", "Answer the hard question.", "Answer the <ins>hard </ins>question."),
        ("a b c d", "a b c d", "a b c d"),
        ("Keep <b> this word.", "Keep <i> this word.", "Keep &lt;<del>b</del><ins>i</ins>&gt; this word."),
        ("", "x", "<ins>x</ins>"),
        ("one two", "three", "<del>one two</del>\n<ins>three</ins>"),
    ],
)
def test_a_diff_marks_what_changed(before, after, shown):
    """Words that were added or left out are marked, and texts with little in common are shown one after the other."""
    assert compared(before, after) == shown


def test_long_texts_are_folded():
    """A prompt of thousands of characters is behind a line that says how many, a short one is open."""
    space = PromptSpace({0: ["Sort the letter.", "Sort it. " + "Think about it. " * 200]}, {0: [[], [{"q": "1"}]]})

    def evaluate(params, examples):
        return [float(params["0_predictor_instruction"])] * len(examples)

    shown = page(search(space, evaluate, n_examples=5, max_calls=20, sampler="random", seed=0))
    winner = shown.partition('id="winner"')[2].partition("</section>")[0]
    assert '<details class="folded"><summary>show the comparison: 3,2' in winner and winner.count("folded") == 1


def test_a_run_has_one_name(tmp_path):
    """In memory the report has the name of the program's class, with a storage that of the study, from either side."""
    path = str(tmp_path / "runs.db")
    run = Table().search(storage=path, study_name="letters", max_calls=40)
    study = optuna.load_study(study_name="letters", storage=f"sqlite:///{path}")
    assert record_of(run).name == record_of(study).name == "letters"
    assert record_of(Table().search(max_calls=40)).name == "search"


def test_the_leaderboard_begins_the_instruction_of_every_predictor():
    """Prompts whose first instruction is the same are told apart by the second."""
    space = PromptSpace({0: ["Sort the letter."], 1: ["Name the shelf.", "Say where it belongs."]})
    run = search(space, lambda _, examples: [0.5] * len(examples), n_examples=5, max_calls=10, sampler="random", seed=0)
    shown = page(record_of(run))
    assert "Sort the letter. | Name the shelf." in shown and "Sort the letter. | Say where it belongs." in shown

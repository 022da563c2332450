"""``python -m dspy.promptune``: what it prints and writes, and how it refuses."""

import csv
import json
import shutil
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import optuna
import orjson
import pytest

import dspy
from dspy.promptune import EvaluationError, OptionError, PromptSpace, search
from dspy.promptune.cli import main
from dspy.promptune.findings.record import record_of
from dspy.promptune.findings.verdict import Verdict
from tests.server import LMServer, TaskRule
from tests.storage.lives import QUESTIONS, compiled
from tests.tables import Table


def searched(path, evaluate=lambda params, examples: [1.0] * len(examples), **options):
    """A stored search of two prompts."""
    return search(PromptSpace({0: ["a", "b"]}), evaluate, n_examples=4, max_calls=8, storage=path, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file with a compile and a search in it."""
    path = str(tmp_path_factory.mktemp("stored") / "runs.db")
    table = Table(instructions=2, demos=2, n_examples=6)
    search(table.space, table, n_examples=6, max_calls=12, sampler="random", storage=path, study_name="a search")
    with LMServer(TaskRule(QUESTIONS)) as server:
        compiled(server.url, path, study_name="a compile")
    return path


def test_runs_are_listed(place, capsys):
    """``runs`` has a line for each run, and says how it stands, in the words and units of the report."""
    assert main(["runs", place]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("study") and all("the budget is spent" in line for line in lines[1:])
    assert main(["runs", place, "--json"]) == 0
    rows = {row["study"]: row for row in json.loads(capsys.readouterr().out)}
    found = rows["a compile"]
    assert rows["a search"]["kind"] == "search" and found["lm_calls"] > found["examples_scored"] > 50
    record = record_of(optuna.load_study(study_name="a compile", storage=f"sqlite:///{place}"))
    assert found["examples_scored"] == record.calls
    told = next(line for line in lines if line.startswith("a compile")).split()
    assert f"{100 * found['best']:.1f}" in told and str(record.calls) in told
    assert "examples scored  LM calls" in lines[0]


def test_a_run_is_shown(place, capsys):
    """``show`` prints what a run is, what it found in a sentence, its winner's texts, and a line for each trial."""
    assert main(["show", place, "--study", "a compile"]) == 0
    text = capsys.readouterr().out
    study = optuna.load_study(study_name="a compile", storage=f"sqlite:///{place}")
    assert "openai/gpt-4o-mini" in text and "0_predictor_instruction:" in text
    assert text.count("COMPLETE") == len(study.trials)
    assert f"verdict  {Verdict(record_of(study), model=False).sentence()}" in text


def test_a_run_is_exported(place, tmp_path, capsys):
    """``export`` writes trials as CSV, the run as JSON, and a program that upstream's ``load`` reads."""
    files = {kind: tmp_path / f"run.{kind}" for kind in ("csv", "json", "program")}
    given = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    files["program"] = files["program"].with_suffix(".program.json")
    given[-1] = str(files["program"])
    assert main(["export", place, "--study", "a compile", *given]) == 0
    rows = list(csv.DictReader(files["csv"].open()))
    whole = json.loads(files["json"].read_text())
    assert len(rows) == len(whole["trials"]) > 3 and whole["trials"][0]["attributes"]["scores"]
    program = dspy.Predict("question -> answer")
    program.load(files["program"])
    best = whole["candidates"]["0_predictor_instruction"][whole["best"]["0_predictor_instruction"]]
    assert program.signature.instructions == best


def test_a_run_is_deleted_only_on_request(place, tmp_path, capsys):
    """``prune`` deletes nothing without ``--yes``, and then only the run that is named."""
    place = str(shutil.copy(place, tmp_path / "runs.db"))
    assert main(["prune", place, "--study", "a search"]) == 1
    assert "add --yes" in capsys.readouterr().err
    assert main(["prune", place, "--study", "a search", "--yes"]) == 0
    assert [each.study_name for each in optuna.get_all_study_summaries(f"sqlite:///{place}")] == ["a compile"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{place}", "--study", "none"], "there are 'a search', 'a compile'"),
        (["show", "{place}"], "Which run?"),
        (["export", "{place}", "--study", "a search"], "give --csv FILE"),
        (["export", "{place}", "--study", "a search", "--csv", "/nowhere/x.csv"], "create /nowhere first"),
        (["export", "{place}", "--study", "a search", "--csv", "same", "--json", "./same"], "give each its own"),
        (["export", "{place}", "--study", "a search", "--csv", "/"], "/ cannot be written: Is a directory"),
        (["runs", "{place}.not"], "does not exist"),
        (["runs", "postgresql://me:hidden-word@127.0.0.1:1/base"], "cannot be used"),
    ],
)
def test_refusals_name_the_remedy(place, arguments, message, capsys):
    """What cannot be done ends with status 1 and one line on standard error, without a password."""
    assert main([text.format(place=place) for text in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and "hidden-word" not in error


@pytest.mark.parametrize("command", [[], ["runs"], ["show"], ["export"], ["report"], ["prune"]])
def test_every_command_has_help(command, capsys):
    """``--help`` of the command and of each of its parts says what it takes."""
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and ("STORAGE" in text if command else "export" in text)


def test_prune_without_a_name_deletes_runs_of_promptune_only(tmp_path, capsys):
    """``prune STORAGE --yes`` deletes what this package made, and says what it leaves alone and why."""
    path = str(tmp_path / "runs.db")
    table = Table(instructions=2, demos=2, n_examples=6)
    options = {"n_examples": 6, "max_calls": 6, "sampler": "random", "storage": path}
    theirs = {name: optuna.create_study(storage=f"sqlite:///{path}", study_name=name) for name in ("theirs", "both")}
    theirs["both"].optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    search(table.space, table, study_name="ours", **options)
    search(table.space, table, study_name="both", resume="force", **options)
    assert main(["prune", path]) == 1
    said = capsys.readouterr().err
    assert "deletes 'ours' (" in said and "add --yes" in said and "'theirs' (0 trials) stays" in said
    assert len(optuna.get_all_study_names(theirs["both"]._storage)) == 3
    assert main(["prune", path, "--yes"]) == 0
    said = capsys.readouterr().out
    assert "Deleted: 'ours'" in said and "'theirs' (0 trials) stays: it is not of promptune" in said
    assert "stays: it has trials of another program too" in said
    assert sorted(optuna.get_all_study_names(theirs["both"]._storage)) == ["both", "theirs"]
    assert main(["prune", path, "--yes"]) == 1 and "Nothing is deleted" in capsys.readouterr().err
    assert main(["prune", path, "--study", "theirs", "--yes"]) == 0
    assert optuna.get_all_study_names(theirs["both"]._storage) == ["both"]


def test_it_tells_its_version(capsys):
    """``--version`` is that of the installed distribution."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dspy {version('dspy')}\n"


def test_it_runs_as_a_module(tmp_path):
    """``python -m dspy.promptune`` is this command."""
    done = subprocess.run(
        [sys.executable, "-m", "dspy.promptune", "runs", str(tmp_path / "none.db")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "does not exist" in done.stderr


def test_what_is_written_for_the_user_never_replaces_a_storage(place, tmp_path, capsys):
    """A file that holds runs is not written over, whoever asks for it and by whatever link; it is as it was."""
    kept = Path(shutil.copy(place, tmp_path / "runs.db"))
    (tmp_path / "page.html").symlink_to(kept)
    run = searched(tmp_path / "runs.log")
    before = [path.read_bytes() for path in (kept, tmp_path / "runs.log")]
    chosen = ["--study", "a compile"]
    for kind in ("json", "csv", "program"):
        assert main(["export", str(kept), *chosen, f"--{kind}", str(kept)]) == 1
        assert "is not written over" in capsys.readouterr().err
    assert main(["report", str(kept), *chosen, "-o", str(tmp_path / "page.html")]) == 1
    for path in (kept, tmp_path / "runs.log"):
        with pytest.raises(OptionError, match="is not written over"):
            run.report(path)
    assert before == [path.read_bytes() for path in (kept, tmp_path / "runs.log")]


def test_half_a_character_is_written_in_a_form_that_is_read_again(tmp_path, capsys):
    """A program with half a character is exported with U+FFFD for it and a note; the page shows an escape."""

    def broken(params, examples):
        raise ValueError("half \ud83d of it")

    path = tmp_path / "runs.db"
    run = searched(path)
    run.study.set_user_attr("best_program", {"demos": [{"question": "half \ud83d"}]})
    assert main(["export", str(path), "--program", str(tmp_path / "best.json")]) == 0
    assert orjson.loads((tmp_path / "best.json").read_bytes()) == {"demos": [{"question": "half \ufffd"}]}
    assert "half a character" in capsys.readouterr().err
    with pytest.raises(EvaluationError):
        searched(path, broken, study_name="broken")
    assert main(["report", str(path), "--study", "broken", "-o", str(tmp_path / "page.html")]) == 0
    assert "half \\ud83d of it" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_pipe_that_nobody_reads_is_no_error(place):
    """``runs STORAGE | true`` ends quietly."""
    script = f"{sys.executable} -m dspy.promptune runs {place} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_wrote_instructions_is_shown(tmp_path, capsys):
    """It has the trials it evaluated, none of them unfinished, and its winner's text is shown, which was written."""

    def evaluate(params, examples):
        return [float(example % 9 < params["0_predictor_instruction"]) for example in examples]

    path = tmp_path / "runs.db"
    found = search(
        PromptSpace({0: ["say it", "tell it"]}), evaluate, n_examples=20, max_calls=60, seed=0, storage=path,
        embedder="ngram", propose=lambda request: [f"{request.text} {request.number}"],
    )  # fmt: skip
    winner = found.space.parts[0].candidates[found.best_params["0_predictor_instruction"]]
    assert found.lineage and winner not in ("say it", "tell it")
    assert main(["show", str(path)]) == 0
    assert f"0_predictor_instruction:\n{winner}\n" in capsys.readouterr().out
    assert main(["runs", str(path), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["unfinished"] == 0
    assert told["trials"] == told["complete"] == sum(trial.state.name == "COMPLETE" for trial in found.trials)


def test_studies_of_others_are_told_from_runs(tmp_path, capsys):
    """Whatever a study made elsewhere holds, it is listed and shown, and called what it is."""
    path = tmp_path / "runs.db"
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="theirs", directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=2)
    for name in ("spent", "best", "candidates"):
        study.set_user_attr(name, 3)
    for arguments in (["runs", str(path)], ["show", str(path)]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert "theirs" in text and "not of promptune" in text


def test_looking_at_another_database_leaves_it_alone(tmp_path, capsys):
    """A database without runs is refused, and not a byte of it is changed."""
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE letters (text)")
    connection.close()
    before = path.read_bytes()
    assert main(["runs", str(path)]) == 1
    assert "holds no runs" in capsys.readouterr().err and path.read_bytes() == before

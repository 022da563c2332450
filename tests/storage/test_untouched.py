"""Nothing is written to what is not a run of ours: files and studies of others are refused, and are as they were."""

import io
import sqlite3
import subprocess
import sys

import optuna
import pytest

from dspy.promptune import OptionError, StorageError, search
from dspy.promptune.cli import main
from dspy.promptune.storage.backend import open_storage
from tests.tables import Table

RECORD = b'{"op_code":0,"worker_id":"w","study_name":"one","directions":[2]}\n'


def database(path, *statements):
    """The bytes of a SQLite file."""
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path.read_bytes()


def studies(path):
    """The bytes of a file with a run in it."""
    table = Table(instructions=2, demos=2, n_examples=6)
    search(table.space, table, n_examples=6, max_calls=12, sampler="random", storage=path)
    open_storage(path).storage.remove_session()
    return path.read_bytes()


def overwritten(whole):
    """A file with noise in the place of two of its pages."""
    return whole[:8192] + b"\xff" * 8192 + whole[16384:]


FOREIGN = {
    "empty": lambda folder: b"",
    "text": lambda folder: b"precious, and without a newline",
    "numbers": lambda folder: b"12345\nprecious second line",
    "records of another kind": lambda folder: b'{"question": "q1"}\n{"question": "q2"}',
    "a line that is no record": lambda folder: RECORD + b'{"op_code":0\n' + RECORD,
    "an unknown record": lambda folder: RECORD + b'{"op_code":99,"worker_id":"w"}\n',
    "a tail of zeros": lambda folder: RECORD + bytes(4096),  # as a power cut leaves it
    "a tail of another kind": lambda folder: RECORD + b"[1, 2",
    "another program's database": lambda folder: database(folder / "t", "CREATE TABLE letters (text)"),
    "its write-ahead log": lambda folder: database(folder / "t", "PRAGMA journal_mode=WAL", "CREATE TABLE letters (t)"),
    "a database without tables": lambda folder: database(folder / "t", "PRAGMA user_version=3"),
    "half a database": lambda folder: studies(folder / "t")[:40960],
    "the head of a database": lambda folder: studies(folder / "t")[:50],
    "a damaged database": lambda folder: overwritten(studies(folder / "t")),
    "zeros": lambda folder: bytes(4096),
}  # fmt: skip


def looked_at(path):
    """What every command and every start of a run says of a file, none of which may succeed."""
    table = Table(instructions=2, demos=2, n_examples=6)
    out = str(path.parent.parent / "out")
    for command in (["runs"], ["show"], ["export", "--json", out], ["report", "-o", out], ["prune", "--yes"]):
        yield main([command[0], str(path), *command[1:]])
    for resume in (False, True, "force"):
        with pytest.raises(StorageError) as error:
            search(table.space, table, n_examples=6, max_calls=12, sampler="random", storage=path, resume=resume)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        yield 1


@pytest.mark.parametrize("name", ["f.db", "f.log", "f.jsonl", "f.txt"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_or_damaged_file_is_refused_and_left_alone(tmp_path, capsys, kind, name):
    """Every command and every start refuses it in one line; not a byte is changed, and no file appears beside it."""
    before = FOREIGN[kind](tmp_path)
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / name
    path.write_bytes(before)
    assert set(looked_at(path)) == {1}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5 and all(line.startswith("error: ") and str(path) in line for line in said)
    assert path.read_bytes() == before and [each.name for each in folder.iterdir()] == [name]


def test_the_remedy_for_a_damaged_journal_is_one(tmp_path, capsys):
    """The command in the refusal of a journal that a power cut has damaged keeps the runs in it."""
    path = tmp_path / "runs.log"
    before = studies(path)
    path.write_bytes(before + bytes(512))
    assert main(["runs", str(path)]) == 1
    command = capsys.readouterr().err.rpartition("before it: ")[2].strip()
    assert command == f"head -n {len(before.splitlines())} runs.log > mended.log"
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert main(["runs", str(tmp_path / "mended.log")]) == 0 and "search" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["runs.db", "runs.log"])
def test_looking_at_a_run_writes_nothing(tmp_path, name):
    """A finished run is listed, shown and exported from a folder that may not be written, and is as it was."""
    folder = tmp_path / "kept"
    folder.mkdir()
    path = folder / name
    before = studies(path)
    names = sorted(each.name for each in folder.iterdir())
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        for command in (["runs"], ["show"], ["export", "--json", str(tmp_path / "out")]):
            assert main([command[0], str(path), *command[1:]]) == 0
    finally:
        folder.chmod(0o755)
    assert path.read_bytes() == before and sorted(each.name for each in folder.iterdir()) == names


def content(path, study):
    """All that a study holds, and the file if nobody has it open."""
    loaded = optuna.load_study(study_name=study, storage=open_storage(path, read_only=True).storage)
    noted = loaded._storage.get_study_system_attrs(loaded._study_id)
    return loaded.user_attrs, noted, [(trial.state, trial.values, trial.params) for trial in loaded.trials]


MADE = {
    "with trials": lambda study: study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2),
    "with attributes": lambda study: study.set_user_attr("owner", "them"),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", ["runs.db", "runs.log"])
def test_a_study_of_another_program_is_left_alone(tmp_path, name, kind):
    """A study that Optuna made elsewhere is not resumed, and neither it nor its file is changed by the try."""
    path, table = tmp_path / name, Table(instructions=2, demos=2, n_examples=6)
    theirs = f"sqlite:///{path}" if name.endswith("db") else open_storage(path).storage
    MADE[kind](optuna.create_study(storage=theirs, study_name="search", direction="maximize"))
    before = content(path, "search"), path.read_bytes()
    with pytest.raises(StorageError, match="was not made by promptune"):
        search(table.space, table, n_examples=6, max_calls=12, sampler="random", storage=path, resume=True)
    with pytest.raises(StorageError, match=r"is in .* already"):
        search(table.space, table, n_examples=6, max_calls=12, sampler="random", storage=path)
    assert (content(path, "search"), path.read_bytes()) == before


@pytest.mark.parametrize("name", ["runs.db", "runs.log"])
def test_a_run_that_is_refused_is_left_alone(tmp_path, name):
    """A start that is refused because the run has changed leaves no trace in it: no lease, no attribute."""
    path, table = tmp_path / name, Table(instructions=2, demos=2, n_examples=6)
    studies(path)
    before = content(path, "search")
    with pytest.raises(StorageError, match="is another run"):
        search(table.space, table, n_examples=5, max_calls=12, sampler="random", storage=path, resume=True)
    assert content(path, "search") == before


def test_a_file_is_whole_from_its_first_moment(tmp_path):
    """A SQLite file appears with its tables, a journal with its first record: no start leaves an empty file."""
    path = tmp_path / "runs.db"
    open_storage(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'studies'").fetchall()
    connection.close()
    journal = open_storage(tmp_path / "runs.log").storage
    assert not (tmp_path / "runs.log").exists()
    optuna.create_study(storage=journal, study_name="one")
    assert (tmp_path / "runs.log").read_bytes().startswith(b'{"op_code":0') and len(list(tmp_path.iterdir())) == 2


def test_the_home_folder_has_a_short_name(tmp_path, monkeypatch):
    """``~/runs.db`` is the file in the user's home, for a run and for the command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    table = Table(instructions=2, demos=2, n_examples=6)
    search(table.space, table, n_examples=6, max_calls=12, sampler="random", storage="~/runs.db")
    assert (tmp_path / "runs.db").exists() and main(["runs", "~/runs.db"]) == 0


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_the_command_prints_in_any_encoding(tmp_path, encoding):
    """Texts that the terminal has no signs for are written as escapes."""
    path, table = tmp_path / "runs.db", Table(instructions=2, demos=2, n_examples=6)
    search(table.space, table, n_examples=6, max_calls=12, sampler="random", storage=path, study_name="日本 😀")
    command = [sys.executable, "-m", "dspy.promptune", "show", str(path)]
    done = subprocess.run(command, capture_output=True, env={"PATH": "", "PYTHONPATH": ":".join(sys.path),
                          "PYTHONIOENCODING": encoding, "LC_ALL": "C", "HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0 and done.stderr == b"" and rb"\u65e5" in done.stdout


def test_what_a_terminal_would_act_on_is_shown_as_text(tmp_path, capsys):
    """Control characters and halves of characters in stored texts are escapes in what is shown and exported."""
    path = tmp_path / "runs.db"
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="x\x1b[2Jy", direction="maximize")
    half = "Pick \x1b]0;title\x07 \ud83d"
    noted = {"format": 1, "kind": "=cmd()", "metric": half, "best": {"a": 0}, "candidates": {"a": [half]}}
    for name, value in noted.items():
        study.set_user_attr(name, value)
    study.optimize(lambda trial: trial.set_user_attr("kind", "=cmd()") or trial.suggest_int("a", 0, 0), n_trials=1)
    for command in (["runs"], ["show"], ["runs", "--json"]):
        assert main([command[0], str(path), *command[1:]]) == 0
        shown = capsys.readouterr().out
        assert not {"\x1b", "\x07", "\ud83d"} & set(shown)
        assert (r"\u001b[2Jy" if "--json" in command else r"x\x1b[2Jy") in shown
    csv, json = tmp_path / "out.csv", tmp_path / "out.json"
    assert main(["export", str(path), "--csv", str(csv), "--json", str(json)]) == 0
    assert "'=cmd()" in csv.read_text() and r"\ud83d" in json.read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [3, "text", [1], {"a": "b"}, None, {"search": 3}])
def test_attributes_of_any_kind_make_no_traceback(tmp_path, capsys, value):
    """Whatever stands under the names of a run's attributes, each command prints it, or says that it cannot."""
    path = tmp_path / "runs.db"
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="one", direction="maximize")
    for name in ("format", "kind", "spent", "best", "candidates", "best_score", "history", "options", "settings"):
        study.set_user_attr(name, value)
    study._storage.set_study_system_attr(study._study_id, "promptune:lease", {"token": 1, "pid": "x", "seen": "y"})
    study.optimize(lambda trial: trial.set_user_attr("examples", value) or trial.suggest_int("a", 0, 1), n_trials=2)
    out = str(tmp_path / "out")
    for command in (["runs"], ["show"], ["export", "--csv", out], ["report", "-o", out]):
        done, said = main([command[0], str(path), *command[1:]]), capsys.readouterr().err
        assert done == 0 or (done == 1 and said.startswith("error: ") and said.count("\n") == 1)


def test_no_stream_to_write_to_is_no_error(tmp_path, monkeypatch):
    """The command works where there is no standard output, as under pythonw."""
    studies(tmp_path / "runs.db")
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["runs", str(tmp_path / "runs.db")]) == 0
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["runs", str(tmp_path / "runs.db")]) == 0


@pytest.mark.parametrize("name", ["runs.db", "runs.log"])
def test_a_study_may_have_any_name_that_storages_take(tmp_path, capsys, name):
    """Control characters in a name are stored, and shown as escapes; half a character and NUL are refused."""
    path, table = tmp_path / name, Table(instructions=2, demos=2, n_examples=6)
    given = {"n_examples": 6, "max_calls": 12, "sampler": "random", "storage": path}
    search(table.space, table, study_name="x\x1b[2Jy", **given)
    assert main(["runs", str(path)]) == 0 and r"x\x1b[2Jy" in capsys.readouterr().out
    for bad in ("half \ud83d", "a\x00b"):
        with pytest.raises(OptionError, match="of whole characters"):
            search(table.space, table, study_name=bad, **given)

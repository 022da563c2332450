"""Storages that cannot be used say so at the start, and those that fail later do not take the run with them."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.storages.journal import JournalFileSymlinkLock

import dspy.promptune.storage.backend as storage_module
import dspy.promptune.storage.held_study as held_study
import dspy.promptune.storage.sqlite as sqlite_module
import dspy.promptune.storage.study_store as store_module
from dspy.promptune import PromptSpace, StorageError, search
from dspy.promptune.secrets import SecretMasker
from dspy.promptune.storage.backend import open_storage
from dspy.promptune.storage.messages import explain

ROOT = Path(__file__).resolve().parents[2]


REFUSED = (
    'connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused\n'
    "\tIs the server running on that host and accepting TCP/IP connections?"
)


def refused(storage, match, **options):
    """The message with which a storage is refused."""
    with pytest.raises(StorageError, match=match) as error:
        open_storage(storage, **options)
    return str(error.value)


@pytest.mark.parametrize("name", ["runs.db", "runs.log"])
def test_a_read_only_file_is_refused(tmp_path, name):
    """A file without write permission is refused before anything is done, by name."""
    path = tmp_path / name
    optuna.create_study(storage=open_storage(path).storage)
    path.chmod(0o444)
    assert str(path) in refused(path, "read-only; change its permissions")


def test_places_that_cannot_be_are_refused(tmp_path):
    """A folder, a missing one, a link to nothing, a database in memory, no storage: each is refused with its remedy."""
    refused(tmp_path, "is a folder: name a file in it")
    refused(tmp_path / "none" / "runs.db", "has no folder: create")
    (tmp_path / "link.db").symlink_to(tmp_path / "nothing.db")
    refused(tmp_path / "link.db", "is a link to a file that is not there")
    refused("sqlite://", "in memory: name a file")
    refused("~nobody-of-this-name/runs.db", "has no folder: create ~nobody-of-this-name")
    refused(tmp_path / f"{'long' * 80}.db", "cannot be used: ")
    refused(tmp_path / "runs.db", "does not exist: correct the name", must_exist=True)
    refused(3, "must be a path, a URL or an Optuna storage")


def test_files_of_another_kind_are_refused(tmp_path):
    """A text named like a database, and a database named like a journal, are told from what they should be."""
    (tmp_path / "notes.db").write_text("groceries " * 9)
    refused(tmp_path / "notes.db", "not a SQLite database")
    (tmp_path / "notes.log").write_text("groceries\nmore\n")
    refused(tmp_path / "notes.log", "not an Optuna journal")


def test_a_locked_database_is_refused(tmp_path, monkeypatch):
    """A database that another process is writing to is refused after a while."""
    monkeypatch.setattr(sqlite_module, "LOCK_SECONDS", 0.1)
    path = tmp_path / "runs.db"
    open_storage(path)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    refused(path, "database is locked. Another process is writing to it")
    other.close()


def test_tables_of_a_newer_optuna_are_refused(tmp_path):
    """A schema that this Optuna does not know is refused."""
    path = tmp_path / "runs.db"
    open_storage(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    connection.close()
    refused(path, "another version of Optuna")


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    """A disk with next to nothing free is refused at the start."""
    monkeypatch.setattr(storage_module, "MIN_FREE", 1 << 62)
    refused(tmp_path / "runs.db", "is full .* free some space")


def test_passwords_are_never_shown():
    """The message about a server that does not answer, or a URL that cannot be read, holds no password."""
    message = refused("postgresql://me:pass-of-mine@127.0.0.1:1/base", "cannot be used")
    assert "pass-of-mine" not in message and "me:***@127.0.0.1:1/base" in message
    assert "pass-of-mine" not in refused("postgresql://me:pass-of-mine@127.0.0.1:port/base", r"cannot be (read|used)")


@pytest.mark.parametrize(
    "said",
    [
        "terminating connection due to administrator command",
        "consuming input failed: server closed the connection unexpectedly\n\tThis probably means ...",
        "SSL connection has been closed unexpectedly",
        "Can't reconnect until invalid transaction is rolled back. Please rollback() fully before proceeding",
        'connection failed: connection to server at "h", port 1 failed: FATAL:  the database system is shutting down',
    ],
)
def test_a_lost_connection_is_called_so(said):
    """However a driver says that its server went away, the message is one line with one remedy."""
    told = str(explain(OSError(said), "postgresql://me:***@host/base"))
    assert told.endswith(
        "cannot be used: the connection to the server was lost. Start the server again, and run again with resume=True."
    )
    told = str(explain(OSError(REFUSED), "postgresql://me:***@host/base"))
    assert told.endswith("port 1 failed: Connection refused. Start the server, or correct host and port.")


def test_a_server_that_takes_no_writes_is_no_file():
    """The remedy for a database server that was made read-only does not speak of files."""
    told = str(explain(OSError("cannot execute INSERT in a read-only transaction"), "postgresql://me:***@host/base"))
    assert told.endswith("Give the user the right to write, or use a server that takes writes.")


def test_a_file_is_no_folder(tmp_path):
    """A storage within what is a file is refused, and nobody is told to create that."""
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(StorageError, match=r"has no folder: .*notes is a file\.$"):
        open_storage(tmp_path / "notes" / "runs.db")


def test_a_run_leaves_one_file(tmp_path):
    """Where a run has ended, and where it was refused, nothing is beside its SQLite file; nor beside a user's own."""
    path = tmp_path / "runs.db"
    optuna.create_study(storage=f"sqlite:///{path}", study_name="mine")
    space = PromptSpace({0: ["a", "b"]})
    for _ in range(2):
        with contextlib.suppress(StorageError):
            search(space, lambda params, examples: [0.5], n_examples=1, max_calls=2, sampler="random", storage=path)
        assert [each.name for each in tmp_path.iterdir()] == ["runs.db"]


def test_half_a_record_at_the_end_of_a_journal_is_cut_off_by_the_next_writer(tmp_path):
    """A journal whose writer was killed in the midst of a record opens as it is, and the next write repairs it."""
    path = tmp_path / "runs.log"
    optuna.create_study(storage=open_storage(path).storage, study_name="one")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker_id"')
    study = optuna.create_study(storage=open_storage(path).storage, study_name="one", load_if_exists=True)
    study.set_user_attr("still", "written")
    assert path.read_bytes().startswith(whole + b'{"op_code":')
    assert optuna.load_study(storage=open_storage(path).storage, study_name="one").user_attrs == {"still": "written"}


def test_optunas_own_storages_are_taken_as_they_are(table):
    """Any Optuna storage can be given."""
    storage = optuna.storages.InMemoryStorage()
    search(table.space, table, n_examples=12, max_calls=20, sampler="random", storage=storage, study_name="one")
    assert optuna.load_study(storage=storage, study_name="one").user_attrs["kind"] == "search"


@pytest.mark.parametrize("name", ["runs.db", pytest.param("runs.log", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_ends_the_run_well(tmp_path, name):
    """When nothing can be written any more, the best so far is returned, and why it ended is said."""
    code = f"""
        import resource, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        from dspy.promptune import search
        from tests.tables import Table
        table = Table(instructions=6, demos=6, n_examples=40)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def evaluate(params, examples):
            if len(table.paid) > 100:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            return table(params, examples)
        found = search(table.space, evaluate, n_examples=40, max_calls=1000, sampler="random", n_jobs=2,
                       minibatch_size=10, seed=0, storage={str(tmp_path / name)!r}, study_name="one")
        row = [table.scores[table.space.key(found.best_params)]]
        print(found.calls, found.ended)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    calls, _, ended = done.stdout.strip().partition(" ")
    assert 100 < int(calls) < 1000 and "cannot be used" in ended and "resume=True" in ended
    assert "The run ends with what it has" in done.stderr


def test_sqlite_is_written_ahead(tmp_path):
    """SQLite files are opened with the write-ahead log, so that a result costs no wait for the disk."""
    backend = open_storage(tmp_path / "runs.db").storage._backend
    with backend.engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar() == 1


def test_relative_and_url_paths_name_the_same_file(tmp_path, monkeypatch):
    """``runs.db`` and ``sqlite:///runs.db`` are one storage."""
    monkeypatch.chdir(tmp_path)
    optuna.create_study(storage=open_storage("runs.db").storage, study_name="one")
    assert [each.study_name for each in open_storage("sqlite:///runs.db").storage.get_all_studies()] == ["one"]
    assert os.path.exists(tmp_path / "runs.db")


@pytest.mark.parametrize("name", ["runs.db", "runs.log"])
@pytest.mark.parametrize("what", ["study", "file"])
def test_what_is_deleted_in_the_midst_of_a_run_is_said(tmp_path, table, monkeypatch, caught, name, what):
    """A study, or the file with it, that somebody deletes ends the run with the best so far, and the reason."""
    monkeypatch.setattr(held_study, "RENEW_SECONDS", 0.0)
    path = tmp_path / name

    deleted = []

    def delete():
        if what == "study":
            optuna.delete_study(study_name="one", storage=open_storage(path).storage)
        else:
            for each in tmp_path.iterdir():
                each.unlink()

    def evaluate(params, examples):
        if len(table.paid) >= 40 and not deleted:
            deleted.append(delete())
        return table(params, examples)

    found = search(
        table.space, evaluate, n_examples=12, max_calls=144, sampler="random", minibatch_size=4, seed=0, storage=path,
        study_name="one",
    )  # fmt: skip
    assert 40 <= found.calls <= 144 and "cannot be used" in caught.text
    assert any(word in caught.text for word in ("was deleted", "No such file"))
    assert found.best_params in [trial.params for trial in found.trials]


def test_a_journal_that_is_cut_short_in_the_midst_of_a_run_is_said(tmp_path, table, caught):
    """A journal from which somebody cuts the latest records ends the run with the best so far, and the reason."""
    path, cut = tmp_path / "runs.log", []

    def evaluate(params, examples):
        if len(table.paid) >= 40 and not cut:
            cut.append(os.truncate(path, path.stat().st_size // 2))
        return table(params, examples)

    found = search(
        table.space, evaluate, n_examples=12, max_calls=144, sampler="random", minibatch_size=4, seed=0, storage=path,
        study_name="one",
    )  # fmt: skip
    assert 40 <= found.calls < 144 and "cut short" in caught.text and "cut short" in found.ended
    assert found.best_params in [trial.params for trial in found.trials]


def test_options_in_a_sqlite_url_are_no_part_of_the_name(tmp_path):
    """``sqlite:///runs.db?timeout=5`` is the file ``runs.db``."""
    assert open_storage(f"sqlite:///{tmp_path}/runs.db?timeout=5").file == tmp_path / "runs.db"


@pytest.mark.parametrize(
    "name",
    [
        "file:{0}/x.db?mode=ro&uri=true", "/file:{0}/x.db?uri=true", "/{0}/x.db?mode=ro", "/{0}/x.db?immutable=1",
        "/:memory:", "/:memory:?cache=shared", "/", "", "x.db", "/?timeout=3", "/.", "//./",
    ],
)  # fmt: skip
def test_what_sqlite_would_read_otherwise_is_refused(tmp_path, monkeypatch, name):
    """SQLite's own addresses and options, databases in memory and wrong slashes are refused, and no file is made."""
    monkeypatch.chdir(tmp_path)
    for scheme in ("sqlite", "sqlite+pysqlite", "SQLite"):
        said = refused(f"{scheme}://{name.format(tmp_path.as_posix().lstrip('/'))}", "sqlite|SQLite")
        assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["sqlite:x.db", "file:x.db", "sqlite+pysqlite:/x.db", ":memory:", "postgresql:runs", "FILE:x.db?mode=ro"]
)
def test_half_a_url_is_no_path(tmp_path, monkeypatch, name):
    """What begins like a URL and is none makes no file of that name."""
    monkeypatch.chdir(tmp_path)
    refused(name, "neither a path nor a URL")
    refused("file:///x.db", "is not known here")
    refused("sqlite+aiosqlite:///x.db", "is not known here")
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_that_look_odd_are_names(tmp_path, monkeypatch):
    """``~``, colons, blanks and question marks are taken as they stand; a URL of SQLite names no journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/home.db", "a:b.db", "what?.db", "two words.db", "sqlite:///~/url.db", "sqlite:///runs.log"):
        optuna.create_study(storage=open_storage(name).storage)
    names = {path.name for path in tmp_path.iterdir() if not path.name.endswith(("-wal", "-shm"))}
    assert names == {"home.db", "a:b.db", "what?.db", "two words.db", "url.db", "runs.log"}
    assert (tmp_path / "runs.log").read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize("name", ["runs.db", "runs.log", "sqlite:///runs.db"])
def test_a_program_that_changes_the_folder_changes_no_storage(tmp_path, table, monkeypatch, name):
    """A storage named from the working folder is the same file when an evaluation goes to another folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)

    def evaluate(params, examples):
        os.chdir(there)
        return table(params, examples)

    given = {"n_examples": 12, "sampler": "random", "minibatch_size": 4, "seed": 0, "storage": name, "n_jobs": 2}
    assert search(table.space, evaluate, max_calls=40, **given).ended == "the budget is spent"
    assert list(there.iterdir()) == []
    monkeypatch.chdir(here)
    assert search(table.space, evaluate, max_calls=80, resume=True, **given).calls == 80
    assert len(table.paid) == len(set(table.paid)) == 80


def test_a_journal_that_is_being_written_is_not_cut(tmp_path):
    """While another process holds the journal's lock, half a record at its end is left to that process."""
    path = tmp_path / "runs.log"
    study = optuna.create_study(storage=open_storage(path).storage, study_name="one")
    half, lock = b'{"op_code": 4, "worker_id"', JournalFileSymlinkLock(str(path))
    lock.acquire()
    with path.open("ab") as file:
        file.write(half)
    thread = threading.Thread(target=study.set_user_attr, args=("one", 1))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and path.read_bytes().endswith(half)
    lock.release()
    thread.join(30)
    assert path.read_bytes().endswith(b"\n") and half not in path.read_bytes()


@pytest.mark.parametrize("ending", ["db", "log"])
def test_optuna_reads_the_parameters_of_every_trial(tmp_path, ending):
    """Those of the first trial, which the storage checks, and of the others, which are written in one statement."""
    path = tmp_path / f"runs.{ending}"
    store = store_module.StudyStore(open_storage(path), "one", False, SecretMasker())
    store.begin({"format": 1})
    given = {"first": CategoricalDistribution((0, 1, 2)), "second": CategoricalDistribution((0, 1, 2, 3))}
    params = [{"first": i % 3, "second": 3 - i} for i in range(4)]
    for one in params:
        trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, params=one, distributions=given)
        store.study._storage.create_new_trial(store.study._study_id, template_trial=trial)
    store.close()
    trials = optuna.load_study(study_name="one", storage=open_storage(path).storage).trials
    assert [trial.params for trial in trials] == params
    assert all(trial.distributions == given and trial.state.name == "RUNNING" for trial in trials)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]

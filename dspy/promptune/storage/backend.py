"""Opening what a run is written to, with a clear error where that cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy.promptune.errors import StorageError
from dspy.promptune.secrets import masked

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial

__all__ = ["Opened", "changed_trials", "explain", "open_storage", "place_of", "quiet_optuna", "relational"]

JOURNALS = (".log", ".journal", ".jsonl")
SQLITE_MAGIC = b"SQLite format 3\x00"
LOCK_SECONDS = 10.0  # to wait for another process that is writing to a SQLite file
JOURNAL_GRACE = 5  # seconds after which the lock file of a killed process is removed
MIN_FREE = 4 << 20  # bytes on the disk, below which a run is not begun


@dataclass(frozen=True)
class Opened:
    """An open storage, how it is called in messages (no password is in ``place``), and its file if it is one."""

    storage: BaseStorage
    place: str
    file: Path | None = None

    @property
    def journal(self) -> bool:
        """Whether it is Optuna's journal, which is one file of lines."""
        from optuna.storages import JournalStorage

        return isinstance(self.storage, JournalStorage)


def open_storage(storage: str | os.PathLike[str] | BaseStorage, *, must_exist: bool = False) -> Opened:
    """Open what the user named.

    Args:
        storage: The path of a SQLite file (created where it is missing) or of an Optuna journal (``*.log``,
            ``*.journal``, ``*.jsonl``), a URL as SQLAlchemy takes it (``sqlite:///runs.db``,
            ``postgresql://user@host/base``), or an Optuna storage.
        must_exist: Refuse what holds no studies yet, instead of creating a file or tables.

    Raises:
        StorageError: It cannot be opened, read or written. The message names the storage without its password.
    """
    from optuna.storages import BaseStorage, get_storage

    if isinstance(storage, BaseStorage):
        return Opened(get_storage(storage), type(storage).__name__)
    if not isinstance(storage, (str, os.PathLike)):
        raise StorageError(f"storage={storage!r}: it must be a path, a URL or an Optuna storage.")
    text = os.fspath(storage)
    if "://" in text and not text.startswith("sqlite"):
        return _open_server(text, must_exist)
    path = Path(text if "://" not in text else text.partition(":///")[2].partition("?")[0])
    if "://" in text and str(path) in (".", ":memory:"):
        raise StorageError(f"storage={text!r} is a database in memory: name a file, such as sqlite:///runs.db.")
    _check_file(path, must_exist)
    try:
        if path.suffix.lower() in JOURNALS:
            return Opened(_open_journal(path), str(path), path)
        return Opened(_open_sqlite(path, must_exist), str(path), path)
    except StorageError:
        raise
    except Exception as error:
        raise explain(error, str(path)) from error


def relational(storage: BaseStorage) -> RDBStorage | None:
    """The relational database behind a storage; ``None`` where it is none."""
    from optuna.storages import RDBStorage

    rdb = getattr(storage, "_backend", storage)
    return rdb if isinstance(rdb, RDBStorage) else None


def changed_trials(storage: BaseStorage, study_id: int, ids: set[int], after: int) -> list[FrozenTrial]:
    """Trials with these ids, and all with an id above ``after``, as they are now, in the order of their numbers.

    Of a database only these are read: it costs the same however many trials there are.
    """
    rdb = relational(storage)
    if rdb is not None:
        return rdb._get_trials(study_id, states=None, included_trial_ids=ids, trial_id_greater_than=after)
    trials = storage.get_all_trials(study_id, deepcopy=False)
    return [trial for trial in trials if trial._trial_id > after or trial._trial_id in ids]


def place_of(storage: str) -> str:
    """How a storage is called in messages: a URL without its password and its options."""
    import sqlalchemy

    if "://" not in storage:
        return storage
    try:
        return sqlalchemy.make_url(storage).set(query={}).render_as_string(hide_password=True)
    except Exception:
        return "the storage"


def explain(error: BaseException, place: str, password: str | None = None) -> StorageError:
    """What to do about an error of a storage, in words."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(str(getattr(cause, "orig", None) or cause).split())
    if password:
        text = text.replace(password, "***")
    found = next((remedy for mark, remedy in _REMEDIES if mark in f"{text} {error}".lower()), None)
    what = masked(text).rstrip(".?! ") or type(cause).__name__
    return StorageError(f"The storage {place} cannot be used: {what}. {found or _ANY}")


_ANY = "Correct it, or choose another storage."
_REMEDIES = (
    ("authentication failed", "Correct user name and password."),
    ("no password supplied", "Put the password into the URL or into ~/.pgpass."),
    ("connection refused", "Start the server, or correct host and port."),
    ("could not translate host", "Correct the host's name."),
    ("failed to resolve host", "Correct the host's name."),
    ("record does not exist", "The study was deleted while it was running: run again under another study_name."),
    ("relation ", "There are no runs in it: correct the name."),
    ("does not exist", "Create the database first, or correct its name."),
    ("no such table", "There are no runs in it: correct the name."),
    ("was deleted", "Its runs are lost with it: run again with another storage."),
    ("already finished", "Another run has taken the study over."),
    ("database is locked", "Another process is writing to it: end that one, or use a storage of its own."),
    ("readonly", "Make the file and its folder writable, or choose another one."),
    ("read-only", "Make the file and its folder writable, or choose another one."),
    ("disk is full", "Free some space and run again with resume=True."),
    ("no space left", "Free some space and run again with resume=True."),
    ("file too large", "The file may not grow any more: raise the limit and run again with resume=True."),
    ("disk i/o error", "The disk is full or broken: mend it and run again with resume=True."),
    ("no longer compatible", "The tables were made by another version of Optuna."),
    ("no module named", 'Install the driver; for PostgreSQL it is in pip install "dspy[postgresql]".'),
    ("failed to import db", 'Install the driver; for PostgreSQL it is in pip install "dspy[postgresql]".'),
    ("not a database", "It is another kind of file; the names of Optuna journals end in .log or .journal."),
)


def _check_file(path: Path, must_exist: bool) -> None:
    if path.is_dir():
        raise StorageError(f"The storage {path} is a folder: name a file in it, such as {path / 'runs.db'}.")
    if not path.exists() and must_exist:
        raise StorageError(f"The storage {path} does not exist: correct the name.")
    if not path.parent.is_dir():
        raise StorageError(f"The storage {path} has no folder: create {path.parent} first.")
    for place in (path, path.parent) if path.exists() else (path.parent,):
        writable = stat.S_IMODE(place.stat().st_mode) & 0o222
        if not writable or not os.access(place, os.R_OK | os.W_OK):
            raise StorageError(f"The storage {path} cannot be written: {place} is read-only; change its permissions.")
    free = shutil.disk_usage(path.parent).free
    if free < MIN_FREE:
        raise StorageError(f"The disk of {path} is full ({free >> 10} KiB free): free some space, or choose another.")


def _open_sqlite(path: Path, must_exist: bool) -> BaseStorage:
    import sqlalchemy
    from optuna.storages import RDBStorage, get_storage

    if path.exists() and path.stat().st_size and _head(path, len(SQLITE_MAGIC)) != SQLITE_MAGIC:
        raise StorageError(f"The storage {path} is not a SQLite database: names of journals end in .log, .journal.")
    if must_exist and not _has_studies(path):
        raise StorageError(f"The storage {path} holds no runs: it was not made by promptune or Optuna.")
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as probe:
        _log_ahead(probe)
        probe.execute("BEGIN IMMEDIATE")
        probe.execute("ROLLBACK")
    url = sqlalchemy.URL.create("sqlite", database=str(path))
    options = {"connect_args": {"timeout": LOCK_SECONDS, "check_same_thread": False}}
    rdb = _twice(lambda: RDBStorage(url.render_as_string(), engine_kwargs=options))

    def relax(connection: Any, _: Any) -> None:
        # With the write-ahead log, what is committed outlives the process; only a power cut can lose the very last.
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(rdb.engine, "connect", relax)
    rdb.remove_session()
    rdb.engine.dispose()
    return get_storage(rdb)


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Use a write-ahead log. SQLite does not wait with this one where somebody else has the file open just then."""
    end = time.monotonic() + LOCK_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


def _twice(make: Callable[[], RDBStorage]) -> RDBStorage:
    """Open a database, once more where another process made the same tables at the same moment."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return make()
    except SQLAlchemyError as error:
        if not any(mark in str(error).lower() for mark in ("unique", "already exists")):
            raise
        time.sleep(1.0)
        return make()


def _has_studies(path: Path) -> bool:
    """Whether a SQLite file has Optuna's tables; it is only read."""
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as probe:
        return bool(probe.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchall())


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.storages.journal._file import get_lock_file

    if path.exists():
        with get_lock_file(JournalFileSymlinkLock(str(path), JOURNAL_GRACE)):  # the line may be one being written
            _mend_journal(path)
    return JournalStorage(JournalFileBackend(str(path), JournalFileSymlinkLock(str(path), JOURNAL_GRACE)))


def _mend_journal(path: Path) -> None:
    """Cut off half a line that a killed process left at the end; nothing could be read or written behind it."""
    with path.open("rb+") as file:
        first = file.readline()
        if first.endswith(b"\n"):
            try:
                json.loads(first)
            except ValueError:
                raise StorageError(
                    f"The storage {path} is not an Optuna journal: names of SQLite files end in .db."
                ) from None
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _open_server(text: str, must_exist: bool) -> Opened:
    import sqlalchemy
    from optuna.storages import RDBStorage, get_storage

    try:
        url = sqlalchemy.make_url(text)
    except Exception:
        raise StorageError("The storage's URL cannot be read; write postgresql://user:password@host/base.") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=_postgresql_driver())
    place = url.set(query={}).render_as_string(hide_password=True)
    try:
        address, options = url.render_as_string(hide_password=False), {"pool_pre_ping": True}
        rdb = _twice(lambda: RDBStorage(address, engine_kwargs=options, skip_table_creation=must_exist))
        return Opened(get_storage(rdb), place)
    except Exception as error:
        raise explain(error, place, str(url.password) if url.password else None) from None


def _postgresql_driver() -> str:
    from importlib.util import find_spec

    installed = [name for name in ("psycopg", "psycopg2") if find_spec(name) is not None]
    return f"postgresql+{installed[0]}" if installed else "postgresql"


class quiet_optuna:  # noqa: N801 - used as a statement: with quiet_optuna():
    """Optuna's messages at warning level inside the block, and as they were after it."""

    def __enter__(self) -> None:
        import optuna

        self._before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(self._before, optuna.logging.WARNING))

    def __exit__(self, *error: object) -> None:
        import optuna

        optuna.logging.set_verbosity(self._before)

"""SQLite files with Optuna's tables: made whole, read without a trace, and told from other files before a write."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from dspy.promptune.errors import StorageError
from dspy.promptune.outputs import SQLITE
from dspy.promptune.storage.journal import draft_of, publish

__all__ = ["LOCK_SECONDS", "check_sqlite", "log_ahead", "open_sqlite"]

WAL_BYTES = b"\x02\x02"  # at bytes 18 and 19 of a file that uses a write-ahead log
LOCK_SECONDS = 10.0  # to wait for another process that is writing
TABLES = {"studies", "trials", "version_info", "study_system_attributes", "study_user_attributes"}
CHECKED_SIZE = 256 << 20  # bytes of a file, up to which all of it is read to see whether it is damaged


def open_sqlite(path: Path, *, read_only: bool) -> Any:
    """An Optuna storage on a SQLite file, which is made, with its tables, if it is not there.

    Raises:
        StorageError: The file is empty, damaged, of another program, or another kind of file. It is as it was.
    """
    from optuna.storages import get_storage

    if path.exists():
        check_sqlite(path)
        _relational(path, read_only=True).engine.dispose()  # refuses another Optuna's tables
    else:
        _create(path)
    rdb = _relational(path, read_only=read_only, checked=True)
    if not read_only:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as probe:
            probe.execute("BEGIN IMMEDIATE")
            probe.execute("ROLLBACK")
    return get_storage(rdb)


def check_sqlite(path: Path) -> None:
    """Read a file, without a trace.

    Raises:
        StorageError: It is no whole SQLite database with Optuna's tables.
        sqlite3.Error: It cannot be read.
    """
    if not path.stat().st_size:
        raise StorageError(f"The storage {path} is an empty file: delete it, or name a file that is not there yet.")
    if _head(path)[: len(SQLITE)] != SQLITE:
        raise StorageError(f"The storage {path} is not a SQLite database: names of journals end in .log, .journal.")
    with contextlib.closing(read(path)) as probe:
        names = {name for (name,) in probe.execute("SELECT name FROM sqlite_master")}
        if not names >= TABLES:
            raise StorageError(
                f"The storage {path} holds no runs, it is the database of another program: name another file."
            )
        whole = path.stat().st_size > CHECKED_SIZE or probe.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    if not whole:
        raise StorageError(f"The storage {path} is damaged: restore it from a copy, or name another file.")


def log_ahead(path: Path) -> None:
    """Use a write-ahead log. SQLite does not wait with this one where somebody else has the file open just then."""
    end = time.monotonic() + LOCK_SECONDS
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.05)


def read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. Of a file that nobody has open it leaves no traces beside it either."""
    idle = _head(path)[18:20] == WAL_BYTES and not path.with_name(path.name + "-wal").exists()
    address = f"{path.resolve().as_uri()}?{'immutable=1' if idle else 'mode=ro'}"
    return sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, check_same_thread=False)


def _create(path: Path) -> None:
    draft = draft_of(path)
    try:
        _relational(draft, read_only=False, new=True).engine.dispose()
        log_ahead(draft)
        publish(draft, path)
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            draft.with_name(draft.name + ending).unlink(missing_ok=True)


def _relational(path: Path, *, read_only: bool, new: bool = False, checked: bool = False) -> Any:
    import sqlalchemy
    from optuna.storages import RDBStorage

    url = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()
    options: dict[str, Any] = {"connect_args": {"timeout": LOCK_SECONDS, "check_same_thread": False}}
    if read_only:
        options = {"creator": lambda: read(path), "poolclass": sqlalchemy.pool.NullPool}
    rdb = RDBStorage(url, engine_kwargs=options, skip_table_creation=not new, skip_compatibility_check=checked)
    if not read_only:
        sqlalchemy.event.listen(rdb.engine, "connect", _relax)
    rdb.remove_session()
    rdb.engine.dispose()
    return rdb


def _relax(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")  # only a power cut can lose the very last of what is committed


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)

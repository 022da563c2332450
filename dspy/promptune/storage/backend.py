"""Opening what a run is written to, with a clear error where that cannot be."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dspy.promptune.errors import StorageError
from dspy.promptune.outputs import storage_file
from dspy.promptune.storage.messages import explain
from dspy.promptune.visible import visible

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial

__all__ = ["Opened", "changed_trials", "open_storage", "quiet_optuna", "relational"]

JOURNALS = (".log", ".journal", ".jsonl")
MIN_FREE = 4 << 20  # bytes on the disk, below which a run is not begun


@dataclass(frozen=True)
class Opened:
    """An open storage, how it is called in messages (no password is in ``place``), and its file if it is one.

    ``prepare`` readies it for a run's many writes; before that nothing is written to a storage that was there.
    """

    storage: BaseStorage
    place: str
    file: Path | None = None
    prepare: Callable[[], None] = lambda: None

    @property
    def journal(self) -> bool:
        """Whether it is Optuna's journal, which is one file of lines."""
        from optuna.storages import JournalStorage

        return isinstance(self.storage, JournalStorage)


def open_storage(
    storage: str | os.PathLike[str] | BaseStorage, *, must_exist: bool = False, read_only: bool | None = None
) -> Opened:
    """Open what the user named.

    Args:
        storage: The path of a SQLite file (created where it is missing) or of an Optuna journal (``*.log``,
            ``*.journal``, ``*.jsonl``), a URL as SQLAlchemy takes it (``sqlite:///runs.db``,
            ``postgresql://user@host/base``), or an Optuna storage.
        must_exist: Refuse what holds no studies yet, instead of creating a file or tables.
        read_only: Open a file so that it cannot be written; by default as ``must_exist``.

    Raises:
        StorageError: It cannot be opened, read or written. The message names the storage without its password.
    """
    from optuna.storages import BaseStorage, get_storage

    if isinstance(storage, BaseStorage):
        return Opened(get_storage(storage), type(storage).__name__)
    if not isinstance(storage, (str, os.PathLike)):
        raise StorageError(f"storage={storage!r}: it must be a path, a URL or an Optuna storage.")
    if (path := storage_file(text := os.fspath(storage))) is None:
        return _open_server(text, must_exist)
    try:
        _check_file(path, must_exist)
        return _open_file(path, must_exist if read_only is None else read_only, journal="://" not in text)
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


def _check_file(path: Path, must_exist: bool) -> None:
    if path.is_dir():
        raise StorageError(f"The storage {path} is a folder: name a file in it, such as {path / 'runs.db'}.")
    if must_exist:
        if not path.exists():
            raise StorageError(f"The storage {path} does not exist: correct the name.")
        if not os.access(path, os.R_OK):
            raise StorageError(f"The storage {path} cannot be read: change its permissions.")
        return
    if path.exists() and not path.is_file():
        raise StorageError(f"The storage {path} is a device or a pipe: name a file.")
    if path.is_symlink() and not path.exists():
        raise StorageError(f"The storage {path} is a link to a file that is not there: delete it, or name the file.")
    if not path.parent.is_dir():
        remedy = f"{path.parent} is a file" if path.parent.exists() else f"create {path.parent} first"
        raise StorageError(f"The storage {path} has no folder: {remedy}.")
    for place in (path, path.parent) if path.exists() else (path.parent,):
        writable = stat.S_IMODE(place.stat().st_mode) & 0o222
        if not writable or not os.access(place, os.R_OK | os.W_OK):
            raise StorageError(f"The storage {path} cannot be written: {place} is read-only; change its permissions.")
    free = shutil.disk_usage(path.parent).free
    if free < MIN_FREE:
        raise StorageError(f"The disk of {path} is full ({free >> 10} KiB free): free some space, or choose another.")


def _open_file(named: Path, read_only: bool, *, journal: bool) -> Opened:
    path, place = named.absolute(), visible(str(named))  # a program may change the working folder
    if journal and path.suffix.lower() in JOURNALS:
        from dspy.promptune.storage.journal import open_journal

        return Opened(open_journal(path), place, path)
    from dspy.promptune.storage.sqlite import log_ahead, open_sqlite

    return Opened(open_sqlite(path, read_only=read_only), place, path, partial(log_ahead, path))


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

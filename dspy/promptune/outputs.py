"""Files that the user names: the storage of runs, the page of a run, tables, a program."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qs

from dspy.promptune.errors import OptionError, StorageError

__all__ = ["JOURNAL", "SQLITE", "output", "storage_file"]

SQLITE, JOURNAL = b"SQLite format 3\x00", b'{"op_code":'  # how a file begins that a run is written to
ALMOST_URL = re.compile(r"(?:sqlite|file|postgres|postgresql|mysql|mariadb)(?:\+\w+)?:|:memory:$", re.IGNORECASE)
SQLITE_DRIVERS = ("sqlite", "sqlite+pysqlite")
HARMLESS = {"timeout", "check_same_thread"}  # options of a SQLite URL that say nothing about the file


def output(path: str | os.PathLike[str]) -> Path:
    """A file to write to, ``~`` expanded.

    Raises:
        OptionError: Its folder does not exist, or it is there and holds runs.
    """
    target = Path(os.path.expanduser(path))
    if not target.parent.is_dir():
        raise OptionError(f"{target} has no folder: create {target.parent} first.")
    if target.is_file():
        with target.open("rb") as file:
            if file.read(max(len(SQLITE), len(JOURNAL))).startswith((SQLITE, JOURNAL)):
                raise OptionError(f"{target} is the storage of runs and is not written over: name another file.")
    return target


def storage_file(text: str) -> Path | None:
    """The file that a path or the URL of a SQLite database names, ``~`` expanded; ``None`` for another URL.

    Raises:
        StorageError: It would not mean what it says: a database in memory, an address or an option of SQLite's own.
    """
    what = f"storage={text!r}"
    scheme, slashes, rest = text.partition("://")
    if not slashes:
        if ALMOST_URL.match(text):
            raise StorageError(f"{what} is neither a path nor a URL: write runs.db, or sqlite:///runs.db.")
        return Path(os.path.expanduser(text))
    if scheme.lower() == "file" or (scheme.lower().startswith("sqlite") and scheme.lower() not in SQLITE_DRIVERS):
        raise StorageError(f"{what}: {scheme} is not known here: write sqlite:///runs.db, or the path alone.")
    if not scheme.lower().startswith("sqlite"):
        return None
    name, _, query = rest.removeprefix("/").partition("?")
    if name.strip("./") in ("", ":memory:"):
        raise StorageError(f"{what} is a database in memory: name a file, such as sqlite:///runs.db.")
    if not rest.startswith("/"):
        raise StorageError(f"{what}: a URL of SQLite has three slashes: sqlite:///{name}.")
    if ALMOST_URL.match(name) or not parse_qs(query, keep_blank_values=True).keys() <= HARMLESS:
        raise StorageError(
            f"{what}: SQLite's addresses (file:...) and options (mode, uri, ...) are not taken: name the file."
        )
    return Path(os.path.expanduser(name))

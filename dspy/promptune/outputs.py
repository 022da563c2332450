"""Files that the user asks for: the page of a run, tables, a program."""

from __future__ import annotations

import os
from pathlib import Path

from dspy.promptune.errors import OptionError

__all__ = ["JOURNAL", "SQLITE", "output"]

SQLITE, JOURNAL = b"SQLite format 3\x00", b'{"op_code":'  # how a file begins that a run is written to


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

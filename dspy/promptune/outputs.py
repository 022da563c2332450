"""Files that the user asks for: the page of a run, tables, a program."""

from __future__ import annotations

import os
from pathlib import Path

from dspy.promptune.errors import OptionError
from dspy.promptune.visible import HALF, visible

__all__ = ["output", "whole_characters", "write_page"]

STORAGES = (b"SQLite format 3\x00", b'{"op_code":')  # how a file begins that a run is written to


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
            if file.read(max(map(len, STORAGES))).startswith(STORAGES):
                raise OptionError(f"{target} is the storage of runs and is not written over: name another file.")
    return target


def write_page(path: Path, text: str) -> None:
    r"""Write text for people; half a character, which UTF-8 has no form for, is written out as ``\ud83d``."""
    path.write_text(HALF.sub(lambda found: visible(found[0]), text), encoding="utf-8")


def whole_characters(text: str) -> str:
    """The text with U+FFFD for half a character: readers of JSON as strict as ``dspy``'s take no other form."""
    return HALF.sub("\ufffd", text)

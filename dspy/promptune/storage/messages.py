"""What to do about an error of a storage, in words."""

from __future__ import annotations

import re
from pathlib import Path

from dspy.promptune.errors import StorageError
from dspy.promptune.secrets import masked
from dspy.promptune.visible import visible

__all__ = ["LOST", "away", "explain", "place_of"]


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
    if any(mark in text.lower() for mark in _GONE) and _deleted(place):
        text = f"{place} was deleted during the run"
    if "://" in place and any(mark in text.lower() for mark in _LOST):
        text = LOST
    text = text.removeprefix("connection failed: ").partition(" Is the server running")[0]
    found = next((remedy for mark, remedy in _REMEDIES if re.search(mark, f"{text} {error}".lower())), None)
    what = visible(masked(text)).rstrip(".?! ") or type(cause).__name__
    return StorageError(f"The storage {place} cannot be used: {what}. {found or _ANY}")


def away(error: BaseException) -> bool:
    """Whether an error says that a database server went away, or is not back yet."""
    link: BaseException | None = error
    while link is not None:
        if any(mark in str(getattr(link, "orig", None) or link).lower() for mark in (*_LOST, *_UNREACHABLE)):
            return True
        link = link.__cause__ or link.__context__
    return False


def _deleted(place: str) -> bool:
    """Whether a place is a file that is not there."""
    return "://" not in place and bool(Path(place).suffix) and not Path(place).exists()


LOST = "the connection to the server was lost"
# a server that stops, crashes or restarts, as its drivers and SQLAlchemy say it
_LOST = ("rollback() fully", "terminating connection", "closed the connection", "connection has been closed",
         "connection is closed", "connection already closed", "could not receive data", "terminated abnormally",
         "the database system is")  # fmt: skip
_UNREACHABLE = ("connection refused", "timeout expired", "connection reset", "broken pipe", "no route to host",
                "network is unreachable", "server has gone away", "lost connection", "can't connect")  # fmt: skip
_GONE = ("disk i/o error", "unable to open database file", "readonly database", "no such file")
_ANY = "Correct it, or choose another storage."
_REMEDIES = (
    ("authentication failed", "Correct user name and password."),
    ("no password supplied", "Put the password into the URL or into ~/.pgpass."),
    ("connection refused", "Start the server, or correct host and port."),
    ("could not translate host|failed to resolve host", "Correct the host's name."),
    ("record does not exist", "The study was deleted while it was running: run again under another study_name."),
    ("relation |no such table", "There are no runs in it: correct the name."),
    ("does not exist", "Create the database first, or correct its name."),
    ("cut short", "Restore it from a copy and run again with resume=True, or name another file."),
    ("was deleted", "Its runs are lost with it: run again with another storage."),
    ("already finished", "Another run has taken the study over."),
    ("was lost", "Start the server again, and run again with resume=True."),
    ("malformed", "The file is damaged: restore it from a copy, or name another file."),
    ("database is locked", "Another process is writing to it: end that one, or use a storage of its own."),
    ("read-only transaction", "Give the user the right to write, or use a server that takes writes."),
    ("read-?only", "Make the file and its folder writable, or choose another one."),
    ("disk is full|no space left", "Free some space and run again with resume=True."),
    ("file too large", "The file may not grow any more: raise the limit and run again with resume=True."),
    ("disk i/o error", "The system could not write the file: see to the disk, and run again with resume=True."),
    ("no longer compatible", "The tables were made by another version of Optuna."),
    ("no module named|failed to import", 'Install the driver; for PostgreSQL it is in pip install "dspy[postgresql]".'),
    ("not a database", "It is another kind of file; the names of Optuna journals end in .log or .journal."),
)

"""Who is running a study: a note in it, renewed while the run lives, so that two runs do not share one by accident."""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

from dspy.promptune.identity.process import alive, container, process_start

__all__ = ["RENEW_SECONDS", "STALE_SECONDS", "Lease", "abroad", "holder"]

RENEW_SECONDS = 2.0
STALE_SECONDS = 60.0  # without renewal, after which a run on another machine counts as dead
SETTLE_SECONDS = 0.25  # two that take a lease at the same moment both see the later note after so long

_mine: set[str] = set()  # tokens of the leases that this process holds


class Lease:
    """One run's claim to a study, as a JSON note: token, process, machine, and when it was last seen (Unix time)."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        _mine.add(self.token)

    def note(self) -> dict[str, Any]:
        """The note as of now."""
        pid = os.getpid()
        return {
            "token": self.token,
            "pid": pid,
            "host": socket.gethostname(),
            "space": container(),
            "process_start": process_start(pid),
            "seen": round(time.time(), 3),
        }

    def owns(self, note: Any) -> bool:
        """Whether a note that was read is this lease's."""
        return isinstance(note, Mapping) and note.get("token") == self.token

    def release(self) -> None:
        """The run is over: its note no longer holds anybody back."""
        _mine.discard(self.token)


def holder(note: Any) -> str | None:
    """Who holds the study, in words; ``None`` when nobody does any more.

    A process of this machine holds it as long as it lives, one of another machine until it has not been seen for
    ``STALE_SECONDS``. Clocks differ and jump: what was seen so far in the future counts as little.
    """
    if not isinstance(note, Mapping) or "token" not in note or note.get("released"):
        return None
    pid, host = note.get("pid"), note.get("host")
    seen = note.get("seen")
    age = abs(time.time() - seen) if isinstance(seen, (int, float)) else math.inf
    if not _here(note):
        return f"process {pid} on {host}, last seen {age:.0f} s ago" if age < STALE_SECONDS else None
    if pid == os.getpid():
        return "this process" if note["token"] in _mine else None
    lives = isinstance(pid, int) and process_start(pid) == note.get("process_start") and alive(pid)
    return f"process {pid} on this machine" if lives else None


def abroad(note: Any) -> bool:
    """Whether a note is of a run on another machine that has not said it is over: only watching tells if it lives."""
    return isinstance(note, Mapping) and not note.get("released") and not _here(note)


def _here(note: Mapping[str, Any]) -> bool:
    """Whether a note's process is one of those whose life can be seen from here.

    Containers and copied machines may have one name. Of a study that is shared all of them may be at work, so more is
    asked there; a run of its own that is started again in a new container goes on at once.
    """
    same = note.get("host") == socket.gethostname()
    return same and (not note.get("share") or note.get("space") == container())

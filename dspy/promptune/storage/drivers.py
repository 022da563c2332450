"""The drivers of one study: a note of each in it, renewed while it lives, by which they know of one another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from dspy.promptune.limits.amounts import total
from dspy.promptune.storage.lease import RENEW_SECONDS, SETTLE_SECONDS, STALE_SECONDS, Lease, abroad, holder

__all__ = ["DRIVER", "OWNER", "WATCH_SECONDS", "SharedDrivers", "sharers"]

DRIVER = "promptune:driver:"
BEST = "promptune:best"
OWNER = "driver"  # user attribute of a trial: the token of the driver that made it
WATCH_SECONDS = 2.5 * RENEW_SECONDS  # after which a run that is alive has renewed its note


def sharers(notes: Mapping[str, Any]) -> list[str]:
    """Who is at work on a study that is shared, in words, by the notes in it."""
    found = [holder(note) for name, note in notes.items() if name.startswith(DRIVER) and note.get("share")]
    return [who for who in found if who is not None]


class SharedDrivers:
    """The notes of one study's drivers, seen from one of them. Thread-safe.

    A note is a lease's, with ``share`` (others may work on the study at the same time), ``open`` (this driver is in
    its search), ``idle`` (with so many trials in the study, all of them ended, it found nothing to do), ``spent`` (by
    this driver alone) and ``reserved`` (what it may have spent since that was written). It stays when the driver has
    ended, for what that has spent.

    Args:
        lease: Of this driver.
        share: Whether others may work on the study at the same time.
        read: All notes of the study as they are now; they are taken in.
        write: ``(name, note)``, into the study.

    Attributes:
        agreed: Whether all have found that nothing is left to do.
        announced: Whether this driver has a note.
    """

    def __init__(
        self,
        lease: Lease,
        share: bool,
        read: Callable[[], Mapping[str, Any]],
        write: Callable[[str, Any], None],
    ) -> None:
        self.share = share
        self._lease, self._read, self._write = lease, read, write
        self._facts: dict[str, Any] = {"share": share}
        self._others: dict[str, Mapping[str, Any]] = {}
        self._seen: dict[str, float] = {}  # when a note was first seen, or last seen to change, by this process's clock
        self._renewed: set[str] = set()  # those that were seen to change
        self.announced = False
        self.agreed = False
        self._lock = threading.Lock()

    @property
    def token(self) -> str:
        """By which this driver signs what it evaluates."""
        return self._lease.token

    def announce(self, **facts: Any) -> None:
        """Write this driver's note, with these facts from now on."""
        with self._lock:
            self._facts.update(facts)
            self.announced = True
            self._write(DRIVER + self.token, {**self._lease.note(), **self._facts})

    @property
    def salt(self) -> int:
        """A number that no other driver has, for its random draws to be other than theirs."""
        return int(self.token[:7], 16)

    def take_in(self, notes: Mapping[str, Any]) -> None:
        """The study's notes as they are now."""
        now = time.monotonic()
        with self._lock:
            for name, note in notes.items():
                token = name.removeprefix(DRIVER)
                if name.startswith(DRIVER) and token != self.token:
                    before = self._others.get(token)
                    if before is not None and before != note:
                        self._renewed.add(token)
                    if before != note:
                        self._seen[token] = now
                    self._others[token] = note

    def refresh(self) -> None:
        """Take in the study's notes as they are now."""
        self._read()

    def watch(self) -> None:
        """Look for a while whether drivers on other machines live that seem dead by the clock here."""
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end and any(abroad(n) and not self.alive(t) for t, n in self._sharing().items()):
            time.sleep(min(0.25, WATCH_SECONDS))
            self._read()

    def alive(self, token: str) -> bool:
        """Whether a driver lives, as far as is known: a note not yet seen to be renewed is judged by its clock."""
        note = self._others.get(token)
        if note is None or self.gone(token):
            return False
        return holder(note) is not None or (abroad(note) and token in self._renewed)

    def gone(self, token: str) -> bool:
        """Whether a driver has certainly ended: it says so, its process is not there, or its note is not renewed.

        The clock of its machine has no say in it.
        """
        note = self._others.get(token)
        if note is None or note.get("released") or time.monotonic() - self._seen[token] >= STALE_SECONDS:
            return True
        return not abroad(note) and holder(note) is None

    def living(self) -> dict[str, Mapping[str, Any]]:
        """The notes of the others that live and share the study."""
        return {token: note for token, note in self._sharing().items() if self.alive(token)}

    def searching(self) -> bool:
        """Whether another driver has begun its search: the candidates are there."""
        return any(note.get("open") for note in self.living().values())

    def who(self) -> str | None:
        """Who lives of the others and shares the study, in words; ``None`` where nobody does."""
        found = [holder(note) or f"process {note.get('pid')} on {note.get('host')}" for note in self.living().values()]
        return " and ".join(dict.fromkeys(found)) or None

    def abroad(self) -> list[str]:
        """The machines of others that live, without this one."""
        return sorted({str(note.get("host")) for note in self.living().values() if abroad(note)})

    def all_idle(self, trials: int) -> bool:
        """Whether no other driver in its search can do anything either, of those that live; they are asked now."""
        self._read()
        return all(note.get("idle") == trials for note in self.living().values() if note.get("open"))

    def agree(self, trials: int, key: list[int]) -> list[int]:
        """The winner among so many trials: what another driver has written down for the same, or else ``key``.

        Two that write at the same moment both read the later note after ``SETTLE_SECONDS``.
        """
        found = self._read().get(BEST) or {}
        if found.get("trials") != trials:
            self._write(BEST, {"trials": trials, "key": key})
            time.sleep(SETTLE_SECONDS if self.living() else 0.0)
            found = self._read()[BEST]
        return list(found["key"])

    def bury(self) -> None:
        """Nobody needs to wonder again whether those live that do not."""
        for token, note in self._sharing().items():
            if not note.get("released") and not self.alive(token):
                self._write(DRIVER + token, {**note, "released": True})

    def spent(self) -> dict[str, dict[str, float]]:
        """What the others and earlier starts have spent, and what they have written that they may have spent."""
        with self._lock:
            notes = list(self._others.values())
        return total(*(note.get(name) or {} for note in notes for name in ("spent", "reserved")))

    def pending(self) -> dict[str, dict[str, float]]:
        """How much of that those that live have not spent yet."""
        return total(*(note.get("reserved") or {} for note in self.living().values()))

    def _sharing(self) -> dict[str, Mapping[str, Any]]:
        with self._lock:
            return {token: note for token, note in self._others.items() if note.get("share")}

"""A study in a storage that this run holds: taken, shared or waited for, renewed as it goes, and let go of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspy.promptune.errors import StorageError
from dspy.promptune.interrupts import pressed
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.secrets import SecretMasker, said
from dspy.promptune.storage.backend import Opened, quiet_optuna, relational
from dspy.promptune.storage.claims import swap
from dspy.promptune.storage.drivers import WATCH_SECONDS, SharedDrivers
from dspy.promptune.storage.lease import RENEW_SECONDS, Lease, abroad, holder
from dspy.promptune.storage.spending import SpendingNotes
from dspy.promptune.storage.writer import SafeStorage, Writer

if TYPE_CHECKING:
    from optuna.study import Study

    from dspy.promptune.limits.budgets import BudgetMeter

__all__ = ["LEASE", "PREFIX", "HeldStudy"]

logger = logging.getLogger(__name__)

PREFIX = "promptune:"  # of the attributes that a run needs to go on; those for people have plain names
LEASE = PREFIX + "lease"
WAIT_SECONDS = 0.5  # between two looks at whether the driver that makes the candidates has made them


class HeldStudy:
    """Who runs a study: one run that has its lease, or several that share it.

    Args:
        opened: Where the study is.
        name: Of the study.
        resume: What to do when the study is there already: ``False`` refuses, ``True`` continues it if it is the
            same run, ``"force"`` goes on in any case.
        masker: Keeps secrets out.
        share: Whether others may run it at the same time. A study that is there is continued, then.

    Attributes:
        leads: Whether this run makes the candidates; false where it takes those of another driver.
        resumed: Whether the study was there already.
    """

    study: Study

    def __init__(self, opened: Opened, name: str, resume: Any, masker: SecretMasker, *, share: bool = False) -> None:
        self.name, self.place = name, opened.place
        self.resumed = False
        self.leads = True
        self.meter: BudgetMeter | None = None
        self.lost: Callable[[str], None] = lambda why: None
        self._storage = SafeStorage(opened.storage, opened.place, masker)
        self._opened, self._file = opened, opened.file
        self._file_id: object = None
        self._resume = resume or share
        self._lease = Lease()
        self.drivers = SharedDrivers(self._lease, share, self._read_notes, self._write_note)
        self._notes: dict[str, Any] = {}
        self._ids: dict[int, int] = {}
        self._writer: Writer | None = None
        self._renewed = 0.0
        self._spending = SpendingNotes(self.drivers, lambda: self.broken is None)

    @property
    def broken(self) -> StorageError | None:
        """Why nothing can be written any more, if so."""
        return self._storage.broken

    def refresh(self) -> None:
        """Read again what others have written."""
        self._notes = self._read_notes()

    def _load_study(self) -> bool:
        """Load the study if it is there, and say whether it is. Nothing is written.

        Raises:
            StorageError: It is there, and was not to be resumed.
        """
        import optuna

        with quiet_optuna():
            try:
                self.study = optuna.load_study(storage=self._storage.inner, study_name=self.name)
            except KeyError:
                return False
        self.study._storage = self._storage  # type: ignore[assignment]
        if not self._resume:
            raise StorageError(
                f"Study {self.name!r} is in {self.place} already: resume=True continues it, another study_name "
                "begins a new one."
            )
        self.resumed = True
        return True

    def _create_study(self) -> bool:
        """Create the study; whether another run has created it at the same moment."""
        import optuna

        with quiet_optuna():
            try:
                self.study = optuna.create_study(
                    storage=self._storage.inner, study_name=self.name, direction="maximize"
                )
            except optuna.exceptions.DuplicatedStudyError:
                return self._load_study()
        self.study._storage = self._storage  # type: ignore[assignment]
        return False

    def _refuse_if_held(self) -> None:
        """Refuse a study that is certainly being run, before anything else is said of it. Nothing is written."""
        held = holder(self._read_notes().get(LEASE)) or self.drivers.who()
        if held is not None and self._resume != "force" and not self.drivers.share:
            raise self._held_by(held)

    def _held_by(self, who: str) -> StorageError:
        return StorageError(
            f"Study {self.name!r} in {self.place} is being run by {who}: wait until that ends, use another study_name, "
            'take it over with resume="force", or give share=True to every run of it and they work together.'
        )

    def _take(self, known: bool) -> None:
        """Take the lease, unless somebody holds it or shares the study."""
        self._notes = self._read_notes() if known else {}
        self.drivers.watch()
        held = holder(self._notes.get(LEASE)) or self._seen_alive() or self.drivers.who()
        if held is not None and held != "this process" and self._resume == "force":
            logger.warning("Study %r is taken away from %s.", self.name, held)
        elif held is not None:
            raise self._held_by(held)
        if not self._lead():
            raise StorageError(
                f"Study {self.name!r} in {self.place} was taken by another run at the same moment: that one goes on."
            )
        if self._resume != "force" and (held := self.drivers.who()) is not None:
            raise self._held_by(held)

    def _join(self, seconds_left: Callable[[], float]) -> None:
        """Take part in a study that is shared: make its candidates, or wait until another driver has made them.

        There is always one of these: a driver in its search, whom others join; a driver that holds the lease and is
        making the candidates; or nobody, and then this one takes the lease.
        """
        self.drivers.announce()
        self._notes = self._read_notes()
        self.drivers.watch()
        said = False
        while True:
            held = holder(self._notes.get(LEASE)) or self._seen_alive()
            if held is not None and not self._notes[LEASE].get("share"):
                raise StorageError(
                    f"Study {self.name!r} in {self.place} is being run by {held} without share=True: wait until that "
                    "ends, or give it share=True as well."
                )
            self._check_machines()
            self.leads = not self.drivers.searching()
            if not self.leads or (held is None and self._lead() and not self.drivers.searching()):
                return
            if not said and held is not None:
                logger.info("Waiting for %s to make the candidates of study %r.", held, self.name)
                said = True
            if pressed() or seconds_left() <= 0:
                raise Stopped(f"{'interrupted' if pressed() else 'out of time'} before {held} had made the candidates")
            time.sleep(min(WAIT_SECONDS, max(0.0, seconds_left())))
            self.drivers.announce()
            self._notes = self._read_notes()

    def _check_machines(self) -> None:
        others = self.drivers.abroad()
        if self._file is not None and others:
            raise StorageError(
                f"The storage {self.place} is a file that {others[0]} writes as well: drivers on several machines "
                "share a database server, such as PostgreSQL."
            )

    def _lead(self) -> bool:
        """Take the lease if it is as it was when it was last read, or in any case by force; whether it was taken."""
        before, note = self._notes.get(LEASE), {**self._lease.note(), "share": self.drivers.share}
        taken = self._swap(lambda now: now == before or self._resume == "force", note)
        self._notes = self._read_notes()
        return taken

    def _swap(self, allowed: Callable[[Any], bool], note: Any) -> bool:
        """Write the lease if what is there is allowed to be replaced."""
        taken: bool = self._storage.write(
            swap, self._storage.inner, self.study._study_id, LEASE, allowed=allowed, note=note, file=self._file
        )
        if taken:
            self._renewed = time.monotonic()
        return taken

    def _seen_alive(self) -> str | None:
        """A run on another machine whose note is old by the clock here, but renewed before our eyes."""
        note = self._notes.get(LEASE)
        end = time.monotonic() + WATCH_SECONDS
        while abroad(note) and time.monotonic() < end:
            time.sleep(min(0.25, WATCH_SECONDS))
            now = self._read_notes().get(LEASE) or {}
            if now != note:
                return f"process {now.get('pid')} on {now.get('host')}, whose clock differs"
        return None

    def _read_notes(self) -> dict[str, Any]:
        notes = dict(self._storage.get_study_system_attrs(self.study._study_id))
        self.drivers.take_in(notes)
        return notes

    def _write_note(self, name: str, note: Any) -> None:
        self._storage.set_study_system_attr(self.study._study_id, name, note)

    def _renew(self, **facts: Any) -> None:
        """Renew the lease, unless another run has it."""
        self._swap(self._lease.owns, {**self._lease.note(), "share": self.drivers.share, **facts})

    def _renew_unless_lost(self, note: Any) -> None:
        if self._lease.owns(note) and not note.get("released"):
            self._renew()
        self._renewed = time.monotonic()

    def _tick(self) -> None:
        """In the writing thread: renew the lease now and then, unless it was taken away."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._check_file()
        note = self._read_notes().get(LEASE)
        mine = self._lease.owns(note)
        if not mine and not (self.drivers.share and (note is None or note.get("share") or holder(note) is None)):
            self.lost(f"study {self.name!r} was taken over by {holder(note) or 'another run'}")
        self._renew_unless_lost(note)
        self.show_spent()

    def show_spent(self, *, ended: bool = False) -> None:
        """Renew this driver's note with what it has spent, and show what all have."""
        if self.broken is None and self.meter is not None:
            self._spending.write(self.meter, ahead=not ended)
            self.study.set_user_attr("spent", self.meter.spent(at_end=ended))
        elif self.broken is None and self.drivers.share:
            self.drivers.announce()

    def _identity(self) -> object:
        """Of the storage's file, if it is one: another file under the same name has another."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return "deleted"
        return found.st_dev, found.st_ino

    def _check_file(self) -> None:
        """A SQLite file that was deleted can be written forever, and nobody would find it again."""
        if self.broken is None and self._identity() != self._file_id:
            raise self._storage.give_up(FileNotFoundError(f"{self._file} was deleted or replaced during the run"))

    def _let_go(self) -> None:
        self._lease.release()
        try:
            if hasattr(self, "study") and self.broken is None:
                if self.drivers.announced:
                    self.drivers.announce(released=True)
                if self._lease.owns(self._read_notes().get(LEASE)):
                    self._renew(released=True)
        except Exception as error:
            logger.debug("The lease could not be released: %s", said(error))
        if self._file is not None and (rdb := relational(self._storage.inner)) is not None:
            rdb.engine.dispose()  # with the last connection to a SQLite file go the files that it has beside it

"""A run on disk: what it is, what it has produced and scored so far, and taking it up again."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.records import Job
from dspy.promptune.errors import OptionError, StorageError
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.secrets import SecretMasker, said
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.backend import Opened, changed_trials, open_storage
from dspy.promptune.storage.claims import swap
from dspy.promptune.storage.drivers import DRIVER, OWNER, WATCH_SECONDS, SharedDrivers
from dspy.promptune.storage.encoding import as_json
from dspy.promptune.storage.history import RunHistory, history_of, told_scores
from dspy.promptune.storage.lease import RENEW_SECONDS, Lease, abroad, holder
from dspy.promptune.storage.manifest import differences
from dspy.promptune.storage.messages import explain
from dspy.promptune.storage.spending import SpendingNotes
from dspy.promptune.storage.writer import SafeStorage, Writer
from dspy.promptune.visible import visible

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from dspy.promptune.limits.budgets import BudgetMeter

__all__ = ["StudyStore", "open_study_store"]

logger = logging.getLogger(__name__)

PREFIX = "promptune:"  # of the attributes that a run needs to go on; those for people have plain names
LEASE = PREFIX + "lease"
SCORES = PREFIX + "early_scores:"
WAIT_SECONDS = 0.5  # between two looks at whether the driver that makes the candidates has made them


def open_study_store(
    storage: Any, study_name: str | None, resume: Any, default_name: str, share: bool = False
) -> StudyStore | None:
    """The store that the options ask for; ``None`` where nothing is to be kept.

    Raises:
        OptionError: ``study_name``, ``resume`` or ``share`` without ``storage``, or a value that is none of theirs.
        StorageError: The storage cannot be opened, or not be shared.
    """
    if resume not in (False, True, "force"):
        raise OptionError(f'resume={resume!r}: it must be False, True or "force".')
    if share not in (False, True):
        raise OptionError(f"share={share!r}: it must be False or True.")
    if storage is None:
        given = {"study_name": study_name, "resume": resume or None, "share": share or None}
        for name, value in given.items():
            if value is not None:
                raise OptionError(f"{name}={value!r} needs storage=: a file such as runs.db, or a URL.")
        return None
    if study_name is not None and (not isinstance(study_name, str) or not study_name):
        raise OptionError(f"study_name={study_name!r}: it must be a text, or None for {default_name!r}.")
    if study_name is not None and visible(study_name) != study_name:
        raise OptionError(f"study_name={study_name!a}: it must be a text without control characters.")
    opened = open_storage(storage)
    if share and opened.journal:
        raise StorageError(
            f"The storage {opened.place} is a journal, which a process that is killed while it writes would break for "
            "the others: with share=True use a database server such as PostgreSQL, or on one machine a SQLite file."
        )
    return StudyStore(opened, study_name or default_name, resume, SecretMasker(), share=share)


class StudyStore:
    """One study in a storage, held by this run from :meth:`begin` to :meth:`close`.

    Args:
        opened: Where.
        name: Of the study.
        resume: What to do when the study is there already: ``False`` refuses, ``True`` continues it if it is the
            same run, ``"force"`` goes on in any case.
        scrubber: Keeps secrets out.
        share: Whether others may run it at the same time. A study that is there is continued, then.

    Attributes:
        leads: Whether this run makes the candidates; false where it takes those of another driver.
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

    def begin(self, manifest: Mapping[str, Any], seconds_left: Callable[[], float] = lambda: math.inf) -> None:
        """Create the study, or take it up: nobody else must be running it, and it must be the same run.

        A study that is shared is joined: as the driver that makes the candidates, or when another has made them.

        Args:
            manifest: What the run is.
            seconds_left: For how long another driver may be waited for.

        Raises:
            StorageError: It is there and was not to be resumed, is being run, or is another run; each difference is
                named.
            Stopped: The time is over.
        """
        try:
            if known := self._load_study():
                self._refuse_if_held()
                self._check(manifest)
            self._opened.prepare()
            known = known or self._create_study()
            if self.drivers.share:
                self._join(seconds_left)
                self.resumed = not self.leads or "format" in self.study.user_attrs
            else:
                self._take(known)
            if not self.leads:
                self._check(manifest)
            if self.leads:
                if known:
                    self._bury()
                for name, value in manifest.items():
                    self.study.set_user_attr(name, value)
            self._file_id = self._identity()
        except BaseException as error:
            self._let_go()
            if isinstance(error, Exception) and not isinstance(error, (StorageError, OptionError, Stopped)):
                raise explain(error, self.place) from error
            raise
        if self.drivers.share:
            self._storage.signature = {OWNER: self.drivers.token}
        self._storage.lenient = True
        self._storage.on_broken = lambda error: self.lost(str(error))
        self._writer = Writer(self._storage, self.study._study_id, self._tick)
        self._writer.start(sum(name.startswith(SCORES) for name in self._notes))
        if self.resumed:
            logger.info("%s study %r in %s.", "Resuming" if self.leads else "Joining", self.name, self.place)

    def recall(self, name: str) -> Any:
        """What was remembered under a name, or ``None``."""
        return self._notes.get(PREFIX + name)

    def remember(self, name: str, value: Any) -> None:
        """Write down a finished piece of work, as JSON, unless a secret is in it. From any thread."""
        self._notes[PREFIX + name] = value
        if as_json(self.clean(value)) != as_json(value):
            logger.warning("Something of step 1 or 2 (%s) holds a secret and is not written: it is not resumed.", name)
        elif self.broken is None:
            self._storage.set_study_system_attr(self.study._study_id, PREFIX + name, value)

    def show(self, name: str, value: Any) -> None:
        """Write down something for people: an attribute of the study."""
        if self.broken is None:
            self.study.set_user_attr(name, value)

    def clean(self, value: Any) -> Any:
        """JSON as it is written: without secrets."""
        return self._storage.masker.value(value)

    def keep_scores(self, job: Job, scores: Mapping[int, float]) -> None:
        """Write scores of a job's examples, and return when they are on disk. From any thread."""
        if self._writer is not None:
            try:
                trial_id = None if job.number < 0 else self._trial_id(job.number)
            except StorageError:
                return
            self._writer.put(trial_id, job.key, scores)

    def early_scores(self) -> dict[Key, dict[int, float]]:
        """Scores of combinations that were written before these had a trial."""
        found: dict[Key, dict[int, float]] = {}
        for name, rows in sorted(self._notes.items()):
            if name.startswith(SCORES):
                for key, example, score in rows:
                    found.setdefault(tuple(key), {})[int(example)] = float(score)
        return found

    def known(self, key: Key) -> set[int]:
        """Examples that a combination is scored on, before the space is known: of trials with all these indices."""
        found = set(self.early_scores().get(key, ()))
        for trial in self._finished():
            if _key_of(trial.params) == key:
                found.update(example for example, _ in told_scores(trial))
                found.update(trial.intermediate_values)
        return found

    def past(self, space: PromptSpace, n_examples: int) -> RunHistory:
        """What was scored before, of the combinations of this space."""
        return history_of(self._finished(), self.early_scores(), space, n_examples)

    def count(self, meter: BudgetMeter) -> None:
        """Let the meter know what earlier starts and other drivers have spent, now and later; write what it counts."""
        self.meter = meter
        self._spending.begin(meter)

    def _finished(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False) if self.resumed or self.drivers.share else []
        return [trial for trial in trials if trial.state.is_finished()]

    def close(self, ended: str | None = None, **shown: Any) -> None:
        """Write what is left, and let go of the study."""
        if self._writer is not None:
            self._writer.close()
        try:
            if self.broken is None and self._writer is not None:
                self._check_file()
                if self.drivers.agreed or not self.drivers.living():
                    for name, value in {**shown, **({"ended": ended} if ended else {})}.items():
                        self.show(name, value)
                self._show_spent(ended=True)
        except StorageError as error:
            logger.debug("Not written: %s", error)
        self._let_go()

    # ------------------------------------------------------------------

    def _load_study(self) -> bool:
        """Load the study if it is there, and say whether it is. Nothing is written.

        Raises:
            StorageError: It is there, and was not to be resumed.
        """
        import optuna

        from dspy.promptune.storage.backend import quiet_optuna

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

        from dspy.promptune.storage.backend import quiet_optuna

        with quiet_optuna():
            try:
                self.study = optuna.create_study(
                    storage=self._storage.inner, study_name=self.name, direction="maximize"
                )
            except optuna.exceptions.DuplicatedStudyError:
                return self._load_study()
        self.study._storage = self._storage  # type: ignore[assignment]
        return False

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
            if seconds_left() <= 0:
                raise Stopped(f"the time was over before {held} had made the candidates")
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

    def _check(self, manifest: Mapping[str, Any]) -> None:
        old = self.study.user_attrs
        if self._resume != "force" and self._foreign():
            raise StorageError(
                f"Study {self.name!r} in {self.place} was not made by promptune: use another study_name, or "
                'resume="force" to add to it.'
            )
        self.refuse(differences(old, self.clean(dict(manifest))))

    def _foreign(self) -> bool:
        """Whether another program has made the study, or put something into it."""
        if "format" in self.study.user_attrs:
            return False
        noted = self._storage.inner.get_study_system_attrs(self.study._study_id)
        ours = all(name.startswith(PREFIX) for name in noted)
        single = [direction.name for direction in self.study.directions] == ["MAXIMIZE"]
        begun = bool(noted) and ours  # a run of ours that ended before it had said what it is
        return not (ours and single) or bool(
            self.study.get_trials(deepcopy=False) or (self.study.user_attrs and not begun)
        )

    def refuse(self, changed: list[str]) -> None:
        """Refuse to continue a run that has changed, unless that is forced.

        Raises:
            StorageError: With all that ``changed``.
        """
        if not changed:
            return
        what = "; ".join(changed)
        if self._resume != "force":
            raise StorageError(
                f"Study {self.name!r} in {self.place} is another run: {what}. Its scores cannot be compared: use "
                'another study_name, undo the change, or accept it with resume="force".'
            )
        logger.warning("Study %r goes on although it has changed: %s.", self.name, what)

    def _bury(self) -> None:
        """Nobody else is at work: what other runs have not ended is over.

        Trials that were running when their process ended are FAILED; the scores they have stay.
        """
        from optuna.trial import TrialState

        spent = self.study.user_attrs.get("spent")
        if spent and not any(name.startswith(DRIVER) and name != DRIVER + self.drivers.token for name in self._notes):
            self._write_note(DRIVER + "before", {"spent": spent, "released": True})  # of a version without these notes
        self.drivers.bury()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            self.close_trial(trial._trial_id)

    def close_trial(self, trial_id: int) -> None:
        """A trial that somebody else has left running is FAILED; the scores it has stay."""
        self._storage.write(_close, self._storage.inner, trial_id)

    def sign(self, number: int, name: str, value: Any) -> None:
        """Write an attribute of a running trial that others must see at once."""
        self._storage.write(self._storage.inner.set_trial_user_attr, self._trial_id(number), name, value)

    def changed_trials(self, ids: set[int], after: int) -> list[FrozenTrial]:
        """See :func:`dspy.promptune.storage.backend.changed_trials`."""
        found: list[FrozenTrial] = self._storage.read(
            changed_trials, self._storage.inner, self.study._study_id, ids, after
        )
        return found

    def refresh(self) -> None:
        """Read again what others have written."""
        self._notes = self._read_notes()

    def search_begins(self) -> None:
        """The candidates are there, and what this run evaluates first is claimed: others may join."""
        self.drivers.announce(open=True)
        if self.leads:
            self._renew(released=True)

    def _read_notes(self) -> dict[str, Any]:
        notes = dict(self._storage.inner.get_study_system_attrs(self.study._study_id))
        self.drivers.take_in(notes)
        return notes

    def _write_note(self, name: str, note: Any) -> None:
        self._storage.set_study_system_attr(self.study._study_id, name, note)

    def _renew(self, **facts: Any) -> None:
        """Renew the lease, unless another run has it."""
        self._swap(self._lease.owns, {**self._lease.note(), "share": self.drivers.share, **facts})

    def _tick(self) -> None:
        """In the writing thread: renew the lease now and then, unless it was taken away."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._check_file()
        note = self._read_notes().get(LEASE)
        mine = self._lease.owns(note)
        who = holder(note) or "another run"
        if not mine and not (self.drivers.share and (note is None or note.get("share") or holder(note) is None)):
            self.lost(f"study {self.name!r} was taken over by {who}")
        self._renew_unless_lost(note)
        self._show_spent()

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

    def _renew_unless_lost(self, note: Any) -> None:
        if self._lease.owns(note) and not note.get("released"):
            self._renew()
        self._renewed = time.monotonic()

    def _show_spent(self, *, ended: bool = False) -> None:
        """Renew this driver's note with what it has spent, and show what all have."""
        if self.broken is None and self.meter is not None:
            self._spending.write(self.meter, ahead=not ended)
            self.study.set_user_attr("spent", self.meter.spent())
        elif self.broken is None and self.drivers.share:
            self.drivers.announce()

    def _let_go(self) -> None:
        self._lease.release()
        if not hasattr(self, "study") or self.broken is not None:
            return
        try:
            if self.drivers.announced:
                self.drivers.announce(released=True)
            if self._lease.owns(self._read_notes().get(LEASE)):
                self._renew(released=True)
        except Exception as error:
            logger.debug("The lease could not be released: %s", said(error))

    def _trial_id(self, number: int) -> int:
        if number not in self._ids:
            study_id = self.study._study_id
            self._ids[number] = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return self._ids[number]


def _close(storage: Any, trial_id: int) -> None:
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    with contextlib.suppress(UpdateFinishedTrialError):  # by its own driver or another, at the same moment
        storage.set_trial_user_attr(trial_id, "error", "The process ended before this evaluation did.")
        storage.set_trial_state_values(trial_id, TrialState.FAIL)


def _key_of(params: Mapping[str, Any]) -> Key:
    """The key of a study's parameters, whose names begin with the number of the predictor."""
    names = sorted(params, key=lambda name: (int(name.partition("_")[0]), name.endswith("_demos")))
    return tuple(params[name] for name in names)

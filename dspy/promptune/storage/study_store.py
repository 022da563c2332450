"""A run on disk: what it is, what it has produced and scored so far, and taking it up again."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.records import DIED, Job
from dspy.promptune.errors import OptionError, StorageError
from dspy.promptune.identity.encoding import as_json
from dspy.promptune.identity.manifest import differences, noticed, other_sizes
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.secrets import SecretMasker
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.backend import changed_trials, open_storage
from dspy.promptune.storage.drivers import DRIVER, OWNER
from dspy.promptune.storage.held_study import PREFIX, HeldStudy
from dspy.promptune.storage.history import RunHistory, history_of, told_scores
from dspy.promptune.storage.messages import explain
from dspy.promptune.storage.writer import Writer
from dspy.promptune.visible import HALF

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from dspy.promptune.limits.budgets import BudgetMeter

__all__ = ["StudyStore", "open_study_store"]

logger = logging.getLogger(__name__)

SCORES = PREFIX + "early_scores:"
OBJECTIVE = ("study:metric_names", ["mean of the examples"])  # as Study.set_metric_names writes it, for dashboards


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
    named = isinstance(study_name, str) and study_name and "\x00" not in study_name and not HALF.search(study_name)
    if study_name is not None and not named:
        raise OptionError(f"study_name={study_name!a}: give a text of whole characters without NUL, or None.")
    opened = open_storage(storage)
    if share and opened.journal:
        raise StorageError(
            f"The storage {opened.place} is a journal, which a process that is killed while it writes would break for "
            "the others: with share=True use a database server such as PostgreSQL, or on one machine a SQLite file."
        )
    return StudyStore(opened, study_name or default_name, resume, SecretMasker(), share=share)


class StudyStore(HeldStudy):
    """One study in a storage, held by this run from :meth:`begin` to :meth:`close`, and what is written in it."""

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
            if self.leads:
                if known:
                    self._bury()
                for name, value in manifest.items():
                    self.study.set_user_attr(name, value)
                self._storage.set_study_system_attr(self.study._study_id, *OBJECTIVE)
            else:
                self._check(manifest)
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
                found |= {*dict(told_scores(trial)), *trial.intermediate_values}
        return found

    def past(self, space: PromptSpace, n_examples: int) -> RunHistory:
        """What was scored before, of the combinations of this space; by force, what failed gets new chances."""
        found = history_of(self._finished(), self.early_scores(), space, n_examples)
        return replace(found, failures=()) if self._resume == "force" else found

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
                if self._storage.outages and not self.drivers.share:
                    self._close_running()  # what a server had made when it went away, and nobody heard of
                if self.drivers.agreed or not self.drivers.living():
                    for name, value in {**shown, **({"ended": ended} if ended else {})}.items():
                        self.show(name, value)
                self.show_spent(ended=True)
        except StorageError as error:
            logger.debug("Not written: %s", error)
        self._let_go()

    def _check(self, manifest: Mapping[str, Any]) -> None:
        if self._resume != "force" and self._foreign():
            raise StorageError(
                f"Study {self.name!r} in {self.place} was not made by promptune: use another study_name, or "
                'resume="force" to add to it.'
            )
        before, manifest = self.study.user_attrs, self.clean(dict(manifest))
        if changed := other_sizes(before, manifest):
            raise StorageError(f"Study {self.name!r} in {self.place} is another run: {changed}.")
        self.refuse(differences(before, manifest))
        if changed := noticed(before, manifest):
            logger.warning("Study %r goes on, though %s", self.name, changed)

    def _foreign(self) -> bool:
        """Whether another program has made the study, or put something into it."""
        if "format" in self.study.user_attrs:
            return False
        noted = self._storage.inner.get_study_system_attrs(self.study._study_id)
        trials = self.study.get_trials(deepcopy=False)
        attributes = self.study.user_attrs  # again: what another driver has written meanwhile begins with the format
        ours = all(name.startswith(PREFIX) for name in noted)
        single = [direction.name for direction in self.study.directions] == ["MAXIMIZE"]
        begun = bool(noted) and ours  # a run of ours that ended before it had said what it is
        return "format" not in attributes and (not (ours and single) or bool(trials or (attributes and not begun)))

    def refuse(self, changed: list[str]) -> None:
        """Refuse to continue a run that has changed, unless that is forced.

        Raises:
            StorageError: With all that ``changed``.
        """
        if not (what := "; ".join(changed)):
            return
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
        spent = self.study.user_attrs.get("spent")
        if spent and not any(name.startswith(DRIVER) and name != DRIVER + self.drivers.token for name in self._notes):
            self._write_note(DRIVER + "before", {"spent": spent, "released": True})  # of a version without these notes
        self.drivers.bury()
        self._close_running()

    def _close_running(self) -> None:
        from optuna.trial import TrialState

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
        return list(self._storage.read(changed_trials, self._storage.inner, self.study._study_id, ids, after))

    def search_begins(self) -> None:
        """The candidates are there, and what this run evaluates first is claimed: others may join."""
        self.drivers.announce(open=True)
        if self.leads:
            self._renew(released=True)

    def _trial_id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        return self._ids[number]


def _close(storage: Any, trial_id: int) -> None:
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    with contextlib.suppress(UpdateFinishedTrialError):  # by its own driver or another, at the same moment
        storage.set_trial_user_attr(trial_id, "error", DIED)
        storage.set_trial_state_values(trial_id, TrialState.FAIL)


def _key_of(params: Mapping[str, Any]) -> Key:
    """The key of a study's parameters, whose names begin with the number of the predictor."""
    names = sorted(params, key=lambda name: (int(name.partition("_")[0]), name.endswith("_demos")))
    return tuple(params[name] for name in names)

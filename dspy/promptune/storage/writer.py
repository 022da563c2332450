"""Writing to a study's storage: scores as they finish, by one thread, many at a time."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from dspy.promptune.errors import StorageError
from dspy.promptune.interrupts import pressed
from dspy.promptune.secrets import SecretMasker
from dspy.promptune.space import Key
from dspy.promptune.storage.backend import relational
from dspy.promptune.storage.lease import RENEW_SECONDS
from dspy.promptune.storage.messages import LOST, away, explain

__all__ = ["SafeStorage", "Writer"]

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 30.0  # that a server may be away during a run; less than it takes other drivers to bury this one
HURRIED_SECONDS = 2.0  # the same after Ctrl-C


class SafeStorage:
    """A storage whose attributes hold no secrets, and which says in one way that it cannot be written any more.

    It stands in a study in the place of the storage ``inner``, and does what that does. The first error of a read or a
    write becomes a :class:`StorageError` and is kept as ``broken``. Once it is ``lenient``, ``on_broken`` is called
    with that, and of later writes only new trials fail: so the run comes to its end with what it has in memory. Before,
    a server that went away is waited for, up to :data:`RECONNECT_SECONDS`, and what failed is done again.
    """

    def __init__(self, inner: Any, place: str, masker: SecretMasker) -> None:
        self.inner, self.place, self.masker = inner, place, masker
        self.broken: StorageError | None = None
        self.lenient = False
        self.on_broken: Callable[[StorageError], None] = lambda error: None
        self.outages = 0  # so often a server went away
        self._away: float | None = None  # since when
        self._lock = threading.Lock()
        self.signature: Mapping[str, Any] = {}
        self._attributes: dict[int, dict[str, Any]] = {}  # of trials that have not ended
        self._checked: dict[str, tuple[Any, str]] = {}  # parameters that the storage took: distribution, and as JSON

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return partial(self.read, found) if callable(found) else found

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's, but written with the trial's end, all at once: until then it says nothing that counts."""
        self._attributes.setdefault(trial_id, {})[key] = self.masker.value(value)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        self.note(self.inner.set_study_user_attr, study_id, key, self.masker.value(value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        self.note(self.inner.set_study_system_attr, study_id, key, value)

    def set_trial_state_values(self, trial_id: int, state: Any, values: Sequence[float] | None = None) -> bool:
        """As Optuna's."""
        if state.is_finished() and (attributes := self._attributes.pop(trial_id, None)):
            self.note(_write_attributes, self.inner, trial_id, attributes)
        return bool(self.note(self.inner.set_trial_state_values, trial_id, state=state, values=values))

    def create_new_trial(self, study_id: int, template_trial: Any = None) -> int:
        """As Optuna's, and the trial has the user attributes of the ``signature`` from its first moment.

        Raises:
            StorageError: It cannot be written, now or since an earlier failure.
        """
        if self.signature:
            template_trial = _signed(template_trial, self.signature)
        return int(self.write(self._create_trial, study_id, template_trial))

    def _create_trial(self, study_id: int, template: Any) -> int:
        """A relational database would be asked ten things for each parameter, even those it has seen before."""
        from optuna.distributions import distribution_to_json
        from optuna.trial import TrialState

        if relational(self.inner) is None:
            return int(self.inner.create_new_trial(study_id, template_trial=template))
        known = self._checked
        if (
            template is None
            or template.state != TrialState.RUNNING
            or template.user_attrs
            or template.system_attrs
            or any(known.get(name, (None,))[0] is not given for name, given in template.distributions.items())
        ):
            trial_id = int(self.inner.create_new_trial(study_id, template_trial=template))
            if template is not None:
                known.update((name, (one, distribution_to_json(one))) for name, one in template.distributions.items())
            return trial_id
        trial_id = int(self.inner.create_new_trial(study_id))
        values = {
            name: (known[name][0].to_internal_repr(value), known[name][1]) for name, value in template.params.items()
        }
        if not _insert_params(self.inner, trial_id, values):
            for name, (value, _) in values.items():
                self.inner.set_trial_param(trial_id, name, value, known[name][0])
        return trial_id

    def set_trial_param(self, *args: Any, **options: Any) -> None:
        """As Optuna's."""
        self.write(self.inner.set_trial_param, *args, **options)

    def set_trial_system_attr(self, *args: Any, **options: Any) -> None:
        """As Optuna's."""
        self.note(self.inner.set_trial_system_attr, *args, **options)

    def note(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Write what the run can go on without: a failure is known from ``broken`` only."""
        try:
            return self.write(function, *args, **options)
        except StorageError:
            if not self.lenient:
                raise
            return None

    def write(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function that writes.

        Raises:
            StorageError: It failed, or one before it did.
        """
        if self.broken is not None:
            raise self.broken
        return self.read(function, *args, **options)

    def read(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function that reads.

        Raises:
            StorageError: It failed.
        """
        from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
        from sqlalchemy.exc import SQLAlchemyError

        # KeyError is Optuna's for a study or trial that somebody deleted, the other for a run that took this one over.
        errors = (OSError, SQLAlchemyError, StorageInternalError, KeyError, UpdateFinishedTrialError)
        tries = 0
        while True:
            try:
                found = function(*args, **options)
            except errors as error:
                if tries and isinstance(error, UpdateFinishedTrialError):
                    return True  # the try whose answer was lost has done it
                if not self._outlasts(error):
                    raise self.give_up(error) from error
                tries += 1
            else:
                self._away = None
                return found

    def _outlasts(self, error: BaseException) -> bool:
        """Wait a moment for a server that is away; False where that is not the matter, or it was for too long."""
        if not self.lenient or self.broken is not None or not away(error):
            return False
        with self._lock:
            first, self._away = self._away is None, self._away or time.monotonic()
            self.outages += first
            waited = time.monotonic() - self._away
        if first:
            logger.warning("The connection to %s was lost: waiting up to %g s for it.", self.place, RECONNECT_SECONDS)
        time.sleep(min(1.0, max(0.1, waited / 2)))
        return waited < (HURRIED_SECONDS if pressed() else RECONNECT_SECONDS) and self.broken is None

    def give_up(self, error: BaseException) -> StorageError:
        """Remember that nothing can be written any more."""
        first = self.broken is None
        self.broken = self.broken or explain(ConnectionError(LOST) if self._away else error, self.place)
        if self.lenient and first:
            logger.error("%s The run ends with what it has.", self.broken)
            self.on_broken(self.broken)
        return self.broken


def _signed(template: Any, signature: Mapping[str, Any]) -> Any:
    from optuna.trial import TrialState, create_trial

    template = template or create_trial(state=TrialState.RUNNING)
    template.user_attrs = {**template.user_attrs, **signature}
    return template


@dataclass
class _Entry:
    """Scores to be written, and who waits for it. ``trial_id=None``: of a combination that has no trial yet."""

    trial_id: int | None
    key: Key
    scores: Mapping[int, float]
    written: threading.Event = field(default_factory=threading.Event)


class Writer:
    """One thread that writes the scores of examples as they finish.

    What finishes while it is writing is written in one go after that, so the storage is asked as often as it can
    answer and no more. :meth:`put` returns when the scores are on disk: a result counts as finished only then, so
    what a crash takes is what was in flight.

    Args:
        storage: Where.
        study_id: Which study.
        tick: Called every few seconds from the writing thread: to renew the lease.
    """

    def __init__(self, storage: SafeStorage, study_id: int, tick: Callable[[], None]) -> None:
        self._storage, self._study_id, self._tick = storage, study_id, tick
        self._entries: SimpleQueue[_Entry | None] = SimpleQueue()
        self._notes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="promptune-writer", daemon=True)

    def start(self, notes: int) -> None:
        """Begin; ``notes`` notes of scores without a trial are there already."""
        self._notes = notes
        self._thread.start()

    def put(self, trial_id: int | None, key: Key, scores: Mapping[int, float]) -> None:
        """Write the scores of a trial's examples, and return when they are written (or cannot be)."""
        if self._closed or self._storage.broken is not None or not scores:
            return
        entry = _Entry(trial_id, key, dict(scores))
        self._entries.put(entry)
        while not entry.written.wait(1.0):
            if self._closed or self._storage.broken is not None:
                return

    def close(self) -> None:
        """Write what is left, and end."""
        if self._thread.is_alive():
            self._entries.put(None)
            self._thread.join(RECONNECT_SECONDS + 5)
        self._closed = True

    def _run(self) -> None:
        going = True
        while going:
            entries, going = self._next()
            try:
                self._write(entries)
                self._tick()
            except StorageError as error:
                logger.debug("Not written: %s", error)
            except Exception as error:
                self._storage.give_up(error)
            for entry in entries:
                entry.written.set()

    def _next(self) -> tuple[list[_Entry], bool]:
        """All that is waiting, or nothing after a while; and whether to go on."""
        found: list[_Entry | None] = []
        try:
            found.append(self._entries.get(timeout=RENEW_SECONDS))
            while True:
                found.append(self._entries.get_nowait())
        except Empty:
            pass
        return [entry for entry in found if entry is not None], None not in found

    def _write(self, entries: list[_Entry]) -> None:
        early = [[e.key, i, score] for e in entries if e.trial_id is None for i, score in e.scores.items()]
        if early:
            name = f"promptune:early_scores:{self._notes}"
            self._notes += 1
            self._storage.set_study_system_attr(self._study_id, name, early)
        rows = [(e.trial_id, i, score) for e in entries if e.trial_id is not None for i, score in e.scores.items()]
        if rows:
            self._storage.write(_write_rows, self._storage.inner, rows)


def _write_rows(storage: Any, rows: list[tuple[int, int, float]]) -> None:
    """Intermediate values of trials: step is the example's index, value its score."""
    from optuna.exceptions import UpdateFinishedTrialError

    if len(rows) > 1 and _in_one_transaction(storage, rows):
        return
    for trial_id, example, score in rows:
        try:
            storage.set_trial_intermediate_value(trial_id, example, score)
        except UpdateFinishedTrialError:
            logger.debug("Trial %d ended before the score of example %d was written.", trial_id, example)


def _write_attributes(storage: Any, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """User attributes of one trial, in one transaction where the storage is a relational database."""
    if not _insert_attributes(storage, trial_id, attributes):
        for name, value in attributes.items():
            storage.set_trial_user_attr(trial_id, name, value)


def _insert_params(storage: Any, trial_id: int, values: Mapping[str, tuple[float, str]]) -> bool:
    """Parameters of a new trial, as internal value and distribution, in one statement."""
    rows = [
        {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": distribution}
        for name, (value, distribution) in values.items()
    ]
    return _insert(storage, "TrialParamModel", lambda _: rows)


def _insert_attributes(storage: Any, trial_id: int, attributes: Mapping[str, Any]) -> bool:
    rows = [{"trial_id": trial_id, "key": name, "value_json": json.dumps(v)} for name, v in attributes.items()]
    return _insert(storage, "TrialUserAttributeModel", lambda _: rows)


def _in_one_transaction(storage: Any, rows: list[tuple[int, int, float]]) -> bool:
    """Scores of examples, all at once."""

    def stored(model: Any) -> list[dict[str, Any]]:
        columns = ("trial_id", "step", "intermediate_value", "intermediate_value_type")
        found = [(*row[:2], *model.intermediate_value_to_stored_repr(row[2])) for row in rows]
        return [dict(zip(columns, row, strict=True)) for row in found]

    return _insert(storage, "TrialIntermediateValueModel", stored)


def _insert(storage: Any, model: str, rows: Callable[[Any], list[dict[str, Any]]]) -> bool:
    """Insert rows into one of Optuna's tables in one statement; False where the storage is no relational database,
    Optuna is another, or one of the rows is there already."""
    from sqlalchemy import insert
    from sqlalchemy.exc import IntegrityError

    rdb = relational(storage)
    if rdb is None:
        return False
    try:
        from optuna.storages._rdb import models

        table = getattr(models, model)
        values = rows(table)
        with rdb.engine.begin() as connection:
            connection.execute(insert(table), values)
    except (ImportError, AttributeError, IntegrityError):
        return False
    return True

"""How long it took to decide on each trial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dspy.promptune.engine.records import Job, Spending
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from optuna.study import Study

__all__ = ["Timed"]


class Timed:
    """Spending that writes into each trial when its proposal began, and how long it took.

    The trial's user attributes are ``proposed`` (local time in ISO form, as Optuna's own times are) and ``proposing``
    (seconds). Jobs that are decided on from outside have neither.

    Args:
        inner: Decides what is evaluated.
        study: Whose trials they are.
    """

    def __init__(self, inner: Any, study: Study) -> None:
        self._inner: Spending = inner
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def next_job(self) -> Job | None:
        """What the inner spending would do, timed."""
        when, began = datetime.now(), time.monotonic()
        job = self._inner.next_job()
        if job is not None:
            storage, seconds = self._study._storage, time.monotonic() - began
            trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, job.number)
            storage.set_trial_user_attr(trial_id, "proposed", when.isoformat(timespec="milliseconds"))
            storage.set_trial_user_attr(trial_id, "proposing", round(seconds, 4))
        return job

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """Hand on."""
        self._inner.told(job, scores)

    def failed(self, job: Job, error: BaseException) -> None:
        """Hand on."""
        self._inner.failed(job, error)

    def best(self) -> Key:
        """Hand on."""
        return self._inner.best()

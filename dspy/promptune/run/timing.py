"""How long it took to decide on each trial."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.records import Job, PolicyWrapper

if TYPE_CHECKING:
    from optuna.study import Study

__all__ = ["Timed"]


class Timed(PolicyWrapper):
    """Spending that writes into each trial when its proposal began, and how long it took.

    The trial's user attributes are ``proposed`` (local time in ISO form, as Optuna's own times are) and ``proposing``
    (seconds). Jobs that are decided on from outside have neither.

    Args:
        inner: Decides what is evaluated.
        study: Whose trials they are.
    """

    def __init__(self, inner: Any, study: Study) -> None:
        super().__init__(inner)
        self._study = study

    def next_job(self) -> Job | None:
        """What the inner spending would do, timed."""
        when, began = datetime.now(), time.monotonic()
        job: Job | None = self._inner.next_job()
        if job is not None:
            storage, seconds = self._study._storage, time.monotonic() - began
            trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, job.number)
            storage.set_trial_user_attr(trial_id, "proposed", when.isoformat(timespec="milliseconds"))
            storage.set_trial_user_attr(trial_id, "proposing", round(seconds, 4))
        return job

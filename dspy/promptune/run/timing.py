"""What a trial's attributes tell of its job beyond its scores: when it was decided on, and what it took."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.errors import StorageError
from dspy.promptune.run.failures import samples_of
from dspy.promptune.run.listeners import LoopListener

if TYPE_CHECKING:
    from dspy.promptune.run.trials import StudyTrials

__all__ = ["JobRecord", "TrialNotes"]


class TrialNotes(LoopListener):
    """Writes into each trial when its proposal began, how long that took, and what its evaluation took.

    The trial's user attributes are ``proposed`` (local time in ISO form, as Optuna's own times are), ``proposing`` and
    ``seconds`` (seconds), ``paid`` (examples newly scored), ``errors`` and ``unreadable`` (examples). Jobs that are
    decided on outside have neither of the first two. One that was cut has ``kept``: examples and scores it had.

    Args:
        trials: Of the study.
    """

    def __init__(self, trials: StudyTrials) -> None:
        self._trials = trials

    def on_start(self, job: Job, when: datetime, seconds: float) -> None:
        """Note the decision."""
        proposed = when.isoformat(timespec="milliseconds")
        self._trials.note(job, proposed=proposed, proposing=round(seconds, 4))

    def on_end(self, job: Job, outcome: Outcome) -> None:
        """Note the evaluation."""
        self.write(job, outcome)

    def write(self, job: Job, outcome: Outcome, **spent: float | None) -> None:
        """Note the evaluation, with ``spent`` tokens and dollars, if it can be written."""
        with contextlib.suppress(StorageError):
            self._trials.note(job, seconds=round(outcome.seconds, 4), paid=len(outcome.scores), **samples_of(outcome))
            noted = {"errors": outcome.errors, "unreadable": outcome.unreadable, **spent}
            self._trials.note(job, **{name: round(amount, 8) for name, amount in noted.items() if amount})
            if outcome.error is not None:
                self._trials.note(job, kind=job.kind, examples=list(job.examples), kept=list(outcome.scores.items()))


class JobRecord(LoopListener):
    """The jobs that ended well, in memory: what is left of a run whose storage fails.

    Args:
        table: Scores so far.

    Attributes:
        jobs: With one score for each of their examples.
    """

    def __init__(self, table: ScoreTable) -> None:
        self._table = table
        self.jobs: list[tuple[Job, Sequence[float]]] = []

    def on_end(self, job: Job, outcome: Outcome) -> None:
        """Keep a job that was scored."""
        if outcome.error is None:
            row = self._table.row(job.key)
            self.jobs.append((job, [row[example] for example in job.examples]))

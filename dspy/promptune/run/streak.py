"""Failures in a row: when a run gives up."""

from __future__ import annotations

from dspy.promptune.allocation.records import Job
from dspy.promptune.space import Key

__all__ = ["FailureStreak"]

MIN_STREAK = 5  # failures one after another, with no example scored between them, before a run gives up
PATIENCE = 4  # times as many prompts may fail once one was scored: the program works, these prompts do not


class FailureStreak:
    """The failures since an example was last scored: prompts at fault, each counted once, and jobs without an answer.

    Args:
        limit: So many in a row are too many; ``None`` is 5, or two rounds of ``n_jobs``.
        n_jobs: Jobs at once.
    """

    def __init__(self, limit: int | None, n_jobs: int) -> None:
        self._limit = limit or max(MIN_STREAK, 2 * n_jobs)
        self._prompts: set[Key] = set()
        self._unanswered = 0

    def scored(self) -> None:
        """An example was scored: nothing failed since."""
        self._prompts.clear()
        self._unanswered = 0

    def failed(self, job: Job, *, blamed: bool) -> None:
        """A job has failed, through the fault of its prompt or for want of an answer."""
        if blamed:
            self._prompts.add(job.key)
        else:
            self._unanswered += 1

    def too_long(self, *, works: bool) -> str | None:
        """What there are too many of, in words.

        Args:
            works: Whether any example was ever scored: then more prompts may fail.
        """
        if self._unanswered >= self._limit:
            return f"{self._unanswered} evaluations got no answer in a row"
        if len(self._prompts) >= self._limit * (PATIENCE if works else 1):
            return f"{len(self._prompts)} prompts failed in a row"
        return None

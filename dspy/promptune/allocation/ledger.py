"""Which jobs are running, and how many calls nobody has claimed yet."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.space import Key

__all__ = ["CallLedger", "RunningJobs"]


class RunningJobs:
    """The jobs that are running, by number and by prompt.

    Args:
        table: Scores already paid for: a job claims a call for each of its examples without one.

    Attributes:
        jobs: By their number.
        under_way: Examples of running jobs, scored before or not.
        full: Full evaluations that are running.
    """

    def __init__(self, table: ScoreTable) -> None:
        self.table = table
        self.jobs: dict[int, Job] = {}
        self.under_way = 0
        self.full = 0
        self._of: dict[Key, dict[int, Job]] = {}
        self._claims: dict[Key, int] = {}
        self._claimed = 0

    def claimed(self) -> int:
        """Calls that running jobs will take."""
        return self._claimed

    def of(self, key: Key) -> Iterable[Job]:
        """The running jobs of a prompt."""
        return self._of.get(key, {}).values()

    def keys(self) -> Iterable[Key]:
        """The prompts of running jobs."""
        return self._of.keys()

    def open(self, job: Job) -> None:
        """The job is running."""
        self.jobs[job.number] = job
        self._count(job, 1)
        self._of.setdefault(job.key, {})[job.number] = job
        self._recount(job.key)

    def close(self, job: Job) -> None:
        """The job is no longer running, if it was."""
        if (known := self.jobs.pop(job.number, None)) is not None:
            self._count(known, -1)
        running = self._of.get(job.key, {})
        running.pop(job.number, None)
        if not running:
            self._of.pop(job.key, None)
        self._recount(job.key)

    def _count(self, job: Job, sign: int) -> None:
        self.under_way += sign * len(job.examples)
        self.full += sign * (job.kind == "full")

    def _recount(self, key: Key) -> None:
        """What is claimed of a prompt has changed: with its jobs, or with the scores that the end of one brought."""
        now = sum(len(self.table.missing(key, job.examples)) for job in self.of(key))
        self._claimed += now - self._claims.pop(key, 0)
        if now:
            self._claims[key] = now


class CallLedger(RunningJobs):
    """The calls of a run: those spent, those that running jobs have claimed, and what is left of ``max_calls``.

    Args:
        table: Scores already paid for.
        max_calls: Examples to evaluate at most.

    Attributes:
        beside: Calls that were spent on writing instructions.
        lost: Calls of evaluations that failed: examples that were tried and have no score.
    """

    def __init__(self, table: ScoreTable, max_calls: int) -> None:
        super().__init__(table)
        self.max_calls = max_calls
        self.beside = 0.0
        self.lost = 0

    @property
    def spent(self) -> float:
        """Calls that are gone: examples scored, those of failed evaluations, and those of writing."""
        return self.table.calls + self.lost + self.beside

    def left(self, affordable: float = math.inf) -> int:
        """Calls that nobody has claimed yet, of at most ``affordable`` that can still be paid for."""
        return int(min(self.max_calls - self.spent, affordable)) - self.claimed()

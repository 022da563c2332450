"""What a compile notes of every job that ends: usage, failures, log lines, and the standing that is shown."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import Job
from dspy.promptune.compile.attributes import Entry, entries_of
from dspy.promptune.counted import counted, score_text
from dspy.promptune.distributed.answers import Answers
from dspy.promptune.distributed.programs import ProgramCache
from dspy.promptune.limits.usage import Usage
from dspy.promptune.naming import prompt_name
from dspy.promptune.progress import Standing
from dspy.promptune.run.failures import FailureLog
from dspy.promptune.run.listeners import LoopListener
from dspy.promptune.run.loop import SearchLoop
from dspy.promptune.run.search import Run
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from dspy.promptune.compile.engine import Engine

__all__ = ["Recorder"]

logger = logging.getLogger(__name__)


class Recorder(LoopListener):
    """Takes note of every job that ended, and shows how the run stands."""

    driver: SearchLoop

    def __init__(self, run: Run, programs: ProgramCache, engine: Engine, max_calls: int) -> None:
        self.run = run
        self.entries: list[Entry] = entries_of(run.past, run.space)
        self._programs, self._engine = programs, engine
        self._usage = Usage()
        self.answers = Answers()
        self._failures = FailureLog(tracebacks=engine.tracebacks)
        self._max_calls = max_calls

    def on_start(self, job: Job, when: datetime, seconds: float) -> None:
        """When it was decided on is noted in its trial."""
        self.run.notes.on_start(job, when, seconds)

    def on_end(self, job: Job, outcome: Outcome) -> None:
        """A job has ended, and is about to be told."""
        if self._engine.callbacks is not None:
            self._engine.callbacks.told(job, outcome, self._programs[job.key])
        tokens, cost = self._usage.tokens, self._usage.cost
        self._usage.read(self._programs[job.key])
        self._usage.add(outcome.spent)
        spent = {"tokens": _more(tokens, self._usage.tokens), "cost": _more(cost, self._usage.cost)}
        self.run.notes.write(job, outcome, **spent)
        self.answers.note(job.key, outcome)
        self._failures.note(outcome, prompt_name(self.run.space, job.key))
        row = self.run.table.row(job.key)
        scores = () if outcome.error else tuple(row[example] for example in job.examples)
        self.entries.append(Entry(job, scores, len(outcome.scores), outcome.error))
        if outcome.error is None:
            level = logging.DEBUG if job.kind == "block" else logging.INFO  # a few examples say little
            logger.log(level, "Trial %d (%s): %s.", job.number, job.kind, self._told(job.key, scores))

    def on_best(self, key: Key) -> None:
        """Another prompt leads."""
        if row := self.run.table.row(key):
            logger.info("In the lead: %s.", self._told(key, tuple(row.values())))

    def _told(self, key: Key, scores: Sequence[float]) -> str:
        mean, count = math.fsum(scores) / len(scores), counted(len(scores), "example")
        return f"{score_text(mean, self.run.table.bounded)} on {count}, {prompt_name(self.run.space, key)}"

    def all_entries(self) -> list[Entry]:
        """Every job of the run that ended, those of other drivers included."""
        if self.run.sharing is None:
            return self.entries
        mine = {entry.job.number for entry in self.entries}
        theirs = entries_of(self.run.sharing.past(), self.run.space)
        return [*self.entries, *(entry for entry in theirs if entry.job.number not in mine)]

    def on_tick(self) -> None:
        """Twice a second: see to the time."""
        meter = self._engine.books.meter
        if meter.caps.timeout is not None and (why := meter.reached()) is not None:
            self.driver.stop(why)

    def begin(self) -> None:
        """The search begins: show how it stands."""
        self._engine.progress.step("Step 3 of 3, search", self._max_calls, "examples", self._standing)

    def _standing(self) -> Standing:
        failed = self.driver.log.failed
        best = self.driver.log.history[-1][1] if self.driver.log.history else None
        row = self.run.table.row(best) if best is not None else {}
        spent = [step for step in self._engine.books.meter.spent().values() if step.get("calls")]
        return Standing(
            count=self.run.table.calls,
            running=self.driver.running,
            done=sum(entry.error is None for entry in self.entries),
            failed=failed,
            raised=self._failures.errors,
            unreadable=self._failures.unreadable,
            in_flight=self._engine.gateway.limiter.in_flight,
            calls=self._engine.gateway.calls,
            best=math.fsum(row.values()) / len(row) if row else None,
            best_on=len(row),
            percent=self.run.table.bounded,
            tokens=int(sum(step["tokens"] for step in spent if "tokens" in step)) or None,
            cost=sum(step["cost"] for step in spent if "cost" in step) or None,
        )

    def close(self) -> None:
        """The run is over."""
        self._engine.progress.close()
        gateway, work = self._engine.gateway, self._engine.work
        logger.info(
            "%s, answers of the cache included; %d at once at most, %d shared, %d retried, %d refused, %d out of time.",
            counted(gateway.calls, "language-model call"), gateway.limiter.peak, gateway.shared, gateway.retried,
            gateway.limiter.refused, self._engine.pool.given_up + (work.late if work is not None else 0),
        )  # fmt: skip
        if work is not None and work.cut:
            logger.info("Not waited for at the end: %s still running.", counted(work.cut, "example"))


def _more(before: float | None, now: float | None) -> float | None:
    return None if now is None else now - (before or 0)

"""The loop of a run: ask, evaluate concurrently, tell."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from queue import Empty, SimpleQueue

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import NOT_FINISHED, Assignment, Job
from dspy.promptune.errors import EvaluationError, MetricError
from dspy.promptune.interrupts import Interrupt, Interrupted, interrupts
from dspy.promptune.limits.answers import account_refused
from dspy.promptune.run.evaluators import Evaluator
from dspy.promptune.run.failures import unfinished
from dspy.promptune.run.jobs import RunJobs
from dspy.promptune.run.listeners import LoopListener, SearchLog
from dspy.promptune.run.schedule import Limits, Schedule
from dspy.promptune.run.streak import FailureStreak, Silence
from dspy.promptune.secrets import cause, said
from dspy.promptune.space import Key
from dspy.promptune.storage.sharing import Sharing

__all__ = ["SearchLoop"]

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5  # how often a run looks after its work while nothing ends
GRACE_SECONDS = 2.0  # for calls in flight to end after an interrupt


class SearchLoop:
    """Runs jobs until none is left to start. All decisions are made in the thread that calls :meth:`run`.

    Args:
        jobs: Decides what is evaluated next, and is told how it ended. Every score is in its table as soon as the
            evaluation ends.
        work: Evaluates.
        schedule: How jobs are handed out.
        limits: When to give up.
        listeners: Take note.
        first: What is evaluated before anything is decided.
    """

    def __init__(
        self,
        jobs: RunJobs,
        work: Evaluator,
        schedule: Schedule,
        *,
        limits: Limits | None = None,
        listeners: Sequence[LoopListener] = (),
        first: Callable[[], Iterable[Assignment]] = tuple,
    ) -> None:
        self.log = SearchLog()
        self._jobs, self._table, self._work = jobs, jobs.ledger.table, work
        self._schedule, self._limits = schedule, limits or Limits()
        self._listeners, self._first, self._sharing = listeners, first, jobs.sharing
        self._tended_at = time.monotonic()
        self._events: SimpleQueue[tuple[Job, Outcome] | None] = SimpleQueue()
        self._ready: list[Job] = []
        self._running: dict[int, Job] = {}
        self._parked: dict[int, Job] = {}  # jobs all of whose missing examples are being evaluated by others
        self._flying: dict[tuple[Key, int], int] = {}  # examples being evaluated, and by which job
        self._parts: dict[int, Outcome] = {}  # what jobs that were taken up again had brought before
        self._tries: dict[int, int] = {}
        self._silence = Silence()
        self._streak = FailureStreak(self._limits.streak, schedule.n_jobs, jobs.ledger, jobs.trials.space)
        self._begun: dict[int, set[int]] = {}  # examples that a running job has begun, in any of its attempts
        self._over = False
        self._last_error: BaseException | None = None
        self._broken: MetricError | None = None
        self._stopping: str | None = None

    @property
    def running(self) -> int:
        """Jobs that are being evaluated."""
        return len(self._running)

    def stop(self, why: str) -> None:
        """Start nothing more; safe from any thread and from a signal handler."""
        self._stopping = self._stopping or why
        if self._jobs.writing is not None:
            self._jobs.writing.stopped = True
        self.wake()

    def wake(self) -> None:
        """Look whether there is room for a job, though none has ended; safe from any thread."""
        self._events.put(None)

    def run(self) -> str:
        """Evaluate until there are no more jobs, and say why it ended.

        Raises:
            EvaluationError: Every job failed so far, too many in a row to go on.
            MetricError: The metric returned what is no number, whatever else was scored.
            KeyboardInterrupt: Interrupted twice, or before anything was scored.
        """
        try:
            with interrupts(Interrupt(self.stop)):
                self._ready.extend(self._jobs.claim(self._first()))
                self._asked(self._ready)
                if self._sharing is not None:
                    self._sharing.begin()
                if self._schedule.batch is None:
                    self._run_free()
                else:
                    self._run_batches(self._schedule.batch)
                ended = self._end()
                return self._jobs.limited or ended
        finally:
            self._work.stop()

    # ------------------------------------------------------------------ the two schedules

    def _run_free(self) -> None:
        while not self._stopping:
            self._fill()
            if self._stopping:
                break
            if not self._running:
                if self._others_go_on():
                    continue
                self._note_best()
                return
            self._ask(self._schedule.ahead - len(self._ready))
            self._settle(self._next_events())
        self._wind_down()

    def _fill(self) -> None:
        """Start what there is room for; what ends meanwhile counts for the next proposal already."""
        while not self._stopping and self._work.room(len(self._running)) and (self._ready or self._ask(1)):
            self._start(self._ready.pop(0))
            with contextlib.suppress(Empty):
                self._settle(self._with_others(self._events.get_nowait()))

    def _settle(self, ended: list[tuple[Job, Outcome]]) -> None:
        for event in ended:
            if self._settled(*event):
                self._note_best(every=self._limits.note_every)

    def _run_batches(self, size: int) -> None:
        while not self._stopping:
            self._ask(size - len(self._ready))
            batch, self._ready = self._ready, []
            if not batch:
                if self._others_go_on():
                    continue
                return
            self._run_batch(batch)
            self._note_best()
        self._wind_down()

    def _run_batch(self, batch: list[Job]) -> None:
        waiting, ended = list(batch), {}
        while (waiting or self._running) and not self._stopping:
            while waiting and self._work.room(len(self._running)):
                self._start(waiting.pop(0))
            for job, outcome in self._next_events():
                if not self._again(job, outcome):
                    ended[job.number] = (job, outcome)
        self._ready.extend(waiting)
        for number in sorted(ended):
            self._settled(*ended[number])

    def _others_go_on(self) -> bool:
        """With nothing to do here: whether others may still leave something. Then it returns a while later."""
        texts = not self._over and self._jobs.writes
        if not texts and (self._sharing is None or self._sharing.over()):
            return False
        with contextlib.suppress(Empty):
            self._events.get(timeout=TICK_SECONDS)  # nothing is running: only somebody who stops the run wakes it
        self._tend()
        return True

    # ------------------------------------------------------------------ one job

    def _ask(self, count: int) -> int:
        """Ask for up to ``count`` jobs; the number of those there were."""
        jobs: list[Job] = []
        while len(jobs) < count and not (self._stopping or self._over):
            when, began = datetime.now(), time.monotonic()
            job = self._jobs.next()
            if job is None:
                break
            for listener in self._listeners:
                listener.on_start(job, when, time.monotonic() - began)
            jobs.append(job)
        self._asked(jobs)
        self._ready.extend(jobs)
        return len(jobs)

    def _asked(self, jobs: list[Job]) -> None:
        self.log.order.extend(("ask", job.number) for job in jobs)

    def _start(self, job: Job) -> None:
        """Evaluate what the job lacks and nobody else, here or elsewhere, does; it ends when these have, too."""
        self._running[job.number] = job
        missing = self._table.missing(job.key, job.examples)
        theirs = self._sharing.held(job) if self._sharing is not None else ()
        mine = [example for example in missing if (job.key, example) not in self._flying and example not in theirs]
        self._flying.update(((job.key, example), job.number) for example in mine)
        self._begun.setdefault(job.number, set()).update(mine)
        if mine:
            self._work.start(job, mine, self._ended)
        elif missing:
            self._parked[job.number] = job
        else:
            self._ended(job, Outcome())

    def _ended(self, job: Job, outcome: Outcome) -> None:
        self._events.put((job, outcome))

    def _next_events(self) -> list[tuple[Job, Outcome]]:
        """Wait for a job to end; itself and those that waited for its examples, as far as they are complete."""
        if time.monotonic() - self._tended_at > TICK_SECONDS:
            self._tend()
        while not self._stopping:
            with contextlib.suppress(Empty):
                event = self._events.get(timeout=TICK_SECONDS / 5 if self._ending() else TICK_SECONDS)
                return self._with_others(event)
            self._tend()
        return []

    def _with_others(self, event: tuple[Job, Outcome] | None) -> list[tuple[Job, Outcome]]:
        """What an event brings, and whatever else has ended by now: all that is known counts for the next proposal."""
        ended: list[tuple[Job, Outcome]] = []
        with contextlib.suppress(Empty):
            while True:
                if event is not None:
                    ended.extend(self._arrived(*event))
                event = self._events.get_nowait()
        return ended

    def _tend(self) -> None:
        self._tended_at = time.monotonic()
        self._work.tend(ending=self._ending())
        for listener in self._listeners:
            listener.on_tick()
        if self._sharing is not None:
            self._look(self._sharing)

    def _look(self, sharing: Sharing) -> None:
        """Go on with what waited for other drivers."""
        if sharing.look():
            self._events.put(None)
        for job in [] if self._stopping else list(self._parked.values()):
            del self._parked[job.number]
            self._start(job)

    def _ending(self) -> bool:
        """Whether what is being evaluated is the last that the budget allows."""
        limit = self._limits.max_calls
        if limit is None or self._ready or self._schedule.batch is not None:
            return False
        return self._over or self._jobs.ledger.spent + len(self._flying) >= limit

    def _arrived(self, job: Job, outcome: Outcome) -> list[tuple[Job, Outcome]]:
        self._land(job, outcome)
        others = [other for other in self._parked.values() if other.key == job.key]
        for other in others:
            del self._parked[other.number]
        complete = []
        if outcome.cut:
            self._over = True
            row = self._table.row(job.key)
            job = replace(job, examples=tuple(example for example in job.examples if example in row))
            self._running[job.number] = job
        for one, ended in [(job, outcome), *((other, Outcome()) for other in others)]:
            result = ended.after(self._parts.pop(one.number, None))
            if result.error is None and self._table.missing(one.key, one.examples):
                if not self._stopping:
                    self._parts[one.number] = result
                    self._start(one)
            else:
                self._running.pop(one.number, None)
                complete.append((one, result))
        return complete

    def _land(self, job: Job, outcome: Outcome) -> None:
        """Write down the scores of a job that ended, and forget that its examples were under way."""
        for example in job.examples:
            if self._flying.get((job.key, example)) == job.number:
                del self._flying[job.key, example]
        for example, score in outcome.scores.items():
            self._table.add(job.key, example, score)

    def _again(self, job: Job, outcome: Outcome) -> bool:
        """Start a failed job once more, if it may be."""
        tries = self._tries.get(job.number, 0)
        again = (outcome.transient and not account_refused(outcome.error)) or self._limits.retry_all
        if outcome.error is None or not again or tries >= self._limits.retries or self._stopping:
            return False
        self._tries[job.number] = tries + 1
        self._parts[job.number] = outcome
        logger.info("Trial %d failed (%s): tried again.", job.number, said(outcome.error))
        self._start(job)
        return True

    def _settled(self, job: Job, outcome: Outcome) -> bool:
        """Tell how a job ended; False when it goes on."""
        if self._again(job, outcome):
            return False
        if outcome.scores:
            self._streak.scored(job.key)
            self._silence.scored(job.key)
        for listener in self._listeners:
            listener.on_end(job, outcome)
        if outcome.error is None:
            row = self._table.row(job.key)
            self._jobs.tell(job, [row[example] for example in job.examples])
            self._begun.pop(job.number, None)
        else:
            self._fail(job, outcome, outcome.error)
        self.log.order.append(("tell" if outcome.error is None else "fail", job.number))
        return True

    def _fail(self, job: Job, outcome: Outcome, error: BaseException) -> None:
        text, blamed, lost = said(error), not outcome.transient and not self._stopping, self._lost(job, outcome)
        what = "did not finish" if (cut := unfinished(text)) else "failed"
        logger.log(logging.INFO if self._stopping else logging.WARNING, "Trial %d %s: %s", job.number, what, text)
        silent = outcome.transient and not (self._stopping or outcome.scores) and self._silence.blames(job.key)
        self._jobs.fail(job, error, blamed=blamed, suspected=silent, lost=lost)
        self.log.failed += not cut
        if self._stopping:
            return
        self._last_error = error
        if isinstance(error, MetricError):
            self._broken = error
            self.stop("the metric is broken")
        if why := self._streak.failed(job.key, lost, blamed=blamed, refused=account_refused(error)):
            self.stop(f"{why}, the last with {text}")

    def _lost(self, job: Job, outcome: Outcome) -> int:
        """Calls that a failed job took for nothing: one at least, lest it fail for ever; none of a refused account."""
        begun = self._begun.pop(job.number, ())
        if account_refused(outcome.error):
            return 0
        unscored = len(self._table.missing(job.key, begun))
        return max(1, unscored if outcome.tried is None else min(unscored, outcome.tried))

    def _note_best(self, *, every: int = 0) -> None:
        """Write down what the run would return now, unless that was done less than ``every`` examples ago."""
        calls, history = self._table.calls, self.log.history
        if not calls or calls - (history[-1][0] if history else 0) < every:
            return
        entry = (calls, self._jobs.policy.best())
        if not history or history[-1][1] != entry[1]:
            for listener in self._listeners:
                listener.on_best(entry[1])
        if not history or history[-1] != entry:
            history.append(entry)

    # ------------------------------------------------------------------ the end

    def _wind_down(self) -> None:
        """Give calls in flight a moment, then leave: what they bring is written down, the rest is FAILED."""
        self._work.stop()
        why = self._stopping or "stopped"
        deadline = time.monotonic() + GRACE_SECONDS
        while (self._running or self._jobs.take_in()) and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                event = self._events.get(timeout=left)
                for one in self._arrived(*event) if event else ():
                    self._settled(*one)
        for job in [*self._running.values(), *self._ready]:
            self._jobs.fail(job, EvaluationError(f"{NOT_FINISHED}: {why}."), blamed=False)
        self._running.clear()
        self._note_best()

    def _end(self) -> str:
        if self._broken is not None:
            raise self._broken
        if self._table.calls:
            return self._stopping or ("the budget is spent" if self._over else self._jobs.over)
        if self._stopping == "interrupted":
            raise Interrupted
        if self._last_error is not None:
            last = said(self._last_error).rstrip(".")
            raise EvaluationError(
                f"Every evaluation failed ({self.log.failed} of {self.log.failed}), the last with {last}. "
                "Fix the program, the metric or the language model and run again."
            ) from cause(self._last_error)
        if self._jobs.ledger.lost and not self._stopping:
            raise EvaluationError(
                "Every evaluation of the earlier starts failed, and the budget is spent or every prompt is out of the "
                'running. Fix the cause, and use another study_name, or resume="force" with a larger budget.'
            )
        return self._stopping or "nothing to evaluate"

"""Evaluations on the workers of a ``concurrent.futures.Executor``: in other processes, or on other machines."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from dspy.promptune.allocation.outcome import Outcome, added
from dspy.promptune.allocation.records import STOPPED, Job
from dspy.promptune.distributed.payload import JobPayload, PayloadBuilder, Record
from dspy.promptune.distributed.programs import EvaluationRules, ProgramCache
from dspy.promptune.distributed.silence import SilentPairs
from dspy.promptune.distributed.stopping import StopMark
from dspy.promptune.distributed.worker import evaluate_block
from dspy.promptune.errors import EvaluationError, MetricError
from dspy.promptune.limits.allowance import WorkerAllowances
from dspy.promptune.limits.budgets import BudgetLimits
from dspy.promptune.limits.gateway import LMGateway, Stopped
from dspy.promptune.limits.pool import Pool
from dspy.promptune.run.evaluators import Done, Keep, keep_nothing
from dspy.promptune.secrets import said
from dspy.promptune.space import Key

__all__ = ["RemoteEvaluator"]

logger = logging.getLogger(__name__)

ROUNDS = 4  # examples of a block at most, as a multiple of its threads: what a lost worker or a stop can cost
PATIENCE = 600.0  # seconds without any result, at least, before blocks that are out count as lost
PACKED = 256  # pickled programs that are kept


@dataclass(eq=False)
class _Going:
    """A job that is being evaluated."""

    job: Job
    done: Done
    program: bytes
    blocks: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    raised: dict[int, str] = field(default_factory=dict)
    refused: bool = False
    start: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Block:
    """Examples of a job that go to a worker together; with ``rounds`` and ``allowance`` once they do."""

    going: _Going
    examples: tuple[int, ...]
    rounds: list[int] = field(default_factory=list)
    allowance: BudgetLimits = field(default_factory=BudgetLimits)
    future: Future[Record] | None = None
    ticket: str = field(default_factory=lambda: uuid.uuid4().hex)


class RemoteEvaluator:
    """Evaluates jobs in blocks of examples on an executor's workers.

    What is out holds places under the run's limit, as many as the block may make calls at once, and an allowance out
    of its budgets; both come back with the block's record. So the limits hold whatever the number of workers.

    A block whose worker was lost fails its job, which is tried again for what is missing. What came back is kept in
    any case, and a record that comes twice, or after its block was given up, changes nothing.

    Attributes:
        cut: Examples that were not waited for at the end: none.
        late: Examples that were given up on workers.

    Args:
        programs: What is run.
        rules: How it is scored.
        executor: Where.
        pool: Threads of this process, for what comes back.
        guard: Its limit is the number of places, its meter has the budgets.
        threads: Examples of one job at once, in one block.
        n_jobs: Jobs at a time; more while there are places.
        keep: Called with the scores of every block before they count.
        packer: Pickles.
    """

    def __init__(
        self,
        programs: ProgramCache,
        rules: EvaluationRules,
        executor: Executor,
        *,
        pool: Pool,
        gateway: LMGateway,
        threads: int,
        n_jobs: int,
        builder: PayloadBuilder,
        keep: Keep = keep_nothing,
    ) -> None:
        self.programs, self.cut, self.late = programs, 0, 0
        self._rules, self._executor, self._pool, self._keep = rules, executor, pool, keep
        self._gateway, self._limiter = gateway, gateway.limiter
        self._threads, self._n_jobs = min(threads, gateway.limiter.limit), n_jobs
        self._slots = math.ceil(gateway.limiter.limit / self._threads)
        self._allowances = WorkerAllowances(gateway.meter, _predictors(programs))
        self._builder = builder
        self._packed: dict[Key, bytes] = {}
        self._sound: set[Key] = set()  # prompts with which program and metric went through an example
        self._silence = SilentPairs()
        self._waiting: deque[_Block] = deque()
        self._out: dict[str, _Block] = {}
        self._sent_at, self._heard_at = 0.0, math.inf  # a cluster may take its time until it answers first
        self._lock = threading.RLock()
        self._stopped, self._mark = False, StopMark()

    # ------------------------------------------------------------------ the contract of Work

    def head_start(self, key: Key, examples: Sequence[int]) -> None:
        """Nothing: while steps 1 and 2 make calls, workers make none, so that the limit holds."""

    def await_heads(self) -> None:
        """Nothing was begun."""

    def room(self, running: int) -> bool:
        """While fewer than ``n_jobs`` are running, or places are free."""
        return running < self._n_jobs or (not self._waiting and self._limiter.in_flight < self._limiter.allowed)

    def start(self, job: Job, missing: Sequence[int], done: Done) -> None:
        """Cut the examples into blocks, and send what there are places for."""
        going = _Going(job, done, self._program(job.key))
        blocks = [_Block(going, examples) for examples in self._cut_up(missing)]
        going.blocks = len(blocks)
        with self._lock:
            if self._stopped:
                blocks[0].going.outcome.error = EvaluationError("The run was stopped.")
                going.blocks = 0
            else:
                self._waiting.extend(blocks)
        self._send()
        self._end_if_over(going)

    def tend(self, *, ending: bool) -> None:
        """Send what waits, and give up what was out for too long."""
        self._send()
        with self._lock:
            silent = time.monotonic() - max(self._heard_at, self._sent_at)
            lost = list(self._out.values()) if silent > self._patience() else []
        for block in lost:
            logger.warning("A block of trial %d is lost.", block.going.job.number)
            self._landed(block, _lost(TimeoutError(f"No worker has answered for {silent:.0f} s.")))

    def stop(self) -> None:
        """Send nothing more, and have blocks that are out begin no call. They may come back until :meth:`cancel`."""
        self._end(EvaluationError(STOPPED))

    def _end(self, why: EvaluationError | MetricError) -> None:
        with self._lock:
            if self._out and not self._stopped:
                self._mark.set()
            self._stopped = True
            dropped = list(self._waiting)
            self._waiting.clear()
        for block in dropped:
            self._drop(block, why)

    def cancel(self) -> None:
        """Take back what is out: a worker that has not begun with a block never will."""
        self.stop()
        with self._lock:
            futures = [block.future for block in self._out.values()]
        for future in futures:
            if future is not None:
                future.cancel()

    # ------------------------------------------------------------------ there

    def _program(self, key: Key) -> bytes:
        """The pickled program of a combination; from the thread that owns the run."""
        if key not in self._packed:
            if len(self._packed) >= PACKED:
                del self._packed[next(iter(self._packed))]
            self._packed[key] = self._builder.program(self.programs[key])
        return self._packed[key]

    def _cut_up(self, examples: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Blocks as large as all places together need, from one to a few examples a thread."""
        size = min(ROUNDS * self._threads, max(self._threads, math.ceil(len(examples) / self._slots)))
        return (tuple(examples[i : i + size]) for i in range(0, len(examples), size))

    def _send(self) -> None:
        """Submit blocks while there are places, and money, for the next one."""
        while (block := self._next()) is not None:
            payload = JobPayload(
                ticket=block.ticket,
                frame=self._builder.frame(),
                program=block.going.program,
                examples=self._builder.examples(block.examples),
                threads=len(block.rounds),
                allowance=block.allowance,
                silent=self._silence.among(block.going.job.key, block.examples),
                stop=self._mark.path,
            )
            try:
                block.future = self._executor.submit(evaluate_block, payload)
            except Exception as error:
                self._landed(block, _lost(error, sent=False))
            else:
                block.future.add_done_callback(partial(self._returned, block))

    def _next(self) -> _Block | None:
        """The next block, with places and an allowance; blocks that will never be paid for are dropped."""
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                block, why = self._waiting[0], self._gateway.meter.reached()
                if why is None and self._supplied(block):
                    self._out[block.ticket] = block
                    self._sent_at = time.monotonic()
                    return self._waiting.popleft()
                if why is None and (self._out or self._limiter.in_flight or self._limiter.paused):
                    return None
                self._waiting.popleft()
            self._drop(block, Stopped(why or "what the limits leave does not pay for another block"))

    def _supplied(self, block: _Block) -> bool:
        """Whether there are places and money for a block; if so, it has them."""
        places = self._places(min(self._threads, len(block.examples)))
        allowance = self._allowances.take(len(block.examples), self._slots) if places else None
        if allowance is None:
            for _ in places:
                self._limiter.give_back()
            return False
        block.rounds, block.allowance = places, allowance
        return True

    def _places(self, wanted: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < wanted and (round_ := self._limiter.try_acquire()) is not None:
            taken.append(round_)
        return taken

    # ------------------------------------------------------------------ back

    def _returned(self, block: _Block, future: Future[Record]) -> None:
        """In a thread of the executor, which must not be held up."""
        try:
            self._pool.submit(self._landed, block, _record_of(future, len(block.examples)))
        except RuntimeError:
            logger.debug("A block came back after the run: it counts for nothing.")
        block.future = None  # it knows the block: held here it would stay, and Dask recompute its result for it

    def _landed(self, block: _Block, record: Record) -> None:
        """A block has come back, or is lost; the first of the two counts."""
        with self._lock:
            if self._out.pop(block.ticket, None) is None:
                return
            self._heard_at = time.monotonic()
            self._settle(block, record)
            again = self._left_over(block, record)
        if record.broken:
            self._end(MetricError(record.error))
        self._send()
        scores = {block.examples[i]: score for i, score in record.scores.items()}
        try:
            if scores:
                self._keep(block.going.job, scores)
        except Exception as error:
            scores, record = {}, Record(error=f"Its scores could not be kept ({said(error, 300)})")
        with self._lock:
            self._note(block, record, scores)
            again = [] if block.going.outcome.error else again
            block.going.blocks += len(again) - 1
            self._waiting.extendleft(again)
        self._send()
        self._end_if_over(block.going)

    def _settle(self, block: _Block, record: Record) -> None:
        """Places, money and counts."""
        counts = record.counts
        refused, slow = counts.get("refused", 0), counts.get("slow", 0)
        for i, taken_in in enumerate(block.rounds):
            told = record.retry_after if i == 0 else None
            first = i == 0
            self._limiter.release(taken_in, refused=first and refused > 0, late=first and slow > 0, retry_after=told)
        if counts.get("lost"):
            self._allowances.lose(block.allowance)
        else:
            self._allowances.settle(block.allowance, record.spent)
        gateway = self._gateway
        for model in record.unpriced:
            gateway.meter.price_unknown(model)
        gateway.calls += counts.get("calls", 0)
        gateway.shared += counts.get("shared", 0)
        gateway.retried += counts.get("retried", 0)
        self.late += counts.get("late", 0)

    def _left_over(self, block: _Block, record: Record) -> list[_Block]:
        """What a block could not pay for, to be sent again with more; nothing where its job has failed."""
        if not record.short:
            return []
        self._allowances.widen()
        seen = {*record.scores, *record.raised}
        missing = tuple(example for i, example in enumerate(block.examples) if i not in seen)
        return [_Block(block.going, missing)] if missing and not self._stopped else []

    def _note(self, block: _Block, record: Record, scores: Mapping[int, float]) -> None:
        going, outcome = block.going, block.going.outcome
        outcome.scores.update(scores)
        outcome.unreadable += record.unreadable
        outcome.spent = added(outcome.spent, record.spent)
        going.raised.update((block.examples[i], text) for i, text in record.raised.items())
        outcome.raised.update(going.raised)
        going.refused = going.refused or record.refused
        if (answered := len(scores) - record.unreadable) > 0:
            self._silence.answered(answered)
            self._sound.add(going.job.key)
        self._silence.note((going.job.key, block.examples[i]) for i in record.silent)
        outcome.unread.update((block.examples[i], text) for i, text in record.unread.items())
        outcome.errors = len(going.raised)
        if outcome.errors >= self._rules.max_errors:
            self._fail(going, EvaluationError(next(iter(going.raised.values()))))
        elif record.error is not None and not record.short:
            kind = MetricError if record.broken else EvaluationError
            self._fail(going, kind(record.error), transient=record.transient)

    def _fail(self, going: _Going, error: BaseException, *, transient: bool = False) -> None:
        """The rest of a job would help nobody."""
        if going.outcome.error is None:
            going.outcome.error, going.outcome.transient = error, transient
        left = [block for block in self._waiting if block.going is going]
        for block in left:
            self._waiting.remove(block)
        going.blocks -= len(left)

    def _drop(self, block: _Block, error: BaseException) -> None:
        """A block that is not sent any more."""
        with self._lock:
            block.going.outcome.error = block.going.outcome.error or error
            block.going.blocks -= 1
        self._end_if_over(block.going)

    def _end_if_over(self, going: _Going) -> None:
        with self._lock:
            if going.blocks:
                return
            going.blocks = -1
        outcome, failure = going.outcome, self._rules.failure_score
        outcome.seconds = time.monotonic() - going.start
        to_blame = going.refused or going.job.key not in self._sound
        if outcome.error is None and going.raised and not outcome.scores and to_blame:
            outcome.error = EvaluationError(next(iter(going.raised.values())))
        if outcome.error is None:
            outcome.scores.update(dict.fromkeys(going.raised, failure))
        going.done(going.job, outcome)

    def _patience(self) -> float:
        """Seconds in which some block comes back, if any worker is alive."""
        limit = self._rules.timeout
        return math.inf if limit is None else max(PATIENCE, (ROUNDS + 1) * (self._rules.retries + 1) * limit)


def _record_of(future: Future[Record], examples: int) -> Record:
    """What a block brought; that of a lost block where it brought nothing that can be used."""
    try:
        return _checked(future.result(), examples)
    except CancelledError:
        return _lost(RuntimeError("It was canceled."))
    except BaseException as error:
        return _lost(error)


def _checked(record: Any, examples: int) -> Record:
    """A record of this version, about these examples; a worker may run another, and an executor may be any."""
    if not isinstance(record, Record):
        raise TypeError(f"the executor returned a {type(record).__name__} instead of a record")
    strange = [i for i in (*record.scores, *record.raised, *record.silent) if not 0 <= i < examples]
    numbers = [*record.scores.values(), *record.counts.values(), *record.spent.values()]
    if strange or not all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers):
        raise ValueError("its record is about other examples, or holds what is no number")
    return Record(**{each.name: getattr(record, each.name, getattr(_EMPTY, each.name)) for each in fields(Record)})


_EMPTY = Record()


def _lost(error: BaseException, *, sent: bool = True) -> Record:
    """The record of a block whose worker will not say how it ended."""
    return Record(error=f"The worker was lost ({said(error, 300)})", transient=True, counts={"lost": int(sent)})


def _predictors(programs: ProgramCache) -> int:
    return len(next(iter(programs.built())).predictors())

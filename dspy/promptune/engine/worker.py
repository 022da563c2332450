"""One block on a worker of an executor: the run's own machinery, in another process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dspy.clients.base_lm import BaseLM
from dspy.promptune.engine.budgets import SEARCH, Meter
from dspy.promptune.engine.driver import interrupts
from dspy.promptune.engine.guard import Guard, Stopped, guarded
from dspy.promptune.engine.outcome import Outcome
from dspy.promptune.engine.parcel import Frame, Parcel, Record
from dspy.promptune.engine.pool import Pool
from dspy.promptune.engine.programs import Programs, ProgramWork, Rules
from dspy.promptune.engine.records import Job
from dspy.promptune.scrub import said

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["evaluate_block"]

FRAMES = 4  # runs whose settings a worker remembers, so that their language models keep their connections
POLL_SECONDS = 0.02


def evaluate_block(parcel: Parcel) -> Record:
    """Run a block, and say how it ended; never raises for what a program, a metric or a language model does.

    It returns when no call of the block is in flight any more, so that the places it was given are free again.
    """
    start = time.monotonic()
    try:
        frame = _frame(parcel.frame)
        program, examples = pickle.loads(parcel.program), pickle.loads(parcel.examples)
    except Exception as error:
        return Record(error=f"The worker {_worker()} cannot read the program: {said(error)}", worker=_worker())
    rules = Rules(
        metric=frame.metric,
        valset=examples,
        max_errors=frame.max_errors,
        failure_score=frame.failure_score,
        retries=frame.retries,
        timeout=frame.timeout,
        part=True,
    )
    record = _evaluated(program, rules, parcel, frame.settings)
    return Record(**{**record, "seconds": time.monotonic() - start, "worker": _worker()})


def _evaluated(program: Module, rules: Rules, parcel: Parcel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record."""
    kept: dict[int, float] = {}
    ended: list[Outcome] = []
    meter, over = Meter(parcel.allowance, warn=False), threading.Event()
    guard, pool = Guard(parcel.threads, meter), Pool(parcel.threads, name="promptune-block")

    def done(_: Job, outcome: Outcome) -> None:
        ended.append(outcome)
        over.set()

    positions = tuple(range(len(rules.valset)))
    with guard.active(**_guarded(settings)), pool, _interruptible(guard):
        work = ProgramWork(Programs(program, ()), rules, pool, 1, keep=lambda _, scores: kept.update(scores))
        work.start(Job(0, (), positions, "block"), positions, done)
        while not over.wait(1.0):
            if guard.limiter.stopped:
                work.stop()
        while pool.free < pool.workers:
            time.sleep(POLL_SECONDS)
    return _fields(ended[0], kept, guard, pool)


def _fields(outcome: Outcome, kept: dict[int, float], guard: Guard, pool: Pool) -> dict[str, Any]:
    spent = guard.meter.spent()[SEARCH]
    limiter = guard.limiter
    return {
        "scores": kept,
        "raised": {i: said(error) for i, error in outcome.raised.items()},
        "unreadable": outcome.unreadable,
        "error": None if outcome.error is None else said(outcome.error),
        "transient": outcome.transient,
        "short": isinstance(outcome.error, Stopped) and not limiter.stopped,
        "spent": {name: spent[name] for name in ("calls", "tokens", "cost") if name in spent},
        "counts": {
            "calls": guard.calls, "shared": guard.shared, "retried": guard.retried, "refused": limiter.refused,
            "late": pool.given_up,
        },
        "retry_after": limiter.retry_after,
        "unpriced": sorted(guard.meter.unpriced),
    }  # fmt: skip


@lru_cache(FRAMES)
def _frame(pickled: bytes) -> Frame:
    frame: Frame = pickle.loads(pickled)
    return frame


def _guarded(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: guarded(value) if isinstance(value, BaseLM) else value for name, value in settings.items()}


@contextlib.contextmanager
def _interruptible(guard: Guard) -> Iterator[None]:
    """In a process of its own, Ctrl-C ends the block with what it has; the run sees to all the rest."""
    if multiprocessing.parent_process() is None:
        yield
        return
    with interrupts(guard.stop):
        yield


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"

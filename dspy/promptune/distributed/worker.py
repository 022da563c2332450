"""One block on a worker of an executor: the run's own machinery, in another process."""

from __future__ import annotations

import contextlib
import contextvars
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
from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import STOPPED, Job
from dspy.promptune.distributed.payload import Frame, JobPayload, Record
from dspy.promptune.distributed.programs import EvaluationRules, ProgramCache, ProgramEvaluator
from dspy.promptune.distributed.stopping import StoppableMeter
from dspy.promptune.errors import MetricError
from dspy.promptune.interrupts import interrupts
from dspy.promptune.limits.answers import of_model
from dspy.promptune.limits.budgets import SEARCH
from dspy.promptune.limits.gateway import LMGateway, Stopped
from dspy.promptune.limits.pool import Pool
from dspy.promptune.limits.views import own_calls_held, through_gateway
from dspy.promptune.secrets import said

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["evaluate_block"]

FRAMES = 4  # runs whose settings a worker remembers, so that their language models keep their connections
POLL_SECONDS = 0.02


def evaluate_block(payload: JobPayload) -> Record:
    """Run a block, and say how it ended; never raises for what a program, a metric or a language model does.

    It returns when no call of the block is in flight any more, so that the places it was given are free again. It works
    in a context of its own: an executor may carry the run's, whose limits are on the run's own calls.
    """
    start = time.monotonic()
    try:
        frame = _frame(payload.frame)
        program, examples = pickle.loads(payload.program), pickle.loads(payload.examples)
    except Exception as error:
        return Record(error=f"The worker {_worker()} cannot read the program: {said(error)}", worker=_worker())
    rules = EvaluationRules(
        metric=frame.metric,
        valset=examples,
        max_errors=frame.max_errors,
        failure_score=frame.failure_score,
        retries=frame.retries,
        timeout=frame.timeout,
        part=True,
    )
    record = contextvars.Context().run(_evaluated, program, rules, payload, frame.settings)
    return Record(**{**record, "seconds": time.monotonic() - start, "worker": _worker()})


def _evaluated(
    program: Module, rules: EvaluationRules, payload: JobPayload, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a record."""
    kept: dict[int, float] = {}
    ended: list[Outcome] = []
    meter, over = StoppableMeter(payload.allowance, payload.stop), threading.Event()
    gateway = LMGateway(payload.threads, meter, view=through_gateway)
    meter.on_stop = gateway.stop
    pool = Pool(payload.threads, name="promptune-block")

    def done(_: Job, outcome: Outcome) -> None:
        ended.append(outcome)
        over.set()

    positions = tuple(range(len(rules.valset)))
    with own_calls_held(), gateway.active(**_guarded(settings)), pool, _interruptible(gateway):
        work = ProgramEvaluator(ProgramCache(program, ()), rules, pool, 1, keep=lambda _, scores: kept.update(scores))
        work.silence.expect(((), i) for i in payload.silent)
        work.start(Job(0, (), positions, "block"), positions, done)
        while not over.wait(1.0):
            if meter.run_over or gateway.limiter.stopped:
                work.stop()
        while pool.free < pool.workers:
            time.sleep(POLL_SECONDS)
    return {**_fields(ended[0], kept, gateway, pool), "silent": [i for _, i in work.silence.pairs]}


def _fields(outcome: Outcome, kept: dict[int, float], gateway: LMGateway, pool: Pool) -> dict[str, Any]:
    spent = gateway.meter.spent()[SEARCH]
    limiter = gateway.limiter
    return {
        "scores": kept,
        "raised": {i: _text(error) for i, error in outcome.raised.items()},
        "refused": any(isinstance(error, BaseException) and of_model(error) for error in outcome.raised.values()),
        "unread": {i: _text(error) for i, error in [*outcome.unread.items()][:1]},
        "unreadable": outcome.unreadable,
        "error": None if outcome.error is None else STOPPED if limiter.stopped else said(outcome.error),
        "transient": outcome.transient,
        "broken": isinstance(outcome.error, MetricError),
        "short": isinstance(outcome.error, Stopped) and not limiter.stopped,
        "spent": {name: spent[name] for name in ("calls", "tokens", "cost") if name in spent},
        "counts": {
            "calls": gateway.calls, "shared": gateway.shared, "retried": gateway.retried, "refused": limiter.refused,
            "late": pool.given_up, "slow": limiter.late,
        },
        "retry_after": limiter.retry_after,
        "unpriced": sorted(gateway.meter.unpriced),
    }  # fmt: skip


def _text(error: BaseException | str) -> str:
    return error if isinstance(error, str) else said(error)


@lru_cache(FRAMES)
def _frame(pickled: bytes) -> Frame:
    frame: Frame = pickle.loads(pickled)
    return frame


def _guarded(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: through_gateway(value) if isinstance(value, BaseLM) else value for name, value in settings.items()}


@contextlib.contextmanager
def _interruptible(gateway: LMGateway) -> Iterator[None]:
    """In a process of its own, Ctrl-C ends the block with what it has; the run sees to all the rest."""
    if multiprocessing.parent_process() is None:
        yield
        return
    with interrupts(gateway.stop):
        yield


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"

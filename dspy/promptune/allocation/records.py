"""What a run writes down: jobs, per-example scores, and the contract between spending and the engine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dspy.promptune.space import Key

__all__ = ["AllocationPolicy", "Job", "JobKind", "PolicyWrapper", "ScoreTable"]

JobKind = Literal["block", "minibatch", "full"]


@dataclass(frozen=True)
class Job:
    """One evaluation: the program of ``key`` on ``examples`` (indices of the validation set).

    ``number`` is the number of the study's trial that stands for it. Examples of the key that are already scored are
    not paid for again: the engine runs the missing ones only, and tells the scores of all.
    """

    number: int
    key: Key
    examples: tuple[int, ...]
    kind: JobKind


class AllocationPolicy(Protocol):
    """Decides what the next calls are spent on. The engine calls it under one lock, one thread at a time.

    The order is: ``next_job`` any number of times, then for each job exactly one of ``told`` and ``failed``, in any
    order of jobs. ``best`` may be called at any time.
    """

    def next_job(self) -> Job | None:
        """The next evaluation to start, given everything told and running.

        ``None`` means that nothing is worth starting now; with no job running, that the run is over.
        """

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """A job ended with one score for each of ``job.examples``, in their order."""

    def failed(self, job: Job, error: BaseException) -> None:
        """A job could not be scored: its trial is FAILED, and no number stands for it."""

    def best(self) -> Key:
        """The combination that the run would return at this moment."""


class PolicyWrapper:
    """Spending that leaves to another what it does not change; other attributes are the other's, too.

    Args:
        inner: Decides what is evaluated.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def claim(self, key: Key, examples: Sequence[int], kind: JobKind) -> Job:
        """A job that is decided on from outside."""
        job: Job = self._inner.claim(key, examples, kind)
        return job

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """Hand on."""
        self._inner.told(job, scores)

    def failed(self, job: Job, error: BaseException) -> None:
        """Hand on."""
        self._inner.failed(job, error)

    def best(self) -> Key:
        """Hand on."""
        key: Key = self._inner.best()
        return key


class ScoreTable:
    """Per-example scores of every combination: what has been paid for, and will not be paid again. Thread-safe."""

    def __init__(self) -> None:
        self._scores: dict[Key, dict[int, float]] = {}
        self._lock = threading.Lock()
        self._calls = 0

    @property
    def calls(self) -> int:
        """Number of (combination, example) pairs scored so far."""
        return self._calls

    def add(self, key: Key, example: int, score: float) -> None:
        """Write down one score; a pair that is already there keeps its first score."""
        with self._lock:
            row = self._scores.setdefault(key, {})
            if example not in row:
                row[example] = score
                self._calls += 1

    def row(self, key: Key) -> dict[int, float]:
        """The scores of a combination so far, by example (a copy)."""
        with self._lock:
            return dict(self._scores.get(key, ()))

    def count(self, key: Key) -> int:
        """How many examples of a combination are scored."""
        return len(self._scores.get(key, ()))

    def __len__(self) -> int:
        """How many combinations have a score."""
        return len(self._scores)

    def missing(self, key: Key, examples: Iterable[int]) -> list[int]:
        """Those of ``examples`` that the combination has no score for, in their order."""
        row = self._scores.get(key, {})
        return [example for example in examples if example not in row]

    def keys(self) -> list[Key]:
        """The combinations with at least one score, sorted: threads have no say in their order."""
        with self._lock:
            return sorted(self._scores)

"""What a search is made of: assignments, jobs, per-example scores, and the contract of allocation policies."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from dspy.promptune.space import Key, PromptSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = [
    "DIED",
    "NOT_FINISHED",
    "STOPPED",
    "TEXT",
    "AllocationPolicy",
    "Assignment",
    "Job",
    "JobKind",
    "ScoreTable",
    "frozen",
    "is_text",
]

JobKind = Literal["block", "minibatch", "full"]
NOT_FINISHED = "Not finished"  # how the error of a job begins that was under way when its run ended,
STOPPED = "The run was stopped before this evaluation ended."  # or was told so,
DIED = "The process ended before this evaluation did."  # or was found by a later start
TEXT = "write"  # user attribute ``kind`` of a trial that stands for no job, but for a text


@dataclass(frozen=True)
class Assignment:
    """A decision: evaluate the prompt ``key`` on ``examples`` (indices of the validation set)."""

    key: Key
    examples: tuple[int, ...]
    kind: JobKind


@dataclass(frozen=True)
class Job:
    """One evaluation: the program of ``key`` on ``examples`` (indices of the validation set).

    ``number`` is the number of the study's trial that stands for it. Examples of the key that are already scored are
    not paid for again: the loop runs the missing ones only, and tells the scores of all.
    """

    number: int
    key: Key
    examples: tuple[int, ...]
    kind: JobKind


class AllocationPolicy(Protocol):
    """Decides what the next calls are spent on, and nothing else: it knows no study, storage, clock or thread.

    It is called by one thread at a time. ``next_job`` only decides: what is begun is told by ``started``. Then comes
    exactly one of ``told``, ``failed`` and ``dropped`` for each job, in any order of jobs. Jobs of other drivers of a
    shared study, of earlier starts of the run, and those that are decided on outside arrive in the same way; one whose
    beginning nobody saw may be told without having been started. A job's number is its name here, and no more.

    Before ``told``, the scores are in the :class:`ScoreTable` that the policy was built with; scores of a job that is
    still running may be there already.
    """

    def next_job(self, left: int) -> Assignment | None:
        """The next evaluation to start, given everything told and running.

        ``None`` means that nothing is worth starting now; with no job running, that the search is over.

        Args:
            left: Calls that may still be claimed. One call scores one example of one prompt that has no score yet.
        """

    def confirm(self, left: int) -> Assignment | None:
        """The full evaluation of the best prompt, for when a limit has ended the search.

        ``None`` where it has all its scores, or would take more than ``left`` calls.
        """

    def started(self, job: Job) -> None:
        """A job is running."""

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """A job ended with one score for each of ``job.examples``, in their order."""

    def failed(self, job: Job, error: BaseException) -> None:
        """A job could not be scored, and its prompt is to blame: after two of these it is out of the running."""

    def dropped(self, job: Job) -> None:
        """A job ended without its scores, and its prompt is not to blame: no answer came, or it was canceled."""

    def best(self) -> Key:
        """The combination that the run would return at this moment."""


class ScoreTable:
    """Per-example scores of every combination: what has been paid for, and will not be paid again. Thread-safe.

    Attributes:
        examples: Those that any combination has a score on.
        bounded: Whether all scores are from 0 to 1.
    """

    def __init__(self) -> None:
        self.examples: set[int] = set()
        self.bounded = True
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
                self.examples.add(example)
                self.bounded = self.bounded and 0 <= score <= 1
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

    def mean(self, key: Key) -> float:
        """Mean of a combination's scores so far; NaN without any."""
        row = self.row(key)
        return math.fsum(row.values()) / len(row) if row else math.nan

    def missing(self, key: Key, examples: Iterable[int]) -> list[int]:
        """Those of ``examples`` that the combination has no score for, in their order."""
        row = self._scores.get(key, {})
        return [example for example in examples if example not in row]

    def keys(self) -> list[Key]:
        """The combinations with at least one score, sorted: threads have no say in their order."""
        with self._lock:
            return sorted(self._scores)


def frozen(space: PromptSpace, jobs: Sequence[tuple[Job, Sequence[float]]]) -> list[FrozenTrial]:
    """Jobs that ended well as the trials that a study would have of them."""
    from optuna.distributions import BaseDistribution
    from optuna.trial import create_trial

    distributions: dict[str, BaseDistribution] = {**space.distributions()}
    trials = []
    for job, scores in jobs:
        noted = {"kind": job.kind, "examples": list(job.examples), "scores": list(scores)}
        mean = math.fsum(scores) / len(scores)
        trial = create_trial(
            value=mean, params=space.params(job.key), distributions=distributions, user_attrs=noted
        )  # fmt: skip
        trial.number = job.number
        trials.append(trial)
    return sorted(trials, key=lambda trial: trial.number)


def is_text(trial: FrozenTrial) -> bool:
    """Whether a trial stands for a text."""
    return trial.user_attrs.get("kind") == TEXT

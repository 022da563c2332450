"""Evaluations that are under way: one job's state, and one that began before its job."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import Job
from dspy.promptune.run.evaluators import Done
from dspy.promptune.secrets import readable

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["Abandoned", "Head", "Lost", "Silent", "State"]


class Lost(Exception):  # noqa: N818 - the error is what it holds
    """An example got no answer in one evaluation after another, whatever the prompt, while others did."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(readable(error)))
        self.error = error


class Silent(Lost):
    """Every reply to one prompt on one example was empty, while others were answered."""


class Abandoned(Exception):  # noqa: N818 - nothing went wrong
    """The job of this task has failed already: its answer would help nobody."""


@dataclass
class State:
    """A job that is being evaluated."""

    job: Job
    program: Module
    waiting: int
    done: Done
    outcome: Outcome = field(default_factory=lambda: Outcome(call_id=uuid.uuid4().hex))
    first_error: BaseException | None = None
    lost: BaseException | None = None  # no answer came for an example: nothing more of the job is started
    refused: bool = False  # a model gave no answer to one of the examples that raised
    running: set[int] = field(default_factory=set)
    start: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: bool = False


class Head:
    """An evaluation that began before its job: keeps its end until the job takes it over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None
        self._heir: tuple[Job, Done] | None = None

    @property
    def over(self) -> bool:
        """Whether the evaluation is over."""
        return self._outcome is not None

    def ended(self, _: Job, outcome: Outcome) -> None:
        """The evaluation is over."""
        with self._lock:
            self._outcome = outcome
            heir = self._heir
        if heir is not None:
            heir[1](heir[0], outcome)

    def take_over(self, job: Job, done: Done) -> None:
        """From now on it is this job's."""
        with self._lock:
            self._heir = (job, done)
            outcome = self._outcome
        if outcome is not None:
            done(job, outcome)

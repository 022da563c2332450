"""What went wrong in steps 1 and 2 without ending the run, and how tasks of a step are gathered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from dspy.promptune.errors import MetricError
from dspy.promptune.limits.budgets import BOOTSTRAP
from dspy.promptune.secrets import said
from dspy.promptune.storage.memory import Memory, NoMemory

__all__ = ["StepFailure", "StepReport", "Submitter", "as_they_end"]

T = TypeVar("T")
Started = dict[Future[Any], Any]
POLL_SECONDS = 1.0  # how long a wait lasts before it looks again, so that an interrupt is heard on every platform

logger = logging.getLogger(__name__)


class Submitter(Protocol):
    """What a step needs of a pool: each task runs in its own copy of the context of ``submit``'s caller."""

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run ``function(*args)`` when a thread is free."""


@dataclass(frozen=True)
class StepFailure:
    """A call of step 1 or 2 that was given up: the step ("bootstrap", "summary", "proposal"), what, and why."""

    step: str
    what: str
    error: BaseException

    def __str__(self) -> str:
        return f"Step {1 if self.step == BOOTSTRAP else 2}: {self.what} failed: {said(self.error)}"


@dataclass
class StepReport:
    """What steps 1 and 2 went without. Thread-safe.

    ``memory`` keeps the pieces of work that are finished; ``broken`` is called with what is wrong with the metric;
    ``told`` with all that is missing, in words, as often as there is more.
    """

    memory: Memory = field(default_factory=NoMemory)
    broken: Callable[[MetricError], None] = lambda error: None
    told: Callable[[Sequence[str]], None] = lambda lines: None
    failures: list[StepFailure] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def give_up(self, step: str, what: str, error: BaseException) -> None:
        """Write down, and log, that something is missing from now on."""
        failure = StepFailure(step, what, error)
        with self._lock:
            self.failures.append(failure)
            self._tell()
        logger.warning("%s", failure)

    def finished(self, step: str) -> None:
        """Step 1 or 2 is done, here or in an earlier start: what it went without is remembered with it."""
        with self._lock:
            mine = [str(each) for each in self.failures if (each.step == BOOTSTRAP) == (step == BOOTSTRAP)]
            kept = self.memory.once(f"missing:{step}", lambda: mine)
            self.earlier += [line for line in kept if line not in mine]
            if self.earlier:
                self._tell()

    def _tell(self) -> None:
        self.told([*self.earlier, *map(str, self.failures)])


def as_they_end(waiting: Started, ended: Callable[[Any, Future[Any]], Started]) -> None:
    """Hand every future to ``ended`` once it has, with its tag; the tasks that this returns are waited for as well.

    For the thread that coordinates. Whatever is raised here, an interrupt too, cancels the tasks not yet begun.
    """
    waiting = dict(waiting)
    try:
        while waiting:
            done, _ = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                waiting.update(ended(waiting.pop(future), future))
    except BaseException:
        for future in waiting:
            future.cancel()
        raise

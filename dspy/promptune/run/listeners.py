"""What happens in the loop of a run, for those who take note of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import Job
from dspy.promptune.space import Key

__all__ = ["LoopListener", "SearchLog"]


@dataclass
class SearchLog:
    """What happened, in its order: ``("ask" | "tell" | "fail", number of the trial)``, and how the best changed."""

    order: list[tuple[str, int]] = field(default_factory=list)
    history: list[tuple[int, Key]] = field(default_factory=list)
    failed: int = 0


class LoopListener:
    """Takes note of what happens in the loop, in its thread; each method does nothing unless it is overridden."""

    def on_start(self, job: Job, when: datetime, seconds: float) -> None:
        """A job was decided on, which began at ``when`` and took ``seconds``; its trial is running."""

    def on_end(self, job: Job, outcome: Outcome) -> None:
        """A job has ended, its scores are in the table; its trial is still running, and nobody else knows yet."""

    def on_best(self, key: Key) -> None:
        """Another prompt than before would be returned now."""

    def on_tick(self) -> None:
        """Called about twice a second while jobs are running."""

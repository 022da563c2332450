"""What happens in a search, told to whoever wants to follow it: experiment trackers, dashboards, tests."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.errors import OptionError
from dspy.promptune.naming import prompt_name
from dspy.promptune.run.listeners import LoopListener
from dspy.promptune.secrets import said
from dspy.promptune.space import Key, PromptSpace

if TYPE_CHECKING:
    from dspy.promptune.run.result import SearchRun

__all__ = ["Best", "Proposal", "SearchCallback", "SearchEvents", "TrialResult", "check_callbacks"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A prompt that was chosen for evaluation.

    Attributes:
        trial: Number of the study's trial.
        prompt: Its name in words, such as "instruction 3 with demo set 1".
        params: Index of the candidate chosen for each part, by the names of the study's parameters.
        kind: "block", "minibatch" or "full".
        examples: Validation examples it is to be scored on.
        seconds: How long the choice took.
    """

    trial: int
    prompt: str
    params: Mapping[str, int]
    kind: str
    examples: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How the evaluation of a prompt ended.

    Attributes:
        trial: Number of the study's trial.
        prompt: Its name in words.
        params: Index of the candidate chosen for each part.
        kind: "block", "minibatch" or "full".
        score: Mean over the trial's examples, 0 to 1 for most metrics; ``None`` of a failed one.
        examples: Validation examples of the trial.
        scored: Examples of the whole search scored by now.
        raised: Examples of this evaluation on which the program or the metric raised.
        unreadable: Its answers that could not be read.
        seconds: How long the evaluation took.
        error: What a failed one failed with, without secrets.
    """

    trial: int
    prompt: str
    params: Mapping[str, int]
    kind: str
    score: float | None
    examples: int
    scored: int
    raised: int
    unreadable: int
    seconds: float
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Best:
    """What the search would return now.

    Attributes:
        prompt: Its name in words.
        params: Index of the candidate chosen for each part.
        score: Mean of its scores so far.
        examples: Validation examples it was scored on so far.
        scored: Examples of the whole search scored by now.
    """

    prompt: str
    params: Mapping[str, int]
    score: float
    examples: int
    scored: int


class SearchCallback:
    """Follows a search: override what is of interest, and give an instance to ``compile(callbacks=[...])``.

    All methods are called in the thread of the compile, one at a time and in the order of what happened, so a slow one
    holds up the search. What a method raises is logged, and the search goes on.
    """

    def on_proposal(self, proposal: Proposal) -> None:
        """A prompt was chosen, and will be evaluated. What a compile evaluates before its search (the original program,
        and demo sets while instructions are written) is not chosen: it has a trial and no proposal.
        """

    def on_trial(self, trial: TrialResult) -> None:
        """An evaluation ended, well or not."""

    def on_best(self, best: Best) -> None:
        """Another prompt than before would be returned now. It is looked for some fifty times in a compile."""

    def on_end(self, run: SearchRun) -> None:
        """The search is over; ``run`` is what ``program.optimization_run`` will be."""


def check_callbacks(callbacks: Any) -> tuple[SearchCallback, ...]:
    """The callbacks as a tuple; none for ``None``.

    Raises:
        OptionError: Not a sequence of :class:`SearchCallback`.
    """
    found = () if callbacks is None else tuple(callbacks) if isinstance(callbacks, Sequence) else None
    if found is None or not all(isinstance(each, SearchCallback) for each in found):
        raise OptionError(
            f"callbacks={callbacks!r}: it must be a list of dspy.promptune.SearchCallback. (DSPy's own callbacks go to "
            "dspy.configure(callbacks=[...]).)"
        )
    return found


class SearchEvents(LoopListener):
    """Hands what happens in the loop on to callbacks.

    Args:
        callbacks: Whom to tell.
        space: The prompts.
        table: The scores so far.
    """

    def __init__(self, callbacks: Sequence[SearchCallback], space: PromptSpace, table: ScoreTable) -> None:
        self._callbacks, self._space, self._table = callbacks, space, table

    def on_start(self, job: Job, when: datetime, seconds: float) -> None:
        """A prompt was chosen."""
        size = len(job.examples)
        self._tell(lambda each: each.on_proposal(Proposal(**self._of(job), examples=size, seconds=seconds)))

    def on_end(self, job: Job, outcome: Outcome) -> None:
        """An evaluation ended."""
        row = self._table.row(job.key)
        failed = outcome.error is not None
        result = TrialResult(
            **self._of(job),
            score=None if failed else _mean([row[example] for example in job.examples]),
            examples=len(job.examples),
            scored=self._table.calls,
            raised=outcome.errors,
            unreadable=outcome.unreadable,
            seconds=outcome.seconds,
            error=said(outcome.error) if outcome.error is not None else None,
        )
        self._tell(lambda each: each.on_trial(result))

    def on_best(self, key: Key) -> None:
        """Another prompt leads."""
        row = self._table.row(key)
        best = Best(
            prompt=prompt_name(self._space, key), params=self._space.params(key), score=_mean(list(row.values())),
            examples=len(row), scored=self._table.calls,
        )  # fmt: skip
        self._tell(lambda each: each.on_best(best))

    def ended(self, run: SearchRun) -> None:
        """The search is over."""
        self._tell(lambda each: each.on_end(run))

    def _of(self, job: Job) -> dict[str, Any]:
        """What proposal and result have in common."""
        return {
            "trial": job.number,
            "prompt": prompt_name(self._space, job.key),
            "params": self._space.params(job.key),
            "kind": job.kind,
        }

    def _tell(self, call: Callable[[SearchCallback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except Exception as error:
                logger.warning("Callback %s failed: %s", type(callback).__name__, said(error))


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores) if scores else math.nan

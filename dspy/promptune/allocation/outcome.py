"""How one job ended, and what counts as a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from dspy.promptune.counted import counted
from dspy.promptune.errors import EvaluationError, MetricError

__all__ = ["Outcome", "added", "number", "numbers"]

LARGEST = 1e150  # of a score's size: its square, which models of scores take, is a float still


@dataclass
class Outcome:
    """The end of one job: ``scores`` of the examples that were scored, and the ``error`` of a job that failed.

    ``transient`` says of an error that no answer came, for which the prompt is not to blame; ``tried`` is the number of
    examples that were begun, ``None`` for all; ``seconds`` is the time from its start; ``unreadable``
    and ``errors`` count examples whose answer could not be read, and examples on which program or metric raised; both
    were scored as failures, and ``unread`` and ``raised`` hold why, by example, as an error or in words; ``cut`` says
    that the job ended without its last examples; ``spent`` holds calls, tokens and ``cost`` of an evaluation elsewhere,
    which no history here tells of; ``predictions`` holds what the program returned, by example, where it is at hand;
    ``call_id`` is the parent of the callbacks of the evaluation's modules.
    """

    scores: dict[int, float] = field(default_factory=dict)
    error: BaseException | None = None
    transient: bool = False
    tried: int | None = None
    seconds: float = 0.0
    unreadable: int = 0
    errors: int = 0
    cut: bool = False
    raised: dict[int, BaseException | str] = field(default_factory=dict)
    unread: dict[int, BaseException | str] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    predictions: dict[int, Any] = field(default_factory=dict)
    call_id: str | None = None

    def after(self, earlier: Outcome | None) -> Outcome:
        """This end of a job that was taken up more than once, with what its earlier parts brought."""
        if earlier is None:
            return self
        return replace(
            self,
            scores={**earlier.scores, **self.scores},
            seconds=earlier.seconds + self.seconds,
            unreadable=earlier.unreadable + self.unreadable,
            errors=earlier.errors + self.errors,
            spent=added(earlier.spent, self.spent),
            raised={**earlier.raised, **self.raised},
            unread={**earlier.unread, **self.unread},
            predictions={**earlier.predictions, **self.predictions},
            call_id=self.call_id or earlier.call_id,  # the rest may have come from another job
        )


def added(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Sums, name by name."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}


def number(score: Any, what: str = "The metric") -> float:
    """A score as a float. Booleans, numbers up to 1e150 and whatever has a float value are scores.

    Raises:
        EvaluationError: It is ``None``, text, not finite, or too large to be reckoned with.
    """
    if score is None or isinstance(score, (str, bytes)):
        raise EvaluationError(f"{what} returned {score!r}: it must return a number or a bool for every example.")
    try:
        value = float(score)
    except OverflowError:
        value = math.inf
    except Exception as error:
        kind = type(score).__name__
        raise EvaluationError(f"{what} returned a {kind}: it must return a number or a bool.") from error
    if not math.isfinite(value):
        raise EvaluationError(f"{what} returned {value}: it must return a finite number for every example.")
    if abs(value) > LARGEST:
        raise EvaluationError(f"{what} returned {value}: a score must lie between -{LARGEST:g} and {LARGEST:g}.")
    return value


def numbers(scores: Any, examples: Sequence[int]) -> dict[int, float]:
    """What an evaluation returned, by example.

    Raises:
        MetricError: It is no list, or of more or fewer scores than examples: what evaluates is broken, whatever it is
            given.
        EvaluationError: One of them is no usable score.
    """
    kind = "None" if scores is None else f"a {type(scores).__name__}"
    what = f"The evaluation returned {kind}: return a list of one score an example, in their order"
    if isinstance(scores, Mapping):
        raise MetricError(f"{what}, such as [scores[example] for example in examples].")
    if scores is None or isinstance(scores, (str, bytes, Set)):
        raise MetricError(f"{what}.")
    try:
        values = list(scores)
    except TypeError as error:
        raise MetricError(f"{what}.") from error
    if len(values) != len(examples):
        found, wanted = counted(len(values), "score"), counted(len(examples), "example")
        raise MetricError(f"The evaluation returned {found} for {wanted}: return one for each.")
    return {example: number(score, "The evaluation") for example, score in zip(examples, values, strict=True)}

"""Original program and winner on examples that had no part in the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy.promptune.errors import OptionError
from dspy.promptune.report.cases import Cases, compare
from dspy.promptune.report.statistics import difference
from dspy.promptune.report.verdict import instead, sure

if TYPE_CHECKING:
    from dspy.promptune.run.search import Compared

__all__ = ["HeldOut", "evaluated", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """What a test set says: one sentence, and the examples that were fixed and broken."""

    sentence: str
    cases: Cases


def evaluated(programs: Compared | None, testset: Sequence[Any]) -> HeldOut:
    """Evaluate the original program and the winner on examples that had no part in the search.

    Raises:
        OptionError: The programs are not at hand, or there is no example.
    """
    import dspy

    if programs is None:
        raise OptionError(
            "testset= needs the original program and the winner, and this run was loaded or searched a table: evaluate "
            "both with dspy.Evaluate."
        )
    if not testset:
        raise OptionError("testset=[] has no examples: give at least one, or leave it out.")
    evaluate = dspy.Evaluate(
        devset=list(testset), metric=programs.metric, num_threads=programs.num_threads, display_progress=False
    )
    return held_out(evaluate(programs.original).results, evaluate(programs.winner).results)


def held_out(before: Sequence[tuple[Any, Any, float]], after: Sequence[tuple[Any, Any, float]]) -> HeldOut:
    """Compare two evaluations on the same examples.

    Args:
        before: Of the original program: ``(example, prediction, score)`` for each example, as ``dspy.Evaluate`` has it.
        after: The same of the winner.
    """
    first, second = ({i: float(row[2]) for i, row in enumerate(rows)} for rows in (before, after))
    texts = [_texts(i, old, new) for i, (old, new) in enumerate(zip(before, after, strict=True))]
    words = instead(first, second).replace("validation examples", "test examples")
    return HeldOut(words + sure(difference(first, second)) + ".", compare(first, second, texts))


def _texts(i: int, before: Any, after: Any) -> dict[str, Any]:
    from dspy.promptune.compile.answers import case_texts, cut, fields

    return case_texts(i, before[0], cut(fields(before[1])), cut(fields(after[1])))

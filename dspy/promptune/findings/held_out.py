"""Original program and winner on examples that had no part in the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import counted
from dspy.promptune.errors import EvaluationError, OptionError
from dspy.promptune.findings.cases import Cases, compare
from dspy.promptune.findings.scale import Scale, scale_of
from dspy.promptune.findings.statistics import difference
from dspy.promptune.findings.verdict import instead, sure

if TYPE_CHECKING:
    from dspy.promptune.run.search import Compared

__all__ = ["HeldOut", "evaluated", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """What a test set says: one sentence, the examples that got better or worse, and the units of their scores."""

    sentence: str
    cases: Cases
    scale: Scale


def evaluated(programs: Compared | None, testset: Sequence[Any], scale: Scale) -> HeldOut:
    """Evaluate the original program and the winner on examples that had no part in the search.

    ``scale`` is that of the run.

    Raises:
        OptionError: The programs are not at hand, there is no example, or one is none.
        EvaluationError: The winner failed on every example.
    """
    import dspy
    from dspy.promptune.compile.door import checked_examples

    if programs is None:
        raise OptionError(
            "testset= needs the original program and the winner, and this run was loaded or searched a table: evaluate "
            "both with dspy.Evaluate."
        )
    examples = checked_examples("testset", testset)
    if not examples:
        raise OptionError("testset=[] has no examples: give at least one, or leave it out.")
    evaluate = dspy.Evaluate(
        devset=examples, metric=programs.metric, num_threads=programs.num_threads, display_progress=False,
        max_errors=len(examples) + 1,
    )  # fmt: skip
    after = evaluate(programs.winner).results  # an example on which a program fails counts 0
    if all(isinstance(prediction, dspy.Prediction) and not len(prediction) for _, prediction, _ in after):
        raise EvaluationError(
            f"The winner failed on all of {counted(len(after), 'test example')}: dspy.configure(lm=...) must be as it "
            "was for the search; the errors are in the log."
        )
    return held_out(evaluate(programs.original).results, after, scale)


def held_out(
    before: Sequence[tuple[Any, Any, float]], after: Sequence[tuple[Any, Any, float]], scale: Scale | None = None
) -> HeldOut:
    """Compare two evaluations on the same examples.

    Args:
        before: Of the original program: ``(example, prediction, score)`` for each example, as ``dspy.Evaluate`` has it.
        after: The same of the winner.
        scale: What the scores are told in; by default what they are in themselves.
    """
    first, second = ({i: float(row[2]) for i, row in enumerate(rows)} for rows in (before, after))
    texts = [_texts(i, old, new) for i, (old, new) in enumerate(zip(before, after, strict=True))]
    own = scale_of([*first.values(), *second.values()])
    scale = scale if scale is not None and own.percent else own
    words = instead(first, second, scale).replace("validation example", "test example")
    return HeldOut(words + sure(difference(first, second), scale) + ".", compare(first, second, texts), scale)


def _texts(i: int, before: Any, after: Any) -> dict[str, Any]:
    from dspy.promptune.distributed.answers import case_texts, cut, fields

    return case_texts(i, before[0], cut(fields(before[1])), cut(fields(after[1])))

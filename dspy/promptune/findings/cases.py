"""Validation examples before and after: which got better or worse, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy.promptune.findings.record import RunRecord

__all__ = ["Case", "Cases", "cases_of"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One example that both the original program and the winner were scored on.

    Attributes:
        example: Its index.
        before: Score of the original program.
        after: Score of the winner.
        inputs: What was asked; empty where the run did not keep it.
        expected: The example's labels.
        answer_before: What the original program answered.
        answer_after: What the winner answered.
    """

    example: int
    before: float
    after: float
    inputs: str = ""
    expected: str = ""
    answer_before: str = ""
    answer_after: str = ""


@dataclass(frozen=True)
class Cases:
    """Examples by what happened to them.

    Attributes:
        fixed: Those whose score rose.
        broken: Those whose score fell.
        wrong: Those with a score of 0 before and after, where no score is below.
        same: How many scores did not change.
        graded: Whether there are scores other than 0 and 1: what rose may not be right then.
    """

    fixed: tuple[Case, ...]
    broken: tuple[Case, ...]
    wrong: tuple[Case, ...]
    same: int
    graded: bool = False

    @property
    def words(self) -> tuple[str, str, str]:
        """What is said of those that rose, that fell, and that are wrong before and after."""
        return ("better", "worse", "at 0 before and after") if self.graded else ("fixed", "broken", "wrong both times")

    @property
    def title(self) -> str:
        """Of the part of the page."""
        return f"Examples {self.words[0]} and {self.words[1]}"

    @property
    def told(self) -> bool:
        """Whether there are texts of them."""
        return any(case.inputs or case.answer_after for case in (*self.fixed, *self.broken, *self.wrong))

    @property
    def compared(self) -> int:
        """Examples that both were scored on."""
        return len(self.fixed) + len(self.broken) + self.same


def cases_of(record: RunRecord) -> Cases:
    """What the winner made better and worse on the validation examples, and what both got wrong (a score of 0)."""
    before = record.rows.get(record.default, {})
    after = record.rows.get(record.best, {}) if record.best else {}
    return compare(before, after, record.facts.get("cases") or ())


def compare(before: Mapping[int, float], after: Mapping[int, float], kept: Sequence[Mapping[str, Any]]) -> Cases:
    """Cases of two rows of scores by example, with the texts that were ``kept``."""
    texts = {int(each["example"]): each for each in kept}
    found = [_case(example, before[example], after[example], texts) for example in sorted(before) if example in after]
    scores = {score for each in found for score in (each.before, each.after)}
    lowest = min(scores, default=0.0) >= 0.0
    return Cases(
        fixed=tuple(each for each in found if each.after > each.before),
        broken=tuple(each for each in found if each.after < each.before),
        wrong=tuple(each for each in found if lowest and each.after == each.before == 0.0),
        same=sum(each.after == each.before for each in found),
        graded=not scores <= {0.0, 1.0},
    )


def _case(example: int, before: float, after: float, texts: Mapping[int, Mapping[str, Any]]) -> Case:
    names = ("inputs", "expected", "answer_before", "answer_after")
    kept = texts.get(example, {})
    return Case(example=example, before=before, after=after, **{name: str(kept.get(name, "")) for name in names})

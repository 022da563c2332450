"""The original program and the winner, on the examples that both were scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from dspy.promptune.findings.record import RunRecord
from dspy.promptune.findings.statistics import Difference, difference

__all__ = ["Pair", "Row", "pair_of"]

Row = Mapping[int, float]


@dataclass(frozen=True)
class Pair:
    """Two programs by example, so that before, after and the gain add up.

    Attributes:
        original: All scores of the original program.
        winner: All scores of the returned one.
        changed: Whether that is another program.
    """

    original: Row
    winner: Row
    changed: bool

    @cached_property
    def gain(self) -> Difference | None:
        """The paired gain; ``None`` where the original is returned or fewer than two examples were shared."""
        return difference(self.original, self.winner) if self.changed else None

    @cached_property
    def before(self) -> Row:
        """Scores of the original on the examples of the gain; all of them where there is no gain."""
        return self._shared(self.original, self.winner)

    @cached_property
    def after(self) -> Row:
        """Scores of the winner on the examples of the gain; all of them where there is no gain."""
        return self._shared(self.winner, self.original)

    @property
    def more(self) -> list[tuple[str, Row]]:
        """Who was scored on more examples than the gain has, by name, with all scores."""
        both = (("winner", self.winner, self.after), ("original", self.original, self.before))
        return [(name, row) for name, row, shown in both if len(row) > len(shown)]

    @property
    def reason(self) -> str:
        """Why there is no gain."""
        if self.winner and not self.changed:
            return "the original program is returned"
        if self.winner:
            return "too few examples were scored by both"
        return "no evaluation of the winner was finished" if self.changed else "nothing was scored"

    def _shared(self, row: Row, other: Row) -> Row:
        return row if self.gain is None else {example: row[example] for example in row if example in other}


def pair_of(record: RunRecord) -> Pair:
    """The original program and the winner of a run."""
    winner = record.rows.get(record.best, {}) if record.best else {}
    changed = record.best is not None and record.best != record.default
    return Pair(record.rows.get(record.default, {}), winner, changed)

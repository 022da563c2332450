"""Which instruction was written from which, where a run wrote instructions while it searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dspy.promptune.report.record import RunRecord

__all__ = ["Line", "lineage"]


@dataclass(frozen=True)
class Line:
    """An instruction in the family tree: how deep it stands, its name in words, and its text."""

    depth: int
    title: str
    text: str


def lineage(record: RunRecord) -> list[Line]:
    """The tree of each predictor's instructions, parents before their children; empty where none has a parent.

    ``record.facts["lineage"]`` is that of a ``SearchRun``: ``part`` and ``index`` of every
    instruction that was written, and ``parent``, the parameters of the prompt it was written from.
    """
    written = record.facts.get("lineage") or ()
    found: list[Line] = []
    for i, part in enumerate(record.space.parts):
        mine = [each for each in written if each["part"] == part.name]
        parents = {int(each["index"]): each["parent"].get(part.name) for each in mine}
        if parents:
            texts = record.space.texts(i)
            several = len({each.predictor for each in record.space.parts}) > 1
            where = f" of predictor {part.predictor}" if several else ""
            for root in (j for j in range(len(texts)) if parents.get(j) is None):
                _descend(found, root, 0, parents, (texts, where))
    return found


def _descend(
    found: list[Line], node: int, depth: int, parents: Mapping[int, int | None], names: tuple[Sequence[str], str]
) -> None:
    texts, where = names
    found.append(Line(depth, f"instruction {node}{where}", texts[node]))
    for child, parent in sorted(parents.items()):
        if parent == node and child > node:
            _descend(found, child, depth + 1, parents, names)

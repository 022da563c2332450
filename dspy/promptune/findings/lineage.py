"""Which instruction was written from which, where a run wrote instructions while it searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dspy.promptune.counted import counted
from dspy.promptune.findings.leaderboard import Standing
from dspy.promptune.findings.record import RunRecord

__all__ = ["Line", "lineage"]


@dataclass(frozen=True)
class Line:
    """An instruction in the family tree.

    Attributes:
        depth: How many instructions it descends from.
        title: Its name in words.
        text: Its text.
        known: The score of the best prompt that has it, in words.
        best: Whether the returned prompt has it.
    """

    depth: int
    title: str
    text: str
    known: str
    best: bool


def lineage(record: RunRecord, standings: Sequence[Standing]) -> list[Line]:
    """The tree of each predictor's instructions, parents before their children; empty where none has a parent.

    ``record.facts["lineage"]`` is that of a ``SearchRun``: ``part`` and ``index`` of every
    instruction that was written, and ``parent``, the parameters of the prompt it was written from.
    ``standings`` are the prompts, the best first.
    """
    written = record.facts.get("lineage") or ()
    found: list[Line] = []
    for i, part in enumerate(record.space.parts):
        mine = [each for each in written if each["part"] == part.name]
        parents = {int(each["index"]): each["parent"].get(part.name) for each in mine}
        if parents:
            where = record.of_predictor(part.predictor)
            for node, depth in _tree(parents, part.distinct):
                known, best = _known(record, standings, i, node)
                found.append(Line(depth, f"instruction {node}{where}", record.space.texts(i)[node], known, best))
    return found


def _tree(parents: Mapping[int, int | None], nodes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Every node with its depth, parents before their children, children in the order of their writing."""

    def below(node: int, depth: int) -> Iterator[tuple[int, int]]:
        yield node, depth
        for child in nodes:
            if child > node and parents.get(child) == node:
                yield from below(child, depth + 1)

    for root in nodes:
        if parents.get(root) is None:
            yield from below(root, 0)


def _known(record: RunRecord, standings: Sequence[Standing], part: int, node: int) -> tuple[str, bool]:
    """What is known of an instruction, by the best prompt that has it, and whether that was returned."""
    for each in standings:
        if each.key[part] == node:
            return f"{record.scale.score(each.score)} on {counted(each.examples, 'example')}", each.best
    return "not tried", False

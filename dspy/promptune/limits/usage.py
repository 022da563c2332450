"""Tokens and cost of a run, read from the histories that DSPy keeps of each program's calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dspy.promptune.limits.amounts import amount, tokens_of

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["Usage"]


class Usage:
    """Sums over the calls of programs. ``tokens`` and ``cost`` are ``None`` until a call says what it took.

    With DSPy's history disabled nothing is known. Answers from the cache cost nothing.
    """

    def __init__(self) -> None:
        self.tokens: int | None = None
        self.cost: float | None = None
        self._read: WeakKeyDictionary[Module, int] = WeakKeyDictionary()

    def read(self, program: Module) -> None:
        """Add the calls that ``program`` made since it was read last."""
        history = program.history
        start = min(self._read.get(program, 0), len(history))
        for entry in history[start:]:
            self._add(entry)
        self._read[program] = len(history)

    def add(self, spent: Mapping[str, float]) -> None:
        """Calls made elsewhere, of which only the sums are known."""
        if "tokens" in spent:
            self.tokens = (self.tokens or 0) + int(spent["tokens"])
        if "cost" in spent:
            self.cost = (self.cost or 0.0) + spent["cost"]

    def _add(self, entry: dict[str, Any]) -> None:
        if getattr(entry.get("response"), "cache_hit", False):
            return
        usage = entry.get("usage") or {}
        if isinstance(usage, Mapping) and any(amount(value) is not None for value in usage.values()):
            self.tokens = (self.tokens or 0) + tokens_of(usage)
        cost = amount(entry.get("cost"))
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost

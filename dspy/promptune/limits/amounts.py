"""Amounts of calls, tokens and dollars: read from what DSPy records, and summed by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["amount", "answered_by_cache", "tokens_of", "total"]

MOST = 1e12  # tokens or dollars of one call: a provider that says more says nothing


def total(*several: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The sum of amounts by step and kind."""
    found: dict[str, dict[str, float]] = {}
    for amounts in several:
        for step, row in amounts.items():
            mine = found.setdefault(step, {})
            for kind, amount in row.items():
                mine[kind] = mine.get(kind, 0) + amount
    return found


def amount(value: Any) -> float | None:
    """A number of tokens or dollars; ``None`` for what is no such number (a text, a negative or an absurd one, NaN)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST:
        return None
    return float(value)


def tokens_of(usage: Any) -> int:
    """Tokens of a provider's ``usage``, as far as it says them."""
    if not isinstance(usage, Mapping):
        return 0
    total = amount(usage.get("total_tokens"))
    parts = sum(amount(usage.get(name)) or 0 for name in ("prompt_tokens", "completion_tokens"))
    return int(parts if total is None else total)


def answered_by_cache(entry: Mapping[str, Any]) -> bool:
    """Whether no language model was asked, of an entry in DSPy's history."""
    response = entry.get("response")
    several = response if isinstance(response, (list, tuple)) else [response]
    return bool(several) and all(getattr(each, "cache_hit", False) for each in several)

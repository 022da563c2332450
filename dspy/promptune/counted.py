"""Numbers in words: "1 example", "2,340 examples", "83.3 %", "$0.21"."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

__all__ = ["bounded", "counted", "dollars", "score_text"]


def counted(number: float, noun: str) -> str:
    """``number`` as a whole one and ``noun``, given in the singular, in the plural unless there is exactly one."""
    whole = round(number)
    return f"{whole:,} {noun}{'s' * (whole != 1)}"


def dollars(amount: float) -> str:
    """An amount in cents, and less than a cent to its first digit: no price looks like none."""
    return f"${amount:,.2f}" if amount >= 0.01 or not amount else f"${Decimal(f'{amount:.1g}'):f}"


def bounded(scores: Iterable[float]) -> bool:
    """Whether all scores are from 0 to 1: then they are told in percent."""
    return all(0.0 <= score <= 1.0 for score in scores)


def score_text(score: float, percent: bool = True) -> str:
    """A score in percent, or in the metric's own units where these do not go from 0 to 1."""
    if percent:
        return f"{100 * score:.1f} %"
    return f"{score:,.4g}" if abs(score) < 1000 else f"{score:,.0f}"

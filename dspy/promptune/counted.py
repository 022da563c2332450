"""Numbers of things in words: "1 example", "2,340 examples"."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: float, noun: str) -> str:
    """``number`` as a whole one and ``noun``, given in the singular, in the plural unless there is exactly one."""
    whole = round(number)
    return f"{whole:,} {noun}{'s' * (whole != 1)}"

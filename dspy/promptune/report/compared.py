"""What tells texts apart: a comparison of two as HTML, and labels for an axis."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Sequence

__all__ = ["compared", "labels"]

WORDS = re.compile(r"\s+|[^\s\w]|\w+")
LONG = 4000  # words beyond which lines are compared: a comparison takes time that grows with the square
ALIKE = 0.6  # share of words that two texts have in common, below which they are shown one after the other
APART = 8  # characters of a label that must be left where it differs from others, or it begins there


def compared(before: str, after: str) -> str:
    """``after``, with what was added in ``<ins>`` and what was left out in ``<del>``; all else is escaped text.

    Words are compared, or lines where there are very many words, or hardly any in common: two texts on different
    matters share words by accident, and a comparison of them could not be read.
    """
    old, new = WORDS.findall(before), WORDS.findall(after)
    if len(old) + len(new) > LONG:
        old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < ALIKE:
        return _marked("del", before) + ("\n" if before and after else "") + _marked("ins", after)
    found = []
    for what, a, b, c, d in matcher.get_opcodes():
        if what == "equal":
            found.append(html.escape("".join(new[c:d])))
        else:
            found.append(_marked("del", "".join(old[a:b])) + _marked("ins", "".join(new[c:d])))
    return "".join(found)


def _marked(tag: str, text: str) -> str:
    return f"<{tag}>{html.escape(text)}</{tag}>" if text else ""


def labels(texts: Sequence[str], width: int) -> list[str]:
    """Texts cut to a width for an axis: their beginnings, or, where others begin alike, what tells them apart."""
    flat = [" ".join(text.split()) or "(none)" for text in texts]
    found = []
    for text in flat:
        same = max((_alike(text, other) for other in flat if other != text), default=0)
        begin = 0
        if len(text) > width and same > width - APART:
            begin = max(text.rfind(" ", 0, same) + 1, same - width // 2)
        cut = text[begin : begin + width]
        found.append("…" * (begin > 0) + (cut if begin + width >= len(text) else cut.rstrip() + "…"))
    return found


def _alike(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

"""Two texts, and what of the first became what of the second, as HTML."""

from __future__ import annotations

import difflib
import html
import re

__all__ = ["compared"]

WORDS = re.compile(r"\s+|[^\s\w]|\w+")
LONG = 4000  # words beyond which lines are compared: a comparison takes time that grows with the square
ALIKE = 0.6  # share of words that two texts have in common, below which they are shown one after the other


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

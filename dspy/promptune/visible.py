"""Texts of models, providers and users as they are shown: what a terminal would act on is written out."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["HALF", "as_text", "visible", "without_halves"]

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HALF = re.compile(r"[\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The text with control characters and halves of characters as escapes, such as ``\x1b``; lines stay lines."""
    return CONTROL.sub(lambda found: _escape(found[0]), text)


def as_text(value: Any, indent: int | None = 2) -> str:
    r"""A value as JSON that any file takes; half a character, which UTF-8 has no form for, is ``\ud83d``."""
    return without_halves(json.dumps(value, indent=indent, default=str, ensure_ascii=False))


def without_halves(text: str) -> str:
    r"""The text with halves of characters, which UTF-8 has no form for, as escapes, such as ``\ud83d``."""
    return HALF.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

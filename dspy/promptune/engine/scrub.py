"""Keeping secrets out of what is written down."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Scrubber", "is_secret", "secrets_of"]

MASK = "[removed]"
MIN_LENGTH = 6  # characters of a value that is looked for; shorter ones are in ordinary words too
MIN_ENVIRONMENT = 8
LOOKS_SECRET = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|ghp|gho|AKIA|AIza)[-_]?[A-Za-z0-9_-]{16,}"  # keys by their well-known prefixes
    r"|(?i:\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password@ of a URL
    r"|(?i:(?<=[?&]key=)|(?<=[?&_]token=)|(?<=api_key=)|(?<=api-key=)|(?<=apikey=)|(?<=secret=)|(?<=password=))"
    r"[^&\s\"'\\]{6,}"  # of a URL's options
)
SECRET_NAME = re.compile(r"key|token|secret|passw|auth|credential|header|cookie|signature|query", re.IGNORECASE)
HARMLESS_NAME = re.compile(r"max_(completion_)?tokens|_tokens$", re.IGNORECASE)


class Scrubber:
    """Replaces secrets by a mask in texts and in what consists of texts.

    A secret is one of ``secrets``, the value of an environment variable (of 8 characters or more, paths and plain
    words excepted), or what has the form of a key, an ``Authorization`` header, or a URL's password.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {text for text in secrets if len(text) >= MIN_LENGTH} | _environment()
        longest_first = sorted(known, key=lambda text: (-len(text), text))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        return LOOKS_SECRET.sub(MASK, text)

    def value(self, value: Any) -> Any:
        """The same for JSON: every text in it, and whatever stands under a name that speaks of secrets."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {str(name): self.value(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each) for each in value]
        return value


def secrets_of(lm: Any) -> set[str]:
    """Texts in a language model's settings that must not be written: keys, tokens and all that is in headers."""
    found: set[str] = set()
    for source in (getattr(lm, "kwargs", None), getattr(lm, "__dict__", None)):
        for name, value in (source or {}).items():
            if is_secret(name):
                found |= _texts(value)
    return found


def is_secret(name: Any) -> bool:
    """Whether a setting of this name is a key, a token, or a header that may hold one."""
    return bool(SECRET_NAME.search(str(name))) and not HARMLESS_NAME.search(str(name))


def _texts(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value, *value.split()} if len(value) >= MIN_LENGTH else set()
    if isinstance(value, Mapping):
        return set().union(*(_texts(each) for each in value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_texts, value))
    return set()


def _environment() -> set[str]:
    values = set(os.environ.values())
    return {value for value in values if len(value) >= MIN_ENVIRONMENT and not _harmless(value)}


def _harmless(value: str) -> bool:
    """Paths, and plain words such as "production"."""
    return value.startswith(("/", "~", ".")) or (value.isalpha() and value.islower())

"""Keeping secrets out of what is written down, logged and shown."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

__all__ = ["SecretMasker", "cause", "is_secret", "know", "masked", "said", "secrets_of", "traced"]

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

_known: set[str] = set()  # secrets of the language models and embedders that runs of this process have used


class SecretMasker:
    """Replaces secrets by a mask in texts and in what consists of texts.

    A secret is one of ``secrets``, one that :func:`know` was told, the value of an environment variable (of 8
    characters or more, paths and plain words excepted), or what has the form of a key, an ``Authorization`` header, or
    a URL's password.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._own = {text for text in secrets if len(text) >= MIN_LENGTH} | _environment()
        self._seen = -1

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self._seen != len(_known):
            self._seen = len(_known)
            self._pattern = _pattern(self._own | _known)
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
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


def know(secrets: Iterable[str]) -> None:
    """From now on these are secrets wherever this process masks a text."""
    _known.update(text for text in secrets if len(text) >= MIN_LENGTH)


def masked(text: str) -> str:
    """A text that may hold what a provider, a program or a metric has said, without secrets."""
    return SecretMasker().text(text)


def said(error: BaseException, limit: int = 500) -> str:
    """An error in one line, as it is logged, shown and put into other messages: its type and text, without secrets."""
    return f"{type(error).__name__}: {masked(' '.join(str(error).split()))[:limit]}"


def traced(error: BaseException) -> str:
    """An error with its traceback, without secrets."""
    return masked("".join(traceback.format_exception(error)))


def cause(error: BaseException) -> BaseException | None:
    """What another error is raised ``from``: the first one, unless its traceback would print a secret."""
    link: BaseException | None = error
    while link is not None:
        if masked(str(link)) != str(link):
            return None
        link = link.__cause__ or link.__context__
    return error


def secrets_of(lm: Any) -> set[str]:
    """Texts in a language model's settings that must not be written: keys, tokens and all that is in headers.

    An embedder's are found as well, and those of a mapping of settings.
    """
    found: set[str] = set()
    sources = [getattr(lm, name, None) for name in ("kwargs", "default_kwargs", "__dict__")]
    for source in (*sources, lm if isinstance(lm, Mapping) else None):
        for name, value in (source or {}).items():
            if is_secret(str(name)):
                found |= _texts(value)
    return found


@lru_cache(1024)
def is_secret(name: str) -> bool:
    """Whether a setting of this name is a key, a token, or a header that may hold one."""
    return bool(SECRET_NAME.search(name)) and not HARMLESS_NAME.search(name)


def _texts(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value, *value.split()} if len(value) >= MIN_LENGTH else set()
    if isinstance(value, Mapping):
        return set().union(*(_texts(each) for each in value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_texts, value))
    return set()


def _pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(secrets, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _environment() -> set[str]:
    values = set(os.environ.values())
    return {value for value in values if len(value) >= MIN_ENVIRONMENT and not _harmless(value)}


def _harmless(value: str) -> bool:
    """Paths, and plain words such as "production"."""
    return value.startswith(("/", "~", ".")) or (value.isalpha() and value.islower())

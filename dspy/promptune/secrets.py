"""Keeping secrets out of what is written down, logged and shown."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from dspy.promptune.visible import visible

__all__ = [
    "MASK",
    "SecretMasker",
    "cause",
    "is_credential",
    "is_secret",
    "know",
    "masked",
    "readable",
    "said",
    "secrets_of",
    "traced",
]

MASK = "[removed]"
MIN_LENGTH = 6  # characters of a value that is looked for; shorter ones are in ordinary words too
MIN_ENVIRONMENT = 8
ALONE = 16  # characters, below which a value is looked for as a word of its own, not inside of others
DATA = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]+)*;base64,[A-Za-z0-9+/=_-]+|[A-Za-z0-9+/]{120,}={0,2}")
LOOKS_SECRET = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"  # keys by their well-known prefixes
    r"(?:sk|pk|rk|xai)-[A-Za-z0-9_-]{16,}|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|(?:gsk|hf|ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{16,}"
    r"|AKIA[A-Z0-9]{16}(?![A-Za-z0-9])|AIza[A-Za-z0-9_-]{30,}|xox[abprs]-[A-Za-z0-9-]{16,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+)"
    r"|(?i:\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token|digest|apikey|key)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(?i:\b(?:bearer|basic)\s+)(?=[A-Za-z._~+/=-]{0,60}[0-9])[A-Za-z0-9._~+/=-]{16,}"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password@ of a URL
    r"|(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{12,}"
    r"|(?i:(?<=[?&]key=)|(?<=[?&]sig=)|(?<=[?&_]token=)|(?<=api_key=)|(?<=api-key=)|(?<=apikey=)|(?<=secret=)|(?<=password=))"
    r"[^&\s\"'\\]{6,}"  # of a URL's options
)
SECRET_NAME = re.compile(
    r"key|token|secret|passw|passphrase|pwd|jwt|auth|credential|creds|header|cookie|signature|query", re.IGNORECASE
)
HARMLESS_NAME = re.compile(r"max_(completion_)?tokens|_tokens$", re.IGNORECASE)
CREDENTIAL_NAME = re.compile(  # of a setting, a header, an option of a URL or a variable whose value is a credential
    r"^code$|(?:(?:^|[-_.])(?:(?:api|access|auth)?key|(?:api|access)[-_.]keys|authorization|token|secrets?|pass|pwd"
    r"|credentials?|creds|cookie|signature|sig|auth|jwt)|passwords?|passwd|passphrase|apikeys?)"
    r"(?:$|[-_.](?:id|value|header|[0-9]+)$)",
    re.IGNORECASE,
)
TELLING_NAME = re.compile(  # of what is told of a credential (its header, its number), or of another sort of key
    r"(?<!secret)[-_.](?:header|id)$"
    r"|(?:^|[-_.])(?:public|primary|foreign|sort|partition|routing|cache|object|row|answer|lookup)[-_.]?key$"
    r"|(?:^|[-_.])(?:eos|bos|pad|unk|sep|cls|mask|stop|start|end|special)[-_.]?token$",
    re.IGNORECASE,
)
SCHEME = re.compile(r"(?:bearer|basic|token|digest|apikey|key)\s+", re.IGNORECASE)
RANDOM = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{16,}")  # as keys are, and words are not

_known: set[str] = set()  # secrets of the language models and embedders that runs of this process have used


class SecretMasker:
    """Replaces secrets by a mask in texts and in what consists of texts.

    A secret is one of ``secrets``, one that :func:`know` was told, the value of an environment variable with the name
    of a credential (such as ``OPENAI_API_KEY``; of 8 characters or more, paths and plain words excepted), or what has
    the form of a key, an ``Authorization`` header, or a URL's password. Data is never changed: what stands in a
    ``data:`` URL, or in a long run of base64, stays.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._own = {text for text in secrets if len(text) >= MIN_LENGTH} | _environment()
        self._seen = -1

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self._seen != len(_known):
            self._seen = len(_known)
            self._pattern = _pattern(self._own | _known)
        if "base64," not in text and len(text) < 120:
            return self._masked(text)
        found, end = [], 0
        for data in DATA.finditer(text):
            found += [self._masked(text[end : data.start()]), data[0]]
            end = data.end()
        return "".join([*found, self._masked(text[end:])])

    def _masked(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        return LOOKS_SECRET.sub(MASK, text)

    def value(self, value: Any) -> Any:
        """The same for JSON: every text in it."""
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
    error = readable(error)
    return f"{type(error).__name__}: {visible(masked(' '.join(str(error).split()))[:limit])}"


def readable(error: BaseException) -> BaseException:
    """The error; one that says so in the place of an error that fails to say its text."""
    try:
        str(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}, whose text cannot be read").with_traceback(error.__traceback__)
    return error


def traced(error: BaseException) -> str:
    """An error with its traceback, without secrets."""
    return masked("".join(traceback.format_exception(error)))


def cause(error: BaseException) -> BaseException | None:
    """What another error is raised ``from``: the first one, unless its traceback would print a secret."""
    link: BaseException | None = error
    while link is not None:
        text = str(readable(link))
        if masked(text) != text:
            return None
        link = link.__cause__ or link.__context__
    return error


def secrets_of(lm: Any) -> set[str]:
    """Texts in a language model's settings that must not be written: keys, tokens, and headers that carry them.

    An embedder's are found as well, and those of a mapping of settings. Headers such as ``X-Title`` are no secrets,
    unless their value looks like a key.
    """
    found: set[str] = set()
    sources = [getattr(lm, name, None) for name in ("kwargs", "default_kwargs", "__dict__")]
    for source in (*sources, lm if isinstance(lm, Mapping) else None):
        for name, value in (source or {}).items():
            if is_secret(str(name)):
                found |= _credentials(str(name), value)
    return found


def _credentials(name: str, value: Any) -> set[str]:
    """Credentials in a setting, by the name that each stands under, or by how it looks."""
    if isinstance(value, Mapping):
        return set().union(*(_credentials(str(inner), each) for inner, each in value.items()))
    if isinstance(value, (list, tuple)):
        return set().union(*(_credentials(name, each) for each in value))
    if hasattr(value, "get_secret_value"):
        return _credentials(name, value.get_secret_value())
    if not isinstance(value, str):
        return set()
    bare = _bare(value)
    if _is_one(name, value) or LOOKS_SECRET.search(value) or RANDOM.search(bare):
        return {each for each in (value, bare) if len(each) >= MIN_LENGTH and not _word(each)}
    return set()


def _bare(value: str) -> str:
    """A credential without its scheme, as in ``Bearer ...``."""
    scheme = SCHEME.match(value)
    return value if scheme is None else value[scheme.end() :]


def _is_one(name: str, value: str) -> bool:
    """Whether a value is a credential by its name; where the name only tells of one, the value must look like it."""
    if not is_credential(name) or not TELLING_NAME.search(name):
        return is_credential(name)
    return SCHEME.match(value) is not None or "=" in value or bool(LOOKS_SECRET.search(value) or RANDOM.search(value))


@lru_cache(1024)
def is_credential(name: str) -> bool:
    """Whether what stands under this name is a credential: ``api_key``, ``Authorization``, ``DB_PASSWORD``."""
    return bool(CREDENTIAL_NAME.search(name)) and not HARMLESS_NAME.search(name)


@lru_cache(1024)
def is_secret(name: str) -> bool:
    """Whether a setting of this name is a key, a token, or a header that may hold one."""
    return bool(SECRET_NAME.search(name)) and not HARMLESS_NAME.search(name)


def _pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(secrets, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(_sought, longest_first))) if longest_first else None


def _sought(secret: str) -> str:
    """Where a secret is looked for: a short one not inside of words."""
    escaped = re.escape(secret)
    return escaped if len(secret) >= ALONE else rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])"


def _environment() -> set[str]:
    given = [_bare(value) for name, value in os.environ.items() if _is_one(name, value)]
    found = {*given, *(each for value in given if "," in value for each in value.split(","))}
    found |= {password[1] for value in os.environ.values() if (password := PASSWORD.search(value))}
    return {value for value in found if len(value) >= MIN_ENVIRONMENT and not _harmless(value)}


PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
PATH = ("/", "~", ".")


def _harmless(value: str) -> bool:
    """Paths, phrases and plain words."""
    return value.startswith(PATH) or " " in value or _word(value)


def _word(value: str) -> bool:
    """Plain words such as "production", "None" or "EMPTY", and numbers."""
    return value.isdecimal() or (value.isalpha() and (value.islower() or value.istitle() or value.isupper()))

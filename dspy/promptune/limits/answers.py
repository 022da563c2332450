"""What counts as an answer of a language model, and what does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from dspy.promptune.secrets import readable
from dspy.utils.exceptions import (
    AdapterParseError,
    LMAuthError,
    LMBillingError,
    LMError,
    LMInvalidRequestError,
    LMProviderError,
    LMServerError,
    LMUnexpectedError,
    is_retryable_lm_error,
)

__all__ = [
    "NoAnswerError", "account_refused", "blank", "empty_replies", "is_empty", "may_repeat", "of_call", "unanswered",
    "whole",
]  # fmt: skip

DEPTH = 8  # links of a chain of errors that are looked at
NOT_AN_ANSWER = {"reasoning_content", "logprobs", "citations"}  # parts of an output that come beside an answer
MARK = "_promptune_call"  # attribute of an error that a call to a language model ended with
BLANK_REPLY = "The LM returned an empty or null response."  # how DSPy's adapters begin to say so
ELSEWHERE = (404, 409)  # statuses that say nothing of the prompt: no such model or address, or not now
SHAPES = (bytes, int, float, list, tuple)  # none of which is a text, or says that it holds one
UNSEEN = dict.fromkeys(map(ord, "\0\u200b\u200c\u200d\u2060\ufeff"))  # characters that leave a text as empty as it was
NO_TEXT = "not valid Unicode"  # how DSPy says that a prompt holds half a character, before it calls anything


class NoAnswerError(LMServerError):
    """The reply holds neither text nor a tool call: no choices, no content, or white space alone.

    Attributes:
        replies: How many such a call had by then.
    """

    replies = 1


def is_empty(text: str) -> bool:
    """Whether nothing in a text can be seen."""
    return not text.translate(UNSEEN).strip()


def blank(outputs: Any) -> bool:
    """Whether what a language model returned (a list of texts or of dictionaries) holds nothing that could be read."""
    return isinstance(outputs, list) and all(map(_blank, outputs))


def _blank(output: Any) -> bool:
    if output is None or isinstance(output, SHAPES):
        return True
    if isinstance(output, str):
        return is_empty(output)
    if not isinstance(output, dict):
        return False
    if "text" not in output and "tool_calls" not in output:
        return True
    text, beside = output.get("text"), {name for name, value in output.items() if value} - NOT_AN_ANSWER - {"text"}
    return not beside and (not isinstance(text, str) or _blank(text))


def account_refused(error: BaseException | None) -> bool:
    """Whether a provider takes no calls of this account: a key that is no longer good, or a quota that is used up."""
    return isinstance(error, (LMAuthError, LMBillingError))


def of_call(error: BaseException) -> None:
    """Remember that it was a call to a language model that ended with this error."""
    if isinstance(error, Exception) and NO_TEXT not in str(readable(error)):
        with contextlib.suppress(AttributeError, TypeError):
            setattr(error, MARK, True)


def may_repeat(error: BaseException) -> bool:
    """Whether the same call may be answered a moment later.

    So it is where the provider is busy or out of reach, and where its reply was none: half of one, a gateway's page,
    another shape, nothing in it. A refused key or request stays refused.
    """
    unclassified = type(error) is LMProviderError or isinstance(error, LMUnexpectedError) or _status(error) == 409
    return unclassified or (isinstance(error, Exception) and is_retryable_lm_error(error))


def _status(error: BaseException) -> int | None:
    """The HTTP status that a provider refused a request with, where it is known."""
    return error.status if isinstance(error, LMInvalidRequestError) else None


def unanswered(error: BaseException) -> bool:
    """Whether an error means that a language model gave no answer, which says nothing about the prompt.

    The provider could not be reached or refused, its reply was no reply, it does not know the key or the model, or the
    call raised whatever else. What it says of the request itself, such as that the prompt is too long, is the prompt's
    fault. The first error of the chain of causes that tells is the one that counts.
    """
    for link in _causes(error):
        if isinstance(link, AdapterParseError):
            return BLANK_REPLY in str(link)
        if isinstance(link, LMInvalidRequestError):
            return _status(link) in ELSEWHERE
        if _ends_a_call(link):
            return True
    return False


def empty_replies(error: BaseException) -> int:
    """How many replies of a language model, one after another, had nothing in them, where an error means that."""
    for link in _causes(error):
        if isinstance(link, NoAnswerError):
            return link.replies
        if isinstance(link, AdapterParseError) and BLANK_REPLY in str(link):
            return 1
    return 0


def of_model(error: BaseException) -> bool:
    """Whether a call to a language model is what ended with this error, and not the program or the metric alone."""
    return any(map(_ends_a_call, _causes(error)))


def _ends_a_call(link: BaseException) -> bool:
    return isinstance(link, LMError) or getattr(link, MARK, False)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    link: BaseException | None = error
    for _ in range(DEPTH):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def whole(text: str) -> str:
    """A text without halves of characters: two halves that stand together are one, another becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

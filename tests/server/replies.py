"""Replies with status 200 that are no answers, by what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["NO_ANSWERS", "completion", "with_content"]

WRONG = "[[ ## answer ## ]]\nnever right\n\n[[ ## completed ## ]]"  # taken for an answer it would be a wrong one


def completion(**changes: Any) -> dict[str, Any]:
    """The body of a reply that is right in form; ``changes`` replaces parts of it, ``...`` leaves one out."""
    message = {"role": "assistant", "content": WRONG}
    parts: dict[str, Any] = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "rules",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 1}, **changes,
    }  # fmt: skip
    return {name: part for name, part in parts.items() if part is not ...}


def with_content(content: Any) -> dict[str, Any]:
    """A reply whose only choice has this content; ``...`` for none."""
    message = {"role": "assistant"} if content is ... else {"role": "assistant", "content": content}
    return completion(choices=[{"index": 0, "message": message, "finish_reason": "stop"}])


NO_ANSWERS = {
    "no choices": json.dumps(completion(choices=[])),
    "no content": json.dumps(with_content(None)),
    "another shape": "[1]",
    "negative usage": json.dumps(completion(usage={"prompt_tokens": -5, "completion_tokens": -1, "total_tokens": -6})),
    "textual usage": json.dumps(completion(usage={"prompt_tokens": "many", "completion_tokens": "x"})),
    "half a reply": json.dumps(completion())[:60],
    "a gateway's page": "<html>502 Bad Gateway</html>",
}

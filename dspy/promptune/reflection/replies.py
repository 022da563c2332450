"""Replies of a language model that ended for want of room, whether it keeps a history or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dspy
from dspy.promptune.limits.views import through_gateway

__all__ = ["asking"]

LENGTH = ("length", "max_tokens", "max_output_tokens")  # what providers call the reason


@contextlib.contextmanager
def asking(lm: Any) -> Iterator[Callable[[], bool]]:
    """In this block ``lm`` is the language model; what is given says whether its latest reply was cut off.

    DSPy says how a reply ended in the entry of its history alone. The entries are made here in any case, and kept only
    where they would be otherwise.

    Args:
        lm: A copy that nobody else uses.
    """
    view, unkept = through_gateway(lm), bool(dspy.settings.get("disable_history"))
    entries: list[Mapping[str, Any]] = []
    own = getattr(view, "update_history", lambda entry: None)

    def note(entry: dict[str, Any]) -> None:
        entries.append(entry)
        with dspy.context(disable_history=unkept):
            own(entry)

    with contextlib.suppress(AttributeError, TypeError):
        view.update_history = note
    with dspy.context(lm=view, disable_history=False):
        yield lambda: _cut_off([*(getattr(lm, "history", None) or ()), *entries][-1:])


def _cut_off(latest: list[Mapping[str, Any]]) -> bool:
    """Whether the reply of an entry, if there is one, ended for want of room."""
    found = latest[0].get("response") if latest else None
    for response in found if isinstance(found, (tuple, list)) else (found,):
        ends = [(response, "finish_reason"), (_value(response, "incomplete_details"), "reason")]
        ends += [(choice, "finish_reason") for choice in _value(response, "choices") or ()]
        if any(_value(one, name) in LENGTH for one, name in ends):
            return True
    return False


def _value(whole: Any, name: str) -> Any:
    return whole.get(name) if isinstance(whole, Mapping) else getattr(whole, name, None)

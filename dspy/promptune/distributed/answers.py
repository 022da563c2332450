"""What the original program and the winner answered, so that a report can show what was fixed and what was broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.space import Key

__all__ = ["Answers", "case_texts"]

SHOWN = 400  # characters of a text that is kept
CASES = 200  # examples that are kept, those whose score changed first


class Answers:
    """Texts of the answers of every prompt, kept until the run is over and its winner is known."""

    def __init__(self) -> None:
        self._texts: dict[Key, dict[int, str]] = {}

    def note(self, key: Key, outcome: Outcome) -> None:
        """The answers of one evaluation; of one that raised or could not be read, why."""
        row = self._texts.setdefault(key, {})
        for example, prediction in outcome.predictions.items():
            row[example] = cut(fields(prediction))
        for example, error in {**outcome.unread, **outcome.raised}.items():
            row[example] = cut(f"({type(error).__name__ if isinstance(error, BaseException) else error})")

    def cases(
        self, valset: Sequence[Any], before: tuple[Key, Mapping[int, float]], after: tuple[Key, Mapping[int, float]]
    ) -> list[dict[str, Any]]:
        """The examples that both prompts were scored on, as JSON: inputs, labels, and both answers.

        Args:
            valset: The validation examples.
            before: The original prompt, and its scores by example.
            after: The winner and its scores.
        """
        shared = sorted(set(before[1]) & set(after[1]))
        shared.sort(key=lambda example: before[1][example] == after[1][example])
        first, second = self._texts.get(before[0], {}), self._texts.get(after[0], {})
        return [
            case_texts(example, valset[example], first.get(example, ""), second.get(example, ""))
            for example in shared[:CASES]
        ]


def case_texts(example: int, data: Any, before: str, after: str) -> dict[str, Any]:
    """One example as it is written down."""
    return {
        "example": example,
        "inputs": cut(fields(data.inputs())),
        "expected": cut(fields(data.labels())),
        "answer_before": before,
        "answer_after": after,
    }


def fields(values: Any) -> str:
    """``name: value`` line by line; of one field its value alone. What has no plain text is named by its type.

    A program may return what has no fields; that is its own text.
    """
    if not isinstance(values, (Mapping, dspy.Example)):
        return _text(values)
    items = [(str(name), _text(value)) for name, value in values.items()]
    return items[0][1] if len(items) == 1 else "\n".join(f"{name}: {text}" for name, text in items)


def _text(value: Any) -> str:
    if isinstance(value, (str, int, float, bool, list, tuple, dict)) or value is None:
        return str(value)
    return f"<{type(value).__name__}>"


def cut(text: str) -> str:
    """A text, or its beginning."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN].rstrip()} ..."

"""What a new text is asked for with, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from numbers import Real
from typing import Any

from dspy.promptune.errors import EvaluationError, OptionError

__all__ = ["LONGEST", "Propose", "UncalledError", "WriteRequest", "Written"]

LONGEST = 20_000  # characters of a text that is used
MOST = 20  # texts of one answer that are used: each is to be looked at


class UncalledError(EvaluationError):
    """There is nothing to learn about a predictor: it is never called."""


@dataclass(frozen=True)
class WriteRequest:
    """What a new text is asked for.

    Attributes:
        part: Name of the part it is for, such as ``"0_predictor_instruction"``.
        predictor: Number of the predictor.
        parent: The prompt to improve, as study parameters.
        candidates: Its candidates, by the name of the part.
        scores: Its scores so far, by validation example; there may be none.
        belief: Posterior mean and standard deviation of its true score.
        known: All texts of the part; one that is there already is not used.
        number: How many texts were asked for before: another number should give another text.
    """

    part: str
    predictor: int
    parent: Mapping[str, int]
    candidates: Mapping[str, Any] = field(repr=False)
    scores: Mapping[int, float] = field(repr=False)
    belief: tuple[float, float]
    known: tuple[str, ...] = field(repr=False)
    number: int

    @property
    def text(self) -> str:
        """The text to improve."""
        return str(self.candidates[self.part])


@dataclass(frozen=True)
class Written:
    """What a proposer returns that knows what it took: texts, and calls (examples run for evidence included).

    Of many texts the first 20 are used.

    ``evidence`` is written down with the first text, as JSON: what it was written from. With an ``error`` there is no
    text, and the calls count all the same.

    Raises:
        OptionError: Something in ``texts`` is not text, or ``calls`` is not a number of calls.
    """

    texts: Sequence[str]
    calls: float = 1.0
    evidence: Sequence[Mapping[str, Any]] = ()
    error: BaseException | None = None

    @property
    def noted(self) -> dict[str, bool]:
        """What is written down of the error, if there is one."""
        return {} if self.error is None else {"failed": True, "uncalled": isinstance(self.error, UncalledError)}

    def __post_init__(self) -> None:
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
            raise OptionError(f"propose returned {texts!r}: return a list of texts, or Written(texts, calls=...).")
        object.__setattr__(self, "texts", found := list(islice(texts, MOST)))
        if odd := [text for text in found if not isinstance(text, str)]:
            raise OptionError(f"propose returned {odd[0]!r} ({type(odd[0]).__name__}) as a text: return strings.")
        if not isinstance(self.calls, Real) or not 0 <= self.calls < math.inf:
            raise OptionError(f"propose returned calls={self.calls!r}: it must be a number of calls, 0 or more.")


Propose = Callable[[WriteRequest], "Sequence[str] | Written"]
"""Writes: up to 20 texts for the part that is asked for, or a :class:`Written`.

Of several texts the acquisition picks the one that is looked at first.
"""

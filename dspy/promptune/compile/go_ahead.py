"""What step 3 begins early waits until steps 1 and 2 are known to work: a wrong key is found out by then."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

import dspy
from dspy.promptune.limits.answers import blank
from dspy.promptune.limits.budgets import PROPOSE
from dspy.utils.callback import BaseCallback

__all__ = ["GoAhead"]

USUAL = 1.0  # the temperature of proposals where the user has chosen none


class GoAhead(BaseCallback):
    """Holds functions back until each step has given its go-ahead. Thread-safe.

    Each is called once, in the context in which it was handed in, by the thread that brings the last go-ahead.

    Attributes:
        given: Set when nothing is held back any more.

    Args:
        steps: Those that are waited for.
    """

    def __init__(self, *steps: str) -> None:
        self.given = threading.Event()
        self._missing = set(steps)
        self._held: list[Callable[[], object]] = []
        self._lock = threading.RLock()
        self._temperature = USUAL
        self._others: set[str] = set()  # calls that do not say whether the temperature will do

    def awaited(self, temperature: float = USUAL) -> AbstractContextManager[None]:
        """An answer to a call that is made in this block, or in a copy of its context, is the go-ahead of step 2.

        Args:
            temperature: Of proposals. One that the user has chosen may be refused: only an answer at it counts.
        """
        self._temperature = temperature
        found: AbstractContextManager[None] = dspy.context(callbacks=[*(dspy.settings.callbacks or ()), self])
        return found

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """DSPy's callback."""
        own = getattr(instance, "kwargs", None) or {}
        if self._temperature not in (USUAL, own.get("temperature")):
            self._others.add(call_id)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """DSPy's callback."""
        if exception is None and not blank(outputs) and call_id not in self._others:
            self.give(PROPOSE)

    def made(self, future: Future[Any]) -> None:
        """So is what was made of answers: some models call no callbacks."""
        good = not future.cancelled() and future.exception() is None and future.result() is not None
        if good and self._temperature == USUAL:
            self.give(PROPOSE)

    def give(self, *steps: str) -> None:
        """These steps work."""
        with self._lock:
            self._missing.difference_update(steps)
            if not self._missing:
                self.given.set()
            while self._held and self.given.is_set():
                self._held.pop(0)()

    def then(self, function: Callable[[], object]) -> None:
        """Call a function now, or after the go-ahead."""
        run = contextvars.copy_context().run
        with self._lock:
            self._held.append(lambda: run(function))
            self.give()

    def drop(self) -> None:
        """What is still held back is never called."""
        with self._lock:
            self._held.clear()

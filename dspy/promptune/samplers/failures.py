"""Prompts that fail for a reason of their own, and are out of the running after that."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from dspy.promptune.space import Key

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["BLAMED", "OVERRULED", "FailedPrompts", "OutOfRunning", "blamed", "evaluated"]

FAILURES = 2  # of a prompt through its own fault, after which it is left alone
BLAMED = "blamed"  # user attribute of a FAILED trial: whether its prompt is at fault
OVERRULED = "overruled"  # user attribute of a FAILED trial that was never evaluated: why its proposal was not followed


class OutOfRunning(Protocol):
    """Who knows which prompts are neither proposed nor confirmed any more."""

    @property
    def out(self) -> Collection[Key]:
        """These prompts."""


class FailedPrompts:
    """How often each prompt has failed for a reason of its own, such as a text that is too long for the model.

    Attributes:
        out: Those that failed twice: they are neither proposed nor confirmed any more.
    """

    def __init__(self) -> None:
        self.out: set[Key] = set()
        self._counts: dict[Key, int] = {}

    def note(self, key: Key) -> None:
        """One more evaluation of a prompt has failed."""
        self._counts[key] = count = self._counts.get(key, 0) + 1
        if count >= FAILURES:
            self.out.add(key)


def evaluated(trial: FrozenTrial) -> bool:
    """Whether a trial is an evaluation, and not a proposal that was not followed."""
    return OVERRULED not in trial.user_attrs


def blamed(trial: FrozenTrial) -> bool:
    """Whether it is its prompt's fault that a FAILED trial has no value.

    It is not where the trial was never evaluated. One that does not say, as plain Optuna makes them, counts as its
    prompt's fault; one with an error of a run that did not know the difference counts as nobody's.
    """
    noted = trial.user_attrs
    return bool(noted.get(BLAMED, "error" not in noted and evaluated(trial)))

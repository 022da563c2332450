"""Examples that count as wrong because the program or the metric raised, or because no answer could be read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import DIED, NOT_FINISHED, STOPPED
from dspy.promptune.counted import counted
from dspy.promptune.secrets import said, traced

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["ExampleFailures", "FailureLog", "failures_of", "samples_of", "unfinished"]

logger = logging.getLogger(__name__)

MANY = 0.2  # of the scored examples, from which on their failures are what a reader must know first
KINDS = 8  # different errors that are logged one by one
SHOWN = 300  # characters of an error
CUT = (NOT_FINISHED, STOPPED, DIED)
UNFINISHED = ("TakenError", "Stopped", *CUT, *(f"EvaluationError: {words}" for words in CUT))


@dataclass(frozen=True, kw_only=True)
class ExampleFailures:
    """How many of the examples that were scored failed, and one error of each sort, without secrets.

    Attributes:
        scored: Examples scored, over all prompts.
        errors: Those on which the program or the metric raised.
        unreadable: Those whose answer could not be read.
        error_sample: What one of the first raised, and on which validation example.
        unreadable_sample: The same of an answer that could not be read.
    """

    scored: int = 0
    errors: int = 0
    unreadable: int = 0
    error_sample: str | None = None
    unreadable_sample: str | None = None

    def __bool__(self) -> bool:
        return bool(self.errors or self.unreadable)

    @property
    def share(self) -> float:
        """Failures over scored examples; 0 where nothing was scored."""
        return (self.errors + self.unreadable) / max(1, self.scored)

    @property
    def many(self) -> bool:
        """Whether a fifth or more failed."""
        return self.share >= MANY

    def lines(self) -> list[str]:
        """One sentence for each sort of failure there was."""
        found = []
        for count, what, sample in (
            (self.errors, "raised an error", self.error_sample),
            (self.unreadable, "gave an answer that could not be read", self.unreadable_sample),
        ):
            if count:
                share = f" ({100 * count / self.scored:.0f} %)" if self.scored else ""
                text = f"{count:,} of {counted(self.scored, 'scored example')}{share} {what} and counted as wrong."
                found.append(f"{text} First: {sample}" if sample else text)
        return found


def failures_of(trials: Sequence[FrozenTrial]) -> ExampleFailures:
    """The failures that the trials of a run took note of; those of failed trials have no score and are not counted."""
    told = [trial.user_attrs for trial in trials if trial.state.name == "COMPLETE"]
    return ExampleFailures(
        scored=sum(int(noted.get("paid", len(noted.get("scores", ())))) for noted in told),
        errors=sum(int(noted.get("errors", 0)) for noted in told),
        unreadable=sum(int(noted.get("unreadable", 0)) for noted in told),
        error_sample=_first(told, "error_sample"),
        unreadable_sample=_first(told, "unreadable_sample"),
    )


def _first(told: Sequence[Mapping[str, Any]], name: str) -> str | None:
    return next((str(noted[name]) for noted in told if noted.get(name)), None)


def unfinished(error: object) -> bool:
    """Whether a trial that has this error was cut short, or was another driver's: nothing in it failed."""
    return str(error).startswith(UNFINISHED)


def samples_of(outcome: Outcome) -> dict[str, str]:
    """One error of each sort, as a trial takes note of it: ``error_sample`` and ``unreadable_sample``."""
    sorts = {"error_sample": outcome.raised, "unreadable_sample": outcome.unread}
    firsts = [(name, *next(iter(errors.items()))) for name, errors in sorts.items() if errors]
    return {name: f"example {example}: {_text(error)}" for name, example, error in firsts}


def _text(error: BaseException | str) -> str:
    text = error if isinstance(error, str) else said(error)
    return text if len(text) <= SHOWN else f"{text[:SHOWN].rstrip()} ..."


class FailureLog:
    """Logs each different error of an example once, and counts the others.

    Args:
        tracebacks: Log the first of each kind with its traceback.
    """

    def __init__(self, *, tracebacks: bool = False) -> None:
        self.errors = self.unreadable = 0
        self._tracebacks = tracebacks
        self._known: set[str] = set()

    def note(self, outcome: Outcome, prompt: str) -> None:
        """The examples of one evaluation of a prompt, named in words."""
        self.errors += outcome.errors
        self.unreadable += outcome.unreadable
        for example, error in outcome.raised.items():
            self._log(f"Validation example {example} raised", prompt, error)
        for example, error in outcome.unread.items():
            self._log(f"The answer to validation example {example} could not be read:", prompt, error)

    def _log(self, what: str, prompt: str, error: BaseException | str) -> None:
        text = _text(error)
        kind = text[:80] if "could not be read" not in what else text.partition(":")[0]
        if kind in self._known or len(self._known) > KINDS:
            return
        self._known.add(kind)
        if len(self._known) > KINDS:
            logger.warning("Examples fail in more than %d ways: from now on failures are only counted.", KINDS)
            return
        logger.warning("%s %s (with %s). It counts as wrong; more of this kind are only counted.", what, text, prompt)
        if self._tracebacks and isinstance(error, BaseException):
            logger.warning("%s", traced(error))

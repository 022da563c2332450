"""Trials as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["columns", "trial_rows"]

NOTED = ("kind", "proposing", "paid", "tokens", "cost", "errors", "unreadable", "error", "overruled")


def trial_rows(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """One row a trial: number, state, mean score, parameters, examples, seconds, and what it took."""
    return [_row(trial) for trial in trials]


def columns(parameters: Iterable[str]) -> list[str]:
    """The names in such a row, of trials with these parameters."""
    return ["number", "state", "score", *parameters, "examples", "seconds", *NOTED, "started", "ended"]


def _row(trial: FrozenTrial) -> dict[str, Any]:
    noted = trial.user_attrs
    return {
        "number": trial.number,
        "state": trial.state.name,
        "score": trial.values[0] if trial.values else None,
        **trial.params,
        "examples": len(noted.get("examples", ())) or len(trial.intermediate_values),
        "seconds": noted.get("seconds"),
        **{name: noted.get(name) for name in NOTED},
        "started": trial.datetime_start,
        "ended": trial.datetime_complete,
    }

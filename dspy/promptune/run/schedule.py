"""How jobs are handed out, and what a run puts up with."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits", "Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How jobs are handed out.

    Attributes:
        n_jobs: Jobs at once.
        batch: Jobs asked for, evaluated and told together; ``None`` hands one out whenever there is room for it.
        ahead: Jobs asked for before there is room, so that a proposal is ready when there is; without batches only.
    """

    n_jobs: int = 1
    batch: int | None = None
    ahead: int = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run puts up with.

    Attributes:
        retries: Times a job for which no answer came is tried again before its trial is FAILED.
        retry_all: Whether a job is that failed for any other reason, too.
        streak: Evaluations without an answer in a row before the run gives up; as many that failed through the fault of
            their prompts (once one was scored, four times as many) if they took a fifth of its calls and the others
            cannot all be tried. ``None``: 5, or two rounds of ``n_jobs``.
        max_calls: Scored examples after which the run is over. Where it is known, a run does not wait for the last
            stragglers of its last jobs; never in batches, whose results must not depend on time.
        note_every: Scored examples between two entries of the history; to say what is best takes a moment.
    """

    retries: int = 0
    retry_all: bool = False
    streak: int | None = None
    max_calls: int | None = None
    note_every: int = 1

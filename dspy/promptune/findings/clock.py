"""When things happened: seconds of a run from the dates of its trials, and lanes of what ran at once."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Clock", "Span", "clock_of", "lanes_of"]

IDLE = timedelta(seconds=60)  # without anything under way is the time between two starts of a run, and cut out


@dataclass(frozen=True)
class Span:
    """Moments of one trial in seconds of the run, none before the other.

    Attributes:
        proposed: Deciding on it began.
        asked: It was decided on, and waited for a free worker.
        begun: Its evaluation began.
        ended: It ended; of a running one, the last moment known.
        busy: Seconds of its evaluation, which may have begun before the search had a trial for it.
    """

    proposed: float
    asked: float
    begun: float
    ended: float
    busy: float


@dataclass(frozen=True)
class Clock:
    """Spans and lanes of trials in their order, wall seconds without the ``idle`` ones, which were cut out."""

    spans: list[Span]
    lanes: list[int]
    seconds: float
    idle: float


def clock_of(trials: Sequence[FrozenTrial]) -> Clock:
    """The times of some trials."""
    dates = [_dates(trial) for trial in trials]
    if not dates:
        return Clock([], [], 0.0, 0.0)
    gaps = _gaps([(each[0], each[3]) for each in dates])
    begin = min(each[0] for each in dates)
    starts = [start for start, _ in gaps]
    cut = [timedelta(0)]
    for start, end in gaps:
        cut.append(cut[-1] + (end - start))

    def seconds(date: datetime) -> float:
        return (date - begin - cut[bisect.bisect_left(starts, date)]).total_seconds()

    spans = [
        _span([seconds(date) for date in each], trial.user_attrs.get("seconds"))
        for each, trial in zip(dates, trials, strict=True)
    ]
    idle = cut[-1].total_seconds()
    end = max(each[3] for each in dates)
    lanes = lanes_of([(span.begun, span.ended) for span in spans])
    return Clock(spans, lanes, (end - begin).total_seconds() - idle, idle)


def _dates(trial: FrozenTrial) -> tuple[datetime, datetime, datetime, datetime]:
    """When a trial was proposed, asked, begun and ended.

    Optuna dates a trial from where its sampler begins, or, where a combination was decided on before, from there.
    """
    started = trial.datetime_start or trial.datetime_complete or datetime.now()
    noted = trial.user_attrs
    proposed = asked = started
    if "proposed" in noted:
        proposed = min(started, datetime.fromisoformat(noted["proposed"]))
        asked = max(started, proposed + timedelta(seconds=noted.get("proposing") or 0.0))
    ended = trial.datetime_complete or asked
    begun = ended - timedelta(seconds=noted.get("seconds") or 0.0)
    ended, asked = max(ended, started), min(asked, max(ended, started))
    return proposed, asked, min(ended, max(begun, asked)), ended


def _span(moments: Sequence[float], busy: float | None) -> Span:
    proposed, asked, begun, ended = moments
    return Span(proposed, asked, begun, ended, busy or 0.0)


def _gaps(stretches: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Where nothing was under way for a long time."""
    gaps, until = [], None
    for begin, end in sorted(stretches):
        if until is not None and begin - until > IDLE:
            gaps.append((until, begin))
        until = end if until is None else max(until, end)
    return gaps


def lanes_of(stretches: Sequence[tuple[float, float]]) -> list[int]:
    """A lane for each stretch, as few as there are: the first that is free when it begins."""
    lanes = [0] * len(stretches)
    free: list[float] = []
    for i in sorted(range(len(stretches)), key=lambda i: stretches[i]):
        begin, end = stretches[i]
        lane = next((j for j, until in enumerate(free) if until <= begin + 1e-3), len(free))
        free[lane : lane + 1] = [end]
        lanes[i] = lane
    return lanes

"""What the server saw, and the profile of calls in flight that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Record(NamedTuple):
    """One request.

    ``start`` and ``end`` are monotonic seconds of arrival and answer; ``status`` is HTTP's, 0 where none was sent;
    ``key`` the digest of the messages; ``label`` what was asked for; ``prompt`` the digest of instruction and demos,
    ``item`` that of the first input.
    """

    start: float
    end: float
    status: int
    key: str
    label: str
    prompt: str = ""
    item: str = ""

    @property
    def seconds(self) -> float:
        """How long the answer took."""
        return self.end - self.start


def profile(records: Iterable[Record]) -> list[tuple[float, int]]:
    """``(time, requests in flight from then on)`` at every change, in the order of time."""
    changes = sorted([(r.start, 1) for r in records] + [(r.end, -1) for r in records])
    steps, level = [], 0
    for time, change in changes:
        level += change
        steps.append((time, level))
    return steps


def max_in_flight(records: Sequence[Record]) -> int:
    """The largest number of requests in flight at once; 0 without requests."""
    return max((level for _, level in profile(records)), default=0)


def mean_in_flight(records: Sequence[Record], start: float | None = None, end: float | None = None) -> float:
    """Mean number of requests in flight between two times, by default from the first arrival to the last answer."""
    if not records:
        return 0.0
    start = min(r.start for r in records) if start is None else start
    end = max(r.end for r in records) if end is None else end
    busy = sum(max(0.0, min(r.end, end) - max(r.start, start)) for r in records)
    return busy / (end - start) if end > start else 0.0

"""How a compile ends before its time: steps 1 and 2 at once, the search by its own loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dspy.promptune.errors import MetricError

__all__ = ["Ending"]


class Ending:
    """Ends a compile, whichever step it is at; for any thread, and for signal handlers.

    Attributes:
        why: Why the run is over; ``None`` while it goes on.
        broken: What is wrong with the metric, where that was found out before the search.

    Args:
        give_up: Ends steps 1 and 2 for a reason: nothing more is called, and nothing is waited for.
    """

    def __init__(self, give_up: Callable[[str], None]) -> None:
        self.why: str | None = None
        self.broken: MetricError | None = None
        self._end = give_up
        self._begun = False
        self._timer: threading.Timer | None = None

    def at(self, timeout: float, left: float) -> None:
        """Be over when ``left`` seconds of the user's ``timeout`` have gone, unless the search has begun by then."""
        self._timer = threading.Timer(left, self.expire, [f"timeout={timeout:g} seconds are over"])
        self._timer.daemon = True
        self._timer.start()

    def expire(self, why: str) -> None:
        """The run is over."""
        self.why = self.why or why
        self._end(why)

    def metric_broken(self, error: MetricError) -> None:
        """Before the search, which finds it by itself: the metric cannot be used."""
        if not self._begun:
            self.broken = error
            self.expire("the metric is broken")

    def search_begins(self) -> None:
        """From now on the search looks after its time by itself."""
        self._begun = True
        self.cancel()

    def searching(self, stop: Callable[[str], None]) -> None:
        """The search is about to run: ``stop`` ends it."""
        self._end = stop
        if self.why is not None:
            stop(self.why)

    def cancel(self) -> None:
        """Time does not count any more."""
        if self._timer is not None:
            self._timer.cancel()

"""How many language-model calls may be in flight: additive increase, multiplicative decrease."""

from __future__ import annotations

import logging
import threading
import time

__all__ = ["ConcurrencyLimit"]

logger = logging.getLogger(__name__)

SHRINK = 0.5  # of the calls allowed, when the provider asks for less
MAX_PAUSE = 60.0  # seconds; a longer Retry-After is honored piece by piece, so that a wrong one cannot end a run


class ConcurrencyLimit:
    """At most ``limit`` calls at once, fewer while the provider refuses them or lets them time out.

    A refusal halves what is allowed, once for all the calls that were in flight at that moment; every answer brings
    back ``1 / allowed``, so about one more call for every round of answers. ``Retry-After`` holds back all calls.

    Attributes:
        limit: What the user allows.
        peak: Highest number in flight so far.
        refused: Calls that the provider refused because they were too many.
        late: Calls that were out of time.
        retry_after: Longest pause that a refusal asked for, in seconds.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self.refused = self.late = 0
        self.retry_after: float | None = None
        self._allowed = float(limit)
        self._in_flight = 0
        self._round = 0
        self._resume_at = 0.0
        self._free = threading.Condition()
        self._stopped = False

    @property
    def in_flight(self) -> int:
        """Calls being made now."""
        return self._in_flight

    @property
    def allowed(self) -> int:
        """Calls allowed at once now, from 1 to ``limit``."""
        return int(self._allowed)

    def acquire(self, *, block: bool = True) -> int | None:
        """Wait for a place and take it. Returns the round it was taken in, for :meth:`release`; ``None`` if stopped.

        With ``block=False`` a place is taken whether there is one or not: for callers that must not wait, such as
        those in an event loop.
        """
        with self._free:
            while block and not self._stopped and not self._open():
                pause = self._resume_at - time.monotonic()
                self._free.wait(pause if pause > 0 else 1.0)
            if self._stopped:
                return None
            self._in_flight += 1
            self.peak = max(self.peak, self._in_flight)
            return self._round

    def try_acquire(self) -> int | None:
        """Take a place if there is one now."""
        with self._free:
            if self._stopped or not self._open():
                return None
            return self.acquire(block=False)  # under the same lock, so that nobody takes the place in between

    def release(
        self, taken_in: int, *, refused: bool = False, late: bool = False, retry_after: float | None = None
    ) -> None:
        """Give a place back, and say how the provider took the call: ``refused``, or ``late``, without an answer."""
        with self._free:
            self._in_flight -= 1
            self.refused += refused
            self.late += late
            if refused or late:
                self._shrink(taken_in, retry_after, "refused" if refused else "out of time")
            elif self._allowed < self.limit:
                self._grow()
            self._free.notify()

    def give_back(self) -> None:
        """Give a place back that was not used: it says nothing about how the provider is."""
        with self._free:
            self._in_flight -= 1
            self._free.notify()

    def stop(self) -> None:
        """Let nobody in any more."""
        with self._free:
            self._stopped = True
            self._free.notify_all()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped

    @property
    def paused(self) -> bool:
        """Whether nobody is let in for a while because a provider asked for it."""
        return not self._stopped and time.monotonic() < self._resume_at

    def _open(self) -> bool:
        return self._in_flight < int(self._allowed) and not self.paused

    def _shrink(self, taken_in: int, retry_after: float | None, why: str) -> None:
        pause = min(retry_after or 0.0, MAX_PAUSE)
        if retry_after:
            self.retry_after = max(self.retry_after or 0.0, retry_after)
            self._resume_at = max(self._resume_at, time.monotonic() + pause)
        if taken_in < self._round:
            return  # it was let in before the last decrease: that has answered it already
        self._round += 1
        before = int(self._allowed)
        self._allowed = max(1.0, min(self._allowed, self._in_flight + 1) * SHRINK)
        if self.allowed < before or retry_after:
            asked = f" of the {retry_after:g} s asked for" if retry_after and retry_after > pause else ""
            told = f", none for {pause:g} s{asked}" if retry_after else ""
            logger.warning("Calls are %s: %d at once instead of %d%s.", why, self.allowed, before, told)

    def _grow(self) -> None:
        before = int(self._allowed)
        self._allowed = min(float(self.limit), self._allowed + 1.0 / self._allowed)
        if int(self._allowed) > before:
            self._free.notify()
        if self._allowed == self.limit:
            logger.info("All %d calls at once again.", self.limit)

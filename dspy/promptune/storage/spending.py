"""What a run spends, on disk before it can be: the limits hold over any number of starts, however each ended."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

from dspy.promptune.limits.budgets import BudgetMeter
from dspy.promptune.storage.drivers import SharedDrivers

__all__ = ["SpendingNotes"]

TRIES = 5  # to write down what no other driver wants as well
SECONDS = 0.02  # until the second of them, at most


class SpendingNotes:
    """The part of a driver's note that says what it has spent, and what it may have spent since. Thread-safe.

    Args:
        drivers: Of the study.
        works: Whether anything can be written.
    """

    def __init__(self, drivers: SharedDrivers, works: Callable[[], bool]) -> None:
        self._drivers, self._works = drivers, works
        self._lock = threading.RLock()

    def begin(self, meter: BudgetMeter) -> None:
        """Let a meter know what was spent elsewhere, and from now on write down first what it lets through."""
        meter.elsewhere(self._drivers.spent(), self._drivers.pending())
        meter.write_ahead(lambda: self._ahead(meter))

    def _ahead(self, meter: BudgetMeter) -> None:
        with self._lock:
            if not meter.covered:  # or else another thread has done it
                self.write(meter, ahead=True)

    def write(self, meter: BudgetMeter, *, ahead: bool) -> None:
        """Write down what was spent, and with ``ahead`` what may be spent next; nothing that cannot be written.

        Of drivers that write at the same moment each sees afterwards what the others wrote. Where that is more than is
        left, they take it back and try again, not at the same moment.
        """
        with self._lock:
            for attempt in range(TRIES):
                others = self._look(meter)
                spent, reserved, covered = meter.reserve(ahead=ahead)
                if self._works():
                    self._drivers.announce(spent=spent, reserved=reserved)
                if self._look(meter) == others or meter.pays_for(reserved):
                    break
                self._drivers.announce(reserved=meter.reserve(ahead=False)[1])
                time.sleep(random.uniform(0.0, SECONDS * 2**attempt))
            meter.cover(covered if self._works() else math.inf)

    def _look(self, meter: BudgetMeter) -> dict[str, dict[str, float]]:
        """What was spent elsewhere, as far as others may write it: as it is now."""
        if self._drivers.share and self._works():
            self._drivers.refresh()
        meter.elsewhere(others := self._drivers.spent(), self._drivers.pending())
        return others

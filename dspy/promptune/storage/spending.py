"""What a run spends, on disk before it can be: the limits hold over any number of starts, however each ended."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from dspy.promptune.limits.budgets import BudgetMeter
from dspy.promptune.storage.drivers import SharedDrivers

__all__ = ["SpendingNotes"]


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
        meter.elsewhere(self._drivers.spent())
        meter.write_ahead(lambda: self._ahead(meter))

    def _ahead(self, meter: BudgetMeter) -> None:
        with self._lock:
            if meter.covered:  # another thread has done it
                return
            if self._drivers.share and self._works():
                self._drivers.refresh()
            self.write(meter, ahead=True)

    def write(self, meter: BudgetMeter, *, ahead: bool) -> None:
        """Write down what was spent, and with ``ahead`` what may be spent next; nothing that cannot be written."""
        with self._lock:
            meter.elsewhere(self._drivers.spent())
            spent, reserved, covered = meter.reserve(ahead=ahead)
            if self._works():
                self._drivers.announce(spent=spent, reserved=reserved)
            meter.cover(covered if self._works() else math.inf)

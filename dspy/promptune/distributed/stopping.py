"""How a block on a worker hears that its run was stopped: by a file, or because the process of the run is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path

from dspy.promptune.limits.budgets import BudgetLimits, BudgetMeter

__all__ = ["StopMark", "StoppableMeter"]


class StopMark:
    """An empty file in the folder for temporary files, made when a run is stopped.

    Workers on the same machine see it at once, others where that folder is shared; elsewhere a block ends by itself.
    It is gone with this object, which lives as long as a block may come back.
    """

    def __init__(self) -> None:
        self.path = ""
        with contextlib.suppress(OSError):  # there is no such folder
            self.path = str(Path(tempfile.gettempdir()) / f"promptune-{uuid.uuid4().hex}.stop")

    def set(self) -> None:
        """The run is stopped."""
        with contextlib.suppress(OSError):  # then blocks end by themselves
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))
            weakref.finalize(self, Path(self.path).unlink, missing_ok=True)


class StoppableMeter(BudgetMeter):
    """What a block may spend: nothing any more once its run was stopped, or the process that made this one has died.

    Args:
        caps: The block's allowance.
        mark: Where the run's :class:`StopMark` would be.
    """

    def __init__(self, caps: BudgetLimits, mark: str) -> None:
        super().__init__(caps, warn=False)
        self._mark = mark
        parent = multiprocessing.parent_process()
        self._parent = parent if parent is not None and parent.is_alive() else None
        self.on_stop: Callable[[], None] = lambda: None

    @property
    def run_over(self) -> bool:
        """Whether the run was stopped; then ``on_stop`` is called."""
        over = bool(self._mark) and os.path.exists(self._mark)
        if over or (self._parent is not None and not self._parent.is_alive()):
            self.on_stop()
            return True
        return False

    def admit(self) -> bool:
        """Whether one more call may be made now."""
        return not self.run_over and super().admit()

    def refusal(self) -> str:
        """Why no call may be made, in words."""
        return "the run was stopped" if self.run_over else super().refusal()

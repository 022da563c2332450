"""Instructions that are still being proposed when a search begins."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from dspy.promptune.errors import StorageError
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.limits.pool import PoolStoppedError
from dspy.promptune.space import instruction_name

if TYPE_CHECKING:
    from dspy.promptune.run.loop import SearchLoop

__all__ = ["Arrivals"]

ENDS = (Stopped, CancelledError, StorageError, PoolStoppedError)  # what ends a run ends its proposals

POLL_SECONDS = 0.05  # how often a wait looks again

Found = Callable[[int, str], None]
"""``(predictor, instruction)``: here is one."""


class Arrivals:
    """Instructions that are proposed in a thread of their own, in a copy of the caller's context.

    Args:
        produce: Proposes them all, and may name each as soon as it is there.
    """

    def __init__(self, produce: Callable[[Found], Mapping[int, Sequence[str]]]) -> None:
        self._offered: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._over = threading.Event()
        self._began = time.monotonic()
        self._came: float | None = None
        self._produce = produce
        self._loop: SearchLoop | None = None
        self._error: BaseException | None = None
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._run,), name="promptune-arrivals", daemon=True).start()

    def take(self) -> tuple[list[tuple[str, str]], bool, bool]:
        """What was offered since the last time, whether nothing more will be, and whether the rest is worth no wait.

        It is not where the latest came in less time than the next has been waited for since.
        """
        over, found = self._over.is_set(), []
        late = self._came is not None and time.monotonic() - self._came > self._came - self._began
        while True:
            try:
                found.append(self._offered.get_nowait())
            except Empty:
                return found, over, late

    def hold(self, answered: threading.Event) -> None:
        """Wait until the language model that proposes has ``answered``, one has come, or none will.

        Raises:
            EvaluationError: Not one could be made.
        """
        while not (self._over.is_set() or self._came is not None or answered.wait(POLL_SECONDS)):
            pass
        self.check()

    def listen(self, loop: SearchLoop) -> None:
        """From now on this search is woken by what comes, and stopped if nothing can."""
        self._loop = loop
        self._tell()

    def check(self) -> None:
        """After the search: raise what kept the candidates from being made, if the search was stopped for it.

        Raises:
            EvaluationError: Not one could be made.
        """
        if (error := self._failure()) is not None:
            raise error

    def _failure(self) -> Exception | None:
        """What went wrong; nothing did where the run was over before all were made."""
        error = self._error
        return error if isinstance(error, Exception) and not isinstance(error, ENDS) else None

    def _run(self) -> None:
        try:
            for predictor, instructions in self._produce(self._found).items():
                for text in instructions:
                    self._found(predictor, text)
        except BaseException as error:
            self._error = error
        self._over.set()
        self._tell()

    def _found(self, predictor: int, text: str) -> None:
        self._offered.put((instruction_name(predictor), text))
        self._came = time.monotonic()
        self._tell()

    def _tell(self) -> None:
        if self._loop is None:
            return
        if self._failure() is not None:
            self._loop.stop("the instructions could not be proposed")
        else:
            self._loop.wake()

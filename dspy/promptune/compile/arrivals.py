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
    from dspy.promptune.compile.options import CompileOptions
    from dspy.promptune.run.loop import SearchLoop
    from dspy.promptune.storage.run_store import RunStore

__all__ = ["Arrivals", "searches_early"]

ENDS = (Stopped, CancelledError, StorageError, PoolStoppedError)  # what ends a run ends its proposals

Found = Callable[[int, str], None]
"""``(predictor, instruction)``: here is one."""


def searches_early(options: CompileOptions, books: RunStore, instructions: Mapping[int, Sequence[str]]) -> bool:
    """Whether the search begins with these instructions, while others are proposed.

    It does where instructions come during the search anyway, and the same seed need not give the same trials. A
    search that is taken up again begins as it did.
    """
    begun = None if books.store is None else books.store.study.user_attrs.get("candidates")
    if not options.reflect or begun is None:
        return options.reflect and options.schedule != "batch" and not options.share
    return all(len(begun[instruction_name(i)]) == len(each) for i, each in instructions.items())


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

"""Ctrl-C: once ends a run well, twice at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Interrupt", "Interrupted", "interrupts", "pressed"]

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Interrupted once, before there was anything to return."""


class Interrupt:
    """The first Ctrl-C: said at once, and told to whoever can end the run, who may still be in the making.

    Args:
        act: Ends it, told why; ``None`` as long as :meth:`then` has named nobody.
    """

    def __init__(self, act: Callable[[str], None] | None = None) -> None:
        self._act, self._came = act, False

    def __call__(self) -> None:
        """Ctrl-C, once."""
        logger.warning("Interrupted: nothing more is started. Interrupt again to stop at once.")
        self._came = True
        if self._act is not None:
            self._act("interrupted")

    def then(self, act: Callable[[str], None]) -> None:
        """From now on ``act`` is told; at once, if it has come by now."""
        self._act = act
        if self._came:
            act("interrupted")


_pressed = False


def pressed() -> bool:
    """Whether the first Ctrl-C has come, in the outermost block of :func:`interrupts` that this process is in."""
    return _pressed


@contextlib.contextmanager
def interrupts(first: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C once calls ``first``, twice raises. Only the main thread can say so; elsewhere nothing changes.

    Inside another such block the first one calls this ``first`` alone, and the second raises wherever it comes.
    """
    global _pressed
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    outer = getattr(before, "default", None)  # what was there before the outermost of these blocks
    if before is None or (outer is None and _pressed):  # not from Python, so not to be restored; or not the first
        yield
        return
    default = before if outer is None else outer

    def handler(number: int, frame: Any) -> None:
        global _pressed
        _pressed = True
        signal.signal(signal.SIGINT, default)
        first()

    handler.default = default  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default if _pressed else before)
        _pressed = _pressed and outer is not None

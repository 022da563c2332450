"""Ctrl-C: once ends a run well, twice at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Interrupted", "interrupts"]


class Interrupted(KeyboardInterrupt):
    """Interrupted once, before there was anything to return."""


@contextlib.contextmanager
def interrupts(first: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C once calls ``first``, twice raises. Only the main thread can say so; elsewhere nothing changes.

    Inside another such block the first one calls this ``first`` alone, and the second raises wherever it comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # not set from Python, so it could not be restored
        yield
        return
    default = getattr(before, "default", before)  # what was there before the outermost of these blocks
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, default)
        first()

    handler.default = default  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default if pressed else before)

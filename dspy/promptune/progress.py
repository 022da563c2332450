"""One line that says how a run stands: in a terminal, in a notebook, or now and then in the log."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tqdm  # type: ignore[import-untyped]

from dspy.promptune.counted import counted, dollars, score_text

__all__ = ["Progress", "Standing", "TimeLeft", "above_the_bar"]

logger = logging.getLogger(__name__)

DRAW_SECONDS = 0.5
TEXT_SECONDS = 10.0  # between two states of a line that a notebook keeps as text
LOG_SECONDS = 30.0  # between two lines in the log, where there is no bar
WINDOW_SECONDS = 60.0  # of which the speed is taken
SETTLE_SECONDS = 3.0  # in which results of earlier work come in at once: they say nothing about the speed
WIDE = 120  # columns from which on there is room for a drawn bar
NOTEBOOK = 105  # columns of a notebook, which cannot be measured; a widget has a drawn bar anyway
LOGGERS = ("", "dspy")  # those whose console handlers may write while the bar stands


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the line shows. What is ``None`` is not known, or does not belong to this step, and is not shown.

    Attributes:
        count: How much of the step is done, in its unit.
        running: Evaluations under way.
        done: Evaluations that ended well.
        failed: Those that failed.
        raised: Examples on which program or metric raised.
        unreadable: Answers that could not be read.
        in_flight: Language-model calls under way.
        calls: Language-model calls made.
        best: Mean score of the best prompt so far.
        best_on: Examples that it is the mean of.
        tokens: Tokens spent.
        cost: Dollars spent.
        percent: Whether scores are told in percent.
    """

    count: int
    running: int | None = None
    done: int = 0
    failed: int = 0
    raised: int = 0
    unreadable: int = 0
    in_flight: int = 0
    calls: int = 0
    best: float | None = None
    best_on: int = 0
    tokens: int | None = None
    cost: float | None = None
    percent: bool = True

    def text(self, width: int | None = None) -> str:
        """The parts in their order, as many as find room in ``width`` characters; the best score is left out last."""
        parts = self._parts()
        while parts:
            text = "; ".join(words for _, words in parts)
            if width is None or len(text) <= width:
                return text
            parts.remove(max(parts))
        return ""

    def _parts(self) -> list[tuple[int, str]]:
        """``(rank, words)``: rank 0 is left out last."""
        failures = ((self.raised, "raised"), (self.unreadable, "unreadable"))
        wrong = [f"{count} {what}" for count, what in failures if count]
        on = f" on {self.best_on:,}" if self.best_on else ""
        found = [
            (0, f"best {score_text(self.best, self.percent)}{on}" if self.best is not None else ""),
            (1, ", ".join(wrong)),
            (5, f"{self.running} running, {self.done} done" if self.running is not None else ""),
            (2, f"{self.failed} failed" if self.failed else ""),
            (3, counted(self.calls, "LM call")),
            (6, f"{self.in_flight} in flight"),
            (7, counted(self.tokens, "token") if self.tokens is not None else ""),
            (4, dollars(self.cost) if self.cost else ""),
        ]
        return [(rank, words) for rank, words in found if words]


class TimeLeft:
    """How long the rest takes, at the speed of the last minute.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, count: int, total: int | None) -> float | None:
        """Seconds until ``count`` is ``total``; ``None`` while that cannot be said."""
        now = self._clock()
        if now - self._began < SETTLE_SECONDS:
            return None
        self._seen.append((now, count))
        while len(self._seen) > 1 and now - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        if total is None or count <= before or now - since < SETTLE_SECONDS:
            return None
        return max(0, total - count) * (now - since) / (count - before)


class Progress:
    """The line of one run, drawn twice a second by a thread of its own until :meth:`close`.

    In a terminal and in a notebook it is a tqdm bar on standard error, and what DSPy logs meanwhile is written above
    it. Elsewhere the same words are logged twice a minute.

    Args:
        disable: Show and log nothing.
    """

    def __init__(self, *, disable: bool = False) -> None:
        self._disable = disable
        self._bar: Any = None
        self._shown = not disable and (sys.stderr.isatty() or _in_notebook())
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._logs = contextlib.ExitStack()
        self._logged = time.monotonic()

    def step(self, name: str, total: int | None, unit: str, standing: Callable[[], Standing]) -> None:
        """From now on this step is shown.

        Args:
            name: What is done.
            total: Units of it; ``None`` where that is not known.
            unit: What is counted, in the plural.
            standing: Says how it stands. It is called from another thread, and may raise while nothing is known.
        """
        if self._disable:
            return
        with self._lock:
            self._name, self._total, self._unit, self._standing = name, total, unit, standing
            self._began, self._left = time.monotonic(), TimeLeft()
        if self._thread is None:
            if self._shown:
                self._bar = _new_bar()
                self._logs.enter_context(above_the_bar())
            self._thread = threading.Thread(target=self._draw_on, name="promptune-progress", daemon=True)
            self._thread.start()
        self._draw()

    def close(self) -> None:
        """Leave the line as it is at this moment."""
        self._over.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._bar is not None:
            self._draw()
            if _in_notebook():
                self._bar.total = self._bar.n  # else a search that ends early is painted as an error
            self._bar.close()
        self._logs.close()

    def _draw_on(self) -> None:
        pause = TEXT_SECONDS if _in_notebook() and not _has_widgets() else DRAW_SECONDS
        while not self._over.wait(pause):
            self._draw()

    def _draw(self) -> None:
        with self._lock, contextlib.suppress(Exception):  # a standing that is not known yet is not shown
            standing = self._standing()
            if self._bar is not None:
                self._draw_bar(standing)
            elif time.monotonic() - self._logged >= LOG_SECONDS:
                self._logged = time.monotonic()
                logger.info("%s; %s.", self._head(standing), standing.text())

    def _draw_bar(self, standing: Standing) -> None:
        columns, head, total = _columns(), self._head(standing), self._total or 1
        drawn = columns is not None and columns >= WIDE
        text = standing.text((columns or NOTEBOOK) - len(head) - (14 if drawn else 3))
        if self._bar.total != total:
            self._bar.reset(total)  # a widget has to be told
        self._bar.bar_format = "{bar:10} {desc}" if drawn else "{desc}"
        self._bar.n = standing.count if self._total else 0
        self._bar.set_description_str(f"{head}; {text}" if text else head, refresh=True)

    def _head(self, standing: Standing) -> str:
        total, unit = self._total, self._unit
        if total is not None and standing.count > total:  # it was an estimate
            total, unit = None, unit.removeprefix("expected ")
        spent, left = time.monotonic() - self._began, self._left(standing.count, total)
        if not (standing.count or total):
            return f"{self._name}: {_clock(spent)}"
        amount = f"{standing.count:,}" if total is None else f"{standing.count:,}/{total:,}"
        rest = f", {_clock(left)} left" if left else ""
        return f"{self._name}: {amount} {unit} in {_clock(spent)}{rest}"


@contextlib.contextmanager
def above_the_bar() -> Iterator[None]:
    """While this lasts, console handlers write above the bars that stand, and never into them.

    (``tqdm.contrib.logging`` would not do: it knows handlers of ``sys.stderr`` itself, and DSPy's writes to a stream of
    its own that hands on to it.)
    """
    handlers = [each for name in LOGGERS for each in logging.getLogger(name).handlers if _is_console(each)]
    wrapped = [each for each in dict.fromkeys(handlers) if "emit" not in vars(each)]
    for handler in wrapped:
        handler.emit = _emit_above(handler.emit)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for handler in wrapped:
            del handler.emit


def _emit_above(emit: Callable[[logging.LogRecord], None]) -> Callable[[logging.LogRecord], None]:
    def emit_above(record: logging.LogRecord) -> None:
        with tqdm.tqdm.external_write_mode(file=sys.stderr):
            emit(record)

    return emit_above


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _new_bar() -> Any:
    """A bar for a terminal, or a widget for a notebook that has them."""
    kind: Any = tqdm.tqdm
    if _in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets the bar is text, which needs no warning
            kind = importlib.import_module("tqdm.auto").tqdm
    return kind(total=1, file=sys.stderr, bar_format="{desc}", leave=True, dynamic_ncols=True)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _has_widgets() -> bool:
    """Whether a notebook can show a bar that moves; as text, every state of it is kept in the notebook."""
    return importlib.util.find_spec("ipywidgets") is not None


def _columns() -> int | None:
    """Columns of the terminal behind standard error; ``None`` where there is none to measure, as in a notebook."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"

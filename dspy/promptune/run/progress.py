"""One line that says how a run stands."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import tqdm  # type: ignore[import-untyped]

__all__ = ["Progress", "Standing"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the line shows. ``tokens`` and ``cost`` (dollars) are ``None`` where they are not known."""

    evaluated: int
    running: int
    done: int
    failed: int
    in_flight: int
    calls: int = 0
    best: float | None = None
    tokens: int | None = None
    cost: float | None = None

    def text(self) -> str:
        """Everything but the count of examples, which the bar shows with the time left."""
        parts = [f"{self.running} running, {self.done} done, {self.failed} failed"]
        if self.best is not None:
            parts.append(f"best {100 * self.best:.1f}")
        parts.append(f"{self.calls:,} calls, {self.in_flight} in flight")
        if self.tokens is not None:
            parts.append(f"{self.tokens:,} tokens")
        if self.cost:
            parts.append(f"${self.cost:.2f}")
        return "; ".join(parts)


class Progress:
    """A tqdm line on standard error, for people: nothing is written where there is no terminal.

    Args:
        total: Examples that may be evaluated.
        disable: Write nothing in any case.
    """

    def __init__(self, total: int, *, disable: bool = False) -> None:
        quiet = disable or not sys.stderr.isatty()
        self._bar: Any = None if quiet else tqdm.tqdm(total=total, unit="ex", file=sys.stderr, dynamic_ncols=True)

    def show(self, standing: Standing) -> None:
        """Draw the line anew, at most ten times a second."""
        if self._bar is None:
            return
        self._bar.n = standing.evaluated
        self._bar.set_postfix_str(standing.text(), refresh=False)
        self._bar.update(0)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

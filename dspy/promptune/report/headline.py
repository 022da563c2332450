"""The numbers at the top of a report."""

from __future__ import annotations

from dataclasses import dataclass

from dspy.promptune.report.drawing import percent
from dspy.promptune.report.record import RunRecord, mean
from dspy.promptune.report.statistics import Difference, difference, interval

__all__ = ["Number", "headline", "speed_up", "total"]

DASH = "–"


@dataclass(frozen=True)
class Number:
    """One number: what it is, its value in words, and what else is to be said of it."""

    name: str
    value: str
    note: str = ""


def headline(record: RunRecord) -> list[Number]:
    """Before, after, the gain, and what it took."""
    before, after = record.rows.get(record.default, {}), record.rows.get(record.best, {}) if record.best else {}
    gain = difference(before, after) if record.best != record.default else None
    calls = total(record, "calls")
    cost, tokens = total(record, "cost"), total(record, "tokens")
    wall = total(record, "seconds") or record.seconds
    times = speed_up(record)
    failed = len(record.failures)
    return [
        Number("before", _score(before), _between(before) or "the program as it came was not scored"),
        Number("after", _score(after), _between(after)),
        Number("gain", _gain(before, after), _paired(gain)),
        Number("language-model calls", f"{calls:,.0f}" if calls else DASH, f"{record.calls:,} examples scored"),
        Number("cost", f"${cost:,.2f}" if cost else DASH, f"{tokens:,.0f} tokens" if tokens else "price not known"),
        Number("wall time", duration(wall), f"{duration(record.seconds)} of it search"),
        Number("speed-up over serial", f"{times:.1f} ×" if times else DASH, "prompts evaluated at once, on average"),
        Number("trials", f"{len(record.evaluations)}", f"{failed} failed" if failed else "none failed"),
    ]


def speed_up(record: RunRecord) -> float | None:
    """Time of all evaluations over wall time: what one prompt after the other would have taken, with the same threads.

    ``None`` where no time was measured.
    """
    busy = sum(each.span.ended - each.span.begun for each in record.evaluations if each.state != "running")
    return busy / record.seconds if record.seconds > 0 and busy > 0 else None


def total(record: RunRecord, kind: str) -> float:
    """What all steps took of calls, tokens, ``cost`` or seconds; 0 where that is not known."""
    spent = sum(float(amounts.get(kind) or 0) for amounts in record.spent.values())
    if spent or kind not in ("tokens", "cost"):
        return spent
    return sum(float(getattr(each, kind) or 0) for each in record.evaluations)


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _score(row: dict[int, float]) -> str:
    return f"{percent(mean(row.values()))} %" if row else DASH


def _between(row: dict[int, float]) -> str:
    low, high = interval(list(row.values()))
    if not row:
        return ""
    return f"{_range(low, high)} (95 %), {len(row)} examples" if low == low else f"{len(row)} example"


def _range(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"


def _gain(before: dict[int, float], after: dict[int, float]) -> str:
    if not before or not after:
        return DASH
    return f"{100 * (mean(after.values()) - mean(before.values())):+.1f}"


def _paired(gain: Difference | None) -> str:
    if gain is None:
        return "points"
    return f"points; paired {100 * gain.low:+.1f} to {100 * gain.high:+.1f} (95 %), {gain.n} examples"

"""The numbers at the top of a report."""

from __future__ import annotations

from dataclasses import dataclass

from dspy.promptune.counted import counted
from dspy.promptune.report.drawing import chance, percent
from dspy.promptune.report.record import RunRecord, mean
from dspy.promptune.report.statistics import Difference, difference, interval

__all__ = ["Expectation", "Number", "duration", "expectation", "headline", "total"]

DASH = "–"


@dataclass(frozen=True)
class Number:
    """One number: what it is, its value in words, and what else is to be said of it."""

    name: str
    value: str
    note: str = ""


def headline(record: RunRecord) -> list[Number]:
    """Before, after, the gain, what is expected on new data, and what it took."""
    before, after = record.rows.get(record.default, {}), record.rows.get(record.best, {}) if record.best else {}
    gain = difference(before, after) if record.best != record.default else None
    calls, cost, tokens = (total(record, kind) for kind in ("calls", "cost", "tokens"))
    loading = float(record.spent.get("load", {}).get("seconds") or 0.0)
    rest = f"{duration(record.seconds)} of it search" + (f", {duration(loading)} loading" if loading >= 1 else "")
    took = [
        Number(
            "language-model calls", f"{calls:,.0f}" if calls else DASH, f"{counted(record.calls, 'example')} scored"
        ),
        Number("cost", f"${cost:,.2f}" if cost else "not known", _tokens(tokens, cost)),
    ]
    if not (calls or cost or tokens):  # a search without language models
        took = [Number("examples scored", f"{record.calls:,}", f"of {counted(len(record.rows), 'prompt')}")]
    return [
        Number("before", _score(before), _between(before) or "the original program was not scored"),
        Number("after", _score(after), _between(after)),
        Number("gain", DASH if gain is None else f"{100 * gain.mean:+.1f}", _paired(gain)),
        _new_data(record),
        *took,
        Number("wall time", duration(total(record, "seconds") or record.seconds), rest),
        _failed(record),
    ]


@dataclass(frozen=True)
class Expectation:
    """What the winner should score on new data: ``score``, and an interval that holds it with ``level`` percent."""

    score: float
    low: float
    high: float
    level: int

    def words(self) -> str:
        """For a sentence."""
        ends = f"{percent(self.low, 0)} to {percent(self.high, 0)}"
        return f"about {percent(self.score, 0)} % ({self.level} %: {ends})"


def expectation(record: RunRecord, *, fit: bool = True) -> Expectation | None:
    """What the run itself expected of its winner; where it did not say, what a model fitted now does, if it may be."""
    said, ends = record.facts.get("expected_score"), record.facts.get("interval")
    if said is not None and ends:
        return Expectation(float(said), *_within(record, float(ends[0]), float(ends[1])), level=90)
    if not fit or record.beliefs is None or record.best is None:
        return None
    belief = record.beliefs.of(record.best)
    if belief is None:
        return None
    mean, sd = belief[:2]
    return Expectation(mean, *_within(record, mean - 1.645 * sd, mean + 1.645 * sd), level=90)


def _new_data(record: RunRecord) -> Number:
    found = expectation(record)
    if found is None:
        return Number("expected on new data", DASH, "no model of the prompts")
    belief = record.beliefs.of(record.best) if record.beliefs is not None and record.best else None
    best = f"; best of all with {chance(belief[2])}" if belief else ""
    note = f"{_range(found.low, found.high)} ({found.level} %){best}"
    return Number("expected on new data", f"{percent(found.score)} %", note)


def _within(record: RunRecord, low: float, high: float) -> tuple[float, float]:
    """An interval; of scores from 0 to 1 it ends there."""
    if record.bounded:
        return max(0.0, low), min(1.0, high)
    return low, high


def _tokens(tokens: float, cost: float) -> str:
    words = counted(tokens, "token") if tokens else ""
    return words if cost else f"{words}{'; ' if words else ''}the model's price is not known"


def _failed(record: RunRecord) -> Number:
    failures, trials = record.example_failures, len(record.failures)
    count = failures.errors + failures.unreadable
    of = f"{trials} of {counted(len(record.evaluations), 'trial')}"
    note = f"{failures.errors} raised, {failures.unreadable} unreadable; {of}"
    return Number("failed", counted(count, "example"), note if count or trials else "no trial failed either")


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
    count = counted(len(row), "example")
    return f"{_range(low, high)} (95 %), {count}" if low == low else count


def _range(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"


def _paired(gain: Difference | None) -> str:
    if gain is None:
        return "the original is returned, or too few examples were scored by both"
    return f"points; {100 * gain.low:+.1f} to {100 * gain.high:+.1f} (95 %), on the {gain.n} examples that both have"

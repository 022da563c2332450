"""The numbers at the top of a report."""

from __future__ import annotations

from dataclasses import dataclass

from dspy.promptune.counted import counted, dollars
from dspy.promptune.findings.pair import Pair, Row, pair_of
from dspy.promptune.findings.record import RunRecord, mean
from dspy.promptune.findings.scale import Scale, chance
from dspy.promptune.findings.statistics import interval

__all__ = ["Expectation", "Number", "duration", "expectation", "headline", "total"]

DASH = "–"
SURE = 0.5  # probability of being the best, below which it is said where the rest of it lies


@dataclass(frozen=True)
class Number:
    """One number: what it is, its value in words, and what else is to be said of it."""

    name: str
    value: str
    note: str = ""


def headline(record: RunRecord) -> list[Number]:
    """Before, after, the gain, what is expected on new data, and what it took."""
    pair, scale = pair_of(record), record.scale
    calls, cost, tokens = (total(record, kind) for kind in ("calls", "cost", "tokens"))
    loading = float(record.spent.get("load", {}).get("seconds") or 0.0)
    rest = f"{duration(record.seconds)} of it search" + (f", {duration(loading)} loading" if loading >= 1 else "")
    scored = counted(record.calls, "example") + " scored"
    took = [
        Number("language-model calls", f"{calls:,.0f}" if calls else DASH, scored),
        Number("cost", dollars(cost) if cost else "not known", _tokens(tokens, cost)),
    ]
    if not (calls or cost or tokens):  # a search without language models
        took = [Number("examples scored", f"{record.calls:,}", f"of {counted(len(record.rows), 'prompt')}")]
    return [
        Number("before", _score(pair.before, scale), _between(pair.before, scale) or "the original was not scored"),
        Number("after", _score(pair.after, scale), _between(pair.after, scale) + _more(pair, scale)),
        Number("gain", DASH if pair.gain is None else scale.change(pair.gain.mean), _paired(pair, scale)),
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
    scale: Scale

    def words(self) -> str:
        """For a sentence."""
        ends = self.scale.range(self.low, self.high, short=True)
        return f"about {self.scale.score(self.score, short=True)} ({self.level} %: {ends})"


def expectation(record: RunRecord, *, fit: bool = True) -> Expectation | None:
    """What the run itself expected of its winner; where it did not say, what a model fitted now does, if it may be."""
    said, ends = record.facts.get("expected_score"), record.facts.get("interval")
    if said is not None and ends:
        return Expectation(float(said), *_within(record, float(ends[0]), float(ends[1])), level=90, scale=record.scale)
    if not fit or record.beliefs is None or record.best is None:
        return None
    belief = record.beliefs.of(record.best)
    if belief is None:
        return None
    mean, sd = belief[:2]
    return Expectation(mean, *_within(record, mean - 1.645 * sd, mean + 1.645 * sd), level=90, scale=record.scale)


def _new_data(record: RunRecord) -> Number:
    found = expectation(record)
    if found is None:
        return Number("expected on new data", DASH, "no model of the prompts")
    note = f"{found.scale.range(found.low, found.high)} ({found.level} %){_best(record)}"
    return Number("expected on new data", found.scale.score(found.score), note)


def _best(record: RunRecord) -> str:
    """How probably the winner is the best prompt; where that is little, which others may be."""
    if record.chances is None:
        return ""
    mine, tried, untried = record.chances
    words = f"; {chance(mine)} likely to be the best of all"
    if mine >= SURE or len(record.space) < 2:
        return words
    count = counted(len(record.space) - len(record.rows), "combination")
    rest = f", {count} not tried: {chance(untried)}" if len(record.space) > len(record.rows) else ""
    return f"{words} (others tried: {chance(tried)}{rest})"


def _within(record: RunRecord, low: float, high: float) -> tuple[float, float]:
    """An interval; of scores from 0 to 1 it ends there."""
    return (max(0.0, low), min(1.0, high)) if record.scale.percent else (low, high)


def _tokens(tokens: float, cost: float) -> str:
    words = counted(tokens, "token") if tokens else ""
    return words if cost else f"{words}{'; ' if words else ''}the model's price is not known"


def _failed(record: RunRecord) -> Number:
    failures, trials = record.example_failures, len(record.having("failed"))
    count = failures.errors + failures.unreadable
    of = f"{trials} of {counted(len(record.evaluations), 'trial')}"
    if trials and not count:
        return Number("failed", counted(trials, "trial"), f"of {len(record.evaluations)}: no score stands for them")
    note = f"{failures.errors} raised, {failures.unreadable} unreadable; {of}"
    return Number("failed", counted(count, "example"), note if count else "no trial failed either")


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


def _score(row: Row, scale: Scale) -> str:
    return scale.score(mean(row.values())) if row else DASH


def _between(row: Row, scale: Scale) -> str:
    low, high = interval(list(row.values()))
    if not row:
        return ""
    count = counted(len(row), "example")
    return f"{scale.range(low, high)} (95 %), {count}" if low == low else count


def _more(pair: Pair, scale: Scale) -> str:
    """The scores of those that have more examples than the gain."""
    return "".join(f"; {name} on all of its {len(row)}: {scale.score(mean(row.values()))}" for name, row in pair.more)


def _paired(pair: Pair, scale: Scale) -> str:
    gain = pair.gain
    if gain is None:
        return pair.reason
    words = "points" if scale.percent else "in the metric's units"
    ends = f"{scale.change(gain.low)} to {scale.change(gain.high)}"
    return f"{words}; {ends} (95 %), on the {gain.n} examples that both have"

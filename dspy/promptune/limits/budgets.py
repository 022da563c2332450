"""Budgets of a run beside its trials: language-model calls, tokens, dollars and seconds."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy
from dspy.promptune.errors import OptionError

__all__ = [
    "BOOTSTRAP",
    "LOAD",
    "PROPOSE",
    "REFLECT",
    "SEARCH",
    "STEP",
    "BudgetLimits",
    "BudgetMeter",
    "SearchAllowance",
    "amount",
    "answered_by_cache",
    "tokens_of",
    "total",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

BOOTSTRAP, PROPOSE, LOAD, SEARCH, REFLECT = "bootstrap", "propose", "load", "search", "reflect"
KINDS = {"max_lm_calls": "calls", "max_tokens_spent": "tokens", "max_cost": "cost"}  # what a limit is on
SETTLED = 5  # examples, from which on the mean of what one takes is trusted

STEP = "promptune_step"  # the setting of DSPy that says which step calls belong to


@dataclass(frozen=True, kw_only=True)
class BudgetLimits:
    """What a run may spend at most, over all its starts; ``None`` is no limit.

    Attributes:
        max_lm_calls: Calls that reach a language model; answers from the cache do not count.
        max_tokens_spent: Tokens of prompts and answers.
        max_cost: US dollars, by the prices that DSPy knows.
        timeout: Seconds of wall time, of this start alone.
    """

    max_lm_calls: int | None = None
    max_tokens_spent: int | None = None
    max_cost: float | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            whole = name in ("max_lm_calls", "max_tokens_spent")
            kind = "an integer" if whole else "a number"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                raise OptionError(f"{name}={value!r}: it must be {kind} above 0, or None for no limit.")

    def given(self) -> dict[str, float]:
        """The limits there are."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


class BudgetMeter:
    """Counts what is spent, by step, and says when a limit is reached. Thread-safe.

    Args:
        caps: The limits.
        warn: Say that the price of a model is not known; ``unpriced`` has its name in any case.
    """

    def __init__(self, caps: BudgetLimits | None = None, *, warn: bool = True) -> None:
        self.caps = caps or BudgetLimits()
        self.examples = 0
        self._spent: dict[str, dict[str, float]] = {}
        self._elsewhere: Mapping[str, Mapping[str, float]] = {}
        self._now: dict[str, float] = {}  # of the search in this start: for rates
        self._open = 0
        self._began = self._search_began = time.monotonic()
        self._searching = False
        self.unpriced: set[str] = set()
        self._warn = warn
        self._lock = threading.Lock()

    def elsewhere(self, amounts: Mapping[str, Mapping[str, float]]) -> None:
        """Earlier starts of the run, and others that share it, have spent this, by step; the limits are on all."""
        with self._lock:
            self._elsewhere = amounts

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Calls made in this block, and in copies of its context, belong to this step."""
        began = time.monotonic()
        try:
            with dspy.context(**{STEP: name}):
                yield
        finally:
            self._add("seconds", round(time.monotonic() - began, 3), name)

    def of_step(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """The function, whose calls belong to this step wherever it is called."""

        def within(*args: Any) -> T:
            with self.step(name):
                return function(*args)

        return within

    def search_begins(self) -> None:
        """From now on the time counts as the search's."""
        self._search_began, self._searching = time.monotonic(), True

    def admit(self) -> bool:
        """Whether one more call may be made now; if so, it is counted as under way until :meth:`ended`."""
        with self._lock:
            limit = self.caps.max_lm_calls
            if (limit is not None and self._total("calls") + self._open >= limit) or self._reached() is not None:
                return False
            self._open += 1
            return True

    def ended(self, *, reached: bool = True) -> None:
        """A call that was admitted has ended; ``reached=False`` if no language model saw it."""
        with self._lock:
            self._open -= 1
        if reached:
            self._add("calls", 1)

    def add(self, entry: Mapping[str, Any]) -> None:
        """A call's entry in DSPy's history: its tokens and its cost."""
        if not answered_by_cache(entry):
            self.took(str(entry.get("model")), tokens_of(entry.get("usage") or {}), amount(entry.get("cost")))

    def took(self, model: str, tokens: int, cost: float | None) -> None:
        """What a provider's answer took; ``cost`` in dollars, ``None`` where no price is known."""
        self._add("tokens", tokens)
        if cost is not None:
            self._add("cost", cost)
        elif self.caps.max_cost is not None:
            self.price_unknown(model)

    def scored(self, count: int) -> None:
        """So many more examples have been scored."""
        with self._lock:
            self.examples += count

    def own(self) -> dict[str, dict[str, float]]:
        """What was spent here so far, by step: calls, tokens, dollars (``cost``) and seconds."""
        return self._summed()

    def spent(self) -> dict[str, dict[str, float]]:
        """The same with what was spent elsewhere."""
        return self._summed(self._elsewhere)

    def _summed(self, *others: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        with self._lock:
            found = total(self._spent, *others)
        search = found.setdefault(SEARCH, {})
        if self._searching:
            search["seconds"] = search.get("seconds", 0) + time.monotonic() - self._search_began
        return {step: {name: round(value, 6) for name, value in amounts.items()} for step, amounts in found.items()}

    def reached(self) -> str | None:
        """The limit that is reached, in words."""
        with self._lock:
            return self._reached()

    def charge(self, spent: Mapping[str, float]) -> None:
        """Calls, tokens and dollars that were spent elsewhere."""
        for kind in ("calls", "tokens", "cost"):
            if spent.get(kind):
                self._add(kind, spent[kind])

    def left(self, name: str) -> float:
        """What a limit that is given leaves."""
        if name == "timeout":
            return float(self.caps.timeout or 0.0) - (time.monotonic() - self._began)
        with self._lock:
            return float(getattr(self.caps, name)) - self._total(KINDS[name])

    def rate(self, name: str, calls_per_example: float) -> float | None:
        """What an example has taken so far; ``None`` while nothing is known."""
        with self._lock:
            if self.examples >= SETTLED:
                return self._now.get(KINDS[name], 0.0) / self.examples
            return calls_per_example if name == "max_lm_calls" else None

    def affordable(self, calls_per_example: float) -> float:
        """How many more examples the limits pay for, by what an example has taken so far; may be infinite."""
        return self.scarcest(calls_per_example)[0]

    def scarcest(self, calls_per_example: float) -> tuple[float, str]:
        """The same, and the limit that pays for the fewest, in words."""
        with self._lock:
            left = [
                (self._left(name, limit, calls_per_example), f"{name}={limit:g}")
                for name, limit in self.caps.given().items()
            ]
            return min(left, default=(math.inf, "no limit"))

    def seconds_left(self) -> float:
        """Until the time limit; infinite where there is none."""
        limit = self.caps.timeout
        return math.inf if limit is None else max(0.0, limit - (time.monotonic() - self._began))

    def _left(self, name: str, limit: float, calls_per_example: float) -> float:
        settled = self.examples >= SETTLED
        if name == "timeout":
            now = time.monotonic()
            rate = (now - self._search_began) / self.examples if settled else 0.0
            left = limit - (now - self._began)
        else:
            kind = KINDS[name]
            prior = calls_per_example if kind == "calls" else 0.0
            rate = self._now.get(kind, 0.0) / self.examples if settled else prior
            left = limit - self._total(kind)
        if left <= 0:
            return 0.0
        return math.floor(left / rate) if rate > 0 else math.inf

    def _reached(self) -> str | None:
        caps = self.caps
        for name, kind in KINDS.items():
            limit = getattr(caps, name)
            if limit is not None and self._total(kind) >= limit:
                return f"{name}={limit} is spent"
        if caps.timeout is not None and time.monotonic() - self._began >= caps.timeout:
            return f"timeout={caps.timeout:g} seconds are over"
        return None

    def _total(self, kind: str) -> float:
        several = (self._spent, self._elsewhere)
        return sum(amounts.get(kind, 0) for each in several for amounts in each.values())

    def _add(self, kind: str, amount: float, step: str | None = None) -> None:
        step = step or dspy.settings.get(STEP, SEARCH)
        with self._lock:
            row = self._spent.setdefault(step, {})
            row[kind] = row.get(kind, 0) + amount
            if step == SEARCH:
                self._now[kind] = self._now.get(kind, 0) + amount

    def price_unknown(self, model: str) -> None:
        """What the calls to this model cost is not known, which is said once."""
        with self._lock:
            new = model not in self.unpriced
            self.unpriced.add(model)
        if new and self._warn:
            logger.warning("The price of %s is not known: max_cost does not count its calls.", model)


def total(*several: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The sum of amounts by step and kind."""
    found: dict[str, dict[str, float]] = {}
    for amounts in several:
        for step, row in amounts.items():
            mine = found.setdefault(step, {})
            for kind, amount in row.items():
                mine[kind] = mine.get(kind, 0) + amount
    return found


def amount(value: Any) -> float | None:
    """A number of tokens or dollars; ``None`` for what is no such number (a text, a negative one, NaN)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        return None
    return float(value)


def tokens_of(usage: Any) -> int:
    """Tokens of a provider's ``usage``, as far as it says them."""
    if not isinstance(usage, Mapping):
        return 0
    total = amount(usage.get("total_tokens"))
    parts = sum(amount(usage.get(name)) or 0 for name in ("prompt_tokens", "completion_tokens"))
    return int(parts if total is None else total)


def answered_by_cache(entry: Mapping[str, Any]) -> bool:
    """Whether no language model was asked, of an entry in DSPy's history."""
    response = entry.get("response")
    several = response if isinstance(response, (list, tuple)) else [response]
    return bool(several) and all(getattr(each, "cache_hit", False) for each in several)


class SearchAllowance:
    """What the limits of a meter leave to a search, in examples.

    What a full evaluation of the best prompt takes is kept back from the beginning (half of all there is at most).

    Args:
        meter: Counts, and has the limits.
        n_examples: Size of the validation set.
        calls_per_example: Calls that an example takes, until enough have been counted.

    Attributes:
        ended: The limit that has ended the search, in words.
    """

    def __init__(self, meter: BudgetMeter, *, n_examples: int, calls_per_example: float) -> None:
        self.ended: str | None = None
        self._meter, self._calls_per_example = meter, calls_per_example
        affordable = self._affordable()
        self._reserve = min(n_examples, int(affordable // 2)) if affordable < math.inf else n_examples
        self._released = False

    def left(self) -> float:
        """Examples that may still be paid for, without the reserve; may be infinite."""
        return self._affordable() - (0 if self._released else self._reserve)

    def over(self) -> bool:
        """Whether a limit is reached, or only the reserve was left and is released."""
        if self.ended is None:
            self.ended = self._meter.reached()
        return self.ended is not None or self._released

    def release(self) -> bool:
        """The search found nothing to do: whether it was a limit that left nothing, and the reserve is free now.

        It is free once: later the answer is no.
        """
        if self._released:
            return False
        self._released = True
        affordable, scarcest = self._meter.scarcest(self._calls_per_example)
        if affordable > self._reserve:
            return False
        self.ended = self.ended or f"{scarcest}: only the reserve for the last full evaluation was left"
        return True

    def _affordable(self) -> float:
        return self._meter.affordable(self._calls_per_example)

"""Budgets of a run beside its trials: language-model calls, tokens, dollars and seconds."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import dspy
from dspy.promptune.errors import OptionError
from dspy.promptune.limits.amounts import amount, answered_by_cache, tokens_of, total
from dspy.promptune.options import plain

__all__ = [
    "BOOTSTRAP",
    "LOAD",
    "PROPOSE",
    "REFLECT",
    "SEARCH",
    "STEP",
    "BudgetLimits",
    "BudgetMeter",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

BOOTSTRAP, PROPOSE, LOAD, SEARCH, REFLECT = "bootstrap", "propose", "load", "search", "reflect"
KINDS = {"max_lm_calls": "calls", "max_tokens_spent": "tokens", "max_cost": "cost"}  # what a limit is on
DIGITS = {"cost": 9, "tokens": 0}  # after the decimal point, where they are not 6
CHUNK = 8  # calls at least that are written down ahead at a time
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
            kind, types = ("an integer", Integral) if whole else ("a number", Real)
            if isinstance(value, bool) or not isinstance(value, types) or not 0 < value < math.inf:
                raise OptionError(f"{name}={value!r}: it must be {kind} above 0, or None for no limit.")
            object.__setattr__(self, name, plain(value))

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
        self._pending: Mapping[str, Mapping[str, float]] = {}
        self._now: dict[str, float] = {}  # of the search in this start: for rates
        self._open: Counter[str] = Counter()  # calls under way, by step
        self._began = self._search_began = time.monotonic()
        self._searching = False
        self.unpriced: set[str] = set()
        self._warn = warn
        self._largest: dict[str, float] = {}  # tokens and dollars of the dearest call so far
        self._prior: Mapping[str, Mapping[str, float]] = {}
        self._reckoned: dict[str, float] = {}  # what a call was last written down with
        self._lent = dict.fromkeys(KINDS.values(), 0.0)
        self._covered = math.inf  # calls of this start, up to which what they take is written down
        self._write_ahead: Callable[[], None] = lambda: None
        self._untold: set[str] = set()
        self._lock = threading.Lock()

    def began(self, when: float) -> None:
        """The run began at this time of ``time.monotonic``, and has loaded what it needs until now."""
        self._began = when
        self._add("seconds", round(time.monotonic() - when, 3), LOAD)

    def elsewhere(
        self, amounts: Mapping[str, Mapping[str, float]], pending: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """Earlier starts of the run, and others that share it, have spent this, by step; the limits are on all.

        Of these amounts, ``pending`` is not spent yet, but may be.
        """
        with self._lock:
            self._elsewhere, self._pending = amounts, pending or {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Calls made in this block, and in copies of its context, belong to this step; its time until the search."""
        began = time.monotonic()
        try:
            with dspy.context(**{STEP: name}):
                yield
        finally:
            ended = self._search_began if self._searching else time.monotonic()
            self._add("seconds", round(max(0.0, ended - began), 3), name)

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
        """Whether one more call may be made now; if so, it is counted as under way until :meth:`ended`.

        It is written down first that it may be made, where the run is written down at all: see :meth:`write_ahead`.
        """
        while True:
            with self._lock:
                if self._refusal() is not None:
                    return False
                if self._calls() + self._open.total() < self._covered:
                    self._open[dspy.settings.get(STEP, SEARCH)] += 1
                    return True
            self._write_ahead()

    def write_ahead(self, write: Callable[[], None]) -> None:
        """From now on no call is made before ``write`` has written down what :meth:`reserve` gives."""
        with self._lock:
            self._covered, self._write_ahead = 0.0, write

    def reserve(self, *, ahead: bool = True) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], float]:
        """What is to be on disk: what was spent here, and what may be spent before this is asked again, both by step.

        Calls under way, and with ``ahead`` as many more, are reckoned with what the dearest call has taken so far:
        after a kill they count as made. The third is given to :meth:`cover` when it is written.
        """
        spent, step = self.own(), dspy.settings.get(STEP, SEARCH)
        with self._lock:
            each_step = self._open + Counter({step: max(CHUNK, self._open.total())} if ahead else {})
            calls = each_step.total()
            amounts = {"calls": float(calls)}
            for kind in ("tokens", "cost"):
                self._reckoned[kind] = max(self._largest.get(kind, 0.0), self._of_call(kind))
                amounts[kind] = calls * self._reckoned[kind]
            for name, kind in KINDS.items():
                amounts[kind] += self._lent[kind]
                if (limit := getattr(self.caps, name)) is not None:
                    amounts[kind] = min(amounts[kind], max(0.0, limit - self._total(kind)))
            covered = self._calls() + min(calls, amounts["calls"])
        shares = {one: n / calls for one, n in each_step.items()} or {step: 1.0}
        reserved = {
            one: {kind: round(each * share, 9) for kind, each in amounts.items() if each > 0}
            for one, share in shares.items()
        }
        return spent, {one: row for one, row in reserved.items() if row}, covered

    def pays_for(self, reserved: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether the limits pay for what :meth:`reserve` gave, too, beside what others have written meanwhile."""
        with self._lock:
            return all(
                self._total(kind) + sum(row.get(kind, 0.0) for row in reserved.values()) <= limit
                for name, kind in KINDS.items()
                if (limit := getattr(self.caps, name)) is not None
            )

    def cover(self, calls: float) -> None:
        """What :meth:`reserve` gave is written: so many calls may be made."""
        with self._lock:
            self._covered = calls

    @property
    def covered(self) -> bool:
        """Whether the next call may be made without writing anything down."""
        with self._lock:
            return self._calls() + self._open.total() < self._covered

    def lend(self, amounts: Mapping[str, float], sign: int = 1) -> None:
        """So much may be spent where this meter does not see it (``sign=-1``: no longer)."""
        with self._lock:
            for kind, each in amounts.items():
                self._lent[kind] += sign * each
        if sign > 0:
            self._write_ahead()

    def expect(self, prior: Mapping[str, Mapping[str, float]]) -> None:
        """Tokens and dollars that a call of each step is likely to take, until some have been counted."""
        with self._lock:
            self._prior = prior

    def refusal(self) -> str:
        """Why no call may be made, in words."""
        with self._lock:
            return self._refusal() or "the calls left are in flight"

    def _refusal(self) -> str | None:
        """The limit within which one more call is not, if those under way take what calls have taken so far."""
        if (why := self._reached()) is not None:
            return why
        for name, kind in KINDS.items():
            limit = getattr(self.caps, name)
            if limit is not None and self._total(kind) + self._open.total() * self._of_call(kind) >= limit:
                return f"{name}={limit} is spent with the calls in flight"
        return None

    def _of_call(self, kind: str, step: str | None = None) -> float:
        """What one call of ``step`` (by default that which is going on) takes: tokens, dollars, or one call."""
        if kind == "calls":
            return 1.0
        step = step or dspy.settings.get(STEP, SEARCH)
        row = self._spent.get(step, {})
        if row.get("calls", 0) >= SETTLED:
            return row.get(kind, 0.0) / row["calls"]
        return float(self._prior.get(step, {}).get(kind, 0.0))

    def _calls(self) -> float:
        return sum(row.get("calls", 0) for row in self._spent.values())

    def ended(self, *, reached: bool = True) -> None:
        """A call that was admitted has ended; ``reached=False`` if no language model saw it."""
        with self._lock:
            self._open[dspy.settings.get(STEP, SEARCH)] -= 1
        if reached:
            self._add("calls", 1)

    def add(self, entry: Mapping[str, Any]) -> None:
        """A call's entry in DSPy's history: its tokens and its cost."""
        if not answered_by_cache(entry):
            self.took(str(entry.get("model")), tokens_of(entry.get("usage") or {}), amount(entry.get("cost")))

    def took(self, model: str, tokens: int, cost: float | None) -> None:
        """What a provider's answer took; ``cost`` in dollars, ``None`` where no price is known."""
        self._add("tokens", tokens)
        with self._lock:
            for kind, each in (("tokens", tokens), ("cost", cost or 0.0)):
                self._largest[kind] = max(self._largest.get(kind, 0.0), each)
                if each > self._reckoned.get(kind, 0.0) and self._covered < math.inf:
                    self._covered = 0.0  # dearer than what is written: that is written again before the next call
        if cost is not None:
            self._add("cost", cost)
        elif self.caps.max_cost is not None:
            self.price_unknown(model)

    def untold(self, model: str) -> None:
        """A call was answered without its usage: it is reckoned with what such a call is likely to take."""
        step = dspy.settings.get(STEP, SEARCH)
        likely = self._prior.get(step, {})
        with self._lock:
            new, self._untold = model not in self._untold, self._untold | {model}
        if new and self._warn and (self.caps.max_tokens_spent or self.caps.max_cost):
            logger.warning(
                "%s does not say what a call takes: %.0f tokens are counted for each in this step.",
                model, likely.get("tokens", 0.0),
            )  # fmt: skip
        self.took(model, int(likely.get("tokens", 0)), likely.get("cost"))

    def scored(self, count: int) -> None:
        """So many more examples have been scored."""
        with self._lock:
            self.examples += count

    def own(self) -> dict[str, dict[str, float]]:
        """What was spent here so far, by step: calls, tokens, dollars (``cost``) and seconds."""
        return self._summed()

    def spent(self, *, at_end: bool = False) -> dict[str, dict[str, float]]:
        """The same with what was spent elsewhere; ``at_end`` with calls under way, at what such calls usually take."""
        with self._lock:
            less = {step: {kind: -each for kind, each in row.items()} for step, row in self._pending.items()}
            more = {
                step: {"calls": n, **{kind: n * self._of_call(kind, step) for kind in ("tokens", "cost")}}
                for step, n in self._open.items()
                if at_end and n
            }
        return self._summed(self._elsewhere, less, more)

    def _summed(self, *others: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        with self._lock:
            found = total(self._spent, *others)
        search = found.setdefault(SEARCH, {})
        if self._searching:
            search["seconds"] = search.get("seconds", 0) + time.monotonic() - self._search_began
        return {step: {kind: round(n, DIGITS.get(kind, 6)) for kind, n in row.items()} for step, row in found.items()}

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
            given = self.caps.given().items()
            left = [(self._left(name, limit, calls_per_example), f"{name}={limit:g}") for name, limit in given]
            return min(left, default=(math.inf, "no limit"))

    def seconds_left(self) -> float:
        """Until the time limit; infinite where there is none."""
        if self.caps.timeout is None:
            return math.inf
        return min(threading.TIMEOUT_MAX, max(0.0, self.caps.timeout - (time.monotonic() - self._began)))

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

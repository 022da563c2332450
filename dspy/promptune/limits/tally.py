"""What one call to a language model took: tokens and dollars, of whatever model, and whether the cache answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import dspy
from dspy.clients.base_lm import BaseLM
from dspy.dsp.utils.settings import dotdict, thread_local_overrides
from dspy.promptune.limits.amounts import amount, answered_by_cache, tokens_of
from dspy.promptune.limits.prices import price_of

__all__ = ["MODEL_CLASS", "Tally", "begin", "end"]

MODEL_CLASS = "promptune_model_class"  # attribute of a view: the class of its model


class Tally:
    """Stands in for DSPy's usage tracker during one call, and hands on what it hears to the tracker that was there.

    DSPy tells usage trackers of every call that a provider answered, its history being kept or not. The history's
    entry, where there is one, knows the cost better than a price list.

    Attributes:
        told: A provider's usage was told.
        cached: The history says that the cache answered.
        tokens: Of prompts and answers.
    """

    def __init__(self, before: dict[str, Any]) -> None:
        self.before = before
        self.told = False
        self.around = False  # a call within this one has told, and counts what it took
        self.delegated = False  # a call within this one is counted by itself
        self.cached = False
        self.tokens = 0
        self._known_cost: float | None = None
        self._usages: list[tuple[str, Mapping[str, Any]]] = []
        self._tracker = dspy.settings.get("usage_tracker")
        self._own: defaultdict[str, list[Any]] = defaultdict(list)

    @property
    def usage_data(self) -> Any:
        """What trackers inside the call add to at their end: the outer tracker's."""
        return self._own if self._tracker is None else self._tracker.usage_data

    def add_usage(self, model: str, usage: Mapping[str, Any]) -> None:
        """DSPy's call: a provider has answered."""
        self._pass_on(model, usage)
        self.told = True
        self.tokens += tokens_of(usage)
        self._usages.append((model, usage))

    def _pass_on(self, model: str, usage: Mapping[str, Any]) -> None:
        """Tell the caller's own tracker; a call around this one does not count it again."""
        if isinstance(self._tracker, Tally):
            self._tracker.told = self._tracker.around = True
            self._tracker._pass_on(model, usage)
        elif self._tracker is not None:
            self._tracker.add_usage(model, usage)

    def entry(self, entry: Mapping[str, Any], instance: Any) -> None:
        """The call's entry in DSPy's history: it comes after the usage, and has a cost for answers of the cache too."""
        self.cached = answered_by_cache(entry) or (not self.told and _tells(instance))
        cost = amount(entry.get("cost"))
        if self.cached or cost is None:
            return
        self._known_cost = cost
        if not self.told:
            self.told = True
            self.tokens += tokens_of(entry.get("usage") or {})

    def by_hand(self, entry: Mapping[str, Any]) -> None:
        """An entry that the model has written into its history itself."""
        self.told = True
        self.tokens += tokens_of(entry.get("usage"))
        cost = amount(entry.get("cost"))
        if cost is not None:
            self._known_cost = (self._known_cost or 0.0) + cost

    def counted(self) -> None:
        """The call is counted by itself: one around it that only hands it on is not."""
        if isinstance(self._tracker, Tally):
            self._tracker.delegated = True

    def reached(self, instance: Any, exception: BaseException | None) -> bool:
        """Whether the call came to a provider, other than through a call of another model; in doubt it did."""
        if self.delegated and not (self.tokens or self._known_cost):
            return False
        if exception is not None or self.told:
            return True
        return not (self.cached or _tells(instance))

    @property
    def cost(self) -> float | None:
        """Dollars, as the history has them or else by the price list; ``None`` where no price is known."""
        if self._known_cost is not None:
            return self._known_cost
        costs = [_priced(model, usage) for model, usage in self._usages]
        return sum(cost for cost in costs if cost is not None) if costs and None not in costs else None


def begin() -> Tally:
    """From now on this context's calls are told to a new tally, until :func:`end`."""
    before = thread_local_overrides.get()
    tally = Tally(before)
    thread_local_overrides.set(dotdict({**before, "usage_tracker": tally}))
    return tally


def end(tally: Tally) -> None:
    """The settings are again what they were."""
    thread_local_overrides.set(tally.before)  # type: ignore[arg-type]


def _tells(instance: Any) -> bool:
    """Whether a model tells trackers of each answer of a provider, as those of DSPy 3.4 do.

    Those of DSPy 3.3 leave out answers whose usage is not known.
    """
    kind = getattr(instance, MODEL_CLASS, type(instance))
    if hasattr(kind, "_finalize_lm_response"):
        return False
    own = ("__call__", "acall", "_process_lm_response", "_record_response")
    return all(getattr(kind, name, None) is getattr(BaseLM, name, None) for name in own)


def _priced(model: str, usage: Mapping[str, Any]) -> float | None:
    """Dollars by DSPy's price list."""
    asked, told = amount(usage.get("prompt_tokens")), amount(usage.get("completion_tokens"))
    price = price_of(model) if asked is not None and told is not None else None
    if price is None or asked is None or told is None:
        return None
    return asked * price[0] + told * price[1]

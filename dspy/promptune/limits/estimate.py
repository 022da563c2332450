"""About what a compile will take, before its first call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import counted
from dspy.promptune.errors import BudgetError
from dspy.promptune.limits.budgets import BOOTSTRAP, PROPOSE, REFLECT, SEARCH, BudgetLimits
from dspy.promptune.limits.prices import price_of

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["Estimate", "estimate"]

CHARACTERS = 4  # of a token, in ordinary English
FRAME = 150  # tokens that an adapter writes around the fields of a call
SUMMARY_CALLS = 11  # of the summary of the trainset, at most
PROPOSAL_TOKENS = 1500  # of a call that proposes an instruction,
LEAST_PROPOSAL = 100  # and at least
WHOLE = ("max_lm_calls", "max_tokens_spent")  # limits that are whole numbers
UNITS = {
    "max_lm_calls": "calls",
    "max_tokens_spent": "tokens",
    "max_cost": "dollars",
    "timeout": "seconds even without waiting for answers",
}
LEAST_SECONDS = 0.001  # of a call, in this process alone: how long a model takes is not known before it answers


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Language-model calls of each step, tokens of all, and dollars where the price of the model is known.

    ``per_call``: tokens of a call that answers an example.
    """

    bootstrap: int
    propose: int
    search: int
    tokens: int
    cost: float | None
    per_call: int = 0

    @property
    def calls(self) -> int:
        """Of all steps."""
        return self.bootstrap + self.propose + self.search

    def __str__(self) -> str:
        cost = "price unknown" if self.cost is None else f"${self.cost:,.2f}"
        return (
            f"about {counted(self.calls, 'call')} ({self.bootstrap:,} to bootstrap, {self.propose:,} to propose, "
            f"{self.search:,} to search), {counted(self.tokens, 'token')}, {cost}"
        )

    def prior(self) -> dict[str, dict[str, float]]:
        """Tokens and dollars of one call of each step."""
        sizes = dict.fromkeys((PROPOSE, REFLECT), PROPOSAL_TOKENS)
        sizes |= {BOOTSTRAP: self.per_call, SEARCH: self.per_call}
        return {step: {"tokens": size, "cost": size * self._price()} for step, size in sizes.items()}

    def first(self, n_examples: int, calls_per_example: int) -> dict[str, tuple[float, float, float]]:
        """By kind of limit what steps 1 and 2 take, what the first evaluation takes, and what both take at least.

        Calls are the same every time; of tokens and dollars only a part of the estimate is certain, and of the time
        only what the calls take here.
        """
        calls, before = n_examples * calls_per_example, self.bootstrap + self.propose
        steps = self.bootstrap * self.per_call + self.propose * PROPOSAL_TOKENS
        least = (self.bootstrap + calls) * FRAME // 2 + self.propose * LEAST_PROPOSAL
        price = self._price()
        return {
            "max_lm_calls": (before, calls, before + calls),
            "max_tokens_spent": (steps, calls * self.per_call, least),
            "max_cost": (steps * price, calls * self.per_call * price, least * price),
            "timeout": (before * LEAST_SECONDS, calls * LEAST_SECONDS, (before + calls) * LEAST_SECONDS),
        }

    def check(self, caps: BudgetLimits, n_examples: int, calls_per_example: int) -> None:
        """Refuse a budget that ends before the first evaluation.

        Raises:
            BudgetError: With the number of calls, tokens, dollars or seconds that is needed.
        """
        for name, (steps, first, least) in self.first(n_examples, calls_per_example).items():
            limit = getattr(caps, name)
            if limit is not None and limit < least:
                before, then, enough = (_said(amount, name) for amount in (steps, first, _up(steps + first, name)))
                raise BudgetError(
                    f"{name}={limit:.6g}: steps 1 and 2 take about {before} {UNITS[name]} and the first evaluation "
                    f"{then}; give at least {enough}, fewer candidates, or a smaller valset."
                )

    def tight(self, caps: BudgetLimits, n_examples: int, calls_per_example: int) -> bool:
        """Whether a limit is less than twice what steps 1 and 2 and the first evaluation are likely to take."""
        found = self.first(n_examples, calls_per_example).items()
        limits = {name: getattr(caps, name) for name, _ in found}
        return any(limits[name] is not None and limits[name] < 2 * (steps + first) for name, (steps, first, _) in found)

    def _price(self) -> float:
        """Dollars of a token; 0 where no price is known."""
        return (self.cost or 0.0) / self.tokens if self.tokens else 0.0


def _said(amount: float, name: str) -> str:
    """An amount in figures that can be typed."""
    return f"{amount:.0f}" if name in WHOLE else f"{amount:.6g}"


def _up(amount: float, name: str) -> float:
    """A number that is enough, as it is told."""
    return math.ceil(amount) if name in WHOLE else amount * 1.00001


def estimate(
    program: Module,
    examples: Sequence[Any],
    *,
    lm: Any,
    budget: int,
    step_1: Mapping[str, Any],
    step_2: Mapping[str, Any],
) -> Estimate:
    """What a compile with these candidates and this budget takes if most answers are right.

    Args:
        program: Its predictors are counted, and their instructions measured.
        examples: Some examples, to measure their fields.
        lm: Whose price it is.
        budget: Examples that are evaluated.
        step_1: ``num_sets`` (all of them), ``demos`` (bootstrapped in one set).
        step_2: ``num_candidates`` (the program's own included), ``program_aware``, ``data_aware``.
    """
    predictors = len(program.predictors())
    bootstrap = max(0, step_1["num_sets"] - 2) * step_1["demos"] * predictors
    each = 3 if step_2["program_aware"] else 1
    propose = max(0, step_2["num_candidates"] - 1) * predictors * each + SUMMARY_CALLS * bool(step_2["data_aware"])
    per_call = _tokens(program, examples, step_1["demos"])
    tokens = (bootstrap + budget * predictors) * per_call + propose * PROPOSAL_TOKENS
    return Estimate(
        bootstrap=bootstrap,
        propose=propose,
        search=budget * predictors,
        tokens=tokens,
        cost=_cost(lm, tokens),
        per_call=per_call,
    )


def _tokens(program: Module, examples: Sequence[Any], demos: int) -> int:
    """Of one call: the longest instruction, a few demos, and the fields of an example."""
    some = list(examples[:20])
    fields = sum(len(str(value)) for example in some for value in example.values()) // max(1, len(some))
    instruction = max((len(each.signature.instructions) for each in program.predictors()), default=0)
    return FRAME + (instruction + fields * (1 + demos)) // CHARACTERS


def _cost(lm: Any, tokens: int) -> float | None:
    """Nine tenths of the tokens in prompts."""
    price = price_of(str(getattr(lm, "model", lm)))
    return None if price is None else tokens * (0.9 * price[0] + 0.1 * price[1])

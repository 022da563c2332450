"""About what a compile will take, before its first call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy.promptune.errors import BudgetError
from dspy.promptune.limits.budgets import BudgetLimits
from dspy.promptune.limits.prices import price_of

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["Estimate", "estimate"]

CHARACTERS = 4  # of a token, in ordinary English
FRAME = 150  # tokens that an adapter writes around the fields of a call
SUMMARY_CALLS = 11  # of the summary of the trainset, at most
PROPOSAL_TOKENS = 1500  # of a call that proposes an instruction


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Language-model calls of each step, tokens of all, and dollars where the price of the model is known."""

    bootstrap: int
    propose: int
    search: int
    tokens: int
    cost: float | None

    @property
    def calls(self) -> int:
        """Of all steps."""
        return self.bootstrap + self.propose + self.search

    def __str__(self) -> str:
        cost = "price unknown" if self.cost is None else f"${self.cost:,.2f}"
        return (
            f"about {self.calls:,} calls ({self.bootstrap:,} to bootstrap, {self.propose:,} to propose, "
            f"{self.search:,} to search), {self.tokens:,} tokens, {cost}"
        )

    def check(self, caps: BudgetLimits, n_examples: int, calls_per_example: int) -> None:
        """Refuse a budget that ends before the first evaluation.

        Raises:
            BudgetError: With the number of calls that is needed.
        """
        least = self.bootstrap + self.propose + n_examples * calls_per_example
        if caps.max_lm_calls is not None and caps.max_lm_calls < least:
            raise BudgetError(
                f"max_lm_calls={caps.max_lm_calls}: steps 1 and 2 take about {self.bootstrap + self.propose} calls and "
                f"the first evaluation {n_examples * calls_per_example}; give at least {least}, fewer candidates, or a "
                "smaller valset."
            )


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
        bootstrap=bootstrap, propose=propose, search=budget * predictors, tokens=tokens, cost=_cost(lm, tokens)
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

"""What a compile takes, by `auto`, validation examples and predictors: the table of docs/cost-and-resume.md.

    python tools/cost_table.py

Each line is what a compile with `sampler="qei"` and DSPy's other defaults logs as its estimate before its first call
(`dspy/promptune/limits/estimate.py`), for examples of some 400 characters. Dollars are by DSPy's own price list.
"""

from __future__ import annotations

import os
from typing import Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # the price list in the package, not one of the network

import dspy
from dspy.promptune.compile.options import upstream_budget
from dspy.promptune.limits.estimate import Estimate, estimate

CHARACTERS = 400
MODELS = ("openai/gpt-4o-mini", "openai/gpt-4o")
Auto = Literal["light", "medium", "heavy"]
SIZES: dict[Auto, tuple[int, int]] = {"light": (50, 100), "medium": (100, 300), "heavy": (300, 1000)}
PREDICTORS = (1, 3)


class Program(dspy.Module):
    """As many predictors as wanted."""

    def __init__(self, predictors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps = [dspy.Predict("question -> answer") for _ in range(predictors)]


def costs(auto: Auto, n_examples: int, predictors: int, model: str) -> tuple[int, Estimate]:
    """Examples scored by the search, and the estimate of a whole compile, for ``n_examples`` validation examples."""
    program = Program(predictors)
    example = dspy.Example(question="q" * (CHARACTERS - 20), answer="a" * 20).with_inputs("question")
    lm = dspy.LM(model, api_key="none")
    optimizer = dspy.MIPROv2(metric=lambda *_: True, auto=auto, prompt_model=lm, task_model=lm)
    trials, valset, minibatch, instructions, sets = optimizer._set_hyperparams_from_run_mode(
        program, None, True, False, [example] * n_examples, None, None
    )
    budget = upstream_budget(len(valset), trials, min(35, len(valset)) if minibatch else None, 5)
    found = estimate(
        program,
        valset,
        lm=lm,
        budget=budget,
        step_1={"num_sets": sets, "demos": optimizer.max_bootstrapped_demos},
        step_2={"num_candidates": min(instructions, sets), "program_aware": True, "data_aware": True},
    )
    return budget, found


def main() -> None:
    """Print the table as Markdown."""
    print("| `auto` | validation examples | predictors | examples scored | LM calls | tokens |", end="")
    print("".join(f" {model.partition('/')[2]} |" for model in MODELS))
    print("|---|---:|---:|---:|---:|---:|" + "---:|" * len(MODELS))
    for auto, sizes in SIZES.items():
        for size in sizes:
            for predictors in PREDICTORS:
                rows = [costs(auto, size, predictors, model) for model in MODELS]
                examples, found = rows[0]
                prices = " | ".join("?" if each.cost is None else f"${each.cost:,.2f}" for _, each in rows)
                tokens = f"{found.tokens / 1e6:.1f} million"
                print(f"| {auto} | {size} | {predictors} | {examples:,} | {found.calls:,} | {tokens} | {prices} |")


if __name__ == "__main__":
    main()

"""Programs of two predictors made of recorded tables: every pair of their prompts, with a graded score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.tables import EMPTY, Evaluate, Table
from dspy.promptune.space import Key, PromptSpace

__all__ = ["Product", "product"]


@dataclass(frozen=True)
class Product(Table):
    """Two tables side by side: an example's score is ``unit`` times the mean of its two scores."""

    halves: tuple[Table, ...] = ()

    def choices(self) -> list[list[Key]]:
        """Those of both tables."""
        return [choice for half in self.halves for choice in half.choices()]

    def shuffled(self, seed: int) -> Table:
        """Both tables shuffled."""
        first, second = (half.shuffled(seed) for half in self.halves)
        return product(first, second, self.unit)

    def replay(self, seed: int) -> Evaluate:
        """Both tables replayed, each with its own draws."""
        sides = [half.replay(seed + 1000 * i) for i, half in enumerate(self.halves)]
        cut = len(self.halves[0].space.sizes)

        def evaluate(params: dict[str, int], examples: Sequence[int]) -> list[float]:
            key = self.space.key(params)
            parts = zip(self.halves, (key[:cut], key[cut:]), sides, strict=True)
            found = [side(half.space.params(part), examples) for half, part, side in parts]
            return [self.unit * float(score) for score in np.mean(found, axis=0)]

        return evaluate


def product(first: Table, second: Table, unit: float = 1.0) -> Product:
    """All pairs of the prompts of two tables, for validation examples that both have.

    Both tables have demos, and no recorded columns: their truth does not depend on how many examples there are. Which
    demo set is empty is not told here: each table has a vector of its own for it.
    """
    truth = {a + b: (x + y) / 2 for a, x in first.truth.items() for b, y in second.truth.items()}
    texts = [
        [[text or f"{half.name} {EMPTY}" for text in half.space.texts(i)] for i in range(2)] for half in (first, second)
    ]
    return Product(
        name=f"{first.name.split('_')[2]} x {second.name.split('_')[2]}, {'0 to 100' if unit > 1 else 'graded'}",
        space=PromptSpace(
            {i: own[0] for i, own in enumerate(texts)}, {i: own[1] for i, own in enumerate(texts)}, truth
        ),
        truth=truth,
        columns={},
        n_examples=min(first.n_examples, second.n_examples),
        vectors={
            f"{half.name} {EMPTY}" if text == EMPTY else text: vector
            for half in (first, second)
            for text, vector in half.vectors.items()
        },
        halves=(first, second),
        unit=unit,
    )

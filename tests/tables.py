"""A recorded search for tests: a space, and the scores of every combination on every example."""

import random

from dspy.promptune import PromptSpace


class Table:
    """A recorded search: the scores of every combination on every example."""

    def __init__(self, instructions=5, demos=4, n_examples=40, seed=0):
        rng = random.Random(seed)
        self.space = PromptSpace(
            {0: [f"instruction {i}" for i in range(instructions)]}, {0: [f"demos {i}" for i in range(demos)]}
        )
        self.n_examples = n_examples
        self.worth = {key: rng.random() for key in self.space.keys()}
        self.scores = {key: [float(rng.random() < p) for _ in range(n_examples)] for key, p in self.worth.items()}
        self.paid = []

    def __call__(self, params, examples):
        key = self.space.key(params)
        self.paid.extend((key, example) for example in examples)
        return [self.scores[key][example] for example in examples]

"""Baselines of racing without a model: a table, a seed and a budget in, a trace of true accuracies out."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.methods import Trace
from benchmarks.tables import Table

BLOCK = 5
JOBS = 8


class _Replay:
    """Scores of a table in one order of the examples, the same for all prompts."""

    def __init__(self, table: Table, seed: int, calls: int) -> None:
        self.keys = list(table.space.keys())
        self.rng = np.random.default_rng(seed)
        self.order = self.rng.permutation(table.n_examples).tolist()
        self.seen, self.right = np.zeros(len(self.keys), dtype=int), np.zeros(len(self.keys))
        self.calls, self.budget = 0, calls
        self._table, self._evaluate = table, table.replay(seed)

    def block(self, j: int, size: int) -> bool:
        """Score the next examples of prompt ``j``; False where there are none, or no calls."""
        size = min(size, len(self.order) - int(self.seen[j]), self.budget - self.calls)
        if size <= 0:
            return False
        examples = self.order[self.seen[j] : self.seen[j] + size]
        self.right[j] += sum(self._evaluate(self._table.space.params(self.keys[j]), examples))
        self.seen[j] += size
        self.calls += size
        return True

    def truth(self, j: int) -> float:
        """The recorded accuracy of prompt ``j``."""
        return self._table.truth[self.keys[j]]


def thompson_blocks(table: Table, seed: int, calls: int) -> Trace:
    """Thompson sampling with independent Beta(1, 1) beliefs on blocks of five examples, eight at a time."""
    replay, history = _Replay(table, seed, calls), []
    while replay.calls < calls:
        before = replay.calls
        for _ in range(JOBS):
            draws = replay.rng.beta(1 + replay.right, 1 + replay.seen - replay.right)
            draws[replay.seen >= len(replay.order)] = -1
            replay.block(int(np.argmax(draws)), BLOCK)
        if replay.calls == before:
            break
        means = np.where(replay.seen > 0, (1 + replay.right) / (2 + replay.seen), -1)
        history.append((replay.calls, replay.truth(int(np.argmax(means)))))
    return history


def halving(table: Table, seed: int, calls: int) -> Trace:
    """Successive halving (Jamieson and Talwalkar 2016): each rung gets the same calls, the better half goes on."""
    replay, history = _Replay(table, seed, calls), []
    size = min(len(replay.keys), max(2, calls // (2 * math.ceil(math.log2(len(replay.keys) + 1)))))
    alive = replay.rng.permutation(len(replay.keys))[:size].tolist()
    rungs = max(1, math.ceil(math.log2(len(alive))))
    while replay.calls < calls:
        share, before = max(1, calls // rungs // len(alive)), replay.calls
        for j in alive:
            replay.block(j, share)
            known = [k for k in alive if replay.seen[k]]
            best = max(known, key=lambda k: (1 + replay.right[k]) / (2 + replay.seen[k]))
            history.append((replay.calls, replay.truth(best)))
        if replay.calls == before and len(alive) == 1:
            break
        means = replay.right[alive] / np.maximum(replay.seen[alive], 1)
        alive = [alive[i] for i in np.argsort(-means, kind="stable")[: max(1, len(alive) // 2)]]
    return history

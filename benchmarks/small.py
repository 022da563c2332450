"""Few validation examples: recorded tables cut to 20, 30 and 50 of theirs. ``python -m benchmarks.small``.

The budget is upstream's with as many examples: so many trials (10 with ``auto="light"``, 18 with ``"medium"``, 27 with
``"heavy"``) and the original program, all in full. TPE spends it as upstream does, one evaluation in full a trial;
ours races. A line of the output says, of one size, the mean regret over the budget (``area``: the best mean on these
examples less that of the prompt that would be returned), the same at the end, the mean regret over the budget on all
examples of the table (``true``), and by how much the reported score is above the mean of all scores of the returned
prompt (``bias``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.methods import Q8
from benchmarks.tables import Table, data_folder, load_tables
from dspy.promptune import search
from dspy.promptune.space import Key
from dspy.promptune.storage.backend import quiet_optuna

__all__ = ["cut", "run"]

SIZES = (20, 30, 50)


def cut(table: Table, size: int, seed: int) -> tuple[Table, dict[Key, float]]:
    """A table of ``size`` of its examples, drawn by ``seed``, and the mean of every prompt on them."""
    examples = np.random.default_rng(seed).permutation(table.n_examples)[:size].tolist()
    whole = table.replay(seed)
    rows = {key: np.array(whole(table.space.params(key), examples)) for key in table.truth}
    means = {key: float(row.mean()) for key, row in rows.items()}
    return replace(table, columns=rows, n_examples=size), means


def run(table: Table, size: int, seed: int, trials: int, options: Mapping[str, Any]) -> dict[str, float]:
    """One search on a cut table: regret over the budget and at its end, and the bias of the reported score."""
    table = table.shuffled(seed)
    small, means = cut(table, size, seed)
    calls = (trials + 1) * size
    embedder = {"embedder": table.embed} if table.vectors and options["sampler"] == "qei" else {}
    found = search(
        small.space, small.replay(seed), n_examples=size, max_calls=calls, seed=seed, **{**options, **embedder}
    )
    keys = [(at, small.space.key(params)) for at, params in found.history]
    best = max(means.values())
    end = means[small.space.key(found.best_params)]
    return {
        "area": regret(keys, means, calls), "end": best - end, "true": regret(keys, table.truth, calls),
        "bias": found.best_score - end,
    }  # fmt: skip


def regret(history: Sequence[tuple[int, Key]], means: Mapping[Key, float], calls: int) -> float:
    """Mean over the budget of the best mean less that of the prompt that would be returned; at first that of any."""
    best, first = max(means.values()), float(np.mean(list(means.values())))
    steps = [(0, first), *((at, means[key]) for at, key in history), (calls, best)]
    return sum((best - value) * (later - at) for (at, value), (later, _) in itertools.pairwise(steps)) / calls


def methods(size: int) -> dict[str, dict[str, Any]]:
    """What is compared: ours, and TPE with every trial in full."""
    return {
        "ours": {"sampler": "qei", **Q8},
        "ours, one at a time": {"sampler": "qei"},
        "tpe": {"sampler": "tpe", "minibatch_size": size, "full_eval_steps": 0},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the recorded tables (default: benchmarks/data)")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--trials", type=int, default=10, help="upstream's, which make the budget")
    chosen = parser.parse_args()
    tables = load_tables(data_folder(chosen.data))
    with quiet_optuna():
        for size in chosen.sizes:
            start, found = time.perf_counter(), {}
            for name, options in methods(size).items():
                every = itertools.product(tables, range(chosen.seeds))
                runs = [run(table, size, seed, chosen.trials, options) for table, seed in every]
                found[name] = {what: float(np.mean([one[what] for one in runs])) for what in runs[0]}
            line = {name: {what: round(value, 4) for what, value in each.items()} for name, each in found.items()}
            ratios = {
                name: [round(each[what] / found["tpe"][what], 3) for what in ("area", "true")]
                for name, each in found.items()
            }
            told = {"examples": size, "trials": chosen.trials, "runs": len(runs), **line, "ratios": ratios}
            print(json.dumps({**told, "s": round(time.perf_counter() - start)}), flush=True)


if __name__ == "__main__":
    main()

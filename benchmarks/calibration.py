"""Does the model know what it does not know? Intervals for prompts that were never measured, on recorded tables.

    python -m benchmarks.calibration --seeds 20

Some prompts of a table, drawn at random, are measured on a few examples; the model predicts the true accuracy of all
others. Printed are the share of truths inside the 90 % and 50 % intervals, and the correlation of the predictions with
the truths (the level is often off, because all prompts were measured on the same few examples; the order matters).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.tables import Table, data_folder, load_tables
from dspy.promptune.features import embed_parts

__all__ = ["Outcome", "main", "predict"]

Z90, Z50 = 1.6449, 0.6745


@dataclass(frozen=True)
class Outcome:
    """What one prediction of all held-out prompts of a table was worth."""

    inside90: float
    inside50: float
    correlation: float


def predict(table: Table, vectors: Sequence[np.ndarray], seed: int, prompts: int, examples: int) -> Outcome:
    """Measure ``prompts`` random prompts on the same ``examples`` random examples and predict the others.

    Args:
        table: Where scores and truths come from.
        vectors: Of each part of its space.
        seed: Of the draws.
        prompts: At most three quarters of the table's are measured.
        examples: Scores of each measured prompt.
    """
    from dspy.promptune.gp.data import Observation
    from dspy.promptune.gp.surrogate import Surrogate

    rng = np.random.default_rng(seed)
    keys = [tuple(key) for key in rng.permutation(np.array(list(table.space.keys()))).tolist()]
    measured = keys[: min(prompts, len(keys) * 3 // 4)]
    held_out = keys[len(measured) :]
    drawn = tuple(rng.choice(table.n_examples, examples, replace=False).tolist())
    evaluate = table.replay(seed)
    scores = {key: tuple(evaluate(table.space.params(key), drawn)) for key in measured}
    observations = [Observation(key, float(np.mean(row)), row, drawn) for key, row in scores.items()]
    posterior = Surrogate(vectors).posterior(observations, held_out)
    truth = np.array([table.truth[key] for key in held_out])
    error, sd = posterior.mean - truth, np.sqrt(posterior.variance)
    return Outcome(
        inside90=float((np.abs(error) <= Z90 * sd).mean()),
        inside50=float((np.abs(error) <= Z50 * sd).mean()),
        correlation=float(np.corrcoef(posterior.mean, truth)[0, 1])
        if np.ptp(posterior.mean) and np.ptp(truth)
        else 0.0,
    )


def line(table: Table, embedder: str, seeds: int, prompts: int, examples: int) -> list[str]:
    """One row of the report: means over seeds."""
    vectors = embed_parts(table.space, embedder)
    found = [predict(table, vectors, seed, prompts, examples) for seed in range(seeds)]
    means = [float(np.mean([getattr(one, name) for one in found])) for name in ("inside90", "inside50", "correlation")]
    setting = [table.name, embedder, str(prompts), str(examples)]
    return [*setting, f"{means[0]:.1%}", f"{means[1]:.1%}", f"{means[2]:+.2f}"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line a table, embedder and number of measured prompts, and the mean coverage."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", help="folder of the recorded tables (default: ../shared/data beside the checkout)")
    parser.add_argument("--tables", nargs="+", default=[], help="parts of the names of the tables (default: all)")
    parser.add_argument("--embedders", nargs="+", default=["minilm"], help="default: minilm")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--prompts", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--examples", type=int, nargs="+", default=[10, 35])
    options = parser.parse_args(argv)
    print("| table | embedder | prompts measured | examples each | in the 90 % interval | in the 50 % | correlation |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    covered = []
    for table in load_tables(data_folder(options.data), options.tables):
        for embedder in options.embedders:
            for prompts in options.prompts:
                for examples in options.examples:
                    cells = line(table, embedder, options.seeds, prompts, examples)
                    covered.append(float(cells[4].rstrip("%")))
                    print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nMean coverage of the 90 % intervals: {np.mean(covered):.1f} %.")


if __name__ == "__main__":
    main()

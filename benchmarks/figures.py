"""Numbers of the regret benchmark: curves over calls, calls to a target, areas, and their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.methods import Trace

__all__ = ["STEP", "area", "at", "curves", "geometric_mean", "grid", "mean_and_error", "reach", "reach_interval"]

Array = NDArray[np.float64]
STEP = 10
"""Resolution of all curves, in calls."""


def grid(budget: int) -> NDArray[np.int64]:
    """The places where curves are read: 10, 20, ... up to the budget."""
    return np.arange(STEP, budget + 1, STEP)


def curves(traces: Sequence[Trace], budget: int, start: float) -> Array:
    """One row a seed: the accuracy of the run's prompt at each place of the grid, ``seeds x places``.

    Args:
        traces: Changes of the prompt, calls ascending.
        budget: Where the grid ends.
        start: What a run is worth before its first entry: a prompt picked blindly, so the mean of the pool.
    """
    places = grid(budget)
    rows = []
    for trace in traces:
        calls = [entry[0] for entry in trace]
        values = np.array([start, *(entry[1] for entry in trace)])
        rows.append(values[np.searchsorted(calls, places, side="right")])
    return np.array(rows)


def at(rows: Array, calls: int) -> Array:
    """The column of the curves at ``calls``: one value a seed."""
    column: Array = rows[:, min(calls // STEP, rows.shape[1]) - 1]
    return column


def mean_and_error(values: Array) -> tuple[float, float]:
    """Mean over seeds and its standard error (NaN for a single seed)."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def reach(rows: Array, target: float) -> float:
    """Calls after which the mean curve first has ``target``, as a share of the budget; infinity where it never has."""
    places = np.flatnonzero(rows.mean(axis=0) >= target - 1e-12)
    return float(places[0] + 1) / rows.shape[1] if len(places) else math.inf


def reach_interval(rows: Array, target_rows: Array, rng: np.random.Generator, draws: int = 500) -> tuple[float, float]:
    """A 90 % bootstrap interval of ``reach``: the seeds of both methods are drawn again, the target with them."""
    found = []
    for _ in range(draws):
        own = rows[rng.integers(len(rows), size=len(rows))]
        other = target_rows[rng.integers(len(target_rows), size=len(target_rows)), -1]
        found.append(reach(own, float(other.mean())))
    low, high = np.quantile(found, [0.05, 0.95], method="nearest")
    return float(low), float(high)


def area(rows: Array, best: float) -> Array:
    """Regret (best accuracy of the table less the run's) averaged over the calls of the budget, one value a seed."""
    values: Array = best - rows.mean(axis=1)
    return values


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))

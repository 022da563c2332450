"""The regret benchmark's results as Markdown tables and plots."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Array, area, at, curves, geometric_mean, grid, mean_and_error, reach, reach_interval
from benchmarks.methods import METHODS
from benchmarks.store import Store
from benchmarks.tables import Table

__all__ = ["Results", "load_results", "plot", "report"]

PLOTTED = ("qei", "qei-async", "qei-q1", "tpe-35", "tpe-35-q8", "tpe-10-q8", "random-35", "botorch-35")
"""Methods in the plots; more lines cannot be told apart."""

CHECKPOINTS = (280, 560, 1120, 1680, 2240)
CONTROL = 0.05
"""A table whose best prompt is within this of its median one: nothing to find there but noise."""


@dataclass(frozen=True)
class Results:
    """Curves of every method on one table, ``seeds x places`` each, in the order of the table of methods."""

    table: Table
    budget: int
    rows: Mapping[str, Array]
    seconds: Mapping[str, float]
    commits: frozenset[str]

    @property
    def control(self) -> bool:
        """Whether there is nothing to find."""
        return self.table.best - float(np.median(list(self.table.truth.values()))) < CONTROL


def load_results(table: Table, methods: Sequence[str], seeds: int, budget: int, store: Store) -> Results:
    """What is in the store of a table: the first ``seeds`` seeds of each method that has any."""
    start = float(np.mean(list(table.truth.values())))
    rows, seconds, commits = {}, {}, set()
    for method in methods:
        runs = [run for seed, run in store.load(table.name, method, budget).items() if seed < seeds]
        if runs:
            rows[method] = curves([run["trace"] for run in runs], budget, start)
            seconds[method] = float(np.mean([run["seconds"] for run in runs]))
            commits |= {run["commit"] for run in runs}
    return Results(table, budget, rows, seconds, frozenset(commits))


def report(results: Sequence[Results], target: str) -> str:
    """Everything that is measured, as Markdown."""
    judged = [one for one in results if not one.control and target in one.rows]
    commits = sorted(set().union(*(one.commits for one in results)))
    parts = [f"Code: {', '.join(commits) or 'nothing has run'}."]
    if judged:
        parts += [_ratios(judged, target), _finals(judged, target), _areas(judged, target)]
    parts += [_control(one, target) for one in results if one.control and target in one.rows]
    parts += [_curves(one) for one in results]
    return "\n\n".join(parts)


def _markdown(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join([f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in [header, rule, *lines])])


def _by_table(
    judged: Sequence[Results], cell: Callable[[Results, str], str], last: Callable[[str], str]
) -> list[list[str]]:
    """One line a method: a cell a table, and a last one over all tables (only of methods that ran on all)."""
    lines = []
    for method in METHODS:
        if any(method in one.rows for one in judged):
            cells = [cell(one, method) if method in one.rows else "" for one in judged]
            everywhere = all(method in one.rows for one in judged)
            lines.append([METHODS[method].label, *cells, last(method) if everywhere else ""])
    return lines


def _heads(judged: Sequence[Results]) -> list[str]:
    return [f"{one.table.name} ({one.budget:,})" for one in judged]


def _ratios(judged: Sequence[Results], target: str) -> str:
    rng = np.random.default_rng(0)

    def share(one: Results, method: str) -> float:
        return reach(one.rows[method], float(one.rows[target][:, -1].mean()))

    def cell(one: Results, method: str) -> str:
        low, high = reach_interval(one.rows[method], one.rows[target], rng)
        return f"{_share(share(one, method))} ({_share(low)} to {_share(high)})"

    def last(method: str) -> str:
        shares = [share(one, method) for one in judged]
        return f"{'> ' if math.inf in shares else ''}{geometric_mean([min(value, 1.0) for value in shares]):.2f}"

    title = (
        f"Calls to reach the final mean accuracy of {METHODS[target].label}, as a share of the budget "
        "(first place where the mean curve has it; 90 % bootstrap interval over seeds; never: > 1, counted as 1)"
    )
    header = ["method", *_heads(judged), "geometric mean"]
    return _markdown(title, header, _by_table(judged, cell, last))


def _share(value: float) -> str:
    return "> 1" if math.isinf(value) else f"{value:.2f}"


def _finals(judged: Sequence[Results], target: str) -> str:
    def cell(one: Results, method: str) -> str:
        mean, error = mean_and_error(one.rows[method][:, -1])
        return f"{mean:.3f} ± {error:.3f}"

    def last(method: str) -> str:
        gains = [float(one.rows[method][:, -1].mean() - one.rows[target][:, -1].mean()) for one in judged]
        return f"{np.mean(gains):+.3f} (worst {min(_deviation(one, method, target) for one in judged):+.1f} se)"

    title = "True accuracy of the returned prompt at the end of the budget, mean ± standard error over seeds"
    header = ["method", *_heads(judged), f"mean gain over {METHODS[target].label} (worst table, in standard errors)"]
    return _markdown(title, header, _by_table(judged, cell, last))


def _deviation(one: Results, method: str, target: str) -> float:
    """Final accuracy less the target's, in standard errors of the difference."""
    if method == target:
        return 0.0
    (mean, error), (other, other_error) = (mean_and_error(one.rows[name][:, -1]) for name in (method, target))
    return (mean - other) / max(math.hypot(error, other_error), 1e-9)


def _areas(judged: Sequence[Results], target: str) -> str:
    def cell(one: Results, method: str) -> str:
        mean, error = mean_and_error(area(one.rows[method], one.table.best))
        return f"{mean:.4f} ± {error:.4f}"

    def last(method: str) -> str:
        shares = [
            float(area(one.rows[method], one.table.best).mean() / area(one.rows[target], one.table.best).mean())
            for one in judged
        ]
        return f"{geometric_mean(shares):.2f}"

    title = "Area under regret: best accuracy of the table less the run's, averaged over the calls of the budget"
    header = ["method", *_heads(judged), f"geometric mean of the ratio to {METHODS[target].label}"]
    return _markdown(title, header, _by_table(judged, cell, last))


def _control(one: Results, target: str) -> str:
    blind = float(np.mean(list(one.table.truth.values())))
    lines = []
    for method, rows in one.rows.items():
        mean, error = mean_and_error(rows[:, -1])
        lines.append([METHODS[method].label, f"{mean:.4f} ± {error:.4f}", f"{_deviation(one, method, target):+.1f}"])
    title = (
        f"Control {one.table.name}: a prompt picked blindly has {blind:.4f}, the luckiest of {len(one.table.truth)} "
        f"{one.table.best:.4f}; {one.budget:,} calls"
    )
    return _markdown(title, ["method", "accuracy", f"standard errors from {METHODS[target].label}"], lines)


def _curves(one: Results) -> str:
    places = [calls for calls in CHECKPOINTS if calls < one.budget]
    if len(places) < 2:
        places = [one.budget // 4, one.budget // 2]
    places.append(one.budget)
    lines = []
    for method, rows in one.rows.items():
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error(at(rows, calls))) for calls in places]
        lines.append([METHODS[method].label, *cells, str(len(rows)), f"{one.seconds[method]:.1f}"])
    title = f"{one.table.name}: {one.table.space!r}, best {one.table.best:.3f}"
    header = ["method", *(f"{calls:,} calls" for calls in places), "seeds", "seconds a run"]
    return _markdown(title, header, lines)


def plot(results: Sequence[Results], folder: Path) -> None:
    """One PNG a table: mean curves over calls of our methods and the main baselines."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No plots: pip install matplotlib (the extra [report]) draws them.", file=sys.stderr)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for one in results:
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for method in [name for name in PLOTTED if name in one.rows]:
            _line(axes, one, method)
        axes.axhline(one.table.best, color="0.6", lw=0.8)
        axes.set(xlabel="calls (examples scored)", ylabel="true accuracy of the returned prompt", title=one.table.name)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        figure.savefig(folder / f"{one.table.name}.png", dpi=110)


def _line(axes: Any, one: Results, method: str) -> None:
    """Mean over seeds, and one standard error to either side for the methods that the issue is between."""
    rows, places = one.rows[method], grid(one.budget)
    mean = rows.mean(axis=0)
    dashes = "-" if METHODS[method].group == "ours" else "--"
    (line,) = axes.plot(places, mean, dashes, label=f"{METHODS[method].label} ({len(rows)} seeds)", lw=1.5)
    if method in ("qei", "tpe-35") and len(rows) > 1:
        error = rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
        axes.fill_between(places, mean - error, mean + error, color=line.get_color(), alpha=0.15, lw=0)

"""One picture of all recorded tables: accuracy of the returned prompt against examples scored.

    python -m benchmarks.overview [--results DIR] [--methods qei-async tpe-35] [--out FILE]

It draws what `benchmarks.regret` has stored, every table, the control included: nothing is left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import grid
from benchmarks.methods import METHODS
from benchmarks.report import Results, load_results
from benchmarks.store import Budget, Store
from benchmarks.tables import data_folder, load_tables

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
COLORS = {"qei-async": "#3949ab", "tpe-35": "#e65100", "tpe-10": "#f9a825", "random-35": "#9e9e9e"}
LABELS = {
    "qei-async": 'sampler="qei", 8 jobs',
    "tpe-35": "TPE, minibatches of 35",
    "tpe-10": "TPE, minibatches of 10",
    "random-35": "random, minibatches of 35",
}
NAMES = {
    "capo_dev_copa_llama_seed44": "COPA, Llama 3.3 70B (control)",
    "capo_dev_gsm8k_llama_seed43": "GSM8K, Llama 3.3 70B",
    "capo_dev_subj_mistral_seed42": "Subj, Mistral Small 24B",
    "capo_test_gsm8k_qwen": "GSM8K, Qwen 2.5 32B",
    "capo_test_sst5_mistral": "SST-5, Mistral Small 24B",
    "capo_test_subj_llama": "Subj, Llama 3.3 70B",
    "mizrahi_bbh_hyperbaton_minotaur-15b": "Hyperbaton, Minotaur 15B",
    "mizrahi_lmentry_more_letters_ultralm-13b": "More letters, UltraLM 13B",
}


def panel(axes: Any, one: Results, methods: Sequence[str]) -> None:
    """One table: mean over seeds, two standard errors to either side, and the best prompt as a dashed line."""
    places = grid(one.budget)
    for method in methods:
        if method not in one.rows:
            continue
        rows = one.rows[method]
        mean, error = rows.mean(axis=0), 2 * rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
        color = COLORS.get(method)
        axes.plot(places, 100 * mean, color=color, lw=1.8, label=LABELS.get(method, METHODS[method].label))
        axes.fill_between(places, 100 * (mean - error), 100 * (mean + error), color=color, alpha=0.15, lw=0)
    axes.axhline(100 * one.table.best, color="#757575", lw=0.8, ls="--")
    axes.set_title(f"{NAMES.get(one.table.name, one.table.name)}\n{len(one.table.truth)} prompts", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw(results: Sequence[Results], methods: Sequence[str], path: Path) -> None:
    """All tables, four in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, one in zip(figure.subplots(2, math.ceil(len(results) / 2)).flat, results, strict=False):
        panel(axes, one, methods)
    runs = min(len(rows) for one in results for rows in one.rows.values())
    figure.supxlabel(f"examples scored (mean of {runs} runs or more, with two standard errors)", fontsize=9)
    figure.supylabel("true accuracy of the returned prompt, %", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the recorded tables (default: benchmarks/data)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of finished runs")
    parser.add_argument("--methods", nargs="+", default=["qei-async", "tpe-35", "random-35"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images" / "overview.png")
    options = parser.parse_args(argv)
    budget, store = Budget(2240, four=True), Store(options.results)
    tables = load_tables(data_folder(options.data))
    results = [load_results(table, options.methods, options.seeds, budget.of(table), store) for table in tables]
    draw([one for one in results if one.rows], options.methods, options.out)


if __name__ == "__main__":
    main()

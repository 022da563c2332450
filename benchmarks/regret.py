"""How good is the prompt that a run returns, for the language model calls it spent? Replayed on recorded tables.

    python -m benchmarks.regret                          # every table, every method, 50 seeds: hours
    python -m benchmarks.regret --seeds 5 --methods qei tpe-35 --tables copa subj

Finished runs are kept in ``benchmarks/results`` and not repeated: the same command goes on where it stopped, and more
seeds extend it. Tables go to stdout as Markdown, plots to ``benchmarks/plots``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods import METHODS, trace
from benchmarks.report import load_results, plot, report
from benchmarks.store import Budget, Store
from benchmarks.tables import Table, data_folder, load_tables
from benchmarks.warm import warm

__all__ = ["Work", "main"]

HERE = Path(__file__).resolve().parent
CHUNK = 5
"""Seeds run in one go: every method gets its first five on every table before any gets five more."""

READ_TEXTS = frozenset({"ngram", "hosted"})
"""Methods that need a table's texts: not run on those of ``benchmarks/data``."""


@dataclass(frozen=True)
class Work:
    """Some seeds of one method on one table."""

    table: Table
    method: str
    seeds: tuple[int, ...]
    budget: int
    vectors: Path


def do(work: Work) -> dict[int, dict[str, Any]]:
    """Run the seeds of ``work``, one after the other, in this process."""
    import torch

    torch.set_num_threads(1)
    if METHODS[work.method].embeds:
        warm([work.table], work.vectors)
    runs = {}
    for seed in work.seeds:
        start = time.perf_counter()
        changes = trace(work.table, METHODS[work.method], seed, work.budget)
        seconds = round(time.perf_counter() - start, 3)
        runs[seed] = {"trace": changes, "seconds": seconds, "commit": commit()}
    return runs


def commit() -> str:
    """The short hash of the code that ran, or ``unknown`` outside a repository."""
    if "PROMPTUNE_COMMIT" not in os.environ:
        command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        os.environ["PROMPTUNE_COMMIT"] = answer.stdout.strip() or "unknown"
    return os.environ["PROMPTUNE_COMMIT"]


def todo(tables: Sequence[Table], methods: Sequence[str], seeds: int, budget: Budget, store: Store) -> Iterator[Work]:
    """What is not in the store yet, seeds in chunks, the first chunk of everything first."""
    for start in range(0, seeds, CHUNK):
        for table in tables:
            for method in methods:
                calls = budget.of(table)
                done = store.load(table.name, method, calls)
                last = min(start + CHUNK, seeds, METHODS[method].seeds or seeds)
                missing = tuple(seed for seed in range(start, last) if seed not in done)
                if missing and not (table.vectors and method in READ_TEXTS):
                    yield Work(table, method, missing, calls, store.folder / "minilm.npz")


def run_all(works: Sequence[Work], store: Store, jobs: int, minutes: float) -> None:
    """Run and keep everything, ``jobs`` processes at once; nothing is started after ``minutes``."""
    deadline = time.monotonic() + 60 * minutes
    commit()
    for i, (work, runs) in enumerate(_results(works, jobs, deadline), start=1):
        store.add(work.table.name, work.method, work.budget, runs)
        seconds = sum(run["seconds"] for run in runs.values()) / len(runs)
        print(f"{i}/{len(works)} {work.table.name} {work.method}: {seconds:.1f} s a run", file=sys.stderr, flush=True)


def _results(works: Sequence[Work], jobs: int, deadline: float) -> Iterator[tuple[Work, dict[int, dict[str, Any]]]]:
    if jobs == 1:
        for work in works:
            if time.monotonic() > deadline:
                return
            yield work, do(work)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [(work, pool.submit(_before, deadline, work)) for work in works]
        for work, future in waiting:
            runs = future.result()
            if runs:
                yield work, runs


def _before(deadline: float, work: Work) -> dict[int, dict[str, Any]]:
    return do(work) if time.monotonic() <= deadline else {}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regret", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="folder of the recorded tables (default: benchmarks/data)")
    parser.add_argument("--tables", nargs="+", default=[], help="parts of the names of the tables (default: all)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=50, help="runs of a method on a table (default: 50)")
    parser.add_argument("--calls", type=int, default=2240, help="budget of a run, in examples scored (default: 2,240)")
    parser.add_argument("--all-calls", action="store_true", help="spend it on small pools too, not 4 x the pool")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, one thread each (default: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so many minutes")
    parser.add_argument("--target", default="tpe-35", choices=list(METHODS), help="whose final accuracy others reach")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of finished runs")
    parser.add_argument("--plots", type=Path, default=HERE / "plots", help="folder of the plots")
    parser.add_argument("--report-only", action="store_true", help="run nothing, print what is there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the report of everything asked for."""
    options = arguments(argv)
    tables = load_tables(data_folder(options.data), options.tables)
    budget, store = Budget(options.calls, not options.all_calls), Store(options.results)
    if not options.report_only:
        works = list(todo(tables, options.methods, options.seeds, budget, store))
        embedding = {work.table.name for work in works if METHODS[work.method].embeds}
        warm([table for table in tables if table.name in embedding], store.folder / "minilm.npz")
        run_all(works, store, options.jobs, options.minutes)
    results = [load_results(table, options.methods, options.seeds, budget.of(table), store) for table in tables]
    print(report(results, options.target))
    plot(results, options.plots)


if __name__ == "__main__":
    main()

"""The racing policy alone, without a study, storage or threads, beside model-free baselines: seconds a run.

    python -m benchmarks.race --seeds 12
    python -m benchmarks.race --methods qei qlogei --tables gsm8k --seeds 5
    python -m benchmarks.race --products --methods qei tpe-35 --seeds 5

Eight jobs are in flight; which of them ends next is drawn, the same for the same seed. Finished runs are kept in
``benchmarks/results/race.json`` and not repeated. Rules of allocation are chosen on the tables ``CHOSEN_ON``; the
others show what they are worth. Products are programs of two predictors with a graded score, one of them from 0 to
100. Markdown goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import area, at, curves, geometric_mean, mean_and_error, reach
from benchmarks.methods import METHODS, Trace, trace, without
from benchmarks.models import halving, thompson_blocks
from benchmarks.products import product
from benchmarks.tables import Table, data_folder, load_tables
from benchmarks.warm import warm
from dspy.promptune.allocation.expectation import expectation
from dspy.promptune.allocation.policy import Budget
from dspy.promptune.allocation.racing import RacingPolicy
from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.samplers import make_sampler

RESULTS = Path(__file__).resolve().parent / "results" / "race.json"
CHOSEN_ON = ("capo_dev_gsm8k", "capo_test_sst5", "capo_test_subj", "hyperbaton")
CONTROL = "copa"  # nothing to find there
JOBS = 8
MILESTONES = (175, 350, 700)
PAIRS = (("capo_test_subj", "capo_test_sst5", 1.0), ("capo_test_gsm8k", "capo_test_sst5", 100.0))
BEHIND = 2.0  # standard errors

Run = dict[str, Any]
"""``trace`` and, of ours, ``score`` (reported), ``expected``, ``low``, ``high``, ``end`` (true), ``jobs``, ``seconds``.
"""


def race(table: Table, seed: int, calls: int, *, sampler: Any = "qei", embedder: Any = None) -> Run:
    """One race of a budget of ``calls`` examples; ``seconds`` is the processor time of its decisions."""
    table, options = table.shuffled(seed), {} if embedder is None else {"embedder": embedder}
    made = sampler(table.space, seed) if callable(sampler) else make_sampler(
        sampler, space=table.space, seed=seed, batch_size=JOBS, **options
    )  # fmt: skip
    scores, order = ScoreTable(), random.Random(f"order {seed}")
    budget = Budget(n_examples=table.n_examples, max_calls=calls)
    policy = RacingPolicy(made, table.space, scores, budget, rng=random.Random(seed))
    evaluate, history, jobs, running, claimed, spent = table.replay(seed), [], 0, [], 0, 0.0
    while True:
        began = time.process_time()
        while len(running) < JOBS and (one := policy.next_job(calls - scores.calls - claimed)) is not None:
            job = Job(jobs, one.key, one.examples, one.kind)
            policy.started(job)
            running.append(job)
            jobs, claimed = jobs + 1, claimed + len(job.examples)
        spent += time.process_time() - began
        if not running:
            break
        job = running.pop(order.randrange(len(running)))
        claimed -= len(job.examples)
        found = evaluate(table.space.params(job.key), job.examples)
        for example, score in zip(job.examples, found, strict=True):
            scores.add(job.key, example, score)
        began = time.process_time()
        policy.told(job, found)
        best = policy.best()
        spent += time.process_time() - began
        history.append((scores.calls, table.truth[best]))
    return {"trace": history, "jobs": jobs, "seconds": round(spent, 4), **_believed(made, scores, policy.best(), table)}


def _believed(sampler: Any, scores: ScoreTable, best: Any, table: Table) -> dict[str, float]:
    """What a run reports of its winner, and what is true."""
    row, expected = scores.row(best), expectation(sampler, scores, best)
    assert expected is not None
    low, high = expected.interval
    mean = math.fsum(row.values()) / len(row)
    said = {"score": mean, "expected": expected.expected_score, "low": low, "high": high}
    return {**{name: value / table.unit for name, value in said.items()}, "end": table.truth[best]}


def _baseline(run: Callable[[Table, int, int], Trace]) -> Callable[[Table, int, int], Run]:
    return lambda table, seed, calls: {"trace": run(table.shuffled(seed), seed, calls)}


RACES: Mapping[str, tuple[str, Callable[[Table, int, int], Run]]] = {
    "qei": ("`qei`", race),
    "tpe-35": ("TPE, minibatch 35", lambda table, seed, calls: {"trace": trace(table, METHODS["tpe-35"], seed, calls)}),
    "tpe-10": ("TPE, minibatch 10", lambda table, seed, calls: {"trace": trace(table, METHODS["tpe-10"], seed, calls)}),
    "tpe-full": (
        "TPE as DSPy spends",
        lambda table, seed, calls: {"trace": trace(table, METHODS["tpe-full"], seed, calls)},
    ),
    "thompson-blocks": ("Beta-Thompson on blocks, no model", _baseline(thompson_blocks)),
    "halving": ("successive halving, no model", _baseline(halving)),
    "unrelated": (
        "racing alone: prompts unrelated",
        lambda table, seed, calls: race(table, seed, calls, sampler=without("smooth", "own", "joint")),
    ),
    "onehot": ("racing without embeddings", lambda table, seed, calls: race(table, seed, calls, embedder="onehot")),
    "qlogei": ("`qlogei`", lambda table, seed, calls: race(table, seed, calls, sampler="qlogei")),
    "qlognei": ("`qlognei`", lambda table, seed, calls: race(table, seed, calls, sampler="qlognei")),
    "thompson": ("`thompson`", lambda table, seed, calls: race(table, seed, calls, sampler="thompson")),
}
"""Name to label and run."""


def budget_of(table: Table) -> int:
    """Calls of a run: four times the pool, 2,240 at most."""
    return min(2240, 4 * len(table.truth))


def complete(tables: Sequence[Table], methods: Sequence[str], seeds: int, minutes: float) -> dict[str, Run]:
    """All runs, those that are missing made now, seed by seed; nothing is begun after ``minutes``."""
    runs: dict[str, Run] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    deadline = time.monotonic() + 60 * minutes
    for seed in range(seeds):
        for method in methods:
            for table in tables:
                name = f"{table.name}|{method}|{seed}"
                if name not in runs and time.monotonic() < deadline:
                    runs[name] = RACES[method][1](table, seed, budget_of(table))
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(runs))
    return runs


def report(tables: Sequence[Table], methods: Sequence[str], runs: Mapping[str, Run], seeds: int) -> str:
    """Markdown: one line a method over all tables but the control, and one line a table for ours."""
    judged = [table for table in tables if CONTROL not in table.name]
    sides = {"chosen on": True, "shown on": False}
    lines = [
        "| method | " + " | ".join(f"area under regret, {side}" for side in sides)
        + " | share of TPE's calls | gain at the end | regret at 175 / 350 / 700 | worst table at the end | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    rows = {(t.name, m): _rows(t, m, runs, seeds) for t in judged for m in methods}
    for method in methods:
        if any(not len(rows[t.name, method]) or not len(rows[t.name, "tpe-35"]) for t in judged):
            continue
        lines.append(_line(method, judged, rows, list(sides.values())))
    return "\n".join([*lines, "", _beliefs(tables, methods, runs), "", *_beside(judged, methods, rows)])


def _beside(tables: Sequence[Table], methods: Sequence[str], rows: Mapping[tuple[str, str], np.ndarray]) -> list[str]:
    """Accuracy of the first method less that of each other, table by table, with its standard error."""
    own, others = methods[0], methods[1:]
    lines = ["| table | beside | " + " | ".join(map(str, MILESTONES)) + " | end |", "|---|---|---:|---:|---:|---:|"]
    behind = total = 0
    for table in tables:
        for other in others:
            cells = []
            for calls in (*MILESTONES, budget_of(table)):
                pair = [rows[table.name, method] for method in (own, other)]
                if calls > budget_of(table) or not all(len(one) for one in pair):
                    cells.append("")
                    continue
                (mean, error), (level, spread) = (mean_and_error(at(one, calls)) for one in pair)
                difference, error = mean - level, math.hypot(error, spread)
                behind, total = behind + (difference < -BEHIND * error), total + 1
                cells.append(f"{difference:+.3f} ± {error:.3f}")
            lines.append(f"| {table.name} | {RACES[other][0]} | " + " | ".join(cells) + " |")
    return [*lines, "", f"Behind by more than {BEHIND:g} standard errors: {behind} of {total}."]


def _rows(table: Table, method: str, runs: Mapping[str, Run], seeds: int) -> np.ndarray:
    found = [runs[name] for seed in range(seeds) if (name := f"{table.name}|{method}|{seed}") in runs]
    start = float(np.mean(list(table.truth.values())))
    return curves([one["trace"] for one in found], budget_of(table), start) if found else np.zeros((0, 0))


def _line(method: str, tables: Sequence[Table], rows: Mapping[tuple[str, str], np.ndarray], sides: list[bool]) -> str:
    own, tpe = ({t.name: rows[t.name, m] for t in tables} for m in (method, "tpe-35"))
    ratios = {t.name: float(area(own[t.name], t.best).mean() / area(tpe[t.name], t.best).mean()) for t in tables}
    split = [[ratios[t.name] for t in tables if any(one in t.name for one in CHOSEN_ON) == side] for side in sides]
    shares = [min(1.0, reach(own[t.name], float(tpe[t.name][:, -1].mean()))) for t in tables]
    gains = {t.name: float(own[t.name][:, -1].mean() - tpe[t.name][:, -1].mean()) for t in tables}
    early = [
        [
            max(1e-3, float((t.best - at(own[t.name], calls)).mean() / (t.best - at(tpe[t.name], calls)).mean()))
            for t in tables if budget_of(t) >= calls
        ]
        for calls in MILESTONES
    ]  # fmt: skip
    worst = min(gains, key=lambda name: gains[name])
    cells = [
        RACES[method][0],
        *(f"{geometric_mean(side):.2f}" if side else "" for side in split),
        f"{geometric_mean(shares):.2f}",
        f"{np.mean(list(gains.values())):+.3f}",
        " / ".join(f"{geometric_mean(some):.2f}" for some in early if some),
        f"{gains[worst]:+.3f} ({worst.removeprefix('capo_').removeprefix('mizrahi_')[:14]})",
        str(min(len(one) for one in own.values())),
    ]
    return "| " + " | ".join(cells) + " |"


def _beliefs(tables: Sequence[Table], methods: Sequence[str], runs: Mapping[str, Run]) -> str:
    """How far what is reported of winners is from the truth, and what deciding cost."""
    lines = [
        "| method | reported less true | expected less true | in the 90 % interval | ms a trial |",
        "|---|---:|---:|---:|---:|",
    ]
    for method in methods:
        of = {f"{table.name}|{method}" for table in tables}
        found = [one for name, one in runs.items() if name.rpartition("|")[0] in of and "end" in one]
        if found:
            bias = [np.mean([one[what] - one["end"] for one in found]) for what in ("score", "expected")]
            held = np.mean([one["low"] <= one["end"] <= one["high"] for one in found])
            cost = 1e3 * sum(one["seconds"] for one in found) / sum(one["jobs"] for one in found)
            lines.append(f"| {RACES[method][0]} | {bias[0]:+.3f} | {bias[1]:+.3f} | {held:.0%} | {cost:.1f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="folder of the tables")
    parser.add_argument("--tables", nargs="+", default=[], help="parts of the names of the tables (default: all)")
    parser.add_argument("--products", action="store_true", help="two predictors: products of two tables instead")
    parser.add_argument("--methods", nargs="+", default=list(RACES), choices=list(RACES), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after so many minutes")
    options = parser.parse_args(argv)
    tables = load_tables(data_folder(options.data), options.tables)
    if options.products:
        tables = [
            product(*(next(t for t in tables if name in t.name) for name in names), unit) for *names, unit in PAIRS
        ]
    warm(tables, RESULTS.parent / "minilm.npz")
    methods = list(dict.fromkeys([*options.methods, "tpe-35"]))  # what others are a share of
    runs = complete(tables, methods, options.seeds, options.minutes)
    print(report(tables, methods, runs, options.seeds))


if __name__ == "__main__":
    main()

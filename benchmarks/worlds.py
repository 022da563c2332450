"""Optimizers on made-up tasks in which instructions can be improved by looking at failures.

    python -m benchmarks.worlds                        # our own worlds, 8 seeds, every method: an hour
    python -m benchmarks.worlds --worlds one-step --methods gepa open --rollouts 600 --seeds 4

Every method gets the same program, training set, validation set and number of rollouts; a rollout is one run of the
program on one example, whichever step it belongs to. What is shown is the exact expected score of the program that is
returned, the rollouts it really took and the instructions that were written. ``--triage FILE`` adds a world of the same
kind from a file. Nothing is cached, and every number is of one run of this command.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
from benchmarks.warehouse import Lineage, SortAndPlace, Warehouse, metric

TRAIN, VALIDATION = (0, 60), (200, 260)


@dataclass(frozen=True)
class Setting:
    """One world and the program that is optimized in it."""

    world: Callable[[int], Any]
    program: Callable[[], Any]
    metric: Callable[..., Any] = metric
    judge: Callable[[Any, Any], float] = field(default=lambda world, program: float(world.true_score(program)))


SETTINGS = {
    "one-step": Setting(lambda seed: Warehouse(seed), lambda: SortAndPlace(1)),
    "two-step": Setting(lambda seed: Warehouse(seed), lambda: SortAndPlace(2)),
    "demos": Setting(lambda seed: Warehouse(seed, rule_gain=0.3, demo_gain=0.8), lambda: SortAndPlace(1)),
    "mostly-useless": Setting(lambda seed: Warehouse(seed, useless=0.75), lambda: SortAndPlace(1)),
    "lineage": Setting(lambda seed: Lineage(seed), lambda: SortAndPlace(1)),
    "lineage-down": Setting(lambda seed: Lineage(seed, luck=0.0), lambda: SortAndPlace(1)),
    "no-insight": Setting(lambda seed: Warehouse(seed, insight=0.0), lambda: SortAndPlace(1)),
}


def triage(path: str) -> dict[str, Setting]:
    """The worlds of a file with a class ``World`` and a ``metric``, with and without insight."""
    spec = importlib.util.spec_from_file_location("triage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["triage"] = module
    spec.loader.exec_module(module)

    def of(**options: Any) -> Setting:
        return Setting(
            lambda seed: module.World(seed, **options), lambda: dspy.Predict("ticket -> label"), module.metric,
            lambda world, program: float(world.true_score_of(program)),
        )  # fmt: skip

    return {"triage": of(), "triage-no-insight": of(insight=0.0)}


# ---------------------------------------------------------------------- methods


def score_only(chosen: Callable[..., Any]) -> Callable[..., float]:
    """The metric as MIPROv2 of DSPy takes it: a number."""
    return lambda example, prediction, trace=None: float(chosen(example, prediction))


def original(setting: Setting, world: Any, rollouts: int, seed: int) -> Any:
    """The program as it is."""
    return setting.program()


def labeled(setting: Setting, world: Any, rollouts: int, seed: int) -> Any:
    """LabeledFewShot with six demos; no rollout."""
    return dspy.LabeledFewShot(k=6).compile(setting.program(), trainset=world.examples(*TRAIN))


def gepa(setting: Setting, world: Any, rollouts: int, seed: int) -> Any:
    """dspy.GEPA with its defaults."""
    optimizer = dspy.GEPA(
        metric=setting.metric, max_metric_calls=rollouts, reflection_lm=world, num_threads=4, seed=seed
    )
    return optimizer.compile(
        setting.program(), trainset=world.examples(*TRAIN), valset=world.examples(*VALIDATION)
    )  # fmt: skip


def mipro(setting: Setting, world: Any, rollouts: int, seed: int, **options: Any) -> Any:
    """MIPROv2 of DSPy with ten candidates, and as many trials of its minibatches as the rollouts pay for."""
    optimizer = dspy.MIPROv2(
        metric=options.pop("metric", score_only(setting.metric)), auto=None, num_candidates=10, num_threads=4, seed=seed
    )
    validation = VALIDATION[1] - VALIDATION[0]
    size, steps = 25, 10
    bootstrap = 40
    trials = max(1, int((rollouts - bootstrap - 2 * validation) / (size + validation / steps)))
    return optimizer.compile(
        setting.program(), trainset=world.examples(*TRAIN), valset=world.examples(*VALIDATION), num_trials=trials,
        minibatch_full_eval_steps=steps, **({} if options else {"minibatch_size": size}), **options,
    )  # fmt: skip


def ours(setting: Setting, world: Any, rollouts: int, seed: int, **options: Any) -> Any:
    """This fork within as many LM calls as the rollouts and their writes take."""
    steps = len(setting.program().predictors())
    return mipro(setting, world, 2 * rollouts, seed, sampler="qei", n_jobs=8, max_lm_calls=rollouts * steps, **options)


def open_pool(setting: Setting, world: Any, rollouts: int, seed: int) -> Any:
    """This fork with instructions written during the search."""
    return ours(setting, world, rollouts, seed, reflect=True, reflection_lm=world, metric=setting.metric)


METHODS: dict[str, Callable[[Setting, Any, int, int], Any]] = {
    "original": original,
    "labeled": labeled,
    "mipro": mipro,
    "closed": ours,
    "gepa": gepa,
    "open": open_pool,
}
FREE = ("original", "labeled")  # spend nothing: shown once


# ---------------------------------------------------------------------- runs


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, logs or warnings of the optimizers."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(io.StringIO()):
            yield
    logging.disable(logging.NOTSET)


def run(setting: Setting, method: str, rollouts: int, seed: int) -> dict[str, float]:
    """One run: exact score of what is returned, rollouts, written texts and seconds."""
    world, began = setting.world(seed), time.monotonic()
    with quiet(), dspy.context(lm=world):
        program = METHODS[method](setting, world, rollouts, seed)
    steps = len(setting.program().predictors())
    return {
        "score": setting.judge(world, program),
        "rollouts": world.calls["task"] / steps,
        "written": world.calls["write"],
        "seconds": time.monotonic() - began,
    }


def summary(runs: list[dict[str, float]]) -> str:
    """A row's numbers: mean score with its standard error, rollouts, writes, seconds."""
    scores = [one["score"] for one in runs]
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    means = [statistics.fmean(one[name] for one in runs) for name in ("rollouts", "written", "seconds")]
    return f"{statistics.fmean(scores):.3f} | {error:.3f} | {means[0]:.0f} | {means[1]:.0f} | {means[2]:.1f}"


def share(curve: Sequence[tuple[int, float]], target: float) -> float:
    """Rollouts after which a method has the score ``target``, by lines between ``(rollouts, score)``; inf if never."""
    before: tuple[int, float] | None = None
    for rollouts, score in sorted(curve):
        if score >= target:
            if before is None:
                return rollouts
            return before[0] + (rollouts - before[0]) * (target - before[1]) / (score - before[1])
        before = rollouts, score
    return math.inf


def main() -> None:
    """Run what was asked for and print a table for each world."""
    parser = argparse.ArgumentParser(description="Optimizers on worlds where instructions can be improved.")
    parser.add_argument("--worlds", nargs="+", help="which worlds (default: all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rollouts", nargs="+", type=int, default=[600, 1500, 3000])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--triage", help="a file with another world")
    options = parser.parse_args()
    settings = {**SETTINGS, **(triage(options.triage) if options.triage else {})}
    unknown = set(options.worlds or ()) - set(settings)
    if unknown:
        parser.error(f"--worlds {' '.join(sorted(unknown))}: known are {', '.join(settings)}")
    for name in options.worlds or settings:
        print(f"\n**{name}**, seeds {options.first_seed} to {options.first_seed + options.seeds - 1}\n", flush=True)
        print(
            "| method | asked | score | se | rollouts | written | seconds |\n|---|--:|--:|--:|--:|--:|--:|", flush=True
        )
        curves: dict[str, list[tuple[int, float]]] = {method: [] for method in options.methods}
        for method in options.methods:
            for rollouts in options.rollouts[:1] if method in FREE else options.rollouts:
                seeds = range(options.first_seed, options.first_seed + options.seeds)
                runs = [run(settings[name], method, rollouts, seed) for seed in seeds]
                curves[method].append((rollouts, statistics.fmean(one["score"] for one in runs)))
                print(f"| {method} | {0 if method in FREE else rollouts} | {summary(runs)} |", flush=True)
        if {"gepa", "open"} <= set(curves):
            for rollouts, score in curves["gepa"]:
                needed = share(curves["open"], score) / rollouts
                print(f"\nopen has GEPA's score of {rollouts} rollouts after {needed:.2f} of them", flush=True)


if __name__ == "__main__":
    main()

"""Wall time of ``reflect=True`` against dspy.GEPA: the same rollouts and as many calls in flight, in one run.

    python -m benchmarks.gepa_speed [--rollouts 600] [--seeds 2] [--limit 32] [--world one-step] 2>/dev/null

The model is a world of ``benchmarks.worlds`` behind a loopback server in a process of its own: latency log-normal with
a median of 0.4 s and sigma 0.8, the same for the same request. GEPA has its defaults and ``num_threads`` at the limit;
"gepa-parallel" proposes from eight parents at once (``IndependentSampling(8)``). Ours has the limit as
``max_concurrency``. Requests are counted by the server, those of steps 1 and 2 and of writing included; times are
compared for 100 rollouts, and the score is the exact expected one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dspy
from benchmarks.warehouse import ANSWERS, Warehouse
from benchmarks.worlds import SETTINGS, TRAIN, VALIDATION, Setting, quiet
from tests.server import Latency, LMServer, mean_in_flight

PARENTS = 8  # from which GEPA proposes at once
HEAD = "s | rollouts | other requests | mean in flight | score | CPU s | s / 100 rollouts | load"
ROW = "{:.1f} | {:.0f} | {:.0f} | {:.1f} | {:.3f} | {:.1f} | {:.2f} | {:.1f}"
BOOTSTRAP, MINIBATCH, FULL_EVERY = 40, 35, 10  # rollouts of step 1; what a trial of MIPROv2 counts for


@dataclass(frozen=True)
class Rule:
    """A world as the server's rule: messages to text."""

    setting: str
    seed: int

    @cached_property
    def world(self) -> Any:
        """The world that answers."""
        return SETTINGS[self.setting].world(self.seed)

    def __call__(self, messages: Any) -> str:
        """What the world says."""
        return str(self.world.forward(messages=messages).choices[0].message.content)


def data(world: Warehouse) -> dict[str, Any]:
    """What every method is given."""
    return {"trainset": world.examples(*TRAIN), "valset": world.examples(*VALIDATION)}


def gepa(setting: Setting, world: Warehouse, lm: Any, options: argparse.Namespace, **more: Any) -> Any:
    """dspy.GEPA with its defaults."""
    optimizer = dspy.GEPA(
        metric=setting.metric, max_metric_calls=options.rollouts, reflection_lm=lm, num_threads=options.limit,
        seed=world.seed, **more,
    )  # fmt: skip
    return optimizer.compile(setting.program(), **data(world))


def gepa_parallel(setting: Setting, world: Warehouse, lm: Any, options: argparse.Namespace) -> Any:
    """The same with proposals from several parents at once."""
    from gepa.strategies.proposal_sampling import IndependentSampling

    return gepa(setting, world, lm, options, gepa_kwargs={"sampling_strategy": IndependentSampling(PARENTS)})


def ours(setting: Setting, world: Warehouse, lm: Any, options: argparse.Namespace) -> Any:
    """This fork with instructions written during the search, and as many trials as the rollouts pay for."""
    optimizer = dspy.MIPROv2(
        metric=setting.metric, auto=None, num_candidates=10, num_threads=max(1, options.limit // 8), seed=world.seed
    )  # fmt: skip
    validation = VALIDATION[1] - VALIDATION[0]
    trials = max(1, int((options.rollouts - BOOTSTRAP - 2 * validation) / (MINIBATCH + validation / FULL_EVERY)))
    return optimizer.compile(
        setting.program(), **data(world), num_trials=trials, minibatch_full_eval_steps=FULL_EVERY, sampler="qei",
        n_jobs=8, reflect=True, max_concurrency=options.limit, disable_progress_bar=True,
    )  # fmt: skip


METHODS: dict[str, Callable[..., Any]] = {"gepa": gepa, "gepa-parallel": gepa_parallel, "reflect": ours}


def measured(server: LMServer, name: str, method: str, seed: int, options: argparse.Namespace) -> list[float]:
    """Seconds, rollouts, other requests, mean calls in flight, score and processor seconds of one run."""
    setting = SETTINGS[name]
    world = setting.world(seed)
    server.reset()
    lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False)
    began, cpu = time.monotonic(), time.process_time()
    with quiet(), dspy.context(lm=lm):
        program = METHODS[method](setting, world, lm, options)
    seconds, used, records = time.monotonic() - began, time.process_time() - cpu, server.records()
    task = sum(record.label in ANSWERS for record in records) / len(setting.program().predictors())
    other = sum(record.label not in ANSWERS for record in records)
    return [seconds, task, other, mean_in_flight(records), world.true_score(program), used]


def warm_up(options: argparse.Namespace) -> float:
    """One short compile without latency, so that nobody's first import is measured; its seconds."""
    began = time.monotonic()
    with LMServer(Rule(options.world, 99), process=True) as server:
        measured(server, options.world, "reflect", 99, argparse.Namespace(rollouts=150, limit=options.limit))
    return time.monotonic() - began


def main() -> None:
    """Run every method on every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=SETTINGS, default="one-step")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rollouts", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--median", type=float, default=0.4)
    options = parser.parse_args()
    print(f"(warm-up without latency, imports included: {warm_up(options):.1f} s)")
    print(f"| seed | method | {HEAD} |")
    print("|---|---|" + "--:|" * 8, flush=True)
    pace: dict[str, list[float]] = {method: [] for method in options.methods}
    for seed in range(options.seeds):
        latency = Latency(options.median, 0.8)
        with LMServer(Rule(options.world, seed), latency=latency, process=True) as server:
            for method in options.methods:
                one = measured(server, options.world, method, seed, options)
                pace[method].append(100 * one[0] / one[1])
                numbers = ROW.format(*one, pace[method][-1], os.getloadavg()[0])
                print(f"| {seed} | {method} | {numbers} |", flush=True)
    for method, found in pace.items():
        print(f"{method}: {statistics.fmean(found):.2f} s for 100 rollouts, the better run {min(found):.2f}")


if __name__ == "__main__":  # the server's process finds the rule by this module's name
    from benchmarks.gepa_speed import main as named

    named()

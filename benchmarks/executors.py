"""Threads against processes against Dask, on a metric that waits and on one that computes.

    python -m benchmarks.executors

One compile each, the same seed, candidates, trials and limits; the language model is a server on loopback, in a
process of its own. What is compared is the time of step 3 within one run of this program, workers being up and warm.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import dspy
from tests.server import Latency, LMServer, Quality, TaskRule

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(120)}
DATA = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
WORKERS = os.cpu_count() or 2
N_JOBS, NUM_THREADS = WORKERS, 8
TRIALS, EXAMPLES = 16, 24


def waits(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Nothing to compute: the language model's 0.25 s are the cost."""
    return bool(example.answer == prediction.answer)


def computes(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Some 0.15 s of Python on one core, as parsing, executing or comparing an answer may take."""
    end = time.thread_time() + 0.15
    while time.thread_time() < end:
        sum(range(1000))
    return bool(example.answer == prediction.answer)


METRICS = {"waits": (waits, 0.25), "computes": (computes, 0.01)}


@contextmanager
def executors() -> Iterator[dict[str, Executor | None]]:
    """What is compared: as many processes as cores."""
    import distributed

    options = {"n_workers": WORKERS, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as processes,
        distributed.LocalCluster(**options, host="127.0.0.1", worker_dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield {"threads": None, "processes": processes, "dask": client.get_executor()}


def seconds(url: str, metric: Any, executor: Executor | None, trials: int = TRIALS) -> float:
    """Time of step 3 of one compile."""
    lm = dspy.LM("openai/gpt-4o-mini", api_base=url, api_key="none", cache=False)
    with dspy.context(lm=lm):
        optimizer = dspy.MIPROv2(
            metric=metric, auto=None, num_candidates=3, num_threads=NUM_THREADS, max_bootstrapped_demos=1, seed=1
        )
        found = optimizer.compile(
            dspy.Predict("question -> answer"), trainset=DATA[:8], valset=DATA[8:40], sampler="random", n_jobs=N_JOBS,
            schedule="batch", num_trials=trials, minibatch_size=EXAMPLES, executor=executor, disable_progress_bar=True,
        )  # fmt: skip
    return float(found.optimization_run.spent["search"]["seconds"])


def main() -> None:
    with executors() as compared:
        for name, (metric, latency) in METRICS.items():
            with LMServer(TaskRule(ANSWERS, quality=Quality(0.5)), latency=Latency(latency), process=True) as server:
                for executor in compared.values():
                    seconds(server.url, waits, executor, trials=2)
                times = {each: seconds(server.url, metric, executor) for each, executor in compared.items()}
            row = {"metric": name, "cores": WORKERS, **{each: round(time, 2) for each, time in times.items()}}
            ratios = {f"threads/{each}": round(times["threads"] / times[each], 2) for each in ("processes", "dask")}
            print(json.dumps({**row, **ratios}), flush=True)


if __name__ == "__main__":
    main()

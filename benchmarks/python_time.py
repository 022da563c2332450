"""What a language-model call costs in Python: processor time per call, DSPy's own evaluation beside the engine's.

Part "cpu" of ``benchmarks/compile_speed.py``. The server answers at once and runs in a process of its own, so that
what is counted is this process alone.
"""

from __future__ import annotations

import contextlib
import cProfile
import io
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import dspy
from dspy.promptune.allocation.records import Job
from dspy.promptune.distributed.programs import EvaluationRules, ProgramCache, ProgramEvaluator
from dspy.promptune.limits.gateway import LMGateway
from dspy.promptune.limits.pool import Pool
from dspy.promptune.limits.views import through_gateway
from tests.server import LMServer

REPEATS = 5
FUNCTIONS = {  # files and names of DSPy 3.4; what another release has elsewhere shows as 0%
    "prompt: `Adapter.format`": [("adapters/base.py", "format")],
    "answer: `ChatAdapter.parse`": [("adapters/chat_adapter.py", "parse")],
    "which engine: `_engine`": [("clients/execution.py", "_engine")],
    "canonical request: `_canonical`": [("clients/execution.py", "_canonical")],
    "request and answer: `LM15Engine.complete`": [("clients/engines/lm15_engine.py", "complete")],
    "of it: proxies of the environment": [("lm15/transports/_proxy.py", "proxy_route_for")],
    "price: `_price_result`": [("clients/execution.py", "_price_result")],
    "history: `record_history`": [("clients/base_lm.py", "record_history")],
    "callbacks, five kinds a call": [
        ("utils/callback.py", "_execute_start_callbacks"),
        ("utils/callback.py", "_execute_end_callbacks"),
    ],
    "of it: the run's own": [("limits/gateway.py", "on_lm_start"), ("limits/gateway.py", "on_lm_end")],
}


def evaluated(program: Any, examples: Sequence[Any], metric: Callable[..., Any], threads: int) -> None:
    """By DSPy."""
    with contextlib.redirect_stdout(io.StringIO()):
        dspy.Evaluate(devset=list(examples), metric=metric, num_threads=threads)(program)


def worked(program: Any, examples: Sequence[Any], metric: Callable[..., Any], threads: int) -> None:
    """The same by the engine: limit, single flight, retries, counts and a score kept for each example."""
    over, positions = threading.Event(), tuple(range(len(examples)))
    with LMGateway(threads).active(lm=through_gateway(dspy.settings.lm)), Pool(threads) as pool:
        work = ProgramEvaluator(ProgramCache(program, ()), EvaluationRules(metric=metric, valset=examples), pool, 1)
        work.start(Job(0, (), positions, "full"), positions, lambda *_: over.set())
        over.wait()


def per_call(runs: dict[str, Callable[[], tuple[float, int]]]) -> dict[str, tuple[int, float]]:
    """Calls, and milliseconds a call, of runs that return seconds and calls: the median of several, taken in turns."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for _ in range(REPEATS):
        for name, run in runs.items():
            seconds, calls = run()
            found[name].append((calls, 1000 * seconds / calls))
    return {name: (each[-1][0], median(ms for _, ms in each)) for name, each in found.items()}


def _timed(server: LMServer, run: Callable[..., None], *args: Any) -> tuple[float, int]:
    server.reset()
    begin = time.process_time()
    run(*args)
    return time.process_time() - begin, server.requests


def by_function(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of processor time in each of ``FUNCTIONS``, all they call included; ``run`` does all in this thread."""
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(run)
    profile.create_stats()
    seconds: dict[str, float] = defaultdict(float)
    for (path, _, name), (_, _, own, whole, _) in profile.stats.items():  # type: ignore[attr-defined]
        seconds["all"] += own
        for label, places in FUNCTIONS.items():
            if any(path.endswith(file) and name == function for file, function in places):
                seconds[label] += whole
    return seconds


def report(
    server: LMServer, program: Any, examples: Sequence[Any], metric: Callable[..., Any], compiles: dict[str, Any]
) -> None:
    """Print both tables; ``compiles`` are further runs by name, whose results have ``cpu`` seconds and ``calls``."""
    same = (program, examples, metric, 8)
    runs: dict[str, Callable[[], tuple[float, int]]] = {
        "dspy.Evaluate": partial(_timed, server, evaluated, *same),
        "the engine, the same examples": partial(_timed, server, worked, *same),
        **{name: lambda run=run: ((done := run()).cpu, done.calls) for name, run in compiles.items()},
    }
    found = per_call(runs)
    base = found["dspy.Evaluate"][1]
    print("\ncpu: processor time of this process, 8 calls in flight, a server that answers at once\n")
    print("| what | calls | ms a call | against dspy.Evaluate |\n|" + " --- |" * 4)
    for name, (calls, each) in found.items():
        print(f"| {name} | {calls} | {each:.2f} | {each / base:.2f} |", flush=True)
    _print_functions(program, examples, len(examples) * len(program.predictors()))


def _print_functions(program: Any, examples: Sequence[Any], calls: int) -> None:
    def run() -> None:
        for example in examples:
            program(**example.inputs())

    run()
    theirs = by_function(run)
    with LMGateway(8).active(lm=through_gateway(dspy.settings.lm)):
        ours = by_function(run)
    print("\nwhere it goes, under cProfile in one thread, which makes Python several times slower: shares, not times\n")
    print("| function | DSPy's share | in a run, against DSPy's whole |\n|" + " --- |" * 3)
    for label in [*FUNCTIONS, "all"]:
        print(f"| {label} | {theirs[label] / theirs['all']:.0%} | {ours[label] / theirs['all']:.0%} |", flush=True)

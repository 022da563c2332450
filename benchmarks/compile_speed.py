"""How long a whole compile takes: upstream's MIPROv2 and this fork's on one language model, in one run.

    python benchmarks/compile_speed.py [--predictors 1 3] [--parts ceiling a b schedules cpu many] 2>/dev/null

The model is a loopback server in a process of its own (tests/server): answers by rules, latency log-normal with a
median of 0.4 s and sigma 0.8, the same latency for the same request. Every compile has ``auto="light"``, the same
data, the same seed, and no cache. Part a: the same threads for each prompt, more prompts at once. Part b: the same
number of calls in flight. They answer different questions and are never mixed.

Times of steps are taken from the log messages that begin them; calls in flight from the server's records. "while work
is left" is from the beginning of step 3 until its last evaluation is handed out: calls in flight as a share of those
possible, and of those of a bare ``dspy.Evaluate`` with as many threads (part "ceiling", measured in the same run).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import dspy  # noqa: E402
from benchmarks import python_time  # noqa: E402
from benchmarks.critical_path import Watch, critical_path  # noqa: E402
from tests.server import Latency, LMServer, Quality, Record, TaskRule, max_in_flight, mean_in_flight  # noqa: E402

ANSWERS = {
    f"Question {i}: which of the three boxes holds item {7 * i}?": "left middle right".split()[i % 3]
    for i in range(600)
}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
TRAINSET, VALSET = EXAMPLES[:100], EXAMPLES[100:200]
SEED = 9
STEPS = ("step 1", "step 2", "step 3")


class Chain(dspy.Module):
    """Question answering with one or three predictors, one after another."""

    def __init__(self, predictors: int) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> plan") if predictors == 3 else None
        self.second = dspy.Predict("question, plan -> draft") if predictors == 3 else None
        self.last = dspy.Predict("question, draft -> answer" if predictors == 3 else "question -> answer")

    def forward(self, question: str) -> Any:
        """Answer one question."""
        if self.first is None:
            return self.last(question=question)
        plan = self.first(question=question).plan
        return self.last(question=question, draft=self.second(question=question, plan=plan).draft)


def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


@dataclass
class Measured:
    """One compile, seen from outside."""

    predictors: int
    wall: float
    steps: dict[str, float]
    records: list[Record]
    score: float
    cpu: float
    threads: float
    memory: float
    path: tuple[float, float] = (float("nan"), float("nan"))
    busy: float = float("nan")

    @property
    def calls(self) -> int:
        """Requests that reached the model."""
        return len(self.records)

    @property
    def mean(self) -> float:
        """Calls in flight, averaged over the whole compile."""
        return sum(r.end - r.start for r in self.records) / self.wall


class Clock(logging.Handler):
    """Notes when the log says that a step begins."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.begun: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the time of the first message that names a step."""
        text = record.getMessage().lower()
        for step in STEPS:
            if step in text:
                self.begun.setdefault(step, time.monotonic())


@contextlib.contextmanager
def peaks() -> Iterator[list[float]]:
    """The most threads and memory (MB) of this process while the block runs."""
    peak, over = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peak[:] = [max(peak[0], threading.active_count() - 1), max(peak[1], resident())]

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def warm_up(rule: TaskRule, options: argparse.Namespace) -> float:
    """One compile without latency, so that nobody's first import is measured; its seconds."""
    begin = time.monotonic()
    with LMServer(rule, process=True) as server:
        ours(server, language_model(server), 1, 8, sampler=options.sampler, n_jobs=4)
    return time.monotonic() - begin


def language_model(server: LMServer) -> Any:
    """The server as DSPy sees it, under a name that its price list knows."""
    return dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False)


def measure(server: LMServer, optimizer: Any, predictors: int, watch: Watch | None = None, **options: Any) -> Measured:
    """One compile; its critical path too where ``watch`` is given."""
    server.reset()
    clock, begin, cpu = Clock(), time.monotonic(), time.process_time()
    logger = logging.getLogger("dspy")
    logger.addHandler(clock)
    try:
        with peaks() as peak, contextlib.redirect_stdout(io.StringIO()):
            program = optimizer.compile(Chain(predictors), trainset=TRAINSET, valset=VALSET, **options)
    finally:
        logger.removeHandler(clock)
    end = time.monotonic()
    edges = [clock.begun.get(step, begin) for step in STEPS] + [end]
    steps = {step: edges[i + 1] - edges[i] for i, step in enumerate(STEPS)}
    used, records = time.process_time() - cpu, server.records()
    path = critical_path(watch, records, begin, steps) if watch else (float("nan"),) * 2
    busy = float("nan")
    if watch:  # while work is left
        busy = mean_in_flight(records, edges[2], max(one.start for one in watch.evaluations.values()))
    return Measured(predictors, end - begin, steps, records, accuracy(program), used, *peak, path, busy)


def accuracy(program: Any) -> float:
    """Percent of 200 questions that no compile has seen which the program answers rightly; not in the times."""
    with contextlib.redirect_stdout(io.StringIO()):
        judge = dspy.Evaluate(devset=EXAMPLES[200:400], metric=metric, num_threads=64, display_progress=False)
        return float(judge(program).score)


def upstream(server: LMServer, lm: Any, predictors: int, threads: int) -> Measured:
    """Upstream's own class, which the fork keeps under ``dspy._upstream``."""
    from dspy._upstream.teleprompt.mipro_optimizer_v2 import MIPROv2

    with dspy.context(lm=lm):
        optimizer = MIPROv2(metric=metric, auto="light", num_threads=threads, seed=SEED)
        return measure(server, optimizer, predictors)


def known(server: LMServer, lm: Any, predictors: int, threads: int) -> Measured:
    """The same, measured once for both parts."""
    if (predictors, threads) not in KNOWN:
        KNOWN[predictors, threads] = upstream(server, lm, predictors, threads)
    return KNOWN[predictors, threads]


def ours(server: LMServer, lm: Any, predictors: int, threads: int, **options: Any) -> Measured:
    """This fork's class."""
    watch = Watch()
    with dspy.context(lm=lm, callbacks=[watch]):
        optimizer = dspy.MIPROv2(metric=metric, auto="light", num_threads=threads, seed=SEED)
        return measure(server, optimizer, predictors, watch, **options)


KNOWN: dict[tuple[int, int], Measured] = {}
CEILING: dict[tuple[int, int], float] = {}  # predictors, threads: calls in flight while work is left
HEAD = (
    "compile",
    "calls",
    "wall s",
    "faster",
    "step 1",
    "step 2",
    "step 3",
    "step 3 faster",
    "mean in flight",
    "most",
    "of possible",
    "while work is left",
    "of the ceiling",
    "critical path",
    "at least",
    "wall / path",
    "CPU s",
    "threads",
    "score",
)


def row(name: str, run: Measured, base: Measured, slots: int) -> str:
    """One line of a table; ``slots`` is the number of calls that may be in flight."""
    third = base.steps["step 3"] / run.steps["step 3"]
    cells = [
        name,
        str(run.calls),
        f"{run.wall:.1f}",
        f"{base.wall / run.wall:.2f}x",
        *(f"{run.steps[step]:.1f}" for step in STEPS),
        f"{third:.2f}x",
        f"{run.mean:.1f}",
        str(max_in_flight(run.records)),
        f"{run.mean / slots:.0%}",
        f"{run.busy / slots:.0%}",
        f"{run.busy / CEILING.get((run.predictors, slots), float('nan')):.0%}",
        *(f"{path:.1f}" for path in run.path),
        f"{run.wall / run.path[0]:.2f}",
        f"{run.cpu:.1f}",
        f"{run.threads:.0f}",
        f"{run.score:.1f}",
    ]
    return "| " + " | ".join("" if cell.startswith("nan") else cell for cell in cells) + " |"


def table(title: str) -> None:
    print(f"\n{title}\n")
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD), flush=True)


def part_a(server: LMServer, lm: Any, predictors: int, options: argparse.Namespace) -> None:
    """The provider allows more: the same threads for each prompt, ``n_jobs`` prompts."""
    table(f"(a) {predictors} predictor(s), num_threads=8 for each prompt")
    base = known(server, lm, predictors, 8)
    print(row("upstream", base, base, 8), flush=True)
    for n_jobs in options.jobs:
        run = ours(server, lm, predictors, 8, sampler=options.sampler, n_jobs=n_jobs)
        print(row(f"n_jobs={n_jobs}", run, base, 8 * n_jobs), flush=True)


def part_b(server: LMServer, lm: Any, predictors: int, options: argparse.Namespace) -> None:
    """The same calls in flight, T: upstream's threads are our ``max_concurrency``."""
    table(f"(b) {predictors} predictor(s), the same calls in flight")
    for limit in options.limits:
        base = known(server, lm, predictors, limit)
        print(row(f"upstream, T={limit}", base, base, limit), flush=True)
        n_jobs = jobs_for(limit)
        run = ours(server, lm, predictors, limit, sampler=options.sampler, n_jobs=n_jobs, max_concurrency=limit)
        print(row(f"max_concurrency={limit}, n_jobs={n_jobs}", run, base, limit), flush=True)


def part_ceiling(server: LMServer, lm: Any, predictors: int, options: argparse.Namespace) -> None:
    """What this process can do at all: a bare ``dspy.Evaluate`` over many examples with T threads."""
    print("\nceiling: dspy.Evaluate of 400 examples\n")
    print("| threads | calls | wall s | calls/s | mean in flight | while work is left |\n|" + " --- |" * 6)
    for limit in options.limits:
        server.reset()
        begin = time.monotonic()
        with dspy.context(lm=lm), contextlib.redirect_stdout(io.StringIO()):
            dspy.Evaluate(devset=EXAMPLES[200:600], metric=metric, num_threads=limit)(Chain(predictors))
        wall, records = time.monotonic() - begin, server.records()
        busy = mean_in_flight(records)
        full = CEILING[predictors, limit] = mean_in_flight(records, end=max(record.start for record in records))
        cells = (limit, len(records), f"{wall:.1f}", f"{len(records) / wall:.0f}", f"{busy:.1f}", f"{full:.1f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def part_schedules(server: LMServer, lm: Any, predictors: int, options: argparse.Namespace) -> None:
    """Asynchronous against batches."""
    table(f"schedules, {predictors} predictor(s), n_jobs=8, num_threads=8")
    base = None
    for schedule in ("batch", "async"):
        run = ours(server, lm, predictors, 8, sampler=options.sampler, n_jobs=8, schedule=schedule)
        base = base or run
        print(row(schedule, run, base, 64), flush=True)


def part_many(server: LMServer, lm: Any, predictors: int, options: argparse.Namespace) -> None:
    """Threads and memory with 256 calls in flight, some 5,000 in all (three predictors)."""
    from dspy.clients.engines.lm15_engine import LM15Engine
    from dspy.lm15 import RouterConfig

    names = ("openai", "openai-chat")
    urls, keys = dict.fromkeys(names, server.url), dict.fromkeys(names, "none")
    config = RouterConfig(api_keys=keys, base_urls=urls, max_connections=256)
    wide = dspy.LM("openai/gpt-4o-mini", engine=LM15Engine(config, model_type="chat"), cache=False)
    before = resident()
    run = ours(server, wide, 3, 8, sampler=options.sampler, n_jobs=32)
    table("256 calls in flight: three predictors, n_jobs=32, num_threads=8")
    print(row("n_jobs=32", run, run, 256))
    print(
        f"\nmemory: {before:.0f} MB before, {run.memory:.0f} MB at most; {run.calls} calls, "
        f"{max_in_flight(run.records)} in flight at most, {run.threads:.0f} threads at most",
        flush=True,
    )


def part_cpu(server: LMServer, lm: Any, predictors: int, options: argparse.Namespace) -> None:
    """What Python takes for a call, in evaluations and in whole compiles."""
    with LMServer(server.behavior.rule, process=True) as quick:
        model = language_model(quick)
        runs = {"MIPROv2, upstream's": lambda: upstream(quick, model, predictors, 8)}
        for name in ("random", options.sampler):
            chosen = {"sampler": name, "n_jobs": 4, "max_concurrency": 8}
            runs[f"MIPROv2, ours, {name}, n_jobs=4"] = partial(ours, quick, model, predictors, 8, **chosen)
        with dspy.context(lm=model):
            program = Chain(predictors)
            python_time.report(quick, program, EXAMPLES[200:400], metric, runs)


def resident() -> float:
    """Memory of this process now, in MB; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def jobs_for(limit: int) -> int:
    """Prompts at once that keep ``limit`` calls in flight when some are at their last examples."""
    return max(4, min(16, limit // 4))


PARTS = {
    "cpu": part_cpu,
    "many": part_many,
    "ceiling": part_ceiling,
    "a": part_a,
    "b": part_b,
    "schedules": part_schedules,
}


def main() -> None:
    """Run the parts asked for and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictors", nargs="+", type=int, default=[1, 3], choices=[1, 3])
    parser.add_argument("--parts", nargs="+", default=["ceiling", "a", "b", "schedules"], choices=list(PARTS))
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--limits", nargs="+", type=int, default=[8, 32, 64])
    parser.add_argument("--sampler", default="qei")
    parser.add_argument("--median", type=float, default=0.4)
    options = parser.parse_args()
    rule = TaskRule(ANSWERS, quality=Quality(0.35))
    print(
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"DSPy {dspy.__version__}, sampler {options.sampler}, median latency {options.median} s, sigma 0.8"
    )
    print(f"(first compile of the process, without latency, imports included: {warm_up(rule, options):.1f} s)")
    with LMServer(rule, latency=Latency(options.median, 0.8), process=True) as server:
        lm = language_model(server)
        lm("warm up")
        for predictors in options.predictors:
            for part in options.parts:
                PARTS[part](server, lm, predictors, options)


if __name__ == "__main__":
    main()

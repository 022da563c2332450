"""Thousands of workers, simulated: is the driver fast enough to keep them busy? ``python -m benchmarks.simulation``.

A discrete-event simulation on the real sampler, spending, driver, study and storage. Only the workers are not there:
their jobs take simulated seconds, and the clock is moved to the end of the next one. What the driver needs to decide
and to write is measured in processor time of the whole process, mathematics on one thread (other programs on the
machine do not count, nor do waits for a disk), and moves the same clock: while it thinks, workers that are done stand
idle.

    utilization = busy worker-seconds / (workers x time), from the moment that all had a first job

``--told`` prints, instead, the milliseconds of the driver for one result (proposed, written down and told) after so
many others, from one long run for each storage.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from queue import Empty
from typing import Any

from dspy.promptune import PromptSpace
from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.racing import BLOCK
from dspy.promptune.allocation.records import Job
from dspy.promptune.options import OURS
from dspy.promptune.run.evaluators import Done, Keep, keep_nothing
from dspy.promptune.run.loop import SearchLoop
from dspy.promptune.run.schedule import Limits, Schedule
from dspy.promptune.run.search import Run
from dspy.promptune.secrets import SecretMasker
from dspy.promptune.storage.backend import open_storage, quiet_optuna
from dspy.promptune.storage.study_store import StudyStore

__all__ = ["Workers", "simulate"]

EXAMPLES = 200
SEED = 1
WORKERS = (40, 160, 500, 1000, 2000)
TOLD = (500, 1000, 5000, 10_000, 50_000)
WINDOW = 0.2  # of the results up to a number: those whose cost is averaged


class Workers:
    """Workers that take simulated time; a :class:`Evaluator` whose events come when the driver waits for them.

    Args:
        count: Workers.
        seconds: Mean time of a job, exponential about half of it: stragglers included.
        keep: Where scores are written as they come.
    """

    def __init__(self, count: int, seconds: float, seed: int, keep: Keep = keep_nothing) -> None:
        self.count, self._seconds, self._keep = count, seconds, keep
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, Job, Outcome, Done]] = []
        self._moved = time.process_time()  # processor time up to which the clock has been moved
        self.now = self._spent = 0.0
        self.full_at = self.last_start = math.nan
        self.intervals: list[tuple[float, float]] = []
        self.spent = [0.0]  # seconds of the driver until each result was handed in, since the first job

    def enough(self) -> None:
        """Called after each event: whether the run should end."""

    def start(self, job: Job, missing: Sequence[int], done: Done) -> None:
        """A worker takes the job when the driver has come so far."""
        self._think()
        seconds = self._seconds / 2 + self._random.expovariate(2 / self._seconds)
        level = 0.3 + 0.5 * random.Random(hash(job.key)).random()
        scores = {i: float(self._random.random() < level) for i in missing}
        heapq.heappush(self._due, (self.now + seconds, job.number, job, Outcome(scores, seconds=seconds), done))
        self.intervals.append((self.now, self.now + seconds))
        self.last_start = self.now
        if math.isnan(self.full_at) and len(self._due) == self.count:
            self.full_at = self.now

    def room(self, running: int) -> bool:
        """While a worker is idle."""
        return running < self.count

    def tend(self, *, ending: bool) -> None:
        """Nothing to look after."""

    def stop(self) -> None:
        """Nothing goes on by itself."""

    def next_event(self) -> bool:
        """Move the clock to the end of the next job, and hand in all that has ended by then."""
        self._think()
        if not self._due:
            return False
        self.now = max(self.now, self._due[0][0])
        while self._due and self._due[0][0] <= self.now:
            _, _, job, outcome, done = heapq.heappop(self._due)
            self._keep(job, outcome.scores)
            self.spent.append(self._spent)
            done(job, outcome)
        self.enough()
        return True

    def _think(self) -> None:
        """What the driver has needed since the last event passes for the workers, too."""
        real = time.process_time()
        self.now += real - self._moved
        self._spent += real - self._moved
        self._moved = real

    def utilization(self) -> float:
        """Share of the workers' time that was spent on jobs, from when all had a first one to the last start."""
        first, last = self.full_at, self.last_start
        busy = sum(max(0.0, min(end, last) - max(start, first)) for start, end in self.intervals)
        return busy / (self.count * (last - first))

    def along(self) -> dict[int, float]:
        """Milliseconds of the driver for a result, of the last fifth of the results up to each of ``TOLD``."""
        found = {}
        for last in TOLD:
            if last < len(self.spent):
                first = round((1 - WINDOW) * last)
                found[last] = round(1000 * (self.spent[last] - self.spent[first]) / (last - first), 2)
        return found


class Events:
    """The driver's queue: when it is empty, the simulated clock moves on instead of the driver waiting."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._events: deque[Any] = deque()

    def put(self, event: Any) -> None:
        """Something has ended."""
        self._events.append(event)

    def get(self, timeout: float) -> Any:
        """The next event, in simulated time."""
        if not self._events and not self._workers.next_event():
            raise Empty
        return self._events.popleft()

    def get_nowait(self) -> Any:
        """The next event, if it is there."""
        if not self._events:
            raise Empty
        return self._events.popleft()


def simulate(
    workers: int, jobs: int, *, sampler: str, storage: str | None, seconds: float = 10.0, minibatch: int | None = 10
) -> dict[str, Any]:
    """One run: utilization, and milliseconds of the driver for each result along the run."""
    space = PromptSpace(
        {0: [f"instruction {i}" for i in range(40)], 1: [f"answer {i}" for i in range(40)]},
        {0: [f"demos {i}" for i in range(40)], 1: [f"more demos {i}" for i in range(40)]},
    )
    store = None
    if storage is not None:
        store = StudyStore(open_storage(storage), f"{sampler}-{workers}-{jobs}", False, SecretMasker())
        store.begin({"format": 1, "kind": "search"})
    options = {"embedder": "ngram", "batch_size": workers} if sampler in OURS else {}
    size = minibatch or BLOCK
    budget = {"n_examples": EXAMPLES, "max_calls": jobs * size, "minibatch_size": minibatch, "full_every": 0}
    run = Run(space, sampler, budget, seed=SEED, options=options, store=store)
    simulated = Workers(workers, seconds, SEED, store.keep_scores if store is not None else keep_nothing)
    driver = SearchLoop(
        run.jobs, simulated, Schedule(n_jobs=workers, ahead=1), listeners=[run.notes, *run.listeners],
        limits=Limits(note_every=max(1, jobs * size // 50)),
    )  # fmt: skip
    driver._events = Events(simulated)  # type: ignore[assignment]
    simulated.enough = lambda: driver.stop("enough") if len(simulated.spent) > jobs else None
    driver.run()
    told = len(simulated.spent) - 1
    if store is not None:
        store.close()
    return {
        "sampler": sampler, "examples": minibatch or "blocks", "workers": workers, "told": told,
        "storage": "memory" if storage is None else Path(storage).suffix,
        "utilization": round(simulated.utilization(), 3), "ms": round(1000 * simulated.spent[-1] / told, 2),
        "seconds": round(simulated.now, 1), "ms_along": simulated.along(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--told", action="store_true", help="the cost of one result along a long run")
    parser.add_argument("--workers", type=int, nargs="+", help="default: 40 to 2,000; with --told 2,000")
    parser.add_argument("--jobs", type=int, help="of a run; default: 4 for each worker, with --told 50,000")
    parser.add_argument("--sampler", nargs="+", default=["random", "qei"])
    parser.add_argument("--minibatch", type=int, nargs="+", default=[0, 10], help="examples of a job; 0: our sampler's")
    parser.add_argument("--storage", nargs="+", help="memory, or an ending such as .db or .log")
    chosen = parser.parse_args()
    storages = chosen.storage or (["memory", ".db", ".log"] if chosen.told else ["memory"])
    every = itertools.product(
        chosen.sampler, chosen.minibatch, chosen.workers or (WORKERS[-1:] if chosen.told else WORKERS), storages
    )
    with tempfile.TemporaryDirectory() as folder, quiet_optuna():
        for sampler, minibatch, workers, ending in every:
            if sampler not in OURS and not minibatch:
                continue
            jobs = chosen.jobs or (TOLD[-1] if chosen.told else 4 * workers)
            place = None if ending == "memory" else str(Path(folder) / f"{sampler}-{minibatch}-{workers}{ending}")
            found = simulate(workers, jobs, sampler=sampler, storage=place, minibatch=minibatch or None)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

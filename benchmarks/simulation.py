"""Thousands of workers, simulated: is the driver fast enough to keep them busy? ``python -m benchmarks.simulation``.

A discrete-event simulation on the real sampler, spending, driver, study and storage. Only the workers are not there:
their jobs take simulated seconds, and the clock is moved to the end of the next one. What the driver needs to decide
and to write is measured in seconds of its processor time (other programs on the machine do not count, nor do waits for
a disk), and moves the same clock: while it thinks, workers that are done stand idle.

    utilisation = busy worker-seconds / (workers x time), from the moment that all had a first job
"""

from __future__ import annotations

import argparse
import heapq
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
from dspy.promptune.engine.blocks import BLOCK
from dspy.promptune.engine.driver import Driver, Limits, Schedule
from dspy.promptune.engine.options import OURS
from dspy.promptune.engine.outcome import Outcome
from dspy.promptune.engine.records import Job
from dspy.promptune.engine.search import Run, quiet_optuna
from dspy.promptune.engine.storage import open_storage
from dspy.promptune.engine.store import Store
from dspy.promptune.engine.work import Done
from dspy.promptune.scrub import Scrubber

__all__ = ["Workers", "simulate"]

EXAMPLES = 200
SEED = 1


class Workers:
    """Workers that take simulated time; a :class:`Work` whose events come when the driver waits for them.

    Args:
        count: Workers.
        seconds: Mean time of a job, exponential about half of it: stragglers included.
    """

    def __init__(self, count: int, seconds: float, seed: int) -> None:
        self.count, self._seconds = count, seconds
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, Job, Outcome, Done]] = []
        self._moved = time.thread_time()  # processor time up to which the clock has been moved
        self.now = 0.0
        self.full_at = self.last_start = math.nan
        self.intervals: list[tuple[float, float]] = []
        self.costs: list[float] = []  # seconds of the driver from one event to the next

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
        spent = self._think()
        if not self._due:
            return False
        self.costs.append(spent)
        self.now = max(self.now, self._due[0][0])
        while self._due and self._due[0][0] <= self.now:
            _, _, job, outcome, done = heapq.heappop(self._due)
            done(job, outcome)
        return True

    def _think(self) -> float:
        """What the driver has needed since the last event passes for the workers, too."""
        real = time.thread_time()
        spent, self._moved = real - self._moved, real
        self.now += spent
        return spent

    def utilisation(self) -> float:
        """Share of the workers' time that was spent on jobs, from when all had a first one to the last start."""
        first, last = self.full_at, self.last_start
        busy = sum(max(0.0, min(end, last) - max(start, first)) for start, end in self.intervals)
        return busy / (self.count * (last - first))

    def along(self, told: int) -> dict[int, float]:
        """Milliseconds of the driver for a result around the 500th, 2,000th, 5,000th, ... (means of a tenth)."""
        found = {}
        for at in (500, 2000, 5000, 20000, 50000):
            last = round(at * len(self.costs) / told)
            if last <= len(self.costs):
                window = self.costs[max(0, last - max(50, last // 10)) : last]
                found[at] = round(1000 * sum(window) / len(window) * len(self.costs) / told, 2)
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
    """One run: utilisation, and milliseconds of the driver for each result along the run."""
    space = PromptSpace(
        {0: [f"instruction {i}" for i in range(40)], 1: [f"answer {i}" for i in range(40)]},
        {0: [f"demos {i}" for i in range(40)], 1: [f"more demos {i}" for i in range(40)]},
    )
    store = None
    if storage is not None:
        store = Store(open_storage(storage), f"{sampler}-{workers}-{jobs}", False, Scrubber())
        store.begin({"format": 1, "kind": "search"})
    options = {"embedder": "ngram", "batch_size": workers} if sampler in OURS else {}
    size = minibatch or BLOCK
    budget = {"n_examples": EXAMPLES, "max_calls": jobs * size, "minibatch_size": minibatch, "full_every": 0}
    run = Run(space, sampler, budget, seed=SEED, options=options, store=store)
    simulated = Workers(workers, seconds, SEED)
    driver = Driver(
        run.spending, run.table, simulated, Schedule(n_jobs=workers, ahead=1), on_end=run.note,
        limits=Limits(note_every=max(1, jobs * size // 50)),
    )  # fmt: skip
    driver._events = Events(simulated)  # type: ignore[assignment]
    began = time.thread_time()
    driver.run()
    real = time.thread_time() - began
    told = len(simulated.intervals)
    if store is not None:
        store.close()
    return {
        "sampler": sampler, "workers": workers, "told": told, "storage": storage is not None,
        "utilisation": round(simulated.utilisation(), 3), "ms_per_result": round(1000 * real / told, 3),
        "simulated_seconds": round(simulated.now, 1), "ms_along": simulated.along(told),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--rounds", type=float, default=4.0, help="jobs for each worker")
    parser.add_argument("--jobs", type=int, nargs="*", default=[], help="instead: a run of so many jobs")
    parser.add_argument("--sampler", nargs="+", default=["random", "tpe", "qei"])
    parser.add_argument("--minibatch", type=int, default=10, help="examples of a job; 0 lets the sampler decide")
    parser.add_argument("--memory", action="store_true", help="no storage")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, quiet_optuna():
        for sampler in chosen.sampler:
            for workers in chosen.workers:
                for jobs in chosen.jobs or [int(chosen.rounds * workers)]:
                    place = None if chosen.memory else str(Path(folder) / f"{sampler}-{workers}-{jobs}.db")
                    found = simulate(
                        workers, jobs, sampler=sampler, storage=place, minibatch=chosen.minibatch or None
                    )
                    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

"""Racing: small blocks of shared examples for many prompts, more for those that may be the best."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from dspy.promptune.allocation.beliefs import Beliefs
from dspy.promptune.allocation.faults import Faults
from dspy.promptune.allocation.ledger import RunningJobs
from dspy.promptune.allocation.policy import Budget, unless_level, whole
from dspy.promptune.allocation.records import Assignment, Job, ScoreTable
from dspy.promptune.gp.data import Observation, condensed
from dspy.promptune.gp.posterior import PoolPosterior
from dspy.promptune.samplers.qei import STRIDE, QEISampler
from dspy.promptune.space import Key, PromptSpace

BLOCK = 5  # examples in one job
FEW_EXAMPLES, SMALL_BLOCK = 50, 3  # the same where there are no more than so many examples: a block is much of them
FIRST_BLOCK = 2  # at the very beginning, when every result still changes who is asked next
IN_FLIGHT = 4  # running jobs hold at most one in so many of the calls spent, until blocks have their full size
LOOK = 5  # examples that a prompt with a new text is scored on before others are again
FINAL = 0.3  # of all calls: the last of them decide between the leaders, and nobody new is looked at
FINAL_OPEN = 0.15  # the same where new texts keep coming
FEW = 100  # random combinations to look for a new one among, at first


class RacingPolicy:
    """Small blocks of examples, shared by all prompts, given one at a time to whoever may be the best.

    Blocks start smaller, and have their full size once the jobs in flight are little beside what is known: the more
    are in flight, the longer that takes.

    All prompts see the validation examples in the same (seeded) order, so that any two were compared on the same
    examples as far as both went. Which prompt gets the next block is decided by the sampler's acquisition
    (:data:`dspy.promptune.gp.allocation.RULES`) from the joint posterior, running blocks counted as done. The last
    calls, :data:`FINAL` of all, go to the leaders (:func:`dspy.promptune.gp.allocation.finalist`): what is doubtful
    then is which of them is best. The winner is the prompt with the highest posterior mean among those measured; it
    has to beat the original where both have all their scores.

    Args:
        sampler: Its model and options are used.
        space: The prompts.
        table: Scores already paid for; they count as observations.
        budget: Limits.
        rng: Draws the order of the examples, and prompts while little is known.
        block: Examples in one job, once there are some results; by default 5, or 3 of at most 50 validation examples.
    """

    def __init__(
        self,
        sampler: QEISampler,
        space: PromptSpace,
        table: ScoreTable,
        budget: Budget,
        *,
        rng: random.Random,
        block: int | None = None,
    ) -> None:
        self._options = sampler.options
        self._beliefs = Beliefs(sampler, space, budget.n_examples, rng)
        self._running = RunningJobs(table)
        self._space, self._table, self._budget, self._random = space, table, budget, rng
        self._block = block or _block_of(budget)
        self._order = rng.sample(range(budget.n_examples), budget.n_examples)
        self._faults = Faults(table)
        self._planned: list[Key] = []
        self._children: list[list[Key]] = []  # prompts with the new texts of one answer, looked at before others
        self._known = dict.fromkeys(table.keys())  # prompts with scores, but those that are no longer looked at
        self._closed: set[Key] = set()  # prompts that cannot be measured now; brought up to date with each job
        for key in self._known:
            self._look_at(key)

    def next_job(self, left: int) -> Assignment | None:
        """A block for the prompt that deserves it most; ``None`` where no call is left, or nothing is left to ask."""
        if left < 1:
            return None
        while (key := self._choose(left)) is not None:
            if examples := self._open(key)[: min(self._size(), left)]:
                return Assignment(key, tuple(examples), "block")
            self._closed.add(key)  # another start or driver has scored the rest meanwhile
            if key not in self._beliefs.pool:
                return None
        return None

    def confirm(self, left: int) -> Assignment | None:
        """The best prompt on all examples."""
        return whole(self.best(), self._table, self._faults.whole(range(len(self._order))), left)

    def started(self, job: Job) -> None:
        """Its examples are busy, and count as claimed."""
        self._running.open(job)
        self._look_at(job.key)

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """Believe what a job's scores say."""
        self._running.close(job)
        self._known[job.key] = None
        self._faults.told(job)
        self._look_again(job.key)
        if job.kind == "block":
            mean = math.fsum(scores) / len(scores)
            self._beliefs.add(job.key, mean, job.examples, beside=len(self._running.jobs))
        else:
            self._beliefs.forget()

    def failed(self, job: Job, error: BaseException) -> None:
        """A prompt that fails again and again is left alone."""
        self._faults.failed(job)
        self.dropped(job)

    def dropped(self, job: Job) -> None:
        """A job has ended without its scores; some examples may have theirs."""
        self._running.close(job)
        self._look_again(job.key)
        if self._row(job.key):
            self._known[job.key] = None

    def best(self) -> Key:
        """The measured prompt with the highest posterior mean; less than a first block of scores says too little.

        The original has to be beaten, if both have all their scores.
        """
        first = next(iter(self._space.keys()))
        return unless_level(self._believed_best(first), first, self._table, self._budget.n_examples)

    def _believed_best(self, first: Key) -> Key:
        """The best prompt as far as is believed, or known; the first where nothing is."""
        least = min(FIRST_BLOCK, self._budget.n_examples)
        out = self._faults.out | {key for key in self._known if len(self._row(key)) < least}
        if self._known and self._believing():
            return self._beliefs.best(out)
        measured = [key for key in sorted(self._known) if self._row(key)]
        keys = [key for key in measured if key not in out] or measured
        return max(keys, key=self._average) if keys else first

    def grown(self, child: Key | None = None, *, sibling: bool = False) -> None:
        """A candidate was appended to the space; ``child`` is a prompt with it, to be looked at first.

        Of siblings, whose texts came with one answer, it is the one that the acquisition would measure; the others are
        prompts like any.
        """
        self._beliefs.forget()
        self._planned.clear()
        if child is None:
            return
        if sibling and self._children:
            self._children[-1].append(child)
        else:
            self._children.append([child])

    def beliefs(self) -> tuple[list[Key], PoolPosterior] | None:
        """The prompts about which something is believed, and what; ``None`` where nothing is yet."""
        enough = len(self._table) >= min(self._options.min_cold_start, self._space.size)
        if not enough or not self._known or not self._believing():
            return None
        return self._beliefs.pool, self._beliefs.posterior

    def belief(self, key: Key) -> tuple[float, float]:
        """Posterior mean and standard deviation of a prompt's true score; NaN where nothing is believed of it."""
        found = self.beliefs()
        if found is None or key not in found[0]:
            return math.nan, math.nan
        j = found[0].index(key)
        return float(found[1].mean[j]), math.sqrt(float(found[1].variance[j]))

    # ------------------------------------------------------------------

    def _is_final(self, left: int) -> bool:
        """Whether the last calls are being spent, of all that a run may take: other limits may allow fewer of them."""
        share = FINAL_OPEN if self._space.is_open else FINAL
        return left <= share * (self._table.calls + self._running.claimed() + left)

    def _believing(self) -> bool:
        """Whether there are beliefs, rebuilt where they are out of date."""
        return self._beliefs.current or self._beliefs.rebuild(self._observations(), self._running.jobs.values())

    def _size(self) -> int:
        """Examples in the next job: few while what is in flight would be much of all that is known."""
        spent, jobs = self._table.calls + self._running.claimed(), len(self._running.jobs) + 1
        return min(self._block, max(FIRST_BLOCK, spent // (IN_FLIGHT * jobs)))

    def _choose(self, left: int) -> Key | None:
        if len(self._table) < self._options.min_cold_start or not self._believing():
            return self._unseen()
        running = list(self._running.jobs.values())
        if self._is_final(left):
            self._planned.clear()
            if (key := self._beliefs.decide(running, self._closed)) is not None:
                return key
        if (child := self._child()) is not None:
            return child
        while self._planned:
            if self._may(key := self._planned.pop(0)):
                return key
        count = max(1, len(running) // STRIDE, self._options.batch_size - len(running))
        self._planned = self._beliefs.choose(running, self._closed, self._block, count)
        return self._planned.pop(0) if self._planned else None

    def _child(self) -> Key | None:
        """The first prompt with a new text that has had no look yet."""
        while self._children:
            if len(self._children[0]) > 1:
                self._children[0] = [self._beliefs.first_of(self._children[0], self._closed, self._block)]
            child = self._children[0][0]
            if self._table.count(child) + len(self._busy(child)) < LOOK and self._may(child):
                return child
            self._children.pop(0)
        return None

    def _look_at(self, key: Key) -> None:
        """Bring up to date whether a prompt can be measured."""
        if self._may(key):
            self._closed.discard(key)
        else:
            self._closed.add(key)

    def _look_again(self, key: Key) -> None:
        """The same for a prompt, and for those that have failed: what explains that may have changed."""
        for each in {key, *self._faults.keys()}:
            self._look_at(each)

    def _busy(self, key: Key) -> set[int]:
        return {example for job in self._running.of(key) for example in job.examples}

    def _open(self, key: Key) -> list[int]:
        """Examples that a prompt has neither been scored on nor is being, in the common order.

        Those that may explain a failure come last.
        """
        busy, row = self._busy(key), self._table.row(key)
        found = [example for example in self._order if example not in row and example not in busy]
        return list(self._faults.open(key, found))

    def _may(self, key: Key) -> bool:
        """Whether a prompt can be measured (again)."""
        if key in self._faults.out or self._table.count(key) == len(self._order):
            return False
        fresh = key not in self._faults and self._table.count(key) + len(self._faults.examples) < len(self._order)
        return (fresh and not self._busy(key)) or bool(self._open(key))

    def _row(self, key: Key) -> dict[int, float]:
        """A prompt's scores of jobs that have ended, by example."""
        busy = self._busy(key)
        return {example: score for example, score in self._table.row(key).items() if example not in busy}

    def _average(self, key: Key) -> float:
        row = self._row(key)
        return math.fsum(row.values()) / len(row)

    def _unseen(self) -> Key | None:
        """A random combination that is new, with demos where there are any, or else one that is not finished.

        While nothing is scored, what explains the failures there are is found before other prompts fail.
        """
        failed = () if self._table.examples else self._faults.keys()
        if found := [key for key in failed if not self._running.of(key) and self._may(key)]:
            return found[0]
        touched = len(self._table) + len(self._faults.out)
        touched += sum(not self._table.count(key) for key in self._running.keys())
        for size in dict.fromkeys((min(touched, FEW) + 64, touched + 64)):
            ready = [key for key in self._space.pool(size, self._random) if self._may(key)]
            if new := [key for key in ready if not self._table.count(key) and not self._running.of(key)]:
                return self._random.choice(self._beliefs.promising(new))
        if not ready and not self._running.jobs and self._faults.relent(len(self._order)):
            return self._unseen()
        return self._random.choice(ready) if ready else None

    def _observations(self) -> list[Observation]:
        """The scores so far, cut along the common order into segments of doubling length.

        Of many, condensed ones; prompts that are not among them are looked at again when they get new scores.
        """
        found = []
        for key in sorted(self._known):
            row = self._row(key)
            for segment in _segments(len(self._order), self._block):
                examples = tuple(example for example in self._order[segment] if example in row)
                if examples:
                    scores = tuple(row[example] for example in examples)
                    found.append(Observation(key, math.fsum(scores) / len(scores), scores, examples))
        kept = condensed(found)
        if len(kept) < len(found):
            self._known = dict.fromkeys(one.key for one in kept)
        return kept


def _block_of(budget: Budget) -> int:
    """Examples in one job by default."""
    return SMALL_BLOCK if budget.n_examples <= FEW_EXAMPLES else BLOCK


def _segments(n: int, block: int) -> list[slice]:
    """``0:b, b:2b, 2b:4b, 4b:8b, ...`` up to ``n``: comparable between prompts, and few for those that went far."""
    edges = [0, block]
    while edges[-1] < n:
        edges.append(2 * edges[-1])
    return [slice(a, b) for a, b in itertools.pairwise(edges)]

"""How LM calls are spent: which prompt is evaluated next, and on which validation examples."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspy.promptune.allocation.averages import Averages
from dspy.promptune.allocation.faults import Faults
from dspy.promptune.allocation.ledger import RunningJobs
from dspy.promptune.allocation.records import Assignment, Job, ScoreTable
from dspy.promptune.errors import BudgetError
from dspy.promptune.space import Key, PromptSpace

__all__ = ["Budget", "MinibatchPolicy", "unless_level", "whole"]

FULL_EVERY = 5  # upstream's minibatch_full_eval_steps
MINIBATCH = 35  # upstream's minibatch_size
FREE_PROPOSALS = 10  # proposals in a row that cost nothing, before the sampler is overruled


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may spend.

    Attributes:
        n_examples: Size of the validation set.
        max_calls: LM calls at most; one call is one example of one prompt.
        minibatch_size: Examples per trial. ``None`` lets our sampler decide for each prompt, and is 35 for others.
        full_every: Minibatches between full evaluations of the best average; 0 for none.
    """

    n_examples: int
    max_calls: int
    minibatch_size: int | None = None
    full_every: int = FULL_EVERY

    def __post_init__(self) -> None:
        if self.n_examples < 1:
            raise BudgetError(f"n_examples={self.n_examples}: a search needs at least 1 validation example.")
        if self.max_calls < 1:
            raise BudgetError(f"max_calls={self.max_calls}: a search needs at least 1 call.")
        if self.minibatch_size is not None and not 1 <= self.minibatch_size <= self.n_examples:
            raise BudgetError(
                f"minibatch_size={self.minibatch_size}: it must be from 1 to the {self.n_examples} validation "
                "examples; leave it out to let the run decide."
            )
        if self.full_every < 0:
            raise BudgetError(f"full_every={self.full_every}: it must be 0 (no full evaluations) or more.")


class MinibatchPolicy:
    """Upstream's schedule: random minibatches, and every few of them the best average in full.

    Each minibatch is drawn without replacement. After every ``budget.full_every`` of them, and at the end, the prompt
    with the highest average over its minibatches that was never evaluated in full is; there may be none, and then the
    search goes on. What these evaluations will cost is kept back, however many minibatches run at once. The winner is
    the highest full evaluation if there is one, otherwise the highest average, unless ``believed`` knows better.
    Without full evaluations in between, what was evaluated in full before counts like any minibatch. A minibatch of
    which the end of the budget left less than half says too little to make a winner.

    Args:
        propose: The prompt of the next minibatch: an Optuna sampler, usually. Where it proposes one that is out of the
            running, or ten times in a row one with all its scores, a random one that is not finished takes its place.
        space: The prompts.
        table: Scores already paid for.
        budget: Limits.
        rng: Draws the minibatches.
        believed: The prompt that a model believes to be the best; ``None`` while there is no such belief.
    """

    def __init__(
        self,
        propose: Callable[[], Key],
        space: PromptSpace,
        table: ScoreTable,
        budget: Budget,
        *,
        rng: random.Random,
        believed: Callable[[], Key | None] = lambda: None,
    ) -> None:
        self._propose, self._believed = propose, believed
        self._space, self._table, self._budget, self._random = space, table, budget, rng
        self._running, self.faults = RunningJobs(table), Faults(table)
        self._examples = range(budget.n_examples)
        self._size = min(budget.minibatch_size or MINIBATCH, budget.n_examples)
        self._means = Averages()
        self._full: dict[Key, float] = {}
        self._best_full: Key | None = None
        self._since_full = 0
        self._minibatches = self._evaluated = 0  # begun: minibatches, and full evaluations of the best average
        self._free = 0

    def next_job(self, left: int) -> Assignment | None:
        """A full evaluation if one is due, otherwise a minibatch; ``None`` where the calls left pay for neither."""
        return self._due(left) or self._minibatch(left - self._kept_back()) or self._rest(left)

    def confirm(self, left: int) -> Assignment | None:
        """The best average that was never evaluated in full, unless a model knows better."""
        key = self._trusted() or self._means.best(self._in_running) or self.best()
        return whole(key, self._table, self.faults.whole(self._examples), left)

    def started(self, job: Job) -> None:
        """A minibatch or a full evaluation has begun; one before any minibatch is not of this schedule."""
        self._running.open(job)
        if job.kind == "minibatch":
            self._minibatches += 1
        elif job.kind == "full" and (self._minibatches or self._since_full):
            self._since_full = 0
            self._evaluated += 1

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """Note the mean of a job's scores."""
        self._running.close(job)
        self.faults.told(job)
        mean = math.fsum(scores) / len(scores)
        if job.kind == "full" and self._budget.full_every:
            self._full[job.key] = mean
            self._means.close(job.key)
            if self._best_full is None or mean > self._full[self._best_full]:
                self._best_full = job.key
        else:
            if 2 * len(job.examples) >= self._size or self._complete(job.key) or self.faults.keys():
                self._means.add(job.key, mean)
            self._since_full += 1

    def failed(self, job: Job, error: BaseException) -> None:
        """A prompt that fails again and again is left alone."""
        self._running.close(job)
        self.faults.failed(job)

    def dropped(self, job: Job) -> None:
        """A job has ended without its scores."""
        self._running.close(job)

    def best(self) -> Key:
        """The combination that the run would return now."""
        found = self._trusted() or self._best_full or self._means.best(self._in_running) or self._means.best()
        if found is None:  # an evaluation that failed may have left scores
            found = max(self._table.keys(), key=self._table.mean, default=None)
        first = next(iter(self._space.keys()))
        return unless_level(found or first, first, self._table, len(self._examples))

    # ------------------------------------------------------------------

    def _trusted(self) -> Key | None:
        """What a model believes to be the best, if a minibatch of it was scored."""
        key = self._believed()
        return key if key in self._means or key in self._full else None

    def _kept_back(self) -> int:
        """Calls that the full evaluations will take which this many minibatches, and one more, make due."""
        if not self._budget.full_every:
            return 0
        owed = math.ceil((self._minibatches + 1) / self._budget.full_every) - self._evaluated
        return min(max(0, owed) * self._budget.n_examples, self._budget.max_calls // 2)

    def _due(self, left: int) -> Assignment | None:
        if not self._budget.full_every or self._since_full < self._budget.full_every:
            return None
        return self._full_evaluation(left)

    def _rest(self, left: int) -> Assignment | None:
        """At the end, when nothing is running: the best average in full, or whatever minibatches can be paid for."""
        if not self._budget.full_every or self._running.jobs:
            return None
        return (self._full_evaluation(left) if self._since_full else None) or self._minibatch(left)

    def _full_evaluation(self, left: int) -> Assignment | None:
        key = self._means.best(
            lambda key: self._in_running(key) and all(job.kind != "full" for job in self._running.of(key))
        )
        if key is None:
            return None
        examples = self.faults.whole(self._examples)
        return Assignment(key, tuple(examples), "full") if len(self._table.missing(key, examples)) <= left else None

    def _minibatch(self, left: int) -> Assignment | None:
        if left < 1:
            return None
        key = self._doubtful()
        if key is None and not self._table.examples and self.faults.keys() and self._running.jobs:
            return None  # nothing is scored yet: what comes of these is waited for, before all prompts have failed
        if key is None and self._free < FREE_PROPOSALS:
            key = self._propose()
        examples: Sequence[int] = ()
        if key is not None and self._ready(key):
            examples = self._open(key) if self.faults.keys() else self._examples
        if key is None or not examples:
            if (key := self._unfinished()) is None:
                return None
            examples = self._open(key)
        examples = self._random.sample(examples, min(self._size, len(examples)))
        missing = self._table.missing(key, examples)
        self._free = 0 if missing else self._free + 1
        unpaid = set(missing[left:])
        return Assignment(key, tuple(example for example in examples if example not in unpaid), "minibatch")

    def _unfinished(self) -> Key | None:
        """A random combination with examples that are not scored yet; ``None`` where none is left in the running."""
        seen = {*self._table.keys(), *self.faults.keys()}
        closed = {key for key in seen if not self._ready(key) or self._complete(key)}
        open_keys = [key for key in self._space.pool(len(closed) + 1, self._random) if key not in closed]
        if not open_keys and not self._running.jobs and self.faults.relent(len(self._examples)):
            return self._unfinished()
        return self._random.choice(open_keys) if open_keys else None

    def _doubtful(self) -> Key | None:
        """A prompt that failed on all that it can be evaluated on: what explains that is found before others fail."""
        for key in self.faults.keys():
            if self._ready(key):
                missing = self._table.missing(key, self._examples)
                if self.faults.doubtful(key, missing) and not self.faults.whole(missing):
                    return key
        return None

    def _ready(self, key: Key) -> bool:
        """Whether a prompt may be evaluated now: one that has failed is told what came of it first."""
        return self._in_running(key) and not (key in self.faults and self._running.of(key))

    def _in_running(self, key: Key) -> bool:
        """Whether a prompt may be evaluated, as far as its failures are concerned."""
        return key not in self.faults.out

    def _open(self, key: Key) -> Sequence[int]:
        """Examples that a prompt has no score on and may be evaluated on."""
        return self.faults.open(key, self._table.missing(key, self._examples))

    def _complete(self, key: Key) -> bool:
        """Whether a prompt is scored on every example that it may be evaluated on."""
        return self._table.count(key) >= len(self._examples) or bool(self.faults.keys() and not self._open(key))


def unless_level(key: Key, first: Key, table: ScoreTable, n_examples: int) -> Key:
    """A prompt; the original, which is the first, where both have all their scores and its mean is as high.

    A model may believe more of a prompt that is like others which did well, but nobody changes a program for that.
    """
    if table.count(first) < n_examples or table.count(key) < n_examples:
        return key
    return first if table.mean(first) >= table.mean(key) else key


def whole(key: Key, table: ScoreTable, examples: Sequence[int], left: int) -> Assignment | None:
    """The full evaluation of a prompt; ``None`` where it has all its scores, or takes more than ``left`` calls."""
    missing = table.missing(key, examples)
    return Assignment(key, tuple(examples), "full") if 0 < len(missing) <= left else None

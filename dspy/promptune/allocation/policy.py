"""How LM calls are spent: which prompt is evaluated next, and on which validation examples."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from dspy.promptune.allocation.averages import Averages
from dspy.promptune.allocation.records import AllocationPolicy, Job, JobKind, ScoreTable
from dspy.promptune.errors import BudgetError
from dspy.promptune.gp.data import Observation
from dspy.promptune.samplers.qei import QEISampler
from dspy.promptune.samplers.trials import TrialHistory
from dspy.promptune.secrets import masked
from dspy.promptune.space import Key, PromptSpace

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


def make_policy(
    study: Study, space: PromptSpace, table: ScoreTable, budget: Budget, *, seed: int | None = None
) -> AllocationPolicy:
    """The way of spending that fits the study's sampler and the budget.

    Our sampler without an explicit ``minibatch_size`` races prompts on small blocks; everything else follows
    upstream's schedule of minibatches and full evaluations.
    """
    from dspy.promptune.allocation.racing import RacingPolicy

    if isinstance(study.sampler, QEISampler) and budget.minibatch_size is None:
        return RacingPolicy(study, space, table, budget, seed=seed)
    return MinibatchPolicy(study, space, table, budget, seed=seed)


class Trials:
    """The trials of a run: asked for by key or from the sampler, and told with their scores."""

    def __init__(self, study: Study, space: PromptSpace, seed: int | None) -> None:
        self.study = study
        self.space = space
        self.random = random.Random(seed)
        self._distributions: dict[str, BaseDistribution] = {**space.distributions()}
        self._running: dict[int, int] = {}
        self._seed = seed
        self.seen = TrialHistory(study, space)  # what the sampler would otherwise read from the storage again and again

    def recall(self, count: int) -> None:
        """So many trials were made before: from here on other draws than theirs."""
        if count and self._seed is not None:
            self.random.seed(f"{self._seed}/{count}")

    def ask(self) -> tuple[int, Key]:
        """A trial with a combination that the sampler proposes.

        In a space where not all combinations are allowed, a sampler that does not know it may propose one that is
        not: that trial fails, and one with the nearest allowed combination takes its place.
        """
        if isinstance(self.study.sampler, QEISampler):
            return self.force(self.study.sampler.next_key(self.study, self.seen))
        trial = self.study.ask(self._distributions)
        indices = tuple(int(trial.params[name]) for name in self.space.names)
        if (key := self.space.find(indices)) is not None:
            self._running[trial.number] = trial._trial_id
            self.seen.begin(trial.number, key)
            return trial.number, key
        trial.set_user_attr("error", f"Combination {indices} is not allowed in this space.")
        self.study.tell(trial, state=TrialState.FAIL)
        return self.force(self._nearest(indices))

    def force(self, key: Key) -> tuple[int, Key]:
        """A running trial with a combination that is already decided: the sampler is not asked."""
        template = create_trial(
            state=TrialState.RUNNING, params=self.space.params(key), distributions=self._distributions
        )
        storage, study_id = self.study._storage, self.study._study_id
        trial_id = storage.create_new_trial(study_id, template_trial=template)
        number = storage.get_trial_number_from_id(trial_id)
        self._running[number] = trial_id
        self.seen.begin(number, key)
        return number, key

    def tell(self, job: Job, scores: Sequence[float]) -> None:
        """Complete a job's trial with its scores; their mean is its value."""
        trial_id = self._note(
            job, scores=[float(score) for score in scores], examples=list(job.examples), kind=job.kind
        )
        self._end(trial_id, job.number, TrialState.COMPLETE, math.fsum(scores) / len(scores))
        self.note(job, scores)

    def note(self, job: Job, scores: Sequence[float]) -> None:
        """What a trial that has been told says to the sampler."""
        mean = math.fsum(scores) / len(scores)
        self.seen.end(job.number, Observation(job.key, mean, tuple(map(float, scores)), job.examples))

    def fail(self, job: Job, error: BaseException) -> None:
        """Mark a job's trial as failed."""
        trial_id = self._note(job, error=masked(f"{type(error).__name__}: {error}"), kind=job.kind)
        self._end(trial_id, job.number, TrialState.FAIL)
        self.seen.end(job.number)

    def _end(self, trial_id: int, number: int, state: TrialState, value: float | None = None) -> None:
        """As ``study.tell``, which reads the trial three times; samplers that want to hear of its end do."""
        if type(self.study.sampler).after_trial is BaseSampler.after_trial:
            self.study._storage.set_trial_state_values(trial_id, state=state, values=None if value is None else [value])
        else:
            self.study.tell(number, value, state=state)

    def _note(self, job: Job, **attributes: Any) -> int:
        trial_id = self._running.pop(job.number)
        for name, value in attributes.items():
            self.study._storage.set_trial_user_attr(trial_id, name, value)
        return trial_id

    def _nearest(self, key: Key) -> Key:
        """An allowed combination with as many parts in common as possible, ties at random."""
        near = [sum(a == b for a, b in zip(key, other, strict=True)) for other in self.space.allowed or ()]
        best = max(near)
        return self.random.choice([k for k, n in zip(self.space.allowed or (), near, strict=True) if n == best])


class CallLedger:
    """What is left of the calls, with those of running jobs counted as spent."""

    def __init__(self, table: ScoreTable, budget: Budget) -> None:
        self.table = table
        self.budget = budget
        self.jobs: dict[int, Job] = {}
        self._of: dict[Key, dict[int, Job]] = {}
        self._claims: dict[Key, int] = {}
        self._claimed = 0
        self.under_way = 0  # examples of running jobs, scored before or not
        self.full = 0  # full evaluations that are running
        self.allow: Callable[[], float] = lambda: math.inf

    def left(self) -> int:
        """Calls that nobody has claimed yet; ``allow`` may leave fewer of them."""
        return int(min(self.budget.max_calls - self.table.calls, self.allow())) - self.claimed()

    def claimed(self) -> int:
        """Calls that running jobs will take."""
        return self._claimed

    def of(self, key: Key) -> Iterable[Job]:
        """The running jobs of a prompt."""
        return self._of.get(key, {}).values()

    def keys(self) -> Iterable[Key]:
        """The prompts of running jobs."""
        return self._of.keys()

    def job(self, number: int, key: Key, examples: Sequence[int], kind: JobKind) -> Job:
        """A new running job."""
        job = Job(number, key, tuple(examples), kind)
        self.jobs[number] = job
        self._count(job, 1)
        self._of.setdefault(key, {})[number] = job
        self._recount(key)
        return job

    def close(self, job: Job) -> None:
        """The job is no longer running."""
        if (known := self.jobs.pop(job.number, None)) is not None:
            self._count(known, -1)
        running = self._of.get(job.key, {})
        running.pop(job.number, None)
        if not running:
            self._of.pop(job.key, None)
        self._recount(job.key)

    def _count(self, job: Job, sign: int) -> None:
        self.under_way += sign * len(job.examples)
        self.full += sign * (job.kind == "full")

    def _recount(self, key: Key) -> None:
        """What is claimed of a prompt has changed: with its jobs, or with the scores that the end of one brought."""
        now = sum(len(self.table.missing(key, job.examples)) for job in self.of(key))
        self._claimed += now - self._claims.pop(key, 0)
        if now:
            self._claims[key] = now

    def complete(self, key: Key) -> bool:
        """Whether every example of a prompt is scored."""
        return self.table.count(key) >= self.budget.n_examples


class MinibatchPolicy:
    """Upstream's schedule: random minibatches, and every few of them the best average in full.

    Each trial draws its own minibatch without replacement. After every ``budget.full_every`` of them, and at the end,
    the prompt with the highest average over its trials that was never evaluated in full is; there may be none, and
    then the search goes on. What these evaluations will cost is kept back, however many minibatches run at once. The
    winner is the highest full evaluation if there is one, otherwise the highest average; under our own sampler it is
    the highest posterior mean.

    Args:
        study: Where trials are asked and told.
        space: The prompts.
        table: Scores already paid for.
        budget: Limits.
        seed: Of the minibatches.
    """

    def __init__(
        self, study: Study, space: PromptSpace, table: ScoreTable, budget: Budget, *, seed: int | None = None
    ) -> None:
        self._trials = Trials(study, space, seed)
        self._ledger = CallLedger(table, budget)
        self._space, self._table, self._budget = space, table, budget
        self._size = min(budget.minibatch_size or MINIBATCH, budget.n_examples)
        self._means = Averages()
        self._full: dict[Key, float] = {}
        self._best_full: Key | None = None
        self._since_full = 0
        self._asked = self._evaluated = 0  # minibatches, and full evaluations of the best average
        self._free = 0

    def next_job(self) -> Job | None:
        """A full evaluation if one is due, otherwise a minibatch; ``None`` where the calls left pay for neither."""
        left = self._ledger.left()
        return self._due(left) or self._minibatch(left - self._kept_back()) or self._rest(left)

    def claim(self, key: Key, examples: Sequence[int], kind: JobKind) -> Job:
        """A job that is decided on from outside, such as the evaluation of the program as it came."""
        return self._ledger.job(*self._trials.force(key), examples, kind)

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """Note a job's scores."""
        self._ledger.close(job)
        self._trials.tell(job, scores)
        self._learn(job, scores)

    def recall(self, finished: Sequence[tuple[Job, Sequence[float]]]) -> None:
        """Jobs that an earlier start of the run has told its study."""
        for job, scores in finished:
            self._learn(job, scores)
        self._trials.recall(len(finished))

    def joined(self, job: Job) -> None:
        """Another driver of the study has begun this job."""
        self._trials.seen.begin(job.number, job.key)
        if job.kind == "full":
            self._since_full = 0
            self._evaluated += 1
        else:
            self._asked += 1

    def heard(self, job: Job, scores: Sequence[float]) -> None:
        """Another driver of the study has told it these scores, which are in the table."""
        self._trials.note(job, scores)
        self._learn(job, scores)

    def gone(self, job: Job) -> None:
        """Another driver of the study has ended it without scores."""
        self._trials.seen.end(job.number)

    def _learn(self, job: Job, scores: Sequence[float]) -> None:
        mean = math.fsum(scores) / len(scores)
        if job.kind == "full":
            self._full[job.key] = mean
            self._means.close(job.key)
            if self._best_full is None or mean > self._full[self._best_full]:
                self._best_full = job.key
        else:
            self._means.add(job.key, mean)
            self._since_full += 1

    def failed(self, job: Job, error: BaseException) -> None:
        """Note that a job has no scores."""
        self._ledger.close(job)
        self._trials.fail(job, error)

    def best(self) -> Key:
        """The combination that the run would return now."""
        return self._believed() or self._best_full or self._means.best() or next(iter(self._space.keys()))

    def to_confirm(self) -> Key:
        """What to evaluate in full at the end: the best average that never was, unless beliefs say what is best."""
        return self._believed() or self._means.best() or self.best()

    def _believed(self) -> Key | None:
        """What our own sampler, if that is the study's, believes to be the best."""
        sampler = self._trials.study.sampler
        if isinstance(sampler, QEISampler) and (self._means or self._full):
            return sampler.best_key(self._trials.seen.observations)
        return None

    def _kept_back(self) -> int:
        """Calls that the full evaluations will take which this many minibatches, and one more, make due."""
        if not self._budget.full_every:
            return 0
        owed = math.ceil((self._asked + 1) / self._budget.full_every) - self._evaluated
        return min(max(0, owed) * self._budget.n_examples, self._budget.max_calls // 2)

    def _due(self, left: int) -> Job | None:
        if not self._budget.full_every or self._since_full < self._budget.full_every:
            return None
        return self._full_evaluation(left)

    def _rest(self, left: int) -> Job | None:
        """At the end, when nothing is running: the best average in full, or whatever minibatches can be paid for."""
        if not self._budget.full_every or self._ledger.jobs:
            return None
        return (self._full_evaluation(left) if self._since_full else None) or self._minibatch(left)

    def _full_evaluation(self, left: int) -> Job | None:
        key = self._means.best(lambda key: all(job.kind != "full" for job in self._ledger.of(key)))
        examples = range(self._budget.n_examples)
        if key is None or len(self._table.missing(key, examples)) > left:
            return None
        self._since_full = 0
        self._evaluated += 1
        return self._ledger.job(*self._trials.force(key), examples, "full")

    def _minibatch(self, left: int) -> Job | None:
        if left < 1:
            return None
        if self._free < FREE_PROPOSALS:
            number, key = self._trials.ask()
        elif (unfinished := self._unfinished()) is not None:
            number, key = self._trials.force(unfinished)
        else:
            return None
        examples = self._trials.random.sample(range(self._budget.n_examples), self._size)
        missing = self._table.missing(key, examples)
        self._free = 0 if missing else self._free + 1
        self._asked += 1
        unpaid = set(missing[left:])
        return self._ledger.job(number, key, [example for example in examples if example not in unpaid], "minibatch")

    def _unfinished(self) -> Key | None:
        """A random combination with examples that are not scored yet; ``None`` where all seem to be."""
        complete = sum(map(self._ledger.complete, self._table.keys()))
        pool = self._space.pool(complete + 1, self._trials.random)
        open_keys = [key for key in pool if not self._ledger.complete(key)]
        return self._trials.random.choice(open_keys) if open_keys else None

"""The study's side of a run: a trial for each job, opened when it starts and told at its end."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Protocol

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from dspy.promptune.allocation.faults import Faults
from dspy.promptune.allocation.records import Assignment, Job
from dspy.promptune.gp.data import Observation
from dspy.promptune.samplers.failures import BLAMED, OVERRULED
from dspy.promptune.samplers.qei import QEISampler
from dspy.promptune.samplers.trials import TrialHistory
from dspy.promptune.secrets import masked
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.history import LOST

__all__ = ["Proposals", "StudyTrials", "proposals_of"]


class StudyTrials:
    """The trials of a run in its Optuna study.

    Args:
        study: Where they are.
        space: The prompts.
    """

    def __init__(self, study: Study, space: PromptSpace) -> None:
        self.study, self.space = study, space
        study.stop = lambda: None  # type: ignore[method-assign] # a sampler that has been through: the policy goes on
        self._closed: dict[str, BaseDistribution] = {**space.distributions()}
        self._ids: dict[int, int] = {}
        self._asked: dict[Key, tuple[int, int]] = {}  # trials that a sampler made for its proposals: number and id

    @property
    def _distributions(self) -> dict[str, BaseDistribution]:
        return {**self.space.distributions()} if self.space.is_open else self._closed

    def ask(self) -> Key:
        """A combination that the study's sampler proposes, whose trial waits for :meth:`open`.

        In a space where not all combinations are allowed, a sampler that does not know it may propose one that is
        not: then its trial is FAILED, and the indices are returned as they are.
        """
        trial = self.study.ask(self._distributions)
        indices = tuple(int(trial.params[name]) for name in self.space.names)
        if (key := self.space.find(indices)) is not None:
            if key in self._asked:  # proposed twice in one decision
                self._overrule(*self._asked[key])
            self._asked[key] = trial.number, trial._trial_id
            return key
        trial.set_user_attr(OVERRULED, f"Combination {indices} is not allowed in this space.")
        self.study.tell(trial, state=TrialState.FAIL)
        return indices

    def open(self, one: Assignment) -> Job:
        """A job whose trial is running: the one in which a sampler proposed its prompt, or a new one."""
        asked = self._asked.pop(one.key, None)
        self.overrule()
        number, trial_id = self._create(one.key) if asked is None else asked
        self._ids[number] = trial_id
        return Job(number, one.key, one.examples, one.kind)

    def note(self, job: Job, **attributes: Any) -> None:
        """Set user attributes of a running job's trial."""
        for name, value in attributes.items():
            self.study._storage.set_trial_user_attr(self._ids[job.number], name, value)

    def tell(self, job: Job, scores: Sequence[float]) -> None:
        """Complete a job's trial with its scores; their mean is its value."""
        scores = [float(score) for score in scores]
        self.note(job, scores=scores, examples=list(job.examples), kind=job.kind)
        self._end(job, TrialState.COMPLETE, math.fsum(scores) / len(scores))

    def fail(self, job: Job, error: BaseException, *, blamed: bool = False, lost: int = 0) -> None:
        """Mark a job's trial as failed.

        Args:
            job: It has no scores.
            error: Why.
            blamed: Whether that is the fault of its prompt.
            lost: Calls that it took for nothing.
        """
        noted = {"error": masked(f"{type(error).__name__}: {error}"), "kind": job.kind, BLAMED: blamed}
        self.note(job, examples=list(job.examples), **noted, **({LOST: lost} if lost else {}))
        self._end(job, TrialState.FAIL)

    def overrule(self) -> None:
        """Trials whose proposals were not followed are FAILED."""
        for number, trial_id in self._asked.values():
            self._overrule(number, trial_id)
        self._asked.clear()

    def _overrule(self, number: int, trial_id: int) -> None:
        why = "Another combination took the place of this one, which is out of the running or has all its scores."
        self.study._storage.set_trial_user_attr(trial_id, OVERRULED, why)
        self.study.tell(number, state=TrialState.FAIL)

    def _create(self, key: Key) -> tuple[int, int]:
        """Number and id of a running trial with this combination: the sampler is not asked."""
        template = create_trial(
            state=TrialState.RUNNING, params=self.space.params(key), distributions=self._distributions
        )
        storage = self.study._storage
        trial_id = storage.create_new_trial(self.study._study_id, template_trial=template)
        return storage.get_trial_number_from_id(trial_id), trial_id

    def _end(self, job: Job, state: TrialState, value: float | None = None) -> None:
        """As ``study.tell``, which reads the trial three times; samplers that want to hear of its end do."""
        trial_id = self._ids.pop(job.number)
        if type(self.study.sampler).after_trial is BaseSampler.after_trial:
            self.study._storage.set_trial_state_values(trial_id, state=state, values=None if value is None else [value])
        else:
            self.study.tell(job.number, value, state=state)


class Proposals(Protocol):
    """Proposes the prompts of minibatches, and hears of every job that is started and ended."""

    def propose(self) -> Key:
        """The next prompt."""

    def believed(self) -> Key | None:
        """What a model believes to be the best; ``None`` where there is no model, or no result."""

    def started(self, job: Job) -> None:
        """A job is running, here or with another driver."""

    def ended(self, job: Job, scores: Sequence[float] | None) -> None:
        """A job has ended, with these scores or without."""

    def follow(self, faults: Faults) -> None:
        """Learn from these which prompts are out of the running."""


def proposals_of(trials: StudyTrials, space: PromptSpace, rng: random.Random) -> Proposals:
    """The proposals of the study's sampler.

    Args:
        trials: Of the study.
        space: The prompts.
        rng: Chooses among the nearest prompts where a sampler proposes one that is not allowed.
    """
    if isinstance(trials.study.sampler, QEISampler):
        return _OwnProposals(trials.study.sampler, trials.study, space)
    return _OptunaProposals(trials, space, rng)


class _OwnProposals:
    """Of our sampler, which is told what the trials say instead of reading the study for each proposal."""

    def __init__(self, sampler: QEISampler, study: Study, space: PromptSpace) -> None:
        self._sampler, self._study = sampler, study
        self.seen = TrialHistory(study, space)

    def propose(self) -> Key:
        return self._sampler.next_key(self._study, self.seen)

    def believed(self) -> Key | None:
        found = self.seen.observations
        standing = [one for one in found if one.key not in self.seen.failed.out] or found
        return self._sampler.best_key(standing) if standing else None

    def started(self, job: Job) -> None:
        self.seen.begin(job.number, job.key)

    def ended(self, job: Job, scores: Sequence[float] | None) -> None:
        if scores is None:
            self.seen.end(job.number)
            return
        mean = math.fsum(scores) / len(scores)
        self.seen.end(job.number, Observation(job.key, mean, tuple(map(float, scores)), job.examples))

    def follow(self, faults: Faults) -> None:
        self.seen.failed = faults


class _OptunaProposals:
    """Of any other sampler, which reads the study."""

    def __init__(self, trials: StudyTrials, space: PromptSpace, rng: random.Random) -> None:
        self._trials, self._space, self._random = trials, space, rng

    def propose(self) -> Key:
        key = self._trials.ask()
        return key if key in self._space else self._nearest(key)

    def believed(self) -> Key | None:
        return None

    def started(self, job: Job) -> None:
        """The study knows."""

    def ended(self, job: Job, scores: Sequence[float] | None) -> None:
        """The study knows."""

    def follow(self, faults: Faults) -> None:
        """The policy overrules what the sampler does not learn from a failure."""

    def _nearest(self, key: Key) -> Key:
        """An allowed combination with as many parts in common as possible, ties at random."""
        near = [sum(a == b for a, b in zip(key, other, strict=True)) for other in self._space.allowed or ()]
        best = max(near)
        return self._random.choice([k for k, n in zip(self._space.allowed or (), near, strict=True) if n == best])

"""The jobs of a run: decided by its policy, opened as trials of its study, counted in its ledger."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dspy.promptune.allocation.ledger import CallLedger
from dspy.promptune.allocation.records import AllocationPolicy, Assignment, Job
from dspy.promptune.limits.search_allowance import SearchAllowance
from dspy.promptune.storage.sharing import Sharing, TakenError

if TYPE_CHECKING:
    from dspy.promptune.run.trials import Proposals, StudyTrials
    from dspy.promptune.run.writing import Writing

__all__ = ["RunJobs"]

EARLY = 0.1  # share of the calls for the first few prompts, until the other candidates have come


class RunJobs:
    """What the loop asks for jobs and tells their ends, so that all who keep count of them agree.

    The policy decides; ``ledger`` and ``allowance`` say how many calls are left to decide about; ``trials`` writes
    the study; ``proposals`` and the policy hear of every job, those of other drivers included, which ``sharing``
    reads. Once the study cannot be written any more, nothing is started; what is running ends as usual.

    Args:
        policy: Decides.
        trials: Opens, tells and fails the trials.
        ledger: Counts calls.
        proposals: Whoever proposes the prompts of minibatches, if it is to hear of the jobs.
        sharing: Other drivers of the study, if it is shared.
        broken: Whether the study can no longer be written.
    """

    def __init__(
        self,
        policy: AllocationPolicy,
        trials: StudyTrials,
        ledger: CallLedger,
        *,
        proposals: Proposals | None = None,
        sharing: Sharing | None = None,
        broken: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy, self.trials, self.ledger, self.sharing = policy, trials, ledger, sharing
        self.allowance: SearchAllowance | None = None
        self.writing: Writing | None = None
        self._proposals, self._broken = proposals, broken
        if sharing is not None:
            sharing.jobs = self

    def next(self) -> Job | None:
        """The next job, with its trial; ``None`` where nothing is to be started now."""
        while not self._broken():
            with self._unless_broken():
                if self.writing is not None:
                    self.writing.look(self._left())
                if self._waits():
                    return None
                one = self._decide()
                if one is None:
                    self.trials.overrule()
                    return None
                if (job := self._open(one)) is not None:
                    return job
        return None

    @property
    def writes(self) -> bool:
        """Whether a text is being written with which there may be more to evaluate."""
        return self.writing is not None and self._left() > 0 and self.writing.hopeful()

    def take_in(self) -> bool:
        """Write down the texts that came while the run is being stopped; whether one is still being written."""
        if self.writing is not None:
            with self._unless_broken():
                self.writing.take_in()
        return self.writing is not None and self.writing.in_flight > 0

    @property
    def limited(self) -> str | None:
        """The limit that has ended the search, in words."""
        return None if self.allowance is None else self.allowance.ended

    @property
    def over(self) -> str:
        """Why there is no next job while none is running, in words."""
        return "the budget is spent" if self.ledger.left() < 1 else "nothing is left to evaluate"

    def claim(self, ones: Iterable[Assignment]) -> list[Job]:
        """Jobs that are decided on outside, such as the evaluation of the original program."""
        jobs: list[Job] = []
        with self._unless_broken():
            for job in map(self._begin, ones):
                jobs.append(job)
                if self.sharing is not None:
                    self.sharing.claim(job)
                self.policy.started(job)
        return jobs

    def tell(self, job: Job, scores: Sequence[float]) -> None:
        """A job of this driver has ended with one score for each of its examples, which are in the table."""
        with self._unless_broken():
            self.trials.tell(job, scores)
        self.told(job, scores)

    def fail(self, job: Job, error: BaseException, *, blamed: bool, suspected: bool = False, lost: int = 0) -> None:
        """A job of this driver could not be scored.

        Args:
            job: It has ended.
            error: Why.
            blamed: Whether that is the fault of its prompt, which is out of the running after two of these.
            suspected: The same as far as is known now; another start finds out by itself.
            lost: Calls that it took for nothing; they count as spent.
        """
        with self._unless_broken():
            self.trials.fail(job, error, blamed=blamed, lost=lost)
        if blamed or suspected:
            self.failed(job, error, lost)
        else:
            self.dropped(job, lost)

    # ------------------------------------------------------------------ for those who share the study

    def started(self, job: Job) -> None:
        """Another driver has begun a job."""
        self.ledger.open(job)
        if self._proposals is not None:
            self._proposals.started(job)
        self.policy.started(job)

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """A job has ended, here or with another driver, with these scores, which are in the table."""
        self._closed(job, scores)
        self.policy.told(job, scores)

    def failed(self, job: Job, error: BaseException, lost: int) -> None:
        """A job could not be scored, here or with another driver, through the fault of its prompt."""
        self._closed(job, None)
        self.ledger.lost += lost
        self.policy.failed(job, error)

    def dropped(self, job: Job, lost: int) -> None:
        """A job has ended without its scores, here or with another driver, and its prompt is not to blame."""
        self.ledger.lost += lost
        self._closed(job, None)
        self.policy.dropped(job)

    # ------------------------------------------------------------------

    def _decide(self) -> Assignment | None:
        """What the policy decides within the calls left; when a limit has ended the search, its last evaluation."""
        limits = self.allowance
        if limits is None:
            return self._or_write(self.policy.next_job(self.ledger.left()))
        one = None if limits.over() else self.policy.next_job(self.ledger.left(limits.left()))
        one = one if limits.over() else self._or_write(one)
        if one is None and not self.ledger.jobs and not self.writes and limits.release() and self.ledger.table.calls:
            one = self.policy.confirm(self.ledger.left(limits.left()))
            if one is None:
                limits.spare()
                one = self.policy.next_job(self.ledger.left(limits.left()))
        return one

    def _or_write(self, one: Assignment | None) -> Assignment | None:
        """The decision; where there is nothing to evaluate, what there is once a text has been written."""
        if one is not None or self.ledger.jobs or self.writing is None:
            return one
        while one is None and self.writing.look(self._left(), blocked=True):
            one = self.policy.next_job(self._left())
        return one

    def _waits(self) -> bool:
        """Whether what there is has had its share, while most candidates are still being made."""
        if self.writing is None or not self.writing.holds:
            return False
        taken, left = self.ledger.spent + self.ledger.claimed(), self._left()
        return left > 0 and taken >= EARLY * (taken + left)

    def _left(self) -> int:
        """Calls that nobody has claimed."""
        return self.ledger.left(math.inf if self.allowance is None else self.allowance.left())

    def _open(self, one: Assignment) -> Job | None:
        """A job for a decision, unless another driver was first; of a block, what nobody else evaluates."""
        job = self._begin(one)
        if self.sharing is not None:
            try:
                admitted = self.sharing.admit(job)
            except TakenError as error:
                self._closed(job, None)
                self.trials.fail(job, error)
                return None
            if admitted is not job:
                self.ledger.close(job)
                self.ledger.open(admitted)
                job = admitted
        self.policy.started(job)
        return job

    def _begin(self, one: Assignment) -> Job:
        job = self.trials.open(one)
        self.ledger.open(job)
        if self._proposals is not None:
            self._proposals.started(job)
        return job

    def _closed(self, job: Job, scores: Sequence[float] | None) -> None:
        self.ledger.close(job)
        if self._proposals is not None:
            self._proposals.ended(job, scores)

    @contextlib.contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """What goes wrong in a study that can no longer be written is no matter: it was said when it broke."""
        try:
            yield
        except Exception:
            if not self._broken():
                raise

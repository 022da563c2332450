"""Several drivers on one study: each knows what the others evaluate, and none evaluates it as well."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from dspy.promptune.allocation.ledger import CallLedger
from dspy.promptune.allocation.records import Job, is_text
from dspy.promptune.errors import EvaluationError, StorageError
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.drivers import OWNER
from dspy.promptune.storage.history import RunHistory, history_of
from dspy.promptune.storage.lease import STALE_SECONDS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from dspy.promptune.storage.study_store import StudyStore

__all__ = ["JobEvents", "Sharing", "TakenError"]

logger = logging.getLogger(__name__)

CLAIM = "claim"  # user attribute of a trial: which examples its driver evaluates, and as what kind of job
GAP_SECONDS = 0.25  # to wait for the claim of a trial that somebody is just making


@dataclass(frozen=True)
class _Theirs:
    """A running trial of another driver. ``job`` is ``None`` until it says what it is for; ``since`` it is seen."""

    trial_id: int
    owner: str | None
    key: Key | None
    job: Job | None
    since: float


class JobEvents(Protocol):
    """Hears of the jobs of other drivers."""

    def started(self, job: Job) -> None:
        """Another driver has begun a job."""

    def told(self, job: Job, scores: Sequence[float]) -> None:
        """Another driver's job has ended with these scores, which are in the table."""

    def failed(self, job: Job, error: BaseException, lost: int) -> None:
        """Another driver's job could not be scored through the fault of its prompt, and took ``lost`` calls."""

    def dropped(self, job: Job, lost: int) -> None:
        """Another driver's job has ended without its scores, and took ``lost`` calls."""


class TakenError(EvaluationError):
    """A job that another driver was first to begin, or to which it has claimed the calls."""


class Sharing:
    """One driver's part in a study that several share.

    Every job's trial says by whom and on which examples it is evaluated, before anything of it is. A pair of prompt
    and example belongs to the running trial with the lowest number that claims it: numbers are given in the order in
    which trials become visible, so whoever has written a claim and then reads the trials before it knows of all that
    go first. What others evaluate counts as running here, what they have scored as paid.

    Args:
        store: The study's side.
        space: The prompts.
        ledger: Of this driver's run; its table is filled with the others' scores.
        n_examples: Size of the validation set.
        past: Trials that ended before this driver began.

    Attributes:
        jobs: Hears of the others' jobs.
        arrived: Called with every instruction that was written, here or by another driver, in the order of all.
    """

    jobs: JobEvents
    arrived: Callable[[Mapping[str, Any]], None] = staticmethod(lambda noted: None)

    def __init__(
        self, store: StudyStore, space: PromptSpace, ledger: CallLedger, *, n_examples: int, past: RunHistory
    ) -> None:
        self._store, self._drivers = store, store.drivers
        self._space, self._n_examples = space, n_examples
        self._ledger, self._table = ledger, ledger.table
        self._past = {trial.number for trial in past.trials}
        self._mine: set[int] = set()  # trials made here and not looked at yet
        self._others: dict[int, _Theirs] = {}
        self._unclaimed: dict[int, _Theirs] = {}
        self._next, self._last = 0, -1  # number of the first trial that was not looked at, and id of the one before

    # ------------------------------------------------------------------ the jobs of this driver

    def admit(self, job: Job) -> Job:
        """Claim a job whose trial was opened: itself, or what of a block nobody else is evaluating.

        Raises:
            TakenError: Another driver was first.
        """
        known, slack = set(self._others), self._slack(job)
        self.claim(job)
        first = [one.job for n, one in self._others.items() if n < job.number and n not in known]
        if slack >= 0 > self._slack(job):
            raise TakenError("The budget was claimed by another driver at the same moment.")
        if job.kind == "full" and any(other and other.kind == "full" for other in first):
            raise TakenError("Another driver began an evaluation in full at the same moment.")
        return self._without_theirs(job)

    def claim(self, job: Job) -> None:
        """Write down what a job is for, and read what was begun before it."""
        self._mine.add(job.number)
        self._store.sign(job.number, CLAIM, {"examples": list(job.examples), "kind": job.kind})
        self._read()
        end = time.monotonic() + GAP_SECONDS
        while time.monotonic() < end and any(n < job.number for n in self._unclaimed):
            time.sleep(GAP_SECONDS / 10)
            self._read()

    # ------------------------------------------------------------------ for the driver

    def begin(self) -> None:
        """The search begins: what was to be evaluated first is claimed, and others may join."""
        self.look()
        self._store.search_begins()

    def held(self, job: Job) -> set[int]:
        """Those of a job's examples that others evaluate, whom they belong to."""
        if any(n < job.number and one.key in (None, job.key) for n, one in self._unclaimed.items()):
            return set(job.examples)
        first = [other for other in self._ledger.of(job.key) if other.number < job.number]
        return {example for one in first if one.number in self._others for example in one.examples} & set(job.examples)

    def look(self) -> bool:
        """Take note of what the others have begun and ended since the last look; whether something was ended."""
        try:
            news = self._read({one.trial_id for one in self._others.values()})
            return self._close_lost() or news
        except StorageError:
            return False

    def over(self) -> bool:
        """Whether all drivers agree that nothing is left to do, this one having found nothing."""
        if self._store.broken is not None:
            return True
        if self.look() or self._others or self._unclaimed:
            return False
        seen = self._next
        try:
            self._store.show_spent(ended=True)
            self._drivers.announce(idle=seen)
            alone = self._drivers.all_idle(seen)
        except StorageError:
            return True
        self._drivers.agreed = alone and not self.look() and self._next == seen and not self._others
        if self._drivers.agreed:
            self._store.show_spent(ended=True)  # now all have said what they spent
        return self._drivers.agreed

    def winner(self, key: Key) -> Key:
        """The winner that the drivers have agreed on, which is ``key`` if this one is the first to ask."""
        with contextlib.suppress(StorageError):
            if self._drivers.agreed:
                return tuple(self._drivers.agree(self._next, list(key)))
        return key

    def past(self) -> RunHistory:
        """All that has ended by now, as far as it can be read."""
        try:
            return self._store.past(self._space, self._n_examples)
        except StorageError:
            return RunHistory()

    def _slack(self, job: Job) -> int:
        """Calls that the budget leaves beside this job and all that go before it."""
        after = [one.job for number, one in self._others.items() if one.job and number > job.number]
        return self._ledger.left() + sum(len(self._table.missing(other.key, other.examples)) for other in after)

    def _without_theirs(self, job: Job) -> Job:
        """A block without the examples that others evaluate or have scored by now; whatever else waits for them."""
        if job.kind != "block":
            return job
        held = self.held(job)
        rest = [example for example in self._table.missing(job.key, job.examples) if example not in held]
        if not rest:
            raise TakenError("Another driver began to evaluate these examples at the same moment.")
        return replace(job, examples=tuple(rest)) if len(rest) < len(job.examples) else job

    # ------------------------------------------------------------------ the others' trials

    def _read(self, ids: Collection[int] = ()) -> bool:
        """Read trials with these ids, those not claimed yet, and new ones; whether one has ended."""
        news = False
        unclaimed = {one.trial_id for one in self._unclaimed.values()}
        for trial in self._store.changed_trials({*ids, *unclaimed}, self._last):
            number = trial.number
            self._next, self._last = max(self._next, number + 1), max(self._last, trial._trial_id)
            if number in self._mine or number in self._past:
                self._mine.discard(number)
            elif is_text(trial):
                self.arrived(trial.user_attrs)
            elif trial.state.is_finished():
                news = True
                self._ended(trial)
            elif number not in self._others:
                self._began(trial)
        return news

    def _began(self, trial: FrozenTrial) -> None:
        from dspy.promptune.samplers.trials import key_of

        number, key = trial.number, key_of(trial.params, self._space)
        owner, claim = trial.user_attrs.get(OWNER), trial.user_attrs.get(CLAIM)
        before = self._unclaimed.pop(number, None)
        since = time.monotonic() if before is None else before.since
        if key is None or claim is None:
            self._unclaimed[number] = _Theirs(trial._trial_id, owner, key, None, since)
        else:
            job = Job(number, key, tuple(claim["examples"]), claim["kind"])
            self._others[number] = _Theirs(trial._trial_id, owner, key, job, since)
            self.jobs.started(job)

    def _ended(self, trial: FrozenTrial) -> None:
        """Somebody's trial is over: what it scored is paid."""
        self._unclaimed.pop(trial.number, None)
        one = self._others.pop(trial.number, None)
        job = None if one is None else one.job
        past = history_of([trial], {}, self._space, self._n_examples)
        if not past.jobs:
            past.refill(self._table)
        for done, told in past.jobs:  # and no answers that came after that: its own driver does not know them either
            for example, score in zip(done.examples, told, strict=True):
                self._table.add(done.key, example, score)
        for done, told in past.jobs:
            self.jobs.told(done, told)
        for failed, why in past.failures:
            self.jobs.failed(failed, EvaluationError(why), past.lost)
        if job is not None and not past.jobs and not past.failures:
            self.jobs.dropped(job, past.lost)

    def _close_lost(self) -> bool:
        """Close trials of drivers that are gone, and those that nobody has signed for long; whether there were any."""
        if not self._lost():
            return False
        self._store.refresh()
        for number, one in self._lost().items():
            logger.warning("Trial %d was left by a driver that is gone: it is FAILED.", number)
            self._store.close_trial(one.trial_id)
        history_of([], self._store.early_scores(), self._space, self._n_examples).refill(self._table)
        return self._read({one.trial_id for one in self._others.values()})

    def _lost(self) -> dict[int, _Theirs]:
        theirs = {**self._others, **self._unclaimed}
        gone = {owner for owner in {one.owner for one in theirs.values()} if owner and self._drivers.gone(owner)}
        long_ago = time.monotonic() - STALE_SECONDS
        return {n: one for n, one in theirs.items() if one.owner in gone or (not one.owner and one.since < long_ago)}

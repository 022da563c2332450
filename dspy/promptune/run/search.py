"""The whole search without programs or language models: one function over a space and a way to score its members."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from dspy.promptune.allocation.ledger import CallLedger
from dspy.promptune.allocation.records import AllocationPolicy, Assignment, ScoreTable, frozen
from dspy.promptune.errors import EvaluationError, OptionError, StorageError
from dspy.promptune.identity.manifest import embedder_known, search_manifest
from dspy.promptune.interrupts import Interrupt, interrupts
from dspy.promptune.options import check_jobs, check_search, check_steps, checked_seed, with_batch_size
from dspy.promptune.run.evaluators import Evaluate, Evaluator, Inline, Threaded, keep_nothing
from dspy.promptune.run.events import SearchCallback, SearchEvents, check_callbacks
from dspy.promptune.run.listeners import LoopListener
from dspy.promptune.run.loop import SearchLoop
from dspy.promptune.run.result import Compared, SearchRun
from dspy.promptune.run.schedule import Limits, Schedule
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.backend import quiet_optuna
from dspy.promptune.storage.history import RunHistory
from dspy.promptune.storage.sharing import Sharing
from dspy.promptune.storage.study_store import StudyStore, open_study_store

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from dspy.promptune.allocation.policy import Budget
    from dspy.promptune.allocation.requests import Propose
    from dspy.promptune.allocation.writing import Text
    from dspy.promptune.options import ResumeMode, SamplerName, ScheduleName
    from dspy.promptune.run.trials import Proposals, StudyTrials
    from dspy.promptune.run.writing import Writer, Writing
    from dspy.promptune.samplers.qei import QEISampler

__all__ = ["Compared", "Run", "SearchRun", "search"]


class Run:
    """The parts of one search, put together: study, sampler, scores, policy and jobs.

    :func:`search` is this with an ``evaluate``; a compile is this with a program.
    """

    def __init__(
        self,
        space: PromptSpace,
        sampler: Any,
        budget: dict[str, Any],
        *,
        seed: int | None,
        options: dict[str, Any],
        store: StudyStore | None = None,
        writer: Writer | None = None,
    ) -> None:
        from dspy.promptune.allocation.policy import Budget
        from dspy.promptune.run.jobs import RunJobs
        from dspy.promptune.run.timing import JobRecord, TrialNotes
        from dspy.promptune.run.trials import StudyTrials
        from dspy.promptune.samplers import make_sampler

        limits = Budget(**budget)
        space = space if writer is None or space.is_open else space.open()
        self.space = space
        self.n_examples = limits.n_examples
        texts, self.past = ([], RunHistory()) if store is None else _stored(space, store, limits.n_examples)
        salt = 0 if store is None or store.leads else store.drivers.salt
        self.sampler: BaseSampler = make_sampler(sampler, space=space, seed=self.past.seed(seed, salt), **options)
        self.study = self._study(store)
        self.table = ScoreTable()
        self.past.refill(self.table)
        rng = random.Random(seed)
        trials = StudyTrials(self.study, space)
        self.policy, proposals = _policy(trials, space, self.table, limits, rng)
        for job, scores in self.past.jobs:
            self.policy.told(job, scores)
        if seed is not None and (other := salt or len(self.past.jobs)):
            rng.seed(f"{seed}/{other}")  # not the draws of earlier starts, nor of the other drivers
        ledger = CallLedger(self.table, limits.max_calls)
        ledger.lost = self.past.lost
        self.sharing: Sharing | None = None
        if store is not None and store.drivers.share:
            self.sharing = Sharing(store, space, ledger, n_examples=limits.n_examples, past=self.past)
        self.jobs = RunJobs(
            self.policy, trials, ledger, proposals=proposals, sharing=self.sharing,
            broken=lambda: store is not None and store.broken is not None,
        )  # fmt: skip
        for failed, why in self.past.failures:
            self.jobs.failed(failed, EvaluationError(why), 0)
        self.writing: Writing | None = None
        if writer is not None:
            self._write(writer, texts, rng)
        self._named = {} if store is None else {"study_name": store.name}
        self._before = (self.table.calls, {} if store is None else store.study.user_attrs.get("best") or {})
        self.notes = TrialNotes(trials)
        self._record = JobRecord(self.table)
        self.listeners: list[LoopListener] = [self._record]

    def _study(self, store: StudyStore | None) -> Study:
        """The study that the sampler is asked in: the store's, or one in memory."""
        import optuna

        if store is None:
            with quiet_optuna():
                return optuna.create_study(direction="maximize", sampler=self.sampler)
        store.study.sampler = self.sampler
        store.show("embedder", embedder_known(self.sampler, {}))
        return store.study

    def _write(self, writer: Writer, texts: Sequence[Text], rng: random.Random) -> None:
        """Instructions are written during the search, and those of earlier starts are known."""
        from dspy.promptune.allocation.racing import RacingPolicy
        from dspy.promptune.run.writing import Writing

        policy, sampler = self.policy, cast("QEISampler", self.sampler)
        if not isinstance(policy, RacingPolicy):
            raise OptionError(
                f"Writing instructions during the search needs beliefs about prompts: use sampler='qei' without "
                f"minibatch_size, not {type(sampler).__name__}."
            )
        self.writing = self.jobs.writing = Writing(
            self.study, self.space, sampler, policy, self.jobs.ledger, writer, rng=rng, past=texts
        )
        if self.sharing is not None:
            self.sharing.arrived = self.writing.arrived
            self.writing.read_shared = self.sharing.look

    def whole_or_block(self, key: Key, examples: Sequence[int]) -> Assignment:
        """An evaluation that is decided on outside."""
        return Assignment(key, tuple(examples), "full" if len(examples) == self.n_examples else "block")

    def result(
        self,
        driver: SearchLoop,
        ended: str,
        facts: Mapping[str, Any] | None = None,
        spent: Mapping[str, Mapping[str, float]] | None = None,
    ) -> SearchRun:
        """The record of a run that ended; ``facts`` is what was known of it when it began."""
        from dspy.promptune.allocation.expectation import expectation

        key = self._winner()
        expected = expectation(self.sampler, self.table, key)
        return SearchRun(
            best_params=self.space.params(key),
            calls=self.table.calls,
            history=[(calls, self.space.params(best)) for calls, best in driver.log.history],
            best_score=self.table.mean(key),
            trials=self._trials(),
            order=driver.log.order,
            ended=ended,
            study=self.study,
            spent=spent or {},
            space=self.space,
            facts={**(facts or {}), **self._named, "embedder": embedder_known(self.sampler, {})},
            **({} if expected is None else expected._asdict()),
            lineage=() if self.writing is None else self.writing.lineage(),
        )

    def _winner(self) -> Key:
        """The best prompt; of a run that has ended before and has scored nothing since, the one it had: of prompts
        that are level, beliefs that are built again may prefer another."""
        from dspy.promptune.samplers.trials import key_of

        calls, best = self._before
        key = key_of(best, self.space) if self.table.calls == calls else None
        if key is not None and self.table.count(key):
            return key
        key = self.policy.best()
        return key if self.sharing is None else self.sharing.winner(key)

    def _trials(self) -> list[FrozenTrial]:
        """All trials of the study; where it can no longer be read, those of this start that ended well."""
        try:
            return self.study.get_trials(deepcopy=False)
        except StorageError:
            return frozen(self.space, self._record.jobs)


def _policy(
    trials: StudyTrials, space: PromptSpace, table: ScoreTable, budget: Budget, rng: random.Random
) -> tuple[AllocationPolicy, Proposals | None]:
    """The policy that fits the study's sampler and the budget, and who proposes prompts for it, if not itself.

    Our sampler without an explicit ``minibatch_size`` races prompts on small blocks; everything else follows
    upstream's schedule of minibatches and full evaluations.
    """
    from dspy.promptune.allocation.policy import MinibatchPolicy
    from dspy.promptune.allocation.racing import RacingPolicy
    from dspy.promptune.run.trials import proposals_of
    from dspy.promptune.samplers.qei import QEISampler

    sampler = trials.study.sampler
    if isinstance(sampler, QEISampler) and budget.minibatch_size is None:
        return RacingPolicy(sampler, space, table, budget, rng=rng), None
    by = proposals_of(trials, space, rng)
    policy = MinibatchPolicy(by.propose, space, table, budget, rng=rng, believed=by.believed)
    by.follow(policy.faults)
    return policy, by


def search(
    space: PromptSpace,
    evaluate: Evaluate,
    *,
    n_examples: int,
    max_calls: int,
    sampler: SamplerName | BaseSampler | Callable[[PromptSpace], BaseSampler] | None = "qei",
    n_jobs: int = 1,
    batch_size: int | None = None,
    minibatch_size: int | None = None,
    seed: int | None = None,
    schedule: ScheduleName | None = None,
    full_eval_steps: int | None = None,
    retries: int = 0,
    storage: str | Path | BaseStorage | None = None,
    study_name: str | None = None,
    resume: ResumeMode = False,
    share: bool = False,
    propose: Propose | None = None,
    callbacks: Sequence[SearchCallback] | None = None,
    **sampler_options: Any,
) -> SearchRun:
    """Search ``space`` for the combination with the highest mean score, within ``max_calls`` scored examples.

    Args:
        space: The combinations.
        evaluate: ``(params, examples) -> scores``: one finite number for each of ``examples``, which are indices
            below ``n_examples``. It is called from ``n_jobs`` threads, each in a copy of this context; with
            ``n_jobs=1`` from this thread. An evaluation that raises makes a FAILED trial; an
            example on which it raises for every prompt is found and left out.
        n_examples: Size of the validation set.
        max_calls: Examples to score at most. The same (combination, example) is never scored twice.
        sampler: What :func:`dspy.promptune.make_sampler` takes.
        n_jobs: Evaluations at once.
        batch_size: Combinations proposed together; by default ``n_jobs``.
        minibatch_size: Examples of one evaluation. ``None`` lets our sampler decide, and is 35 for others.
        seed: Any integer, 0 included; ``None`` draws one.
        schedule: ``"batch"`` evaluates ``batch_size`` combinations and proposes again when all have ended: the same
            seed gives the same trials. ``"async"`` proposes whenever an evaluation ends. Default: ``"async"`` with
            several jobs, otherwise ``"batch"``.
        full_eval_steps: Minibatches between full evaluations of the best average, by default 5; 0 for none. Our
            sampler takes it with ``minibatch_size`` only.
        retries: Times an evaluation that raised is tried again.
        storage: Where the run is written as it goes, so that it can be resumed: a SQLite file, an Optuna journal
            (``*.log``), a database URL or an Optuna storage. ``None`` keeps it in memory.
        study_name: Name of the study in the storage; default "search".
        resume: ``True`` continues the study if it is there and of the same space, examples and ``evaluate``;
            ``"force"`` in any case. ``max_calls`` counts what it has scored already and what failed evaluations took;
            a prompt that has failed twice stays out of the running, unless by ``"force"``.
        share: ``True`` lets other processes search the same study at the same time, each with this same call:
            ``max_calls`` is for all of them, no (combination, example) is scored by two, and all have the same winner.
            A study that is there is continued.
        propose: Writes new instructions during the search: ``(request) -> texts``, with a
            :class:`dspy.promptune.run.writing.WriteRequest`. It is called when a text is worth more than a
            measurement, from a thread of its own, or with batches from this one. Each request counts as one of
            ``max_calls``, or as what a returned ``Written(texts, calls)`` says. It needs our sampler without
            ``minibatch_size``; a ``space`` that is open grows, of another one that of the result does.
        callbacks: :class:`dspy.promptune.SearchCallback` objects that are told what happens.
        sampler_options: What the sampler takes, such as ``embedder`` or ``max_space_size``.

    Raises:
        OptionError: An option out of its range, or one that the sampler does not take.
        BudgetError: A budget that allows nothing.
        EvaluationError: Every evaluation failed, too many in a row to go on.
        StorageError: The storage cannot be used, or holds another run under this name.
    """
    check_jobs(n_jobs, batch_size, schedule)
    plan = make_schedule(n_jobs, batch_size, schedule)
    seed = checked_seed(seed)
    check_search(space, evaluate, n_examples, max_calls, minibatch_size, retries=retries, propose=propose)
    check_steps(full_eval_steps, minibatch_size, sampler, sampler_options)
    check_callbacks(callbacks)
    options = with_batch_size(sampler, sampler_options, n_jobs=n_jobs, given=batch_size, batched=plan.batch is not None)
    size = {"n_examples": n_examples, "max_calls": max_calls, "minibatch_size": minibatch_size}
    budget = size if full_eval_steps is None else {**size, "full_every": full_eval_steps}
    described = {"sampler": sampler, "seed": seed, "n_jobs": n_jobs, "schedule": schedule, **budget, **options}
    with interrupts(interrupt := Interrupt()), contextlib.ExitStack() as ending:
        store = open_study_store(storage, study_name, resume, "search", share=share)
        if store is not None and space.is_open:
            space.place = f"{store.name} in {store.place}"
            ending.callback(setattr, space, "place", None)
        facts = search_manifest(space, evaluate, n_examples, described)
        if store is not None:
            store.begin(facts)
            ending.callback(store.close)
        writer = None if propose is None else _writer(propose, plan)
        run = Run(space, sampler, budget, seed=seed, options=options, store=store, writer=writer)
        check_steps(full_eval_steps, minibatch_size, run.sampler, {})  # of a callable it is known only now
        space = run.space
        keep = keep_nothing if store is None else store.keep_scores
        work: Evaluator = Inline(space, evaluate, keep) if n_jobs == 1 else Threaded(space, evaluate, n_jobs, keep)
        limits = Limits(retries=retries, retry_all=True)
        events = SearchEvents(check_callbacks(callbacks), space, run.table)
        driver = SearchLoop(run.jobs, work, plan, limits=limits, listeners=[run.notes, *run.listeners, events])
        interrupt.then(driver.stop)
        if run.writing is not None:
            run.writing.wake = driver.wake
        if store is not None:
            store.lost = driver.stop
        found = run.result(driver, driver.run(), facts)
        if store is not None:
            store.close(found.ended, **shown(found))
        events.ended(found)
        return found


def _writer(propose: Propose, plan: Schedule) -> Writer:
    """A thread for the proposer, unless the same seed must give the same trials."""
    from dspy.promptune.limits.pool import Pool
    from dspy.promptune.run.writing import Writer

    return Writer(propose) if plan.batch is not None else Writer(propose, Pool(1, name="promptune-write").submit)


def _stored(space: PromptSpace, store: StudyStore, n_examples: int) -> tuple[list[Text], RunHistory]:
    """The texts that the study has, appended to the space if it is open, and what was scored of all its prompts.

    Another driver may write while this is read, so that it is read until the space has not grown.
    """
    from dspy.promptune.run.texts import check_distributions, restored

    check_distributions(space, store.study.get_trials(deepcopy=False), store.place)
    texts: dict[int, Text] = {}
    while True:
        past, sizes = store.past(space, n_examples), space.sizes
        texts |= restored(space, past.trials) if space.is_open else {}
        if space.sizes == sizes:
            return list(texts.values()), past


def shown(found: SearchRun) -> dict[str, Any]:
    """What a stored run says of its end."""
    assert found.space is not None
    history = [[calls, list(found.space.key(params))] for calls, params in found.history]
    more = {name: list(getattr(found, name)) for name in ("cases", "lineage", "interval") if getattr(found, name)}
    scores = {"best_score": found.best_score, "expected_score": found.expected_score}
    return {"best": found.best_params, **scores, "history": history, **more}


def make_schedule(n_jobs: int, batch_size: int | None, schedule: str | None) -> Schedule:
    """The schedule that the options ask for."""
    if schedule == "batch" or (schedule is None and n_jobs == 1):
        return Schedule(n_jobs=n_jobs, batch=batch_size or n_jobs)
    return Schedule(n_jobs=n_jobs, ahead=1 if n_jobs > 1 else 0)

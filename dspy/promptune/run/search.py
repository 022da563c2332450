"""The whole search without programs or language models: one function over a space and a way to score its members."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.records import AllocationPolicy, Job, ScoreTable
from dspy.promptune.errors import OptionError, StorageError
from dspy.promptune.options import check_jobs, check_seed, with_batch_size
from dspy.promptune.run.evaluators import Evaluate, Evaluator, Inline, Threaded, keep_nothing
from dspy.promptune.run.failures import ExampleFailures, failures_of, samples_of
from dspy.promptune.run.loop import Limits, Schedule, SearchLoop
from dspy.promptune.run.outcome import Outcome
from dspy.promptune.run.timing import Timed
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.backend import quiet_optuna
from dspy.promptune.storage.history import Recorded, RunHistory, frozen
from dspy.promptune.storage.manifest import embedder_known, search_manifest
from dspy.promptune.storage.sharing import Shared
from dspy.promptune.storage.study_store import StudyStore, open_study_store

if TYPE_CHECKING:
    import pandas
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["Run", "SearchRun", "search"]

logger = logging.getLogger(__name__)

FULL_EVAL_STEPS = 5


@dataclass(frozen=True)
class SearchRun:
    """What a search found, and how it came to it.

    Attributes:
        best_params: The parameters of the winner; ``space.build(program, space.key(best_params))`` is its program.
        calls: Examples scored, over all combinations; never more than ``max_calls``.
        history: ``(calls, params)``: what the run would have returned after so many calls, in the order of time.
        best_score: Mean of the winner's scores so far.
        trials: Frozen trials of the study in the order of their numbers; user attributes hold ``scores``,
            ``examples``, ``kind`` and ``seconds``, or the ``error`` of a failed one.
        order: ``("ask" | "tell" | "fail", trial number)`` as it happened: the same order gives the same run.
        ended: Why the run ended, in words.
        study: The Optuna study. It does not travel with pickles of the run.
        spent: By step ("bootstrap", "propose", "search"): calls, tokens, dollars (``cost``) and seconds, over all
            starts of the run.
        space: The combinations searched.
        facts: How the run was made: metric, settings, options, versions and the like, as a stored run has them.
    """

    best_params: dict[str, int]
    calls: int
    history: list[tuple[int, dict[str, int]]] = field(repr=False)
    best_score: float
    trials: list[FrozenTrial] = field(repr=False)
    order: list[tuple[str, int]] = field(repr=False)
    ended: str
    study: Study | None = field(repr=False)
    spent: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    space: PromptSpace | None = field(default=None, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def failures(self) -> ExampleFailures:
        """Examples on which program or metric raised, and answers that could not be read: they count as wrong."""
        return failures_of(self.trials)

    def report(self, path: str | Path) -> Path:
        """Write the report, one page of HTML that needs nothing else, and return its path.

        Raises:
            OptionError: The folder is not there, or plotly is not installed.
        """
        from dspy.promptune.report.page import write

        return write(self, path)

    def _repr_html_(self) -> str:
        from dspy.promptune.report.page import summary

        return summary(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """The trials as a table: one row each, with its parameters, mean score, examples, seconds and what it took.

        Raises:
            OptionError: pandas is not installed.
        """
        from dspy.promptune.run.tables import columns, trial_rows

        try:
            import pandas
        except ImportError:
            raise OptionError("to_dataframe() needs pandas: pip install pandas, or read .trials.") from None
        rows = trial_rows(self.trials)
        return pandas.DataFrame(rows, columns=None if rows else columns(self.best_params))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "study": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> SearchRun:
        return self


class Run:
    """The parts of one search, put together: study, sampler, scores and spending.

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
    ) -> None:
        import optuna

        from dspy.promptune.allocation.policy import Budget, make_policy
        from dspy.promptune.samplers import make_sampler

        limits = Budget(**budget)
        self.space = space
        self.n_examples = limits.n_examples
        self.past = RunHistory() if store is None else store.past(space, limits.n_examples)
        salt = 0 if store is None or store.leads else store.drivers.salt
        self.sampler: BaseSampler = make_sampler(sampler, space=space, seed=self.past.seed(seed, salt), **options)
        if store is None:
            with quiet_optuna():
                self.study = optuna.create_study(direction="maximize", sampler=self.sampler)
        else:
            self.study = store.study
            self.study.sampler = self.sampler
            store.show("embedder", embedder_known(self.sampler, {}))
        self.table = ScoreTable()
        self.past.refill(self.table)
        policy: Any = make_policy(self.study, space, self.table, limits, seed=seed)
        if self.past.jobs:
            policy.recall(self.past.jobs)
        self.peers: Shared | None = None
        if store is not None and store.drivers.share:
            policy = self.peers = Shared(policy, self, store)
        policy = Timed(policy, self.study)
        self.policy: AllocationPolicy = policy if store is None else Recorded(policy, self.table, store)

    def claim(self, key: Key, examples: Sequence[int]) -> Job:
        """An evaluation that is decided on from outside."""
        policy: Any = self.policy
        job: Job = policy.claim(key, examples, "full" if len(examples) == self.n_examples else "block")
        return job

    def note(self, job: Job, outcome: Outcome, **spent: float | None) -> None:
        """Write down what the study's trial should know of a job beyond its scores, if it can be written."""
        with contextlib.suppress(StorageError):
            self._note(job, outcome, **spent)

    def _note(self, job: Job, outcome: Outcome, **spent: float | None) -> None:
        storage = self.study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, job.number)
        storage.set_trial_user_attr(trial_id, "seconds", round(outcome.seconds, 4))
        storage.set_trial_user_attr(trial_id, "paid", len(outcome.scores))
        for name, text in samples_of(outcome).items():
            storage.set_trial_user_attr(trial_id, name, text)
        noted = {"errors": outcome.errors, "unreadable": outcome.unreadable, **spent}
        for name, amount in noted.items():
            if amount:
                storage.set_trial_user_attr(trial_id, name, round(amount, 8))
        if outcome.error is not None:
            storage.set_trial_user_attr(trial_id, "kind", job.kind)
            storage.set_trial_user_attr(trial_id, "examples", list(job.examples))

    def result(
        self,
        driver: SearchLoop,
        ended: str,
        facts: Mapping[str, Any] | None = None,
        spent: Mapping[str, Mapping[str, float]] | None = None,
    ) -> SearchRun:
        """The record of a run that ended; ``facts`` is what was known of it when it began."""
        key = self.policy.best()
        if self.peers is not None:
            key = self.peers.winner(key)
        row = self.table.row(key)
        return SearchRun(
            best_params=self.space.params(key),
            calls=self.table.calls,
            history=[(calls, self.space.params(best)) for calls, best in driver.log.history],
            best_score=math.fsum(row.values()) / len(row) if row else math.nan,
            trials=self._trials(),
            order=driver.log.order,
            ended=ended,
            study=self.study,
            spent=spent or {},
            space=self.space,
            facts={**(facts or {}), "embedder": embedder_known(self.sampler, {})},
        )

    def _trials(self) -> list[FrozenTrial]:
        """All trials of the study; where it can no longer be read, those of this start that ended well."""
        try:
            return self.study.get_trials(deepcopy=False)
        except StorageError:
            return frozen(self.space, self.policy.jobs) if isinstance(self.policy, Recorded) else []


def search(
    space: PromptSpace,
    evaluate: Evaluate,
    *,
    n_examples: int,
    max_calls: int,
    sampler: str | BaseSampler | Any | None = "qei",
    n_jobs: int = 1,
    batch_size: int | None = None,
    minibatch_size: int | None = None,
    seed: int | None = None,
    schedule: str | None = None,
    full_eval_steps: int = FULL_EVAL_STEPS,
    retries: int = 0,
    storage: Any = None,
    study_name: str | None = None,
    resume: bool | str = False,
    share: bool = False,
    **sampler_options: Any,
) -> SearchRun:
    """Search ``space`` for the combination with the highest mean score, within ``max_calls`` scored examples.

    Args:
        space: The combinations.
        evaluate: ``(params, examples) -> scores``: one finite number for each of ``examples``, which are indices
            below ``n_examples``. It is called from ``n_jobs`` threads, each in a copy of this context; with
            ``n_jobs=1`` from this thread. An evaluation that raises makes a FAILED trial.
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
        full_eval_steps: Minibatches between full evaluations of the best average, where minibatches are used.
        retries: Times an evaluation that raised is tried again.
        storage: Where the run is written as it goes, so that it can be resumed: a SQLite file, an Optuna journal
            (``*.log``), a database URL or an Optuna storage. ``None`` keeps it in memory.
        study_name: Name of the study in the storage; default "search".
        resume: ``True`` goes on with the study if it is there and of the same space, examples and ``evaluate``;
            ``"force"`` in any case. ``max_calls`` counts what it has spent already.
        share: ``True`` lets other processes search the same study at the same time, each with this same call:
            ``max_calls`` is for all of them, no (combination, example) is scored by two, and all have the same winner.
            A study that is there is gone on with.
        sampler_options: What the sampler takes, such as ``embedder`` or ``max_space_size``.

    Raises:
        OptionError: An option out of its range, or one that the sampler does not take.
        BudgetError: A budget that allows nothing.
        EvaluationError: Every evaluation failed, too many in a row to go on.
        StorageError: The storage cannot be used, or holds another run under this name.
    """
    check_jobs(n_jobs, batch_size, schedule)
    check_seed(seed)
    options = with_batch_size(sampler, batch_size or n_jobs, sampler_options)
    budget = {
        "n_examples": n_examples,
        "max_calls": max_calls,
        "minibatch_size": minibatch_size,
        "full_every": full_eval_steps,
    }
    store = open_study_store(storage, study_name, resume, "search", share=share)
    described = {"sampler": sampler, "seed": seed, "n_jobs": n_jobs, "schedule": schedule, **budget, **options}
    facts = search_manifest(space, evaluate, n_examples, described)
    if store is not None:
        store.begin(facts)
    try:
        run = Run(space, sampler, budget, seed=seed, options=options, store=store)
        keep = keep_nothing if store is None else store.keep_scores
        work: Evaluator = Inline(space, evaluate, keep) if n_jobs == 1 else Threaded(space, evaluate, n_jobs, keep)
        plan = make_schedule(n_jobs, batch_size, schedule)
        limits = Limits(retries=retries)
        driver = SearchLoop(run.policy, run.table, work, plan, limits=limits, on_end=run.note, peers=run.peers)
        if store is not None:
            store.lost = driver.stop
        found = run.result(driver, driver.run(), facts)
        if store is not None:
            store.close(found.ended, **shown(found))
        return found
    finally:
        if store is not None:
            store.close()


def shown(found: SearchRun) -> dict[str, Any]:
    """What a stored run says of its end."""
    assert found.space is not None
    history = [[calls, list(found.space.key(params))] for calls, params in found.history]
    return {"best": found.best_params, "best_score": found.best_score, "history": history}


def make_schedule(n_jobs: int, batch_size: int | None, schedule: str | None) -> Schedule:
    """The schedule that the options ask for."""
    if schedule is None:
        schedule = "async" if n_jobs > 1 else "batch"
    if schedule == "batch":
        return Schedule(n_jobs=n_jobs, batch=batch_size or n_jobs)
    return Schedule(n_jobs=n_jobs, ahead=1 if n_jobs > 1 else 0)

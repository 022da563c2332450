"""MIPROv2 of this fork: upstream's optimizer, whose ``compile`` takes a sampler and evaluates many prompts at a time.

Upstream's class stays importable as ``dspy._upstream.teleprompt.mipro_optimizer_v2.MIPROv2``; this one subclasses it
and holds only the difference.
"""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

from dspy._upstream.teleprompt import mipro_optimizer_v2 as _upstream
from dspy._upstream.teleprompt.mipro_optimizer_v2 import (
    AUTO_RUN_SETTINGS,
    BLUE,
    BOLD,
    BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT,
    ENDC,
    GREEN,
    LABELED_FEWSHOT_EXAMPLES_IN_CONTEXT,
    MIN_MINIBATCH_SIZE,
    YELLOW,
    logger,
)
from dspy.promptune.interrupts import Interrupt, interrupts
from dspy.teleprompt.teleprompt import Teleprompter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from dspy.clients.base_lm import BaseLM
    from dspy.primitives.example import Example
    from dspy.primitives.module import Module
    from dspy.promptune.compile.result import OptimizedModule
    from dspy.promptune.features import EmbedderLike
    from dspy.promptune.options import AcquisitionName, ExecutorKeys, ResumeMode, SamplerName, ScheduleName
    from dspy.promptune.run.events import SearchCallback
    from dspy.promptune.space import PromptSpace

__all__ = [
    "AUTO_RUN_SETTINGS",
    "BLUE",
    "BOLD",
    "BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT",
    "ENDC",
    "GREEN",
    "LABELED_FEWSHOT_EXAMPLES_IN_CONTEXT",
    "MIN_MINIBATCH_SIZE",
    "YELLOW",
    "MIPROv2",
    "logger",
]


class _Default(int):
    """An integer that was not given: ``minibatch_size=35`` by the user is told from the default 35 by its type."""


class MIPROv2(_upstream.MIPROv2, Teleprompter):
    """Upstream's MIPROv2, plus ``sampler=`` and ``n_jobs=``: prompts searched by meaning, many at a time.

    It names ``Teleprompter`` among its bases so that tools which look at that class's direct subclasses, as MLflow's
    autologging does, find it. Everything else is upstream's; see :meth:`compile` for what is added.
    """

    def compile(  # type: ignore[override]
        self,
        student: Module,
        *,
        trainset: Sequence[Example],
        teacher: Any = None,
        valset: Sequence[Example] | None = None,
        num_trials: int | None = None,
        max_bootstrapped_demos: int | None = None,
        max_labeled_demos: int | None = None,
        seed: int | None = None,
        minibatch: bool = True,
        minibatch_size: int = _Default(35),
        minibatch_full_eval_steps: int = 5,
        program_aware_proposer: bool = True,
        data_aware_proposer: bool = True,
        view_data_batch_size: int = 10,
        tip_aware_proposer: bool = True,
        fewshot_aware_proposer: bool = True,
        requires_permission_to_run: bool | None = None,
        provide_traceback: bool | None = None,
        # search
        sampler: SamplerName | BaseSampler | Callable[[PromptSpace], BaseSampler] | None = None,
        embedder: EmbedderLike | None = None,
        acquisition: AcquisitionName | None = None,
        batch_size: int | None = None,
        max_space_size: int | None = None,
        n_batches: int | None = None,
        min_cold_start: int | None = None,
        # candidates
        instructions: Sequence[str] | Mapping[str | int, Sequence[str]] | None = None,
        demo_sets: Sequence[Sequence[Example]] | Mapping[str | int, Sequence[Sequence[Example]]] | None = None,
        # instructions written during the search
        reflect: bool = False,
        reflection_lm: BaseLM | None = None,
        # parallelism
        n_jobs: int = 1,
        schedule: ScheduleName | None = None,
        max_concurrency: int | None = None,
        example_timeout: float | None = 120.0,
        executor: Executor | None = None,
        executor_keys: ExecutorKeys | None = None,
        # storage
        storage: str | Path | BaseStorage | None = None,
        study_name: str | None = None,
        resume: ResumeMode = False,
        share: bool = False,
        # budgets
        max_lm_calls: int | None = None,
        max_tokens_spent: int | None = None,
        max_cost: float | None = None,
        timeout: float | None = None,
        # display
        disable_progress_bar: bool = False,
        callbacks: Sequence[SearchCallback] | None = None,
    ) -> OptimizedModule:
        """Optimize ``student``: bootstrap demos, propose instructions, search their combinations.

        The options up to ``provide_traceback`` are upstream's. With none of the others given (or ``sampler="tpe"``
        alone), upstream's own code runs, trial for trial. Otherwise the candidates are the same, the budget is the
        number of evaluations that upstream would make, and the search is this fork's. Its options come in groups:
        the search (``sampler`` to ``min_cold_start``), candidates (``instructions`` to
        ``reflection_lm``), parallelism
        (``n_jobs`` to ``executor_keys``), storage (``storage`` to ``share``) and budgets (``max_lm_calls`` to
        ``timeout``).

        Args:
            minibatch_size: Examples of one evaluation. Upstream's default is 35. With our samplers it is left out by
                default, and prompts are raced on small blocks; a number that is given, 35 too, turns that off.
            sampler: ``None`` or ``"tpe"`` (Optuna's TPE), ``"qei"``, ``"qlogei"``, ``"qlognei"``, ``"thompson"``
                (Gaussian process over what the prompts mean), ``"onehot"`` (the same without meaning), ``"botorch"``
                (the same, with BoTorch's batches), ``"gp"``, ``"random"``, an ``optuna.samplers.BaseSampler``, or a
                callable that builds one from the :class:`dspy.promptune.PromptSpace`.
            embedder: ``"minilm"``, ``"ngram"``, ``"onehot"``, a ``dspy.Embedder``, or a callable, texts to array.
            acquisition: ``"qei"``, ``"qlogei"``, ``"qlognei"`` or ``"thompson"``: what ``"onehot"`` and ``"botorch"``
                choose by; default ``"qei"``.
            batch_size: Prompts proposed together; default ``n_jobs``.
            max_space_size: Combinations looked at in one proposal; default 1,000.
            n_batches: Random batches scored jointly by the acquisition in one proposal; default 0: the batch is built
                prompt by prompt (``"botorch"``: 100).
            min_cold_start: Results to wait for, proposing at random, before the model is asked; default 3.
            instructions: Instructions of your own, candidates beside the proposed ones: a list for a program of one
                predictor, or ``{predictor: [...]}`` by the predictor's name or number.
            demo_sets: Demo sets of your own, candidates beside the bootstrapped ones: a list of lists of
                ``dspy.Example``, or ``{predictor: [...]}``.
            reflect: ``True`` writes new instructions during the search, from failures on training examples. What that
                takes counts against the budgets. It needs a sampler of ours without ``minibatch_size``.
            reflection_lm: Writes them; default ``prompt_model``.
            n_jobs: Prompts evaluated at once, each with up to ``num_threads`` examples at once.
            schedule: ``"async"`` (a prompt is proposed whenever there is room) or ``"batch"`` (``batch_size`` prompts
                at a time; the same seed gives the same trials). Default: ``"async"``.
            max_concurrency: LM calls in flight at most; default ``n_jobs`` times ``num_threads``.
            example_timeout: Seconds after which an example that is being evaluated is given up and tried once more;
                ``None`` waits forever.
            executor: Where programs are evaluated: any ``concurrent.futures.Executor``, such as a
                ``ProcessPoolExecutor`` or ``dask.distributed.Client(...).get_executor()``; ``None`` for threads. The
                limits are the run's, whatever the number of workers. It is not shut down.
            executor_keys: ``"environment"`` leaves keys, tokens and headers out of the language models that go to the
                workers, which read their own from their environment; ``None`` sends them.
            storage: Where the run is written as it goes: a SQLite file, an Optuna journal (``*.log``), a database URL
                or an Optuna storage. ``None`` keeps it in memory.
            study_name: Name of the study in the storage; default the class of ``student``.
            resume: ``True`` continues the study if it is there and the same run: what is finished is not paid for
                again. ``"force"`` accepts that it has changed.
            share: ``True`` lets other processes, on any machine, run the same compile on the same study at the same
                time, as long as all of them say so. The budgets are for all together, nothing is evaluated twice, and
                all return the same program. A study that is there is continued, as ``resume=True`` does.
            max_lm_calls: Calls to language models at most, those of earlier starts included. Here as below the full
                evaluation of the best program is kept in reserve where the limit pays for it, and the best so far is
                returned.
            max_tokens_spent: Tokens at most, of prompts and answers.
            max_cost: US dollars at most, as far as prices are known.
            timeout: Seconds of wall time at most.
            disable_progress_bar: Show no line, and log none.
            callbacks: :class:`dspy.promptune.SearchCallback` objects that are told of proposals, trials, the best so
                far, and the end.

        Returns:
            The best program, with upstream's attributes (``trial_logs``, ``score``, ...) and ``optimization_run``.

        Raises:
            OptionError: An unknown sampler, an option it does not take, or a value out of its range.
            SpaceError: A program without predictors, or one that cannot be copied.
            EmbeddingError: An unknown embedder, or one that failed.
            EvaluationError: No evaluation succeeded.
            StorageError: The storage cannot be used, or holds another run under this name.
            BudgetError: A budget that does not reach as far as the first evaluation.
        """
        given, began = dict(locals()), time.monotonic()
        upstream = {name: given[name] for name in _UPSTREAM_OPTIONS}
        added = {name: given[name] for name in _ADDED_OPTIONS if _is_given(given[name], _DEFAULTS[name])}
        by_default = minibatch_size is None or isinstance(minibatch_size, _Default)
        if by_default:
            upstream["minibatch_size"] = int(_DEFAULTS["minibatch_size"])
        best: OptimizedModule
        if not added or added == {"sampler": "tpe"}:
            best = super().compile(student, **upstream)
            return best
        if not by_default:
            added["minibatch_size"] = minibatch_size
        interrupt = Interrupt()
        with interrupts(interrupt):  # while the rest is being loaded, too
            from dspy.promptune.compile.optimizer import compile_program

            best = compile_program(self, student, upstream, added, began=began, interrupt=interrupt)
        return best


def _is_given(value: Any, default: Any) -> bool:
    """Whether an option is not its default. Arrays, which compare element by element, are none."""
    return value is not None if default is None else bool(value != default)


_UPSTREAM_OPTIONS = tuple(
    name for name in inspect.signature(_upstream.MIPROv2.compile).parameters if name not in ("self", "student")
)
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(MIPROv2.compile).parameters.items()}
_ADDED_OPTIONS = tuple(name for name in _DEFAULTS if name not in ("self", "student", *_UPSTREAM_OPTIONS))

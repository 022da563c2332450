"""MIPROv2 of this fork: upstream's optimizer, whose ``compile`` takes a sampler and evaluates many prompts at a time.

Upstream's class stays importable as ``dspy._upstream.teleprompt.mipro_optimizer_v2.MIPROv2``; this one subclasses it
and holds only the difference.
"""

from __future__ import annotations

import inspect
import random
from typing import TYPE_CHECKING, Any

import dspy
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
from dspy.teleprompt.teleprompt import Teleprompter

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from dspy.evaluate.evaluate import Evaluate
    from dspy.primitives.example import Example
    from dspy.primitives.module import Module
    from dspy.promptune.compile.engine import CompileOptions, Engine
    from dspy.promptune.compile.step_report import StepReport
    from dspy.promptune.distributed.programs import EvaluationRules
    from dspy.promptune.limits.estimate import Estimate

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
        student: Any,
        *,
        trainset: list[Any],
        teacher: Any = None,
        valset: list[Any] | None = None,
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
        sampler: Any = None,
        n_jobs: int = 1,
        batch_size: int | None = None,
        schedule: str | None = None,
        max_concurrency: int | None = None,
        max_space_size: int | None = None,
        n_batches: int | None = None,
        min_cold_start: int | None = None,
        embedder: Any = None,
        acquisition: str | None = None,
        example_timeout: float | None = 120.0,
        disable_progress_bar: bool = False,
        storage: Any = None,
        study_name: str | None = None,
        resume: bool | str = False,
        share: bool = False,
        max_lm_calls: int | None = None,
        max_tokens_spent: int | None = None,
        max_cost: float | None = None,
        timeout: float | None = None,
        executor: Any = None,
        executor_keys: str | None = None,
        instructions: Any = None,
        demo_sets: Any = None,
    ) -> Any:
        """Optimise ``student``: bootstrap demos, propose instructions, search their combinations.

        The options up to ``provide_traceback`` are upstream's. With none of the others given (or ``sampler="tpe"``
        alone), upstream's own code runs, trial for trial. Otherwise the candidates are the same, the budget is the
        number of evaluations that upstream would make, and the search is this fork's.

        Args:
            sampler: ``None`` or ``"tpe"`` (Optuna's TPE), ``"qei"``, ``"qlogei"``, ``"qlognei"`` (Gaussian process over
                what the prompts mean), ``"gp"``, ``"random"``, an ``optuna.samplers.BaseSampler``, or a callable that
                builds one from the :class:`dspy.promptune.PromptSpace`.
            n_jobs: Prompts evaluated at once, each with up to ``num_threads`` examples at once.
            batch_size: Prompts proposed together; default ``n_jobs``.
            schedule: ``"async"`` (a prompt is proposed whenever there is room) or ``"batch"`` (``batch_size`` prompts
                at a time; the same seed gives the same trials). Default: ``"async"`` with several jobs.
            max_concurrency: LM calls in flight at most; default ``n_jobs`` times ``num_threads``.
            max_space_size: Combinations looked at in one proposal.
            n_batches: Random batches scored jointly by qExpectedImprovement in one proposal.
            min_cold_start: Results to wait for, proposing at random, before the model is asked.
            embedder: ``"minilm"``, ``"ngram"``, ``"onehot"``, a ``dspy.Embedder``, or a callable, texts to array.
            acquisition: ``"qei"``, ``"qlogei"``, ``"qlognei"`` or ``"thompson"``.
            example_timeout: Seconds after which an example that is being evaluated is given up and tried once more;
                ``None`` waits for ever.
            disable_progress_bar: Show no line; without a terminal there is none in any case.
            storage: Where the run is written as it goes: a SQLite file, an Optuna journal (``*.log``), a database URL
                or an Optuna storage. ``None`` keeps it in memory.
            study_name: Name of the study in the storage; default the class of ``student``.
            resume: ``True`` goes on with the study if it is there and the same run: what is finished is not paid for
                again. ``"force"`` accepts that it has changed.
            share: ``True`` lets other processes, on any machine, run the same compile on the same study at the same
                time, as long as all of them say so. The budgets are for all together, nothing is evaluated twice, and
                all return the same program. A study that is there is gone on with, as ``resume=True`` does.
            max_lm_calls: Calls to language models at most, those of earlier starts included. Here as below the full
                evaluation of the best program is kept in reserve, and the best so far is returned.
            max_tokens_spent: Tokens at most, of prompts and answers.
            max_cost: US dollars at most, as far as prices are known.
            timeout: Seconds of wall time at most.
            executor: Where programs are evaluated: any ``concurrent.futures.Executor``, such as a
                ``ProcessPoolExecutor`` or ``dask.distributed.Client(...).get_executor()``; ``None`` for threads. The
                limits are the run's, whatever the number of workers. It is not shut down.
            executor_keys: ``"environment"`` leaves keys, tokens and headers out of the language models that go to the
                workers, which read their own from their environment; ``None`` sends them.
            instructions: Instructions of your own, candidates beside the proposed ones: a list for a program of one
                predictor, or ``{predictor: [...]}`` by the predictor's name or number.
            demo_sets: Demo sets of your own, candidates beside the bootstrapped ones: a list of lists of
                ``dspy.Example``, or ``{predictor: [...]}``.

        Returns:
            The best program, with upstream's attributes (``trial_logs``, ``score``, ...) and ``optimization_run``.

        Raises:
            OptionError: An unknown sampler, an option it does not take, or a value out of its range.
            EvaluationError: No evaluation succeeded.
            StorageError: The storage cannot be used, or holds another run under this name.
            BudgetError: A budget that does not reach as far as the first evaluation.
        """
        given = dict(locals())
        upstream = {name: given[name] for name in _UPSTREAM_OPTIONS}
        options = {name: given[name] for name in (*_SAMPLER_OPTIONS, *_RUN_OPTIONS) if given[name] != _DEFAULTS[name]}
        if n_jobs == 1 and not options and (sampler is None or sampler == "tpe"):
            return super().compile(student, **{**upstream, "minibatch_size": int(minibatch_size)})
        if isinstance(minibatch_size, _Default):
            size = len(valset) if valset is not None else _split_size(trainset)
            upstream["minibatch_size"] = min(minibatch_size, max(1, size))
        else:
            options["minibatch_size"] = minibatch_size
        run = self._run(student, sampler, n_jobs, self.seed if seed is None else seed, options)
        run._given = upstream
        wanted = dspy.settings.provide_traceback if provide_traceback is None else provide_traceback
        run._engine.tracebacks = bool(wanted)
        from dspy.promptune.errors import StorageError
        from dspy.promptune.limits.gateway import Stopped

        try:
            with run._engine.gateway.active():
                return inspect.unwrap(_upstream.MIPROv2.compile)(run, student, **{**upstream, "seed": None})
        except (Stopped, StorageError) as stop:
            if isinstance(stop, StorageError) and run._engine.over is None:
                raise
            run._engine.expire(str(stop))
            return run._unsearched(student.deepcopy())
        finally:
            run._engine.stop()
            run._engine.books.close()

    def _run(self, student: Any, sampler: Any, n_jobs: int, seed: Any, options: dict[str, Any]) -> _Run:
        """This optimizer as it is for one compile: several may go on at once, and nothing of one stays behind."""
        from dspy.promptune.compile.engine import CompileOptions, Engine, check_embedder
        from dspy.promptune.compile.own import own_candidates
        from dspy.promptune.compile.step_report import StepReport
        from dspy.promptune.errors import SpaceError
        from dspy.promptune.limits.gateway import through_gateway
        from dspy.promptune.options import check_jobs, check_sampler, check_seed, with_batch_size
        from dspy.promptune.storage.run_store import open_run_store

        check_jobs(n_jobs, options.get("batch_size"), options.get("schedule"))
        check_seed(seed)
        if not student.predictors():
            raise SpaceError(
                f"{type(student).__name__} has no predictors: nothing can be optimised. Give a program with at least "
                "one dspy.Predict."
            )
        of_sampler = {name: options.pop(name) for name in _SAMPLER_OPTIONS if name in options}
        check_sampler(sampler, of_sampler)
        of_sampler = with_batch_size(sampler, options.get("batch_size") or n_jobs, of_sampler)
        run = _Run.__new__(_Run)
        run.__dict__.update(self.__dict__)
        run.seed = seed
        run._options = CompileOptions(sampler=sampler, n_jobs=n_jobs, sampler_options=of_sampler, **options)
        chosen = run._options
        check_embedder(chosen, student)
        run._own = {name: own_candidates(name, getattr(chosen, name), student) for name in _OWN}
        books = open_run_store(
            chosen.caps(),
            chosen.storage,
            chosen.study_name,
            chosen.resume,
            share=chosen.share,
            name=type(student).__name__,
            lms=[self.task_model, self.prompt_model, *self.teacher_settings.values(), *_lms(student)],
        )
        run._engine = Engine(chosen, self.num_threads or dspy.settings.num_threads, books)
        run._report = StepReport(memory=books.memory)
        run._summary = None
        run.task_model, run.prompt_model = through_gateway(self.task_model), through_gateway(self.prompt_model)
        run.teacher_settings = {name: through_gateway(value) for name, value in self.teacher_settings.items()}
        return run


class _Run(MIPROv2):
    """One compile. Upstream's ``compile`` validates, splits and sizes; the three steps are done here."""

    rng: random.Random  # type: ignore[assignment]
    _options: CompileOptions
    _engine: Engine
    _report: StepReport
    _summary: Future[str | None] | None
    _valset: list[Any]
    _zero_shot: bool
    _minibatch: bool
    _num_instructions: int
    _given: dict[str, Any]
    _expected: Estimate
    _budget: int
    _own: dict[str, dict[int, list[Any]]]  # the user's candidates, by option and predictor

    def _set_hyperparams_from_run_mode(self, *args: Any, **kwargs: Any) -> Any:
        settled = super()._set_hyperparams_from_run_mode(*args, **kwargs)
        trials, self._valset, self._minibatch, self._num_instructions = settled[:4]
        self._budget = self._evaluations(len(self._valset), trials, self._minibatch)
        return settled

    def _evaluations(self, n_examples: int, trials: int, minibatch: bool) -> int:
        """Examples that upstream would evaluate: this compile's budget."""
        from dspy.promptune.compile.engine import upstream_budget

        size = int(self._given["minibatch_size"]) if minibatch else None
        return upstream_budget(n_examples, trials, size, self._given["minibatch_full_eval_steps"])

    def _bootstrap_fewshot_examples(  # type: ignore[override]
        self, program: Module, trainset: list[Example], seed: int, teacher: Any, **options: Any
    ) -> dict[int, list[list[Any]]]:
        from dspy.promptune.compile.feedback import Scored
        from dspy.promptune.compile.steps import BootstrapOptions, bootstrap_demo_sets
        from dspy.promptune.limits.budgets import BOOTSTRAP

        bootstrapped, labeled = options["max_bootstrapped_demos"], options["max_labeled_demos"]
        zero_shot = bootstrapped == 0 and labeled == 0
        self._zero_shot = zero_shot
        rules = self._rules(options["max_errors"])
        self._engine.check(program, rules)
        books, check = self._engine.books, self._estimate(program, options)
        if self._options.resume is False and not self._options.share:
            check()
        books.begin(lambda: self._manifest(program, trainset, options))
        if books.store is None or not books.store.resumed:
            check()
        self._begin(program, trainset, rules, 1 if zero_shot and not self._own["demo_sets"] else 2)
        if zero_shot:
            bootstrapped, labeled = BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT, LABELED_FEWSHOT_EXAMPLES_IN_CONTEXT
        chosen = BootstrapOptions(
            num_sets=options["num_fewshot_candidates"],
            max_bootstrapped_demos=bootstrapped,
            max_labeled_demos=labeled,
            metric=Scored(self.metric) if self.metric else None,
            metric_threshold=options["metric_threshold"],
            teacher=teacher,
            teacher_settings=self.teacher_settings,
            max_errors=options["max_errors"],
        )
        logger.info("Step 1: bootstrapping %d sets of demonstrations.", chosen.num_sets)
        self._engine.show_calls("Step 1 of 3, demo sets", BOOTSTRAP, self._expected.bootstrap)
        return self._engine.candidates(
            "demos",
            BOOTSTRAP,
            self.rng,
            lambda: bootstrap_demo_sets(
                program, trainset, options=chosen, rng=self.rng, pool=self._engine.pool, report=self._report
            ),
        )

    def _estimate(self, program: Module, step_1: dict[str, Any]) -> Callable[[], None]:
        """Say what this will take; what is returned refuses a budget that is too small for it."""
        from dspy.promptune.limits.estimate import estimate

        zero_shot = step_1["max_bootstrapped_demos"] == 0 and step_1["max_labeled_demos"] == 0
        demos = BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT if zero_shot else step_1["max_bootstrapped_demos"]
        found = self._expected = estimate(
            program,
            self._valset,
            lm=self.task_model,
            budget=self._budget,
            step_1={"num_sets": step_1["num_fewshot_candidates"], "demos": demos},
            step_2={
                "num_candidates": min(self._num_instructions, step_1["num_fewshot_candidates"]),
                "program_aware": self._given["program_aware_proposer"],
                "data_aware": self._given["data_aware_proposer"],
            },
        )
        logger.info("Estimate: %s.", found)
        return lambda: found.check(self._options.caps(), len(self._valset), len(program.predictors()))

    def _manifest(self, program: Module, trainset: list[Example], step_1: dict[str, Any]) -> dict[str, Any]:
        """What this compile is; a study that is taken up again must be the same."""
        from dspy.promptune.storage.manifest import compile_manifest

        settings = {
            "seed": self.seed,
            **{name: self._given[name] for name in _UPSTREAM_OPTIONS if name.endswith("_proposer")},
            **{name: value for name, value in step_1.items() if name != "max_errors"},
            "view_data_batch_size": self._given["view_data_batch_size"],
            "num_instruct_candidates": self._num_instructions,
            "init_temperature": self.init_temperature,
        }
        return compile_manifest(
            program,
            {"trainset": trainset, "valset": self._valset},
            metric=self.metric,
            lms={"task_model": self.task_model, "prompt_model": self.prompt_model},
            settings=settings,
            options={**self._options.__dict__, "budget": self._budget},
        )

    def _unsearched(self, program: Module) -> Module:
        """The run ended in step 1 or 2: the program as it came, with a record that says why and what was spent."""
        from dspy.promptune.compile.attributes import attach_unsearched

        engine, why = self._engine, str(self._engine.over)
        logger.warning("Nothing was searched, the program is returned as it was: %s", why)
        if self.track_stats:
            attach_unsearched(program, engine.books, why)
        engine.books.close(why)
        return program

    def _rules(self, max_errors: int) -> EvaluationRules:
        """How programs are scored."""
        from dspy.promptune.compile.feedback import two_arguments
        from dspy.promptune.distributed.programs import EvaluationRules

        timeout, metric = self._options.example_timeout, two_arguments(self.metric)
        return EvaluationRules(metric=metric, valset=self._valset, max_errors=max_errors, timeout=timeout)

    def _begin(self, program: Module, trainset: list[Example], rules: EvaluationRules, parts: int) -> None:
        """Start what waits for neither step: the default program's evaluation, and the summary of the trainset."""
        from dspy.promptune.compile.steps import start_summary
        from dspy.promptune.limits.budgets import PROPOSE

        if self._given["data_aware_proposer"] and not self._engine.books.has("instructions"):
            with self._engine.books.meter.step(PROPOSE):
                self._summary = start_summary(
                    trainset,
                    pool=self._engine.pool,
                    prompt_model=self.prompt_model,
                    view_data_batch_size=self._given["view_data_batch_size"],
                    report=self._report,
                )
        self._engine.begin(program, rules, (0,) * parts * len(program.predictors()))

    def _begin_demos(self, program: Module, demo_candidates: dict[int, list[list[Any]]]) -> None:
        """Begin with the demo sets, where the search goes by blocks of examples; they are its first blocks."""
        from dspy.promptune.compile.engine import FIRST_BLOCK, FIRST_SHARE, by_blocks

        if self._minibatch and by_blocks(self._options):
            order = random.Random(self.seed).sample(range(len(self._valset)), len(self._valset))
            share = int(FIRST_SHARE * self._budget / max(map(len, demo_candidates.values())))
            self._engine.begin_demos(program, demo_candidates, order[: min(FIRST_BLOCK, share)])

    def _propose_instructions(  # type: ignore[override]
        self,
        program: Module,
        trainset: list[Example],
        demo_candidates: dict[int, list[list[Any]]] | None,
        view_data_batch_size: int,
        program_aware_proposer: bool,
        data_aware_proposer: bool,
        tip_aware_proposer: bool,
        fewshot_aware_proposer: bool,
        num_instruct_candidates: int,
    ) -> dict[int, list[str]]:
        from dspy.promptune.compile.steps import ProposeOptions, propose_instructions
        from dspy.promptune.limits.budgets import PROPOSE

        options = ProposeOptions(
            prompt_model=self.prompt_model,
            num_candidates=num_instruct_candidates,
            view_data_batch_size=view_data_batch_size,
            program_aware=program_aware_proposer,
            data_aware=data_aware_proposer,
            tip_aware=tip_aware_proposer,
            fewshot_aware=fewshot_aware_proposer,
            init_temperature=self.init_temperature,
            num_demos_in_context=BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT,
        )
        if demo_candidates and self._zero_shot is False:
            self._begin_demos(program, demo_candidates)
        logger.info("Step 2: proposing %d instructions for each predictor.", num_instruct_candidates)
        self._engine.show_calls("Step 2 of 3, instructions", PROPOSE, self._expected.propose)
        return self._engine.candidates(
            "instructions",
            PROPOSE,
            self.rng,
            lambda: propose_instructions(
                program,
                trainset,
                demo_candidates,
                options=options,
                rng=self.rng,
                pool=self._engine.pool,
                summary=self._summary,
                report=self._report,
            ),
        )

    def _optimize_prompt_parameters(  # type: ignore[override]
        self,
        program: Module,
        instruction_candidates: dict[int, list[str]],
        demo_candidates: dict[int, list[list[Any]]] | None,
        evaluate: Evaluate,
        valset: list[Example],
        num_trials: int,
        minibatch: bool,
        minibatch_size: int,
        minibatch_full_eval_steps: int,
        seed: int,
    ) -> Any:
        from dspy.promptune.compile.engine import Task, optimize
        from dspy.promptune.compile.own import extended

        if demo_candidates is None and self._own["demo_sets"]:
            demo_candidates = {i: [[]] for i in instruction_candidates}
        task = Task(
            program=program,
            instructions=extended(instruction_candidates, self._own["instructions"]),
            demos=demo_candidates and extended(demo_candidates, self._own["demo_sets"]),
            n_examples=len(valset),
            max_calls=self._budget,
            minibatch=minibatch,
            full_eval_steps=minibatch_full_eval_steps,
            seed=self.seed,
            log_dir=self.log_dir,
            track_stats=self.track_stats,
        )
        logger.info("Step 3: searching the combinations.")
        return optimize(task, self._engine)


def _lms(program: Any) -> list[Any]:
    """The language models that predictors have of their own."""
    return [lm for lm in (getattr(each, "lm", None) for each in program.predictors()) if lm is not None]


def _split_size(trainset: list[Any]) -> int:
    """Size of the validation set that upstream splits off."""
    return min(1000, max(1, int(len(trainset) * 0.80)))


_SAMPLER_OPTIONS = ("max_space_size", "n_batches", "min_cold_start", "embedder", "acquisition")
_RUN_OPTIONS = (
    *("batch_size", "schedule", "max_concurrency", "example_timeout", "disable_progress_bar"),
    *("storage", "study_name", "resume", "share", "max_lm_calls", "max_tokens_spent", "max_cost", "timeout"),
    *("executor", "executor_keys", "instructions", "demo_sets"),
)
_OWN = ("instructions", "demo_sets")
_UPSTREAM_OPTIONS = tuple(
    name for name in inspect.signature(_upstream.MIPROv2.compile).parameters if name not in ("self", "student")
)
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(MIPROv2.compile).parameters.items()}

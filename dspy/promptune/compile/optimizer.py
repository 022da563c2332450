"""One compile of a program: upstream's ``compile`` validates and sizes, this fork's three steps do the rest."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy
from dspy._upstream.teleprompt import mipro_optimizer_v2 as _upstream
from dspy._upstream.teleprompt.mipro_optimizer_v2 import (
    BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT,
    LABELED_FEWSHOT_EXAMPLES_IN_CONTEXT,
    logger,
)
from dspy.promptune.candidates.bootstrapping import BootstrapOptions, bootstrap_demo_sets, check_teacher
from dspy.promptune.candidates.own import extended, own_candidates
from dspy.promptune.candidates.proposing import ProposeOptions, propose_instructions, start_summary
from dspy.promptune.candidates.step_report import StepReport
from dspy.promptune.compile.attributes import attach_unsearched
from dspy.promptune.compile.door import check_lms, check_program, checked_options, lms_of, split_size
from dspy.promptune.compile.engine import FIRST_BLOCK, FIRST_SHARE, OPEN_BLOCK, Engine, Task, optimize
from dspy.promptune.compile.loading import by_blocks, check_embedder, ours, searches_early
from dspy.promptune.compile.options import CompileOptions, upstream_budget
from dspy.promptune.counted import counted
from dspy.promptune.distributed.programs import EvaluationRules
from dspy.promptune.errors import OptionError, StorageError
from dspy.promptune.identity.call import call_of
from dspy.promptune.identity.encoding import restorable
from dspy.promptune.identity.manifest import compile_manifest
from dspy.promptune.interrupts import Interrupt
from dspy.promptune.limits.budgets import BOOTSTRAP, PROPOSE, SEARCH
from dspy.promptune.limits.estimate import Estimate, estimate
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.limits.views import own_calls_held, through_gateway
from dspy.promptune.options import check_integer, checked_seed
from dspy.promptune.reflection.arrivals import Arrivals
from dspy.promptune.reflection.attempts import Attempts
from dspy.promptune.reflection.reflection import Reflector
from dspy.promptune.storage.run_store import open_run_store

if TYPE_CHECKING:
    from concurrent.futures import Future

    from dspy.evaluate.evaluate import Evaluate
    from dspy.primitives.example import Example
    from dspy.primitives.module import Module
    from dspy.promptune.distributed.programs import ProgramCache
    from dspy.promptune.space import PromptSpace

__all__ = ["CompileRun", "compile_program"]


def compile_program(
    optimizer: _upstream.MIPROv2,
    student: Module,
    upstream: Mapping[str, Any],
    added: Mapping[str, Any],
    *,
    began: float,
    interrupt: Interrupt,
) -> Any:
    """The best program found, with upstream's attributes and ``optimization_run``.

    Args:
        optimizer: Its settings are used and not changed, so that several compiles may go on at once.
        student: The program.
        upstream: All of upstream's options of ``compile``.
        added: This fork's, as far as they were given; ``minibatch_size`` is one of them if the user gave it.
        began: When it was called, by ``time.monotonic``.
        interrupt: Ctrl-C, which may have come by now.

    Raises:
        OptionError: An option that cannot be; nothing is called by then.
        PromptuneError: What else ``MIPROv2.compile`` names.
    """
    given = checked_options(upstream, optimizer.metric)
    if "minibatch_size" not in added:
        valset = given["valset"]
        size = split_size(given["trainset"]) if valset is None else len(valset)
        given["minibatch_size"] = min(given["minibatch_size"], max(1, size))
    options = CompileOptions.of(added)
    run = CompileRun.of(optimizer, student, options, given)
    run._engine.books.meter.began(began)
    run._call = call_of(optimizer, upstream, added)
    traceback = given["provide_traceback"]
    run._engine.tracebacks = bool(dspy.settings.provide_traceback if traceback is None else traceback)
    interrupt.then(run._engine.ending.expire)
    return _compiled(run, student, given)


def _compiled(run: CompileRun, student: Module, given: Mapping[str, Any]) -> Any:
    """The three steps; a run that is over before the search gives the program back."""
    try:
        with own_calls_held(), run._engine.gateway.active():
            return inspect.unwrap(_upstream.MIPROv2.compile)(run, student, **{**given, "seed": None})
    except (Stopped, StorageError) as stop:
        if run._engine.ending.broken is not None:
            raise run._engine.ending.broken from None
        if isinstance(stop, StorageError) and run._engine.ending.why is None:
            raise
        run._engine.ending.expire(str(stop))
        return run._unsearched(student.deepcopy())
    finally:
        run._engine.stop()
        run._engine.books.close()


_OWN = ("instructions", "demo_sets")


class CompileRun(_upstream.MIPROv2):
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
    _call: dict[str, Any]
    _expected: Estimate
    _budget: int
    _arrivals: Arrivals | None  # instructions that are proposed while the search goes on
    _attempts: Attempts | None  # at training examples, where instructions are written during the search
    _own: dict[str, dict[int, list[Any]]]  # the user's candidates, by option and predictor

    @classmethod
    def of(
        cls, optimizer: _upstream.MIPROv2, student: Module, options: CompileOptions, given: dict[str, Any]
    ) -> CompileRun:
        """An optimizer as it is for one compile: nothing of it stays behind."""
        seed: Any = checked_seed(optimizer.seed if given["seed"] is None else given["seed"])
        check_program(student)
        check_lms(
            reflection_lm=options.reflection_lm, prompt_model=optimizer.prompt_model, task_model=optimizer.task_model
        )
        threads = optimizer.num_threads or dspy.settings.num_threads
        check_integer("num_threads", threads, 1)
        if options.reflect and not given["minibatch"]:
            raise OptionError("reflect=True does not go with minibatch=False: leave that out, and prompts are raced.")
        check_embedder(options, student)
        run = cls.__new__(cls)
        run.__dict__.update(optimizer.__dict__)
        run.seed, run._options, run._given = seed, options, given
        run._own = {name: own_candidates(name, getattr(options, name), student) for name in _OWN}
        own = [options.reflection_lm, *run.teacher_settings.values(), *lms_of(student)]
        lms = [run.task_model, run.prompt_model, *own]
        books = open_run_store(
            options.caps(), options.storage, options.study_name, options.resume, share=options.share,
            name=type(student).__name__, lms=lms,
        )  # fmt: skip
        run._engine = Engine(options, threads, books)
        run._report = StepReport(books.memory, run._engine.ending.metric_broken, run._engine.missing)
        run._summary = None
        run._attempts = run._arrivals = None
        run.task_model, run.prompt_model = through_gateway(run.task_model), through_gateway(run.prompt_model)
        run.teacher_settings = {name: through_gateway(value) for name, value in run.teacher_settings.items()}
        return run

    def _set_hyperparams_from_run_mode(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's numbers, and its budget. For our samplers ``minibatch`` is what the user said.

        Upstream's ``auto`` sets it to False where there are few validation examples, which a race can do without.
        """
        settled = super()._set_hyperparams_from_run_mode(*args, **kwargs)
        trials, self._valset, minibatch, self._num_instructions = settled[:4]
        self._budget = self._evaluations(len(self._valset), trials, minibatch)
        self._minibatch = bool(self._given["minibatch"]) if ours(self._options) else minibatch
        return (*settled[:2], self._minibatch, *settled[3:])

    def _evaluations(self, n_examples: int, trials: int, minibatch: bool) -> int:
        """Examples that upstream would evaluate: this compile's budget."""
        size = int(self._given["minibatch_size"]) if minibatch else None
        return upstream_budget(n_examples, trials, size, self._given["minibatch_full_eval_steps"])

    def _bootstrap_fewshot_examples(  # type: ignore[override]
        self, program: Module, trainset: list[Example], seed: int, teacher: Any, **options: Any
    ) -> dict[int, list[list[Any]]]:
        bootstrapped, labeled = options["max_bootstrapped_demos"], options["max_labeled_demos"]
        zero_shot = self._zero_shot = bootstrapped == 0 and labeled == 0
        rules = self._rules(options["max_errors"])
        self._attempts = Attempts(trainset, self.metric, self._valset) if self._options.reflect else None
        self._engine.check(program, rules)
        books, check = self._engine.books, self._estimate(program, options)
        if self._options.resume is False and not self._options.share:
            check()
        books.begin(lambda: self._manifest(program, trainset, options, teacher))
        if books.store is None or not books.store.resumed:
            check()
        if zero_shot:
            bootstrapped, labeled = BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT, LABELED_FEWSHOT_EXAMPLES_IN_CONTEXT
        chosen = BootstrapOptions(
            num_sets=options["num_fewshot_candidates"], max_bootstrapped_demos=bootstrapped, max_labeled_demos=labeled,
            metric=self.metric, metric_threshold=options["metric_threshold"], max_errors=options["max_errors"],
            teacher=teacher, teacher_settings=self.teacher_settings,
            found=None if self._attempts is None else self._attempts.found,
            sound=lambda: self._engine.go_ahead.give(BOOTSTRAP),
            ready=None if zero_shot else lambda demos: self._begin_demos(program, demos, chosen.num_sets),
        )  # fmt: skip
        check_teacher(program, trainset, chosen)
        self._begin(program, trainset, rules, 1 if zero_shot and not self._own["demo_sets"] else 2)
        logger.info("Step 1: bootstrapping %s.", counted(chosen.num_sets, "demo set"))
        self._engine.show_calls("Step 1 of 3, demo sets", BOOTSTRAP, self._expected.bootstrap)
        produce = lambda: bootstrap_demo_sets(  # noqa: E731
            program, trainset, options=chosen, rng=self.rng, pool=self._engine.patient(per_call=False),
            report=self._report,
        )  # fmt: skip
        return self._candidates("demos", BOOTSTRAP, produce)

    def _candidates(self, name: str, step: str, produce: Callable[[], Mapping[int, list[Any]]]) -> dict[int, list[Any]]:
        """The candidates of a step, from the study or made now, and a note of those that could not be made."""
        found = self._engine.books.candidates(name, step, self.rng, produce)
        self._engine.go_ahead.give(step)
        if self._engine.books.leads:
            self._report.finished(step)
        return found

    def _estimate(self, program: Module, step_1: dict[str, Any]) -> Callable[[], None]:
        """Say what this will take; what is returned refuses a budget that is too small for it."""
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
        self._engine.books.meter.expect(found.prior())
        self._engine.tight = found.tight(self._options.caps(), len(self._valset), len(program.predictors()))
        return lambda: found.check(self._options.caps(), len(self._valset), len(program.predictors()))

    def _manifest(
        self, program: Module, trainset: list[Example], step_1: dict[str, Any], teacher: Any
    ) -> dict[str, Any]:
        """What this compile is; a study that is taken up again must be the same."""
        settings = {
            "seed": self.seed,
            **{name: self._given[name] for name in self._given if name.endswith("_proposer")},
            **{name: value for name, value in step_1.items() if name != "max_errors"},
            "view_data_batch_size": self._given["view_data_batch_size"],
            "num_instruct_candidates": self._num_instructions,
            "init_temperature": self.init_temperature,
        }
        manifest = compile_manifest(
            program,
            {"trainset": trainset, "valset": self._valset},
            metric=self.metric,
            lms={
                "task_model": self.task_model,
                "prompt_model": self.prompt_model,
                **({"teacher": self.teacher_settings["lm"]} if "lm" in self.teacher_settings else {}),
            },
            teacher=teacher,
            settings=settings,
            options={**self._options.__dict__, "budget": self._budget},
        )
        return {**manifest, "call": self._call}

    def _unsearched(self, program: Module) -> Module:
        """The run ended in step 1 or 2: the original program, with a record that says why and what was spent."""
        engine, why = self._engine, str(self._engine.ending.why)
        logger.warning("Nothing was searched, the program is returned as it was: %s", why)
        scores = engine.books.early(engine.heads[0][0]) if engine.heads else {}
        if self.track_stats:
            attach_unsearched(
                program, engine.books, why, list(scores.values()) if len(scores) == len(self._valset) else ()
            )
        engine.books.close(why)
        return program

    def _rules(self, max_errors: int) -> EvaluationRules:
        """How programs are scored."""
        timeout = self._options.example_timeout
        return EvaluationRules(metric=self.metric, valset=self._valset, max_errors=max_errors, timeout=timeout)

    def _begin(self, program: Module, trainset: list[Example], rules: EvaluationRules, parts: int) -> None:
        """Start what waits for neither step: the default program's evaluation, and the summary of the trainset."""
        engine = self._engine
        if engine.books.has("instructions"):
            engine.go_ahead.give(PROPOSE)
        elif self._given["data_aware_proposer"]:
            with engine.books.meter.step(PROPOSE), engine.go_ahead.awaited(self.init_temperature):
                self._summary = start_summary(
                    trainset,
                    pool=engine.patient(per_call=True),
                    prompt_model=self.prompt_model,
                    view_data_batch_size=self._given["view_data_batch_size"],
                    report=self._report,
                )
            self._summary.add_done_callback(engine.go_ahead.made)
        first = self._order()[: 3 * OPEN_BLOCK] if self._options.reflect else None
        engine.begin(program, rules, (0,) * parts * len(program.predictors()), first)

    def _order(self) -> list[int]:
        """The order in which the race goes through the validation examples."""
        return random.Random(self.seed).sample(range(len(self._valset)), len(self._valset))

    def _begin_demos(self, program: Module, demos: dict[int, list[list[Any]]], of: int) -> None:
        """Begin with the demo sets there are, ``of`` so many, where the search goes by blocks: they are its first.

        A set that JSON has no form for waits where there is a storage: a later start may make another one.
        """
        engine, books = self._engine, self._engine.books
        sure = books.store is None or all(map(restorable, demos.values()))
        if sure and self._minibatch and by_blocks(self._options) and not engine.tight:
            share, block = int(FIRST_SHARE * self._budget / of), OPEN_BLOCK if self._options.reflect else FIRST_BLOCK
            with dspy.context(lm=self.task_model), books.meter.step(SEARCH):  # step 2 runs without this context
                engine.begin_demos(program, demos, of, self._order()[: min(block, share)])

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
        options = ProposeOptions(
            prompt_model=self.prompt_model, num_candidates=num_instruct_candidates,
            view_data_batch_size=view_data_batch_size, program_aware=program_aware_proposer,
            data_aware=data_aware_proposer, tip_aware=tip_aware_proposer, fewshot_aware=fewshot_aware_proposer,
            init_temperature=self.init_temperature, num_demos_in_context=BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT,
            whole=self._options.reflect,
        )  # fmt: skip
        if demo_candidates and self._zero_shot is False:
            self._begin_demos(program, demo_candidates, max(map(len, demo_candidates.values())))
        logger.info("Step 2: proposing %s for each predictor.", counted(num_instruct_candidates, "instruction"))

        def proposed(found: Callable[[int, str], None] | None = None) -> dict[int, list[str]]:
            produce = lambda: propose_instructions(  # noqa: E731
                program, trainset, demo_candidates, options=replace(options, found=found), rng=self.rng,
                pool=self._engine.patient(per_call=True), summary=self._summary, report=self._report,
            )  # fmt: skip
            return self._candidates("instructions", PROPOSE, produce)

        own = {i: [predictor.signature.instructions] for i, predictor in enumerate(program.predictors())}
        if searches_early(self._options, self._engine.books, extended(own, self._own["instructions"])):
            with self._engine.go_ahead.awaited(self.init_temperature):
                self._arrivals = Arrivals(proposed)
            self._arrivals.hold(self._engine.go_ahead.given)
            return own
        self._engine.show_calls("Step 2 of 3, instructions", PROPOSE, self._expected.propose)
        with self._engine.go_ahead.awaited(self.init_temperature):
            return proposed()

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
        if demo_candidates is None and self._own["demo_sets"]:
            demo_candidates = {i: [list(each.demos)] for i, each in enumerate(program.predictors())}
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
            reflector=self._reflector if self._options.reflect else None,
            arrivals=self._arrivals,
        )
        logger.info("Step 3: searching the combinations.")
        return optimize(task, self._engine)

    def _reflector(self, programs: ProgramCache, space: PromptSpace) -> Reflector:
        """Who writes instructions during the search."""
        assert self._attempts is not None
        lm = through_gateway(self._options.reflection_lm) or self.prompt_model
        return Reflector(self._attempts, lambda params: programs[space.key(params)], lm, seed=self.seed)

"""Step 3 of a compile: the search over a program's candidates, and the machinery that all three steps share."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dspy.promptune.compile.attributes import Ledger, attach
from dspy.promptune.compile.callbacks import EvaluationCallbacks
from dspy.promptune.compile.ending import Ending
from dspy.promptune.compile.go_ahead import GoAhead
from dspy.promptune.compile.loading import load
from dspy.promptune.compile.options import CompileOptions
from dspy.promptune.compile.recorder import Recorder
from dspy.promptune.counted import counted
from dspy.promptune.distributed.payload import PayloadBuilder
from dspy.promptune.distributed.programs import EvaluationRules, ProgramCache, ProgramEvaluator
from dspy.promptune.distributed.remote import RemoteEvaluator
from dspy.promptune.interrupts import Interrupted
from dspy.promptune.limits.budgets import BOOTSTRAP, LOAD, PROPOSE, REFLECT
from dspy.promptune.limits.gateway import LMGateway, Stopped
from dspy.promptune.limits.pool import Limited, Pool
from dspy.promptune.limits.search_allowance import SearchAllowance
from dspy.promptune.limits.views import through_gateway
from dspy.promptune.progress import Progress, Standing
from dspy.promptune.reflection.arrivals import Arrivals
from dspy.promptune.run.events import SearchEvents, check_callbacks
from dspy.promptune.run.loop import SearchLoop
from dspy.promptune.run.schedule import Limits
from dspy.promptune.run.search import Compared, Run, SearchRun, shown
from dspy.promptune.secrets import said
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.run_store import RunStore

if TYPE_CHECKING:
    from dspy.primitives.module import Module
    from dspy.promptune.reflection.reflection import Reflector
    from dspy.promptune.run.writing import Writer

__all__ = ["Engine", "Task", "optimize"]

logger = logging.getLogger(__name__)

FIRST_BLOCK = 20  # examples on which every demo set is tried while instructions are proposed,
FIRST_SHARE = 0.15  # and the share of the budget that they may take together
OPEN_BLOCK = 5  # the same where instructions are written during the search: more of the calls are for those
MISSING = "missing"  # the fact that says what steps 1 and 2 could not make
RETRIES = 1  # times a job is tried again after a time-out, or with a language model out of reach


class Engine:
    """The machinery of one compile: threads, the limit, and the evaluations that may begin before step 3.

    Args:
        options: What the user chose.
        num_threads: Examples of one prompt at once.
        books: Where the run is written down.
    """

    def __init__(self, options: CompileOptions, num_threads: int, books: RunStore) -> None:
        threads = options.n_jobs * num_threads
        limit = min(threads, options.max_concurrency or threads)
        spare = max(2, limit // 8)  # threads that score or build prompts while the others' calls are in flight
        self.options, self.books = options, books
        self.gateway = LMGateway(limit, books.meter, view=through_gateway)
        self.pool = Pool(min(threads, limit + spare))
        self.pool.patience = self.gateway.patience
        self.work: ProgramEvaluator | RemoteEvaluator | None = None
        self.callbacks: EvaluationCallbacks | None = None
        self.rules: EvaluationRules | None = None
        self._builder: PayloadBuilder | None = None
        self.threads = num_threads
        self.heads: list[tuple[Key, tuple[int, ...]]] = []
        self.go_ahead = GoAhead(BOOTSTRAP, PROPOSE)
        self.ending = Ending(self._give_up)
        self.tracebacks = False
        self.tight = False  # a limit pays for little more than the first evaluation, which has to come first
        self.progress = Progress(disable=options.disable_progress_bar)
        self._loading: list[threading.Thread] = []
        calls, prompts = counted(limit, "language-model call"), counted(options.n_jobs, "prompt")
        logger.info("At most %s in flight (%s at once).", calls, prompts)

    def check(self, program: Module, rules: EvaluationRules) -> None:
        """Refuse what workers could not evaluate, before anything is paid for.

        Raises:
            OptionError: Something that cannot be pickled.
        """
        if self.options.executor is not None:
            self._builder = PayloadBuilder(rules, self.options.executor_keys)
            self._builder.check(program, self.options.executor)

    def _work(self, programs: ProgramCache, rules: EvaluationRules) -> ProgramEvaluator | RemoteEvaluator:
        """Where step 3 evaluates."""
        keep, n_jobs = self.books.keep, self.options.n_jobs
        if self._builder is None:
            return ProgramEvaluator(programs, rules, self.pool, n_jobs, keep=keep, broken=self.ending.metric_broken)
        return RemoteEvaluator(
            programs,
            rules,
            self.options.executor,
            pool=self.pool,
            gateway=self.gateway,
            threads=self.threads,
            n_jobs=n_jobs,
            builder=self._builder,
            keep=keep,
        )

    def begin(
        self, program: Module, rules: EvaluationRules, default: Key, examples: Sequence[int] | None = None
    ) -> None:
        """Evaluate the default program with whatever threads steps 1 and 2 leave idle, and load the sampler's parts.

        ``examples`` are those it is evaluated on; ``None`` is all.
        """
        if self.books.store is not None:
            self.books.store.lost = self.ending.expire
        if self.options.timeout is not None:
            self.ending.at(self.options.timeout, self.books.meter.seconds_left())
        self.work = self._work(ProgramCache(program, default), rules)
        self.rules, self.callbacks = rules, EvaluationCallbacks(rules, self.threads)
        if self.tight:
            self.go_ahead.give(BOOTSTRAP, PROPOSE)
        self._head_start(default, range(len(rules.valset)) if examples is None else examples)
        if self.tight:
            self.work.await_heads()
        self._load(PromptSpace({0: [predictor.signature.instructions for predictor in program.predictors()]}))

    def begin_demos(
        self, program: Module, demos: Mapping[int, Sequence[Any]], of: int, examples: Sequence[int]
    ) -> None:
        """Try the demo sets that there are by now, of so many, with the program's own instructions."""
        assert self.work is not None
        instructions = {i: [each.signature.instructions] for i, each in enumerate(program.predictors())}
        self.work.programs.space = space = PromptSpace(instructions, demos)
        begun = {key for key, _ in self.heads}
        sets = range(1, min(map(len, demos.values())) if examples else 0)
        for key in dict.fromkeys(space.find((0, j) * len(instructions)) for j in sets):
            if key is not None and key not in begun:
                self._head_start(key, examples)
        if max(map(len, demos.values())) == of:
            self._load(space)

    def _head_start(self, key: Key, examples: Sequence[int]) -> None:
        assert self.work is not None
        if not self.books.leads:
            return
        self.heads.append((key, tuple(examples)))
        if unknown := self.books.unknown(key, examples):
            self.go_ahead.then(functools.partial(self.work.head_start, key, unknown))

    def show_calls(self, name: str, step: str, expected: int) -> None:
        """Show how many calls step 1 or 2 has made, of about how many."""

        def standing() -> Standing:
            made = int(self.books.meter.spent().get(step, {}).get("calls", 0))
            limiter = self.gateway.limiter
            return Standing(count=made, calls=self.gateway.calls, in_flight=limiter.in_flight)

        self.progress.step(name, expected, "expected calls", standing)

    def await_loaded(self) -> None:
        """Wait for what was being loaded, so that nothing is loaded twice."""
        if any(thread.is_alive() for thread in self._loading):
            logger.info("Loading the embedder and the model of prompts.")
            left = self._loading
            self.progress.step(
                "Loading the model of prompts", len(left), "parts",
                lambda: Standing(
                    count=sum(not thread.is_alive() for thread in left),
                    calls=self.gateway.calls, in_flight=self.gateway.limiter.in_flight,
                ),
            )  # fmt: skip
        for thread in self._loading:
            thread.join()

    def _load(self, space: PromptSpace) -> None:
        thread = threading.Thread(target=load, args=(self.options, space), name="promptune-load")
        self._loading.append(thread)
        thread.start()

    def _give_up(self, why: str) -> None:
        self.gateway.stop()
        self.pool.give_up(Stopped(why))

    def missing(self, lines: Sequence[str]) -> None:
        """Note for the record what steps 1 and 2 could not make."""
        self.books.facts = {**self.books.facts, MISSING: list(lines)}
        if self.books.store is not None:
            self.books.store.show(MISSING, list(lines))

    def patient(self, *, per_call: bool) -> Limited:
        """The pool for steps 1 and 2, where an example or a call may take as long as an example in step 3."""
        return Limited(self.pool, self.options.example_timeout, per_call)

    def stop(self) -> None:
        """Nothing more is started."""
        self.go_ahead.drop()
        self.progress.close()
        self.ending.cancel()
        if isinstance(self.work, RemoteEvaluator):
            self.work.cancel()
        self.gateway.stop()
        self.pool.stop()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be optimized, and by what measure."""

    program: Module
    instructions: Mapping[int, Sequence[str]]
    demos: Mapping[int, Sequence[Any]] | None
    n_examples: int
    max_calls: int
    minibatch: bool
    full_eval_steps: int
    seed: int | None
    log_dir: str | None = None
    track_stats: bool = True
    reflector: Callable[[ProgramCache, PromptSpace], Reflector] | None = None
    arrivals: Arrivals | None = None


def optimize(task: Task, engine: Engine) -> Module:
    """The best program found within ``task.max_calls`` evaluated examples, with upstream's attributes.

    Raises:
        EvaluationError: No evaluation succeeded.
        Stopped: The run was over before the search, and no earlier start has scored anything.
    """
    assert engine.work is not None
    with engine.books.meter.step(LOAD):
        engine.await_loaded()
    engine.go_ahead.drop()
    engine.ending.search_begins()
    over = engine.ending.why
    space = PromptSpace(task.instructions, task.demos)
    engine.books.settle(space)
    run = _run(task, engine, space)
    if over is not None and not run.table.calls:
        raise Stopped(over)
    programs = engine.work.programs
    programs.space = space = run.space
    recorder = Recorder(run, programs, engine, task.max_calls)
    events = SearchEvents(check_callbacks(engine.options.callbacks), space, run.table)
    driver = SearchLoop(
        run.jobs,
        engine.work,
        engine.options.plan(engine.pool.workers),
        limits=Limits(retries=RETRIES, max_calls=task.max_calls, note_every=max(1, task.max_calls // 50)),
        listeners=[recorder, *run.listeners, events],
        first=lambda: [
            run.whole_or_block(*head) for head in engine.heads if over is None and not run.past.covers(*head)
        ],
    )
    recorder.driver = driver
    recorder.begin()
    engine.pool.on_idle = driver.wake
    if run.writing is not None:
        run.writing.wake, run.writing.tick = driver.wake, recorder.on_tick
    engine.ending.searching(driver.stop)
    if task.arrivals is not None:
        task.arrivals.listen(driver)
    if engine.books.store is not None:
        engine.books.store.lost = driver.stop
    logger.info("Searching %r, at most %s scored.", space, counted(task.max_calls, "example"))
    try:
        ended = _searched(driver, run, task.arrivals)
        engine.gateway.stop()  # programs that are still at work make no more calls
        found = run.result(driver, ended, engine.books.facts, engine.books.meter.spent(at_end=True))
        found = replace(found, cases=_cases(run, recorder, engine, found))
    finally:
        programs.release()
        engine.gateway.release_modules()
        recorder.close()
    best = _finished(task, run, engine, recorder, found)
    engine.books.end(best, found.ended, **shown(found))
    events.ended(getattr(best, "optimization_run", found))
    return best


def _searched(driver: SearchLoop, run: Run, arrivals: Arrivals | None) -> str:
    """Why the search ended; where that was before anything was scored, it is as if it had not begun."""
    try:
        ended = driver.run()
    except Interrupted as interrupt:
        raise Stopped("interrupted") from interrupt
    if arrivals is not None:
        arrivals.check()
    if not run.table.calls:
        raise Stopped(ended)
    return ended


def _run(task: Task, engine: Engine, space: PromptSpace) -> Run:
    options, books = engine.options, engine.books
    budget = {
        "n_examples": task.n_examples,
        "max_calls": task.max_calls,
        "minibatch_size": options.minibatch_size if task.minibatch else task.n_examples,
        "full_every": task.full_eval_steps if task.minibatch else 0,
    }
    of_sampler = dict(options.sampler_options)
    space = space if task.reflector is None else space.open()
    writer = _writer(task, engine, space)
    run = Run(
        space, options.sampler or "tpe", budget, seed=task.seed, options=of_sampler, store=books.store, writer=writer
    )  # fmt: skip
    if books.meter.caps.given():
        calls = len(task.program.predictors())
        run.jobs.allowance = SearchAllowance(books.meter, n_examples=task.n_examples, calls_per_example=calls)
    return run


def _writer(task: Task, engine: Engine, space: PromptSpace) -> Writer | None:
    """The writer of a compile, if there is one, in the threads of its pool; with batches each text is waited for."""
    from dspy.promptune.run.writing import Writer

    if task.reflector is None:
        return None
    assert engine.work is not None
    reflector, store = task.reflector(engine.work.programs, space), engine.books.store
    for trial in [] if store is None else store.study.get_trials(deepcopy=False):
        reflector.remember(trial.user_attrs.get("evidence", ()))
    propose = engine.books.meter.of_step(REFLECT, reflector)
    submit = functools.partial(engine.pool.submit_limited, engine.options.example_timeout, per_call=True)
    waits, arrivals = engine.options.schedule == "batch", None if task.arrivals is None else task.arrivals.take
    places = 1 if waits else max(1, engine.options.n_jobs // 4)
    return Writer(propose, submit, places=places, waits=waits, arrivals=arrivals)


def _finished(task: Task, run: Run, engine: Engine, recorder: Recorder, found: SearchRun) -> Module:
    assert engine.work is not None and engine.rules is not None
    key, programs = run.space.key(found.best_params), engine.work.programs
    best: Module = programs[key].deepcopy()
    found = replace(found, programs=Compared(task.program, best, engine.rules.metric, engine.threads))
    if task.track_stats:
        entries = sorted(recorder.all_entries(), key=lambda entry: entry.job.number)
        ledger = Ledger(run.space, programs, run.table, entries, task.n_examples, task.minibatch, task.log_dir)
        attach(best, ledger, key)
        best.optimization_run = found  # type: ignore[attr-defined]
    _say(found)
    return best


def _cases(run: Run, recorder: Recorder, engine: Engine, found: SearchRun) -> list[dict[str, Any]]:
    """What the original program and the winner answered."""
    original, winner = (0,) * len(run.space.names), run.space.key(found.best_params)
    if engine.rules is None or original == winner:
        return []
    rows = [(key, run.table.row(key)) for key in (original, winner)]
    return recorder.answers.cases(engine.rules.valset, rows[0], rows[1])


def _say(found: SearchRun) -> None:
    """Log the verdict; whatever goes wrong with it, the program is returned."""
    try:
        lines = found.verdict()
    except Exception as error:
        logger.warning("The run has no verdict: %s", said(error))
        lines = [f"Score {100 * found.best_score:.2f} with {found.best_params}"]
    lines.append('Report   program.optimization_run.report("report.html")')
    logger.info("Ended: %s.\n%s", found.ended.rstrip("."), "\n".join(f"  {line}" for line in lines))

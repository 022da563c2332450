"""Step 1: the demo sets, each bootstrapped as upstream does it, all at once.

With the same ``random.Random`` and a deterministic language model, steps 1 and 2 give what upstream gives one call at a
time (``create_n_fewshot_demo_sets`` and ``GroundedProposer``): every random draw is made first, in upstream's order, by
the thread that coordinates; what is left are chains of language-model calls that do not depend on one another. No chain
makes a call that upstream would not make, except to retry one that failed.
"""

from __future__ import annotations

import copy
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dspy
from dspy.promptune.candidates.step_report import StepReport, Submitter, as_they_end
from dspy.promptune.counted import counted
from dspy.promptune.demos import same_fields
from dspy.promptune.distributed.metrics import Metric, of_metric
from dspy.promptune.errors import EvaluationError, MetricError
from dspy.promptune.limits.answers import empty_replies, may_repeat
from dspy.promptune.limits.budgets import BOOTSTRAP
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.secrets import cause, said
from dspy.teleprompt.bootstrap import BootstrapFewShot
from dspy.teleprompt.vanilla import LabeledFewShot
from dspy.utils.exceptions import AdapterParseError

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["BootstrapOptions", "bootstrap_demo_sets", "check_teacher"]

logger = logging.getLogger(__name__)

RETRIES = 1  # tries of one example after the first, when the language model could not be reached


@dataclass(frozen=True)
class BootstrapOptions:
    """What upstream's ``create_n_fewshot_demo_sets`` takes, with its meanings.

    ``num_sets`` counts the zero-shot and the labels-only set too. ``max_errors`` bounds the failing examples of one
    set; ``None`` is ``dspy.settings.max_errors``.
    """

    num_sets: int
    max_bootstrapped_demos: int
    max_labeled_demos: int
    metric: Callable[..., Any] | None
    metric_threshold: float | None = None
    teacher: Any = None
    teacher_settings: Mapping[str, Any] = field(default_factory=dict)
    max_errors: int | None = None
    found: Callable[..., None] | None = None  # called with every attempt: example, prediction, trace, score, teacher
    sound: Callable[[], None] | None = None  # called when an example has ended without an error, and again
    ready: Callable[[dict[int, list[list[Any]]]], None] | None = None  # called with the first sets, as more are there


def bootstrap_demo_sets(
    student: Module,
    trainset: Sequence[Any],
    *,
    options: BootstrapOptions,
    rng: random.Random,
    pool: Submitter,
    report: StepReport | None = None,
) -> dict[int, list[list[Any]]]:
    """The candidate demo sets of every predictor: ``{predictor: [set, ...]}``, set 0 empty, set 1 labels only.

    The same sets as upstream's ``create_n_fewshot_demo_sets``, and the same state of ``rng`` afterwards. Sets run
    concurrently; within a set as many examples run at once as successes are missing, so that no example is tried
    that upstream would not try.

    An example whose language-model call cannot be made (as opposed to one whose answer is wrong or cannot be read)
    is tried again in a fresh rollout. A set with ``max_errors`` failing examples ends with the demos it has, and
    ``report`` names it.

    Raises:
        EvaluationError: ``max_errors`` examples, or all that were tried, failed before the first one succeeded in any
            set: then it is the program, the metric or the language model that is broken.
        MetricError: The metric returned what is no number.
    """
    report = report or StepReport()
    sets = list(_draw(student, list(trainset), options, rng))
    offered: list[Module] = []

    def ready() -> None:
        """Say that an example went well. Offer the sets up to the first that runs, or that may be another one when the
        run is taken up again."""
        if options.sound is not None and any(isinstance(each, DemoSet) and each.sound for each in sets):
            options.sound()
        sure = list(itertools.takewhile(lambda each: not isinstance(each, DemoSet) or each.sure, sets))
        if options.ready is not None and len(offered) < len(sure) < len(sets):
            offered.extend(map(_finished, sure[len(offered) :]))
            options.ready(_demos(offered))

    _run([each for each in sets if isinstance(each, DemoSet)], pool, report, ready)
    return _demos([*offered, *map(_finished, sets[len(offered) :])])


def check_teacher(student: Module, trainset: Sequence[Any], options: BootstrapOptions) -> None:
    """Refuse a compiled student, or a teacher with other predictors, as upstream does: with an ``AssertionError``."""
    first = replace(options, num_sets=min(3, options.num_sets))
    list(_draw(student, list(trainset), first, random.Random(0)))


class DemoSet(BootstrapFewShot):
    """One bootstrapped set: upstream's optimizer, with its loop over examples turned into single attempts.

    ``sound`` and ``failed`` count the attempts that ended without and with an error (a wrong answer is none).
    ``wanted`` says which examples to start now, ``attempt`` runs one (in any thread), ``take`` writes down its
    outcome, ``finish`` gives the compiled student. All but ``attempt`` belong to the coordinating thread.
    """

    number = 0
    found: Callable[..., None] | None = None

    def begin(self, student: Module, teacher: Any, trainset: list[Any]) -> DemoSet:
        """Make the student's and the teacher's copies."""
        self.trainset = trainset
        self._prepare_student_and_teacher(student, teacher)
        self._prepare_predictor_mappings()
        self.outcomes: dict[int, dict[str, list[Any]] | None] = {}
        self.started = self.failed = self.sound = 0
        self.exhausted = False
        return self

    @property
    def sure(self) -> bool:
        """Whether all attempts that were wanted have ended, and none with an error."""
        return self.started == len(self.outcomes) and not self.failed

    @property
    def successes(self) -> int:
        """Number of examples that gave demos so far."""
        return sum(traces is not None for traces in self.outcomes.values())

    def wanted(self) -> Iterator[int]:
        """Indices of the examples that must be tried whatever comes of those that are running."""
        running = self.started - len(self.outcomes)
        while not self.exhausted and self.started < len(self.trainset):
            if self.successes + running >= self.max_bootstrapped_demos:
                return
            yield self.started
            self.started += 1
            running += 1

    def attempt(self, index: int, report: StepReport) -> dict[str, list[Any]] | None:
        """The demos that the teacher's run on one example gives to each predictor; ``None`` where it was wrong."""
        return report.memory.once(f"demos:{self.number}:{index}", lambda: self._attempt(index, report))

    def _attempt(self, index: int, report: StepReport) -> dict[str, list[Any]] | None:
        for rollout in range(RETRIES + 1):
            lane = self._lane()
            try:
                right = lane._bootstrap_one_example(self.trainset[index], rollout)
            except MetricError as error:
                report.broken(error)
                raise
            except Exception as error:
                if rollout == RETRIES or not _unreachable(error):
                    raise
            else:
                return lane.name2traces if right else None
        raise AssertionError("unreachable")

    def take(self, index: int, outcome: Future[dict[str, list[Any]] | None], report: StepReport) -> None:
        """Write down how an attempt ended; one failure too many ends the set."""
        error = outcome.exception()
        if isinstance(error, (Stopped, MetricError)):
            raise error
        self.outcomes[index] = None if error else outcome.result()
        if error is None:
            self.sound += 1
            return
        self.failed += 1
        report.give_up(BOOTSTRAP, f"example {index} of demo set {self.number}", error)
        self.exhausted = self.failed >= self.max_errors

    def finish(self) -> Module:
        """The student with the demos of this set, as upstream assembles them."""
        self.name2traces = {name: [] for name in self.name2predictor}
        for index in sorted(self.outcomes):
            for name, demos in (self.outcomes[index] or {}).items():
                self.name2traces[name].extend(demos)
        self.validation = [x for i, x in enumerate(self.trainset) if self.outcomes.get(i) is None]
        random.Random(0).shuffle(self.validation)
        student: Module = self._train()
        student._compiled = True
        return student

    def _lane(self) -> DemoSet:
        """A view of this set with a teacher and traces of its own: a run of the teacher changes its demos."""
        lane = copy.copy(self)
        lane.teacher = self.teacher.deepcopy()
        for predictor in lane.teacher.predictors():
            predictor.demos = [
                _Demo(dict(one.items(include_dspy=True))) if type(one) is dspy.Example else one
                for one in predictor.demos
            ]
        lane.max_errors = 1
        lane.error_count = 0
        lane._prepare_predictor_mappings()
        lane.name2traces = {name: [] for name in self.name2predictor}
        if self.found is not None and self.metric is not None:
            lane.metric = _Telling(self.metric, self.found, lane.teacher)
        return lane


class _Demo(dspy.Example):
    """A demo of the teacher, which is not shown the example that it answers: that may hold arrays, too."""

    __hash__ = dspy.Example.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dspy.Example) and same_fields(self, other)


class _Telling:
    """A metric that tells of every attempt."""

    def __init__(self, metric: Callable[..., Any], found: Callable[..., None], teacher: Any) -> None:
        self._metric, self._found = metric, found
        self._teacher = teacher

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        score = self._metric(example, prediction, trace)
        self._found(example, prediction, trace, score, self._teacher)
        return score


def _draw(student: Module, trainset: list[Any], options: BootstrapOptions, rng: random.Random) -> Iterator[Any]:
    """Every set in order, with upstream's draws: compiled students, or sets that still have to run."""
    for number in range(options.num_sets):
        if number == 0:
            yield student.reset_copy()
        elif number == 1 and options.max_labeled_demos > 0:
            yield LabeledFewShot(k=options.max_labeled_demos).compile(student, trainset=list(trainset))
        else:
            examples, size = list(trainset), options.max_bootstrapped_demos
            if number != 2:
                rng.shuffle(examples)
                size = rng.randint(1, size) if size > 0 else 0
            demo_set = DemoSet(
                metric=None if options.metric is None else Metric(options.metric),
                metric_threshold=options.metric_threshold,
                teacher_settings=dict(options.teacher_settings),
                max_bootstrapped_demos=size,
                max_labeled_demos=options.max_labeled_demos,
                max_errors=dspy.settings.max_errors if options.max_errors is None else options.max_errors,
            )
            demo_set.number, demo_set.found = number, options.found
            yield demo_set.begin(student, options.teacher, examples)


def _finished(one: Module | DemoSet) -> Module:
    return one.finish() if isinstance(one, DemoSet) else one


def _demos(programs: list[Module]) -> dict[int, list[list[Any]]]:
    """The demo sets of each predictor."""
    predictors = [program.predictors() for program in programs]
    return {i: [each[i].demos for each in predictors] for i in range(len(predictors[0]))}


def _run(sets: list[DemoSet], pool: Submitter, report: StepReport, ready: Callable[[], None]) -> None:
    def start(demo_set: DemoSet) -> dict[Future[Any], Any]:
        return {pool.submit(demo_set.attempt, i, report): (demo_set, i) for i in demo_set.wanted()}

    def ended(tag: tuple[DemoSet, int], future: Future[Any]) -> dict[Future[Any], Any]:
        demo_set, index = tag
        demo_set.take(index, future, report)
        _check(sets, demo_set, report)
        started = start(demo_set)
        ready()
        return started

    running = {future: tag for demo_set in sets for future, tag in start(demo_set).items()}
    ready()
    as_they_end(running, ended)
    _check_all(sets, report)


def _check(sets: list[DemoSet], demo_set: DemoSet, report: StepReport) -> None:
    """Nothing has worked yet and as many examples failed as one set may have: no set will fare better."""
    # answers that cannot be read may be ones that can under another instruction: of those each set may have so many
    failed = demo_set.failed if _unreadable(report) else sum(each.failed for each in sets)
    if failed and failed >= demo_set.max_errors and not any(each.sound for each in sets):
        raise _failed(f"All of the first {counted(failed, 'example')}", report, "; max_errors allows more")


def _check_all(sets: list[DemoSet], report: StepReport) -> None:
    """Demos were asked for, and none came: an error where every example failed, a warning where all were wrong."""
    tried = [each for each in sets if each.outcomes]
    if any(each.successes for each in tried) or not tried:
        return
    readable = any(each.sound for each in tried)
    if not readable and not _unreadable(report):
        raise _failed("All examples that were tried", report)
    logger.warning(
        "The program answered no example of the trainset %s: there are no bootstrapped demos. "
        "If that is a surprise, look at the %s%s.",
        "rightly" if readable else "in a form that can be read",
        "metric" if readable else "signature and the adapter",
        "" if tried[0].metric_threshold is None else f" and at metric_threshold={tried[0].metric_threshold:g}",
    )


def _unreadable(report: StepReport) -> bool:
    """Whether all that failed were answers that cannot be read, which score 0 in a search."""
    errors = [each.error for each in report.failures if each.step == BOOTSTRAP]
    return all(isinstance(each, AdapterParseError) and not (empty_replies(each) or of_metric(each)) for each in errors)


def _failed(what: str, report: StepReport, more: str = "") -> EvaluationError:
    last = report.failures[-1].error
    error = EvaluationError(
        f"{what} of the trainset failed, the last with {said(last).rstrip('.')}. "
        f"Correct the program, the metric or the language model{more}."
    )
    error.__cause__ = cause(last)
    return error


def _unreachable(error: Exception) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or may_repeat(error)

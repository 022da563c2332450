"""Programs as the thing to be evaluated: every (prompt, example) pair is a task of one shared pool."""

from __future__ import annotations

import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import dspy
import dspy.utils.callback_context as callback_context
from dspy.promptune.allocation.records import STOPPED, Job, JobKind
from dspy.promptune.distributed.metrics import score_of
from dspy.promptune.distributed.silence import SilentPairs
from dspy.promptune.distributed.states import Abandoned, Head, Lost, Silent, State
from dspy.promptune.errors import EvaluationError, MetricError
from dspy.promptune.limits.answers import empty_replies, of_model, unanswered
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.limits.pool import Pool
from dspy.promptune.limits.task import waiting, with_threads
from dspy.promptune.limits.views import through_gateway
from dspy.promptune.run.evaluators import Done, Keep, keep_nothing
from dspy.promptune.secrets import readable, said
from dspy.promptune.space import Key, PromptSpace
from dspy.utils.exceptions import AdapterParseError

if TYPE_CHECKING:
    from dspy.primitives.example import Example
    from dspy.primitives.module import Module

__all__ = ["EvaluationRules", "ProgramCache", "ProgramEvaluator"]

logger = logging.getLogger(__name__)

STRAGGLERS = 3  # examples at most that a run may end without, when nothing else is left to do,
PATIENCE = 3.0  # and the usual times of an example that it waits for them
LOSSES = 4  # jobs in a row that got no answer for an example which never got one; then it counts as an error
HEAD = -1  # number of the job that stands for an evaluation without a trial yet


@dataclass(frozen=True, kw_only=True)
class EvaluationRules:
    """How a program is scored.

    Attributes:
        metric: ``metric(example, prediction)`` gives a number or a bool.
        valset: The validation examples.
        max_errors: Examples of one job on which program or metric may raise before the job fails, as upstream's.
        failure_score: The score of an example whose answer cannot be read, or on which a tolerated error was raised.
        retries: Times an example is tried again when the language model could not be reached.
        timeout: Seconds at work, waiting for a place not counted, after which an example is given up; ``None`` for
            ever.
        part: The examples are a part of a job's: it is not for this part to say that all of them raised.
    """

    metric: Callable[..., Any]
    valset: Sequence[Example]
    max_errors: int = 10
    failure_score: float = 0.0
    retries: int = 2
    timeout: float | None = 120.0
    part: bool = False


class ProgramCache:
    """The programs of a space, built once each; the default combination is the student itself.

    Until :meth:`release` the language models of their predictors are the run's views of them. ``space`` may be set
    again as long as the combinations built so far keep their meaning.
    """

    def __init__(self, student: Module, default: Key) -> None:
        self.space: PromptSpace | None = None
        self._student = student
        self._own: list[tuple[Any, Any]] = []
        self._built: dict[Key, Module] = {default: self._gateway(student.deepcopy())}

    def __getitem__(self, key: Key) -> Module:
        if key not in self._built:
            assert self.space is not None
            self._built[key] = self._gateway(self.space.build(self._student, key))
        return self._built[key]

    def built(self) -> list[Module]:
        """Those built so far, the student first."""
        return list(self._built.values())

    def release(self) -> None:
        """Give the predictors their own language models back."""
        for predictor, lm in self._own:
            predictor.lm = lm
        self._own.clear()

    def _gateway(self, program: Module) -> Module:
        for predictor in program.predictors():
            if getattr(predictor, "lm", None) is not None:
                self._own.append((predictor, predictor.lm))
                predictor.lm = through_gateway(predictor.lm)
        return program


class ProgramEvaluator:
    """Evaluates jobs by running their programs, all examples of all running jobs in one pool.

    Failure is a state. An answer that cannot be read is a wrong answer and scores ``failure_score``. A language model
    that gives no answer (after ``retries``), to the program or to the metric, ``max_errors`` examples that raise, or
    all of them: the job fails, with its first error. Fewer errors score ``failure_score`` each, as upstream has it, and
    so do all, up to ``max_errors``, where program and metric raised and the prompt was given a score before.
    An example that never gets an answer, whatever the prompt, in five jobs in a row while others do, is such an error:
    it would fail every job it is in. Where all replies to a prompt on an example are empty, and stay so while others
    are answered, that is an answer that cannot be read. A metric that returns no number ends the run: no job begins
    another example. A job that failed for want of an answer ends when its other examples have: they are kept.

    The callbacks of a job's modules have one parent, ``Outcome.call_id``; the callbacks of the evaluation itself are
    called when the job is told (:class:`dspy.promptune.compile.callbacks.EvaluationCallbacks`).

    Attributes:
        cut: Examples that were not waited for at the end.
        silence: Prompts to whose calls for an example nothing but empty replies came.
        late: Examples that workers elsewhere gave up; in threads it is the pool that counts them.

    Args:
        programs: What is run.
        rules: How it is scored.
        pool: Where.
        n_jobs: Jobs at a time. While a thread would be idle otherwise, one more is taken up, so that no thread waits
            for the slowest example of a job, or because a job has few examples. The pool says when one is idle.
        keep: Called with the score of every example before it counts, in the thread that scored it. The number of a
            job that has no trial yet is negative.
        broken: Called with what is wrong with the metric, in the thread that found it.
    """

    def __init__(
        self,
        programs: ProgramCache,
        rules: EvaluationRules,
        pool: Pool,
        n_jobs: int,
        *,
        keep: Keep = keep_nothing,
        broken: Callable[[MetricError], None] = lambda error: None,
    ) -> None:
        self.programs = programs
        self._keep = keep
        self.cut = self.late = 0
        self._rules, self._pool, self._n_jobs = rules, pool, n_jobs
        self._states: dict[int, State] = {}
        self._heads: dict[Key, Head] = {}
        self._seconds: deque[float] = deque(maxlen=200)
        self._losses: dict[int, int] = {}
        self._answered: set[int] = set()
        self.silence, self._unjudged = SilentPairs(), SilentPairs()
        self._sound: set[Key] = set()  # prompts with which program and metric went through an example
        self._tell_broken = broken
        self._broken: MetricError | None = None

    def room(self, running: int) -> bool:
        """While fewer than ``n_jobs`` are running, or a thread is idle."""
        return running < self._n_jobs or self._pool.free > 0

    def head_start(self, key: Key, examples: Sequence[int]) -> None:
        """Begin an evaluation with threads that nothing else needs, before there are any jobs.

        The first job of ``key``, which must be for the same examples, takes it over as far as it has come.
        """
        self._heads[key] = head = Head()
        kind: JobKind = "full" if len(examples) == len(self._rules.valset) else "block"
        state = State(Job(HEAD, key, tuple(examples), kind), self.programs[key], len(examples), head.ended)
        self._begin(state, examples, filler=True)

    def await_heads(self) -> None:
        """Wait until what was begun so has ended, or the run."""
        while any(not head.over for head in self._heads.values()) and not self._pool.stopped.is_set():
            time.sleep(0.02)

    def start(self, job: Job, missing: Sequence[int], done: Done) -> None:
        """Hand the examples to the pool."""
        head = self._heads.pop(job.key, None)
        if head is not None:
            self._pool.promote()
            head.take_over(job, done)
        else:
            state = State(job, self.programs[job.key], len(missing), done)
            self._begin(state, missing)

    def tend(self, *, ending: bool) -> None:
        """At the end, wait no longer for the last examples than for any other."""
        states = list(self._states.values())
        few = 0 < sum(state.waiting for state in states) <= STRAGGLERS
        if ending and few and self._pool.least_seconds() > PATIENCE * self._usual_seconds():
            for state in states:
                self._cut(state)

    def _usual_seconds(self) -> float:
        """Median time of the latest examples."""
        return median(self._seconds) if self._seconds else math.inf

    def _cut(self, state: State) -> None:
        """End a job without the examples that nobody wants to wait for; evaluations in full are waited for."""
        with state.lock:
            if state.over or state.job.kind == "full" or not state.outcome.scores:
                return
            state.over = state.outcome.cut = True
            self.cut += state.waiting
        self._finish(state, None)

    def stop(self) -> None:
        """Start nothing more, and let go of what is running: jobs end with the scores they have."""
        self._pool.stop()
        for state in list(self._states.values()):
            self._fail(state, EvaluationError(STOPPED))

    # ------------------------------------------------------------------ one job

    def _begin(self, state: State, examples: Sequence[int], filler: bool = False) -> None:
        self._states[id(state)] = state
        contextvars.copy_context().run(self._submit, state, list(examples), filler)

    def _submit(self, state: State, examples: list[int], filler: bool) -> None:
        callback_context.ACTIVE_CALL_ID.set(state.outcome.call_id)  # type: ignore[arg-type]
        for example in examples:
            limit = self._rules.timeout
            future = self._pool.submit_limited(limit, self._run_example, state, example, filler=filler)
            future.add_done_callback(partial(self._returned, state, example))

    def _returned(self, state: State, index: int, future: Future[None]) -> None:
        """A task has ended; only a time-out, or what no program should raise, is an error here."""
        if future.cancelled() or (error := future.exception()) is None:
            return
        if not isinstance(error, TimeoutError):
            self._fail(state, error)
        elif self._lose(state, index, error):
            self._note_error(state, index, error, lost=True)
        self._left(state, index)

    def _run_example(self, state: State, index: int) -> None:
        """One task."""
        if self._broken is not None:
            self._fail(state, self._broken)
        with state.lock:
            if state.over or state.lost is not None or self._pool.stopped.is_set():
                return
            state.running.add(index)
            state.outcome.tried = (state.outcome.tried or 0) + 1
        self._score_example(state, index)
        self._left(state, index)

    def _score_example(self, state: State, index: int) -> None:
        """Whatever an ordinary error does to the job is written down, not raised."""
        start = time.monotonic()
        try:
            self._score(state, index)
        except Abandoned:
            return
        except MetricError as error:
            self._broken = error
            self._fail(state, error)
            self._tell_broken(error)
        except Lost as lost:
            self._note_error(state, index, lost.error, lost=True)
        except Stopped:
            raise
        except BaseException as error:
            self._note_error(state, index, error)
        self._seconds.append(time.monotonic() - start)

    def _score(self, state: State, index: int) -> None:
        rules, example = self._rules, self._rules.valset[index]
        try:
            prediction = self._tried(state, index, lambda: state.program(**example.inputs()), unanswered, self.silence)
        except (AdapterParseError, Silent) as unread:
            error = unread.error if isinstance(unread, Silent) else unread
            logger.debug("Unreadable answer: %s", said(error))
            self._answered.add(index)
            self._keep(state.job, {index: rules.failure_score})
            self._note(state, index, dspy.Prediction(), rules.failure_score, unread=error)
            return
        self._answered.add(index)
        score = self._tried(
            state, index, lambda: score_of(rules.metric, example, prediction), _no_verdict, self._unjudged
        )
        self._losses.pop(index, None)
        self._sound.add(state.job.key)
        with waiting():
            self._keep(state.job, {index: score})
        self._note(state, index, prediction, score)

    def _tried(
        self, state: State, index: int, call: Callable[[], Any], lost: Callable[..., bool], silence: SilentPairs
    ) -> Any:
        """What a program or a metric returns, tried again where a language model gave it no answer.

        Raises:
            Abandoned: Nobody waits for it, or no answer came.
            Lost: None ever does.
            Silent: Nor does it to this prompt, whose replies are empty.
        """
        pair, replies = (state.job.key, index), 0
        since = silence.since(pair)
        for attempt in range(self._rules.retries + 1):
            if state.over or self._pool.stopped.is_set():
                raise Abandoned
            try:
                found = with_threads(call)
                silence.answered()
                return found
            except Exception as error:
                if not lost(error):
                    raise
                if empty := empty_replies(error):
                    replies += empty
                    since = silence.asked_in_vain(pair, since)
                    if silence.is_silent(pair, replies, since):
                        raise Silent(error) from error
                if attempt == self._rules.retries and replies:
                    silence.note([pair], since)
                if attempt == self._rules.retries:
                    raise Lost(error) if self._lose(state, index, error) else Abandoned from error
        raise Abandoned

    def _lose(self, state: State, index: int, error: BaseException) -> bool:
        """No answer came for an example. True where it never does, and others are answered: then the job goes on."""
        self._losses[index] = losses = self._losses.get(index, 0) + 1
        if losses > LOSSES and self._answered and index not in self._answered:
            return True
        with state.lock:
            state.lost = state.lost or error
        return False

    def _left(self, state: State, index: int) -> None:
        """An example is no longer running; the last one of a job without an answer ends it."""
        with state.lock:
            state.running.discard(index)
            lost = None if state.running else state.lost
        if lost is not None:
            self._fail(state, lost, transient=True)

    def _note(
        self, state: State, index: int, prediction: Any, score: float, *, unread: BaseException | None = None
    ) -> None:
        with state.lock:
            if state.over:  # its outcome is being read
                return
            if unread is not None:
                state.outcome.unread[index] = unread
                state.outcome.unreadable += 1
            state.outcome.scores[index] = score
            state.outcome.predictions[index] = prediction
            state.waiting -= 1
            state.over = state.waiting == 0
            over = state.over
        if over:
            all_failed = not self._rules.part and 0 < state.outcome.errors == len(state.outcome.scores)
            to_blame = state.refused or state.job.key not in self._sound
            self._finish(state, state.first_error if all_failed and to_blame else None)

    def _note_error(self, state: State, index: int, error: BaseException, *, lost: bool = False) -> None:
        error = readable(error)
        with state.lock:
            if state.over:
                return
            state.first_error = state.first_error or error
            state.refused = state.refused or lost or of_model(error)
            state.outcome.errors += 1
            state.outcome.raised[index] = error
            too_many = state.outcome.errors >= self._rules.max_errors
        if too_many:
            self._fail(state, state.first_error)
        else:
            self._note(state, index, dspy.Prediction(), self._rules.failure_score)

    def _fail(self, state: State, error: BaseException, *, transient: bool = False) -> None:
        with state.lock:
            if state.over:
                return
            state.over = True
        self._finish(state, error, transient)

    def _finish(self, state: State, error: BaseException | None, transient: bool = False) -> None:
        outcome = state.outcome
        outcome.seconds = time.monotonic() - state.start
        outcome.error, outcome.transient = None if error is None else readable(error), transient
        if error is not None and outcome.errors:
            outcome.scores = {}  # examples that raised are among them, and no number stands for those
        self._states.pop(id(state), None)
        state.done(state.job, outcome)


def _no_verdict(error: BaseException) -> bool:
    """Whether a judge gave no answer, or none that can be read: the program's answer was not judged."""
    return isinstance(error, AdapterParseError) or unanswered(error)

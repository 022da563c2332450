"""Where evaluations happen: in this thread, or in the threads of a pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from dspy.promptune.allocation.outcome import Outcome, numbers
from dspy.promptune.allocation.records import Job
from dspy.promptune.limits.answers import unanswered
from dspy.promptune.limits.pool import Pool
from dspy.promptune.secrets import readable
from dspy.promptune.space import PromptSpace

__all__ = ["Evaluate", "Evaluator", "Inline", "Keep", "Threaded", "keep_nothing"]

Evaluate = Callable[[dict[str, int], Sequence[int]], Sequence[float]]
"""``(parameters, indices of validation examples) -> one score for each``."""

NO_ANSWER = (TimeoutError, ConnectionError)  # what an evaluation raises of which its prompt knows nothing

Done = Callable[[Job, Outcome], None]

Keep = Callable[[Job, Mapping[int, float]], None]
"""Called in the evaluating thread with scores of a job's examples as they finish, before anything depends on them."""


def keep_nothing(job: Job, scores: Mapping[int, float]) -> None:
    """Scores that are kept in memory only."""


class Evaluator(Protocol):
    """Evaluates jobs. Started from the thread that owns the run; ``done`` is called once a job, from any thread."""

    def start(self, job: Job, missing: Sequence[int], done: Done) -> None:
        """Evaluate ``job.key`` on the examples ``missing``, which are those of the job not scored yet."""

    def room(self, running: int) -> bool:
        """Whether another job should be started while ``running`` jobs are."""

    def tend(self, *, ending: bool) -> None:
        """Called by the owner of the run at least once a second while jobs are running.

        With ``ending`` there is nothing left to start: jobs may end with what they have, ``Outcome.cut``.
        """

    def stop(self) -> None:
        """Start nothing more of what was started; jobs that cannot end are not waited for."""


class Inline:
    """One job after the other, in the thread that owns the run."""

    def __init__(self, space: PromptSpace, evaluate: Evaluate, keep: Keep = keep_nothing) -> None:
        self._space = space
        self._evaluate = evaluate
        self._keep = keep

    def start(self, job: Job, missing: Sequence[int], done: Done) -> None:
        """Evaluate at once."""
        done(job, _outcome(self._evaluate, self._space.params(job.key), missing, partial(self._keep, job)))

    def room(self, running: int) -> bool:
        """Only when the last one was taken note of."""
        return running == 0

    def tend(self, *, ending: bool) -> None:
        """Nothing to look after."""

    def stop(self) -> None:
        """Nothing is under way."""


class Threaded:
    """``n_jobs`` jobs at once, each in a thread and in a copy of the caller's context."""

    def __init__(self, space: PromptSpace, evaluate: Evaluate, n_jobs: int, keep: Keep = keep_nothing) -> None:
        self._space = space
        self._evaluate = evaluate
        self._keep = keep
        self._pool = Pool(n_jobs)

    def start(self, job: Job, missing: Sequence[int], done: Done) -> None:
        """Evaluate as soon as a thread is free."""
        params, keep = self._space.params(job.key), partial(self._keep, job)
        future = self._pool.submit(_outcome, self._evaluate, params, missing, keep)

        def finish(_: Any) -> None:
            if not future.cancelled():
                error = future.exception()
                done(job, Outcome(error=error) if error else future.result())

        future.add_done_callback(finish)

    def room(self, running: int) -> bool:
        """While a thread is free."""
        return running < self._pool.workers

    def tend(self, *, ending: bool) -> None:
        """Nothing to look after."""

    def stop(self) -> None:
        """Cancel what no thread has taken up."""
        self._pool.stop()


def _outcome(
    evaluate: Evaluate,
    params: dict[str, int],
    examples: Sequence[int],
    keep: Callable[[Mapping[int, float]], None],
) -> Outcome:
    start = time.monotonic()
    outcome = Outcome()
    try:
        outcome.scores = numbers(evaluate(params, list(examples)), examples)
        keep(outcome.scores)
    except Exception as error:
        outcome.error, outcome.transient = readable(error), isinstance(error, NO_ANSWER) or unanswered(error)
    outcome.seconds = time.monotonic() - start
    return outcome

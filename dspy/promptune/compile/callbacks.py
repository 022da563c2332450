"""DSPy's callbacks of an evaluation: begun and ended in one thread, one evaluation after the other."""

from __future__ import annotations

import logging
import math
import uuid
from typing import TYPE_CHECKING, Any

import dspy
from dspy.evaluate.evaluate import Evaluate, EvaluationResult
from dspy.promptune.secrets import said

if TYPE_CHECKING:
    from dspy.primitives.module import Module
    from dspy.promptune.allocation.outcome import Outcome
    from dspy.promptune.allocation.records import Job
    from dspy.promptune.distributed.programs import EvaluationRules

__all__ = ["EvaluationCallbacks"]

logger = logging.getLogger(__name__)


class EvaluationCallbacks:
    """Tells the callbacks of ``dspy.settings`` of every job that was evaluated, in the thread of the compile.

    Jobs run at the same time, and trackers such as MLflow keep a stack of runs for each thread. So a job's
    ``on_evaluate_start`` and ``on_evaluate_end`` are called one right after the other, when its scores are told.

    Args:
        rules: Metric and validation examples.
        num_threads: Examples at once, as it is told to the callbacks.
    """

    def __init__(self, rules: EvaluationRules, num_threads: int) -> None:
        self._rules = rules
        self._evaluate = Evaluate(devset=list(rules.valset), metric=rules.metric, num_threads=num_threads)

    def told(self, job: Job, outcome: Outcome, program: Module) -> None:
        """A job has ended; one that had nothing left to evaluate is no evaluation."""
        callbacks = list(dspy.settings.get("callbacks") or [])
        if not callbacks or not (outcome.scores or outcome.error):
            return
        call_id = outcome.call_id or uuid.uuid4().hex
        inputs, outputs = self._inputs(job, outcome, program), self._result(outcome)
        for callback in callbacks:
            try:
                callback.on_evaluate_start(call_id=call_id, instance=self._evaluate, inputs=dict(inputs))
                callback.on_evaluate_end(call_id=call_id, outputs=outputs, exception=outcome.error)
            except Exception as error:
                logger.warning("Callback %r failed at an evaluation: %s", callback, said(error))

    def _inputs(self, job: Job, outcome: Outcome, program: Module) -> dict[str, Any]:
        """The arguments of ``Evaluate.__call__``."""
        return {
            "program": program,
            "metric": self._rules.metric,
            "devset": [self._rules.valset[example] for example in outcome.scores or job.examples],
            "num_threads": self._evaluate.num_threads,
            "display_progress": False,
            "display_table": False,
            "callback_metadata": {"metric_key": "eval_full" if job.kind == "full" else "eval_minibatch"},
            "save_as_csv": None,
            "save_as_json": None,
        }

    def _result(self, outcome: Outcome) -> EvaluationResult | None:
        """Mean score in percent and one row an example; ``None`` of an evaluation that failed."""
        if outcome.error is not None:
            return None
        rows = [
            (self._rules.valset[example], outcome.predictions.get(example, dspy.Prediction()), score)
            for example, score in outcome.scores.items()
        ]
        mean = math.fsum(outcome.scores.values()) / len(rows)
        return EvaluationResult(score=round(100 * mean, 2), results=rows)

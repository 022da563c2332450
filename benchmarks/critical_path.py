"""How fast a compile could have been: its critical path with endless workers, from the latencies that were recorded.

The work is taken as it was: the same calls, each evaluation started from what the run knew when it started it.
With endless workers, an evaluation would start the moment the last of the evaluations that had ended before its
start has ended, and it would take as long as the slowest of its examples; an example takes the latencies of its
calls one after another. Steps 1 and 2 are the longer of the two chains "demo sets, then descriptions" and "summary of
the trainset", and then the slowest proposal. Time spent by Python, waiting for a thread, or proposing, counts as 0.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from tests.server import Prompt, Record
from tests.server.behavior import digest

SLACK = 0.05  # seconds by which a call may seem to begin before, or end after, its evaluation


@dataclass
class Evaluation:
    """One evaluation: its program, questions, and when it began and ended (monotonic seconds)."""

    program: Any
    questions: list[str]
    start: float
    end: float = float("inf")


class Watch(BaseCallback):
    """Takes note of every evaluation of a compile."""

    def __init__(self) -> None:
        self.evaluations: dict[str, Evaluation] = {}
        self.lock = threading.Lock()

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """An evaluation begins."""
        questions = [example.question for example in inputs["devset"]]
        with self.lock:
            self.evaluations[call_id] = Evaluation(inputs["program"], questions, time.monotonic())

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """An evaluation has ended."""
        with self.lock:
            self.evaluations[call_id].end = time.monotonic()


def critical_path(
    watch: Watch, records: Sequence[Record], begin: float, steps: dict[str, float]
) -> tuple[float, float]:
    """Seconds that the compile which began at ``begin`` needs with endless workers, as it was scheduled and at least.

    The second number lets every evaluation begin once the candidates are there, whatever it was to learn from others.
    """
    calls: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        calls[record.prompt, record.item].append(record)
    ready = _steps(records, steps)
    third = begin + steps["step 1"] + steps["step 2"]
    ended: list[tuple[float, float]] = []  # (when it ended, when it could have ended)
    for one in sorted(watch.evaluations.values(), key=lambda one: one.end):
        known = [could for end, could in ended if end <= one.start]
        start = max([ready, *known]) if one.start >= third else one.start - begin
        ended.append((one.end, start + _duration(one, calls)))
    floor = max(ready, *(ready + _duration(one, calls) for one in watch.evaluations.values() if one.start >= third))
    return max(could for _, could in ended), floor


def _steps(records: Sequence[Record], steps: dict[str, float]) -> float:
    seconds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        seconds[record.label].append(record)
    summary = sum(record.seconds for record in seconds["observations"] + seconds["summary"])
    chains = [
        module.seconds + min(seconds["program_description"], key=lambda one: abs(module.start - one.end)).seconds
        for module in seconds["module_description"]
    ]
    proposals = max((record.seconds for record in seconds["proposed_instruction"]), default=0.0)
    return max(summary, steps["step 1"] + max(chains, default=0.0)) + proposals


def _duration(one: Evaluation, calls: dict[tuple[str, str], list[Record]]) -> float:
    prompts = [_prompt(predictor) for predictor in one.program.predictors()]
    return max((sum(_call(calls[p, digest(q)], one) for p in prompts) for q in one.questions), default=0.0)


def _call(found: list[Record], one: Evaluation) -> float:
    inside = [r.seconds for r in found if r.start >= one.start - SLACK and r.end <= one.end + SLACK]
    return min(inside, default=0.0)


def _prompt(predictor: Any) -> str:
    inputs = dict.fromkeys(predictor.signature.input_fields, "x")
    return Prompt.read(dspy.ChatAdapter().format(predictor.signature, predictor.demos, inputs)).digest

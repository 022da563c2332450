"""A provider whose replies are no answers now and then: whether a score is wrong for it, and what it costs.

Each kind of reply, at each rate, meets two compiles: one whose model is always right, in which any score below 1 is
wrong, and one whose model is right half of the time, whose winner must be that of a run without faults.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import dspy
from tests.server import Faults, LMServer, Quality, TaskRule
from tests.server.behavior import BODY, Messages, unit
from tests.server.replies import NO_ANSWERS

RATES = (0.2, 0.5)
MIXED = "all of them, mixed"
ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(60)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]


@dataclass(frozen=True)
class Now:
    """Replaces a share of the answers, by the digest of the request and its number."""

    bodies: tuple[str, ...]
    rate: float

    def __call__(self, messages: Messages, attempt: int) -> str | None:
        """The reply instead of an answer."""
        drawn = unit("reply", str(messages), str(attempt))
        return BODY + self.bodies[int(drawn * 1e6) % len(self.bodies)] if drawn < self.rate else None


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Whether the answer is the expected one."""
    return bool(example.answer == prediction.answer)


def compiled(quality: float, bodies: tuple[str, ...] = (), rate: float = 0.0) -> tuple[Any, int]:
    """The record of one compile, and how many requests it took."""
    faults = Faults(rule=Now(bodies, rate) if bodies else None)
    with LMServer(TaskRule(ANSWERS, quality=Quality(quality)), faults=faults) as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False)
        with dspy.context(lm=lm):
            optimizer = dspy.MIPROv2(
                metric=exact, auto=None, num_candidates=4, num_threads=4, max_bootstrapped_demos=2, seed=1
            )
            program = optimizer.compile(
                dspy.Predict("question -> answer"), trainset=EXAMPLES[:12], valset=EXAMPLES[12:52], sampler="random",
                schedule="batch", n_jobs=4, num_trials=8, minibatch_size=10, disable_progress_bar=True,
            )  # fmt: skip
        return program.optimization_run, server.requests


def row(kind: str, bodies: tuple[str, ...], rate: float, plain: tuple[Any, int]) -> str:
    """One line of the table."""
    right, _ = compiled(1.0, bodies, rate)
    half, requests = compiled(0.5, bodies, rate)
    scores = [score for trial in right.trials for score in trial.user_attrs.get("scores", ())]
    wrong = sum(score < 1 for score in scores)
    failed = sum(trial.state.name != "COMPLETE" for run in (right, half) for trial in run.trials)
    same = "yes" if half.best_params == plain[0].best_params else "no"
    return f"| {kind} | {rate:.0%} | {wrong} of {len(scores)} | {failed} | {same} | {requests / plain[1]:.2f} |"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.getLogger("dspy").setLevel(logging.ERROR)
    plain = compiled(0.5)
    print("| reply instead of an answer | rate | wrong scores | failed trials | same winner | requests |")
    print("|---|---:|---:|---:|---|---:|")
    for rate in RATES:
        for kind, body in NO_ANSWERS.items():
            print(row(kind, (body,), rate, plain), flush=True)
        print(row(MIXED, tuple(NO_ANSWERS.values()), rate, plain), flush=True)


if __name__ == "__main__":
    main()

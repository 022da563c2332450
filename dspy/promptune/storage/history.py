"""What a run had done before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspy.promptune.allocation.records import Job, JobKind, ScoreTable
from dspy.promptune.space import Key, PromptSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["RunHistory", "history_of"]

LOST = "lost"  # user attribute of a FAILED trial: calls that it took for nothing
FARTHER = 0x9E3779B1  # between the seeds of two starts of a run


@dataclass(frozen=True)
class RunHistory:
    """What a run had done before it was taken up again; nothing, for a new one.

    Attributes:
        scores: Scores of each combination, by example.
        jobs: The evaluations that ended well, with their scores, in the order of their trials.
        failures: The evaluations that failed through the fault of their prompts, with what was said of them.
        lost: Calls of evaluations that failed, for whatever reason.
        trials: All finished trials.
    """

    scores: Mapping[Key, Mapping[int, float]] = field(default_factory=dict)
    jobs: Sequence[tuple[Job, Sequence[float]]] = ()
    failures: Sequence[tuple[Job, str]] = ()
    lost: int = 0
    trials: Sequence[FrozenTrial] = ()

    def seed(self, seed: int | None, salt: int = 0) -> int | None:
        """The sampler's seed for this start: the same one would propose again what was proposed at the beginning.

        Args:
            seed: The user's.
            salt: What distinguishes this start from others that go on at the same time.
        """
        if seed is None or not (self.trials or salt):
            return seed
        return (seed + FARTHER * len(self.trials) + salt) % 2**31

    def refill(self, table: ScoreTable) -> None:
        """Put what is paid for into the table."""
        for key, row in self.scores.items():
            for example, score in row.items():
                table.add(key, example, score)

    def covers(self, key: Key, examples: Sequence[int]) -> bool:
        """Whether one trial has told the scores of all these examples."""
        return any(job.key == key and set(examples) <= set(job.examples) for job, _ in self.jobs)


def history_of(
    trials: Sequence[FrozenTrial], notes: Mapping[Key, Mapping[int, float]], space: PromptSpace, n_examples: int
) -> RunHistory:
    """The past that trials and single scores tell of, as far as they are of this space and its examples."""
    from dspy.promptune.samplers.trials import key_of

    scores: dict[Key, dict[int, float]] = {}
    for indices, row in notes.items():
        if (key := space.find(indices)) is not None:
            scores.setdefault(key, {}).update(row)
    jobs: list[tuple[Job, Sequence[float]]] = []
    for trial in trials:
        key = key_of(trial.params, space)
        if key is None:
            continue
        told = told_scores(trial)
        for example, score in [*told, *trial.intermediate_values.items()]:
            scores.setdefault(key, {}).setdefault(example, score)
        if trial.state.name == "COMPLETE" and told and all(0 <= example < n_examples for example, _ in told):
            kind: JobKind = trial.user_attrs.get("kind", "block")
            job = Job(trial.number, key, tuple(example for example, _ in told), kind)
            jobs.append((job, [score for _, score in told]))
    kept = {key: {i: score for i, score in row.items() if 0 <= i < n_examples} for key, row in scores.items()}
    scored = {key: row for key, row in kept.items() if row}
    lost = sum(trial.user_attrs.get(LOST, 0) for trial in trials)
    return RunHistory(scored, jobs, list(_failed(trials, space)), lost, trials)


def _failed(trials: Sequence[FrozenTrial], space: PromptSpace) -> Iterator[tuple[Job, str]]:
    """The failed evaluations among trials whose prompts were to blame."""
    from dspy.promptune.samplers.failures import blamed
    from dspy.promptune.samplers.trials import key_of

    for trial in trials:
        key = key_of(trial.params, space)
        if key is not None and trial.state.name == "FAIL" and blamed(trial):
            noted = trial.user_attrs
            job = Job(trial.number, key, tuple(noted.get("examples", ())), noted.get("kind", "block"))
            yield job, str(noted.get("error", "It has no value."))


def told_scores(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Examples and scores that a trial was told at its end."""
    scores, examples = trial.user_attrs.get("scores"), trial.user_attrs.get("examples")
    if not isinstance(scores, list) or not isinstance(examples, list) or len(scores) != len(examples):
        return []
    pairs = [(int(example), float(score)) for example, score in zip(examples, scores, strict=True)]
    return [(example, score) for example, score in pairs if math.isfinite(score)]

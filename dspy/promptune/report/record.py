"""One view of a run for all figures: of a run that has just ended, or of one that is read from its storage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dspy.promptune.engine.encoding import decode
from dspy.promptune.errors import StorageError
from dspy.promptune.space import Key, PromptSpace

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from dspy.promptune.engine.search import SearchRun
    from dspy.promptune.gp.data import Observation

__all__ = ["Evaluation", "RunRecord", "record_of"]

FACTS = ("metric", "program", "language_model", "data", "embedder", "settings", "options", "versions")


@dataclass(frozen=True)
class Evaluation:
    """One trial. Times are in seconds since the first trial was proposed; ``error`` is that of a failed one."""

    number: int
    key: Key
    kind: str
    state: str
    scores: tuple[float, ...]
    paid: int
    proposed: float
    began: float
    ended: float
    error: str | None = None

    @property
    def mean(self) -> float:
        """Mean of its scores; NaN where it has none."""
        return math.fsum(self.scores) / len(self.scores) if self.scores else math.nan


@dataclass(frozen=True)
class RunRecord:
    """What the figures are drawn from.

    Attributes:
        name: Of the study.
        space: The candidates.
        evaluations: In the order of their trials.
        observations: The same as the model sees them, those that ended well.
        best: The winner.
        history: ``(calls, key)``: what the run would have returned after so many scored examples.
        ended: Why it ended.
        spent: By step: calls, tokens, dollars (``cost``) and seconds.
        facts: What is known of how the run was made.
    """

    name: str
    space: PromptSpace
    evaluations: tuple[Evaluation, ...]
    observations: tuple[Observation, ...] = field(repr=False)
    best: Key
    history: tuple[tuple[int, Key], ...]
    ended: str
    spent: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, Any] = field(repr=False)

    @cached_property
    def rows(self) -> dict[Key, dict[int, float]]:
        """The scores of each prompt, by example: all that its trials have measured."""
        found: dict[Key, dict[int, float]] = {}
        for one in self.observations:
            scores = one.scores or ()
            examples = one.examples or tuple(-1 - one_more for one_more in range(len(scores)))
            found.setdefault(one.key, {}).update(zip(examples, scores, strict=True))
        return found

    def mean(self, key: Key) -> float:
        """Mean of a prompt's scores; NaN where it has none."""
        row = self.rows.get(key, {})
        return math.fsum(row.values()) / len(row) if row else math.nan

    @property
    def default(self) -> Key:
        """The program as it came."""
        return (0,) * len(self.space.sizes)

    @property
    def calls(self) -> int:
        """Examples scored."""
        return sum(one.paid for one in self.evaluations)

    @property
    def seconds(self) -> float:
        """From the first proposal to the end of the last evaluation."""
        return max((one.ended for one in self.evaluations), default=0.0)

    @property
    def busy(self) -> float:
        """Seconds of all evaluations, as if one had followed the other."""
        return math.fsum(one.ended - one.began for one in self.evaluations)

    def total(self, what: str) -> float:
        """Calls, tokens or dollars (``cost``) over all steps."""
        return math.fsum(amounts.get(what, 0.0) for amounts in self.spent.values())

    def text(self, part: int, index: int) -> str:
        """A candidate as text."""
        return self.space.texts(part)[index]


def record_of(run: SearchRun | Study | RunRecord) -> RunRecord:
    """The record of a run.

    Args:
        run: What ``search`` returned or ``program.optimization_run`` is, or the Optuna study of a stored run.

    Raises:
        StorageError: The study is not a run of this package, or it has no result.
    """
    if isinstance(run, RunRecord):
        return run
    return _of_study(run) if hasattr(run, "user_attrs") else _of_run(run)


def _of_run(run: Any) -> RunRecord:
    if run.space is None:
        raise StorageError("This run does not know its candidates: it was made by an older version.")
    facts = {name: run.facts[name] for name in FACTS if run.facts.get(name) is not None}
    return RunRecord(
        name="run",
        space=run.space,
        **_trials(run.trials, run.space),
        best=run.space.key(run.best_params),
        history=tuple((calls, run.space.key(params)) for calls, params in run.history),
        ended=run.ended,
        spent=run.spent,
        facts=facts,
    )


def _of_study(study: Any) -> RunRecord:
    attributes = study.user_attrs
    if "candidates" not in attributes:
        raise StorageError(
            f"Study {study.study_name!r} holds no candidates: it is not a run of this package, or it ended before its "
            "search began."
        )
    space = space_of(attributes["candidates"])
    facts = {name: attributes[name] for name in FACTS if attributes.get(name) is not None}
    trials = study.get_trials(deepcopy=False)
    best = space.key(attributes["best"]) if attributes.get("best") else _leader(trials, space, study.study_name)
    found = _trials(trials, space)
    history = tuple((calls, tuple(key)) for calls, key in attributes.get("history", ()))
    return RunRecord(
        name=study.study_name,
        space=space,
        **found,
        best=best,
        history=history or _averages(found["evaluations"]),
        ended=attributes.get("ended", "not ended"),
        spent=attributes.get("spent", {}),
        facts=facts,
    )


def space_of(candidates: Mapping[str, Sequence[Any]]) -> PromptSpace:
    """The space of the candidates that a study holds, by parameter."""
    instructions: dict[int, Any] = {}
    demos: dict[int, Any] = {}
    for name, each in candidates.items():
        number, _, kind = name.partition("_predictor_")
        (instructions if kind == "instruction" else demos)[int(number)] = decode(list(each))
    return PromptSpace(instructions, demos or None)


def _leader(trials: Sequence[FrozenTrial], space: PromptSpace, name: str) -> Key:
    """Of a run that has not ended: the prompt with the best average, those with few scores held back."""
    from dspy.promptune.samplers.trials import observation

    found = [one for one in (observation(trial, space) for trial in trials) if one is not None]
    if not found:
        raise StorageError(f"Study {name!r} has no finished evaluation yet: there is nothing to report.")
    level = math.fsum(one.value for one in found) / len(found)
    sums: dict[Key, list[float]] = {}
    for one in found:
        sums.setdefault(one.key, []).extend(one.scores or [one.value])
    return max(sums, key=lambda key: (math.fsum(sums[key]) + 4 * level) / (len(sums[key]) + 4))


def _trials(trials: Sequence[FrozenTrial], space: PromptSpace) -> dict[str, Any]:
    """Trials as evaluations and as observations."""
    from dspy.promptune.samplers.trials import observation

    start = min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)
    evaluations = [_evaluation(trial, space, start) for trial in trials]
    observed = [observation(trial, space) for trial in trials if trial.state.name == "COMPLETE"]
    return {
        "evaluations": tuple(one for one in evaluations if one is not None),
        "observations": tuple(one for one in observed if one is not None),
    }


def _evaluation(trial: FrozenTrial, space: PromptSpace, start: datetime | None) -> Evaluation | None:
    from dspy.promptune.samplers.trials import key_of

    key, noted = key_of(trial.params, space), trial.user_attrs
    if key is None or start is None or trial.datetime_start is None:
        return None
    proposed = (trial.datetime_start - start).total_seconds()
    ended = (trial.datetime_complete - start).total_seconds() if trial.datetime_complete else proposed
    scores = tuple(float(score) for score in noted.get("scores", ()))
    return Evaluation(
        number=trial.number,
        key=key,
        kind=noted.get("kind", "minibatch"),
        state=trial.state.name,
        scores=scores,
        paid=int(noted.get("paid", len(scores) or len(trial.intermediate_values))),
        proposed=proposed,
        began=max(proposed, ended - float(noted.get("seconds", 0.0))),
        ended=ended,
        error=noted.get("error"),
    )


def _averages(evaluations: Sequence[Evaluation]) -> tuple[tuple[int, Key], ...]:
    """Where a run has not written down what it would have returned: the best average at every moment."""
    calls, found, sums = 0, [], {}  # type: ignore[var-annotated]
    for one in sorted(evaluations, key=lambda one: one.ended):
        calls += one.paid
        sums.setdefault(one.key, []).extend(one.scores)
        known = {key: scores for key, scores in sums.items() if scores}
        if known:
            found.append((calls, max(known, key=lambda key: math.fsum(known[key]) / (len(known[key]) + 1))))
    return tuple(found)

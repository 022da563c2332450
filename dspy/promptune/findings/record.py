"""One frozen record of a run, made from a run in memory or from a stored study: all that figures and page read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.records import is_text
from dspy.promptune.errors import StorageError
from dspy.promptune.findings.clock import Span, clock_of
from dspy.promptune.findings.scale import Scale, scale_of
from dspy.promptune.identity.encoding import decode
from dspy.promptune.run.failures import ExampleFailures, failures_of, unfinished
from dspy.promptune.run.texts import lineage_of, refusals, restored
from dspy.promptune.secrets import SecretMasker
from dspy.promptune.space import Key, PromptSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from dspy.promptune.findings.beliefs import Beliefs
    from dspy.promptune.gp.data import Observation

__all__ = ["Evaluation", "Moment", "RunRecord", "record_of"]

SHRINK = 4.0  # examples' worth of trust in the common level, where the best of a moment has to be reconstructed
PART = re.compile(r"(\d+)_predictor_(instruction|demos)")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One trial: a combination on some examples, at its time.

    Attributes:
        number: Of the trial.
        key: The combination; ``None`` where it is not one of the space.
        kind: "block", "minibatch" or "full".
        state: "complete", "failed", "unfinished" or "running".
        scores: By example, of those it was told with, or that it had when it was cut.
        paid: Examples that were newly scored for it.
        span: When it was proposed, asked for, begun and ended, in seconds of the run.
        lane: Of the timeline: evaluations of one lane never overlap.
        error: Of a failed one.
        tokens: Taken by it, where known.
        cost: Dollars, where known.
        errors: Examples on which program or metric raised.
        unreadable: Answers that could not be read.
    """

    number: int
    key: Key | None
    kind: str
    state: str
    scores: Mapping[int, float]
    paid: int
    span: Span
    lane: int
    error: str | None = None
    tokens: float | None = None
    cost: float | None = None
    errors: int = 0
    unreadable: int = 0

    @property
    def mean(self) -> float:
        """Mean of its scores; NaN without."""
        return mean(self.scores.values())


@dataclass(frozen=True)
class Moment:
    """What the run would have returned after ``calls`` scored examples, ``seconds`` after its beginning."""

    calls: int
    seconds: float
    key: Key


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as it is shown. All times are seconds since its first proposal or evaluation, idle stretches cut out.

    Attributes:
        name: Of the study, or what the run was.
        space: The combinations.
        evaluations: In the order of their numbers.
        history: In the order of time.
        replayed: Whether the history had to be reconstructed from the scores.
        best: The winner; ``None`` while nothing was scored.
        facts: Settings, options, versions and the like, as JSON.
        spent: By step: calls, tokens, ``cost`` and seconds.
        ended: Why it ended; ``None`` where it has not.
        embedder: Gives the texts their meaning, where it is known.
        seconds: Wall time of the search.
        idle: Seconds that were cut out, between two starts of the run.
        observations: What the model is told.
        example_failures: Examples that raised, and answers that could not be read.
    """

    name: str
    space: PromptSpace
    evaluations: tuple[Evaluation, ...]
    history: tuple[Moment, ...]
    replayed: bool
    best: Key | None
    facts: Mapping[str, Any]
    spent: Mapping[str, Mapping[str, float]]
    ended: str | None
    embedder: Any
    seconds: float
    idle: float
    observations: Sequence[Observation] = field(repr=False)
    example_failures: ExampleFailures = field(default_factory=ExampleFailures)

    @property
    def default(self) -> Key:
        """The original program: the first candidate of each part."""
        return (0,) * len(self.space.names)

    @property
    def calls(self) -> int:
        """Examples scored."""
        return sum(each.paid for each in self.evaluations)

    def having(self, state: str) -> list[Evaluation]:
        """The evaluations in this state."""
        return [each for each in self.evaluations if each.state == state]

    @property
    def missing(self) -> list[str]:
        """What steps 1 and 2 could not make, a sentence each."""
        return list(self.facts.get("missing") or ())

    @property
    def n_examples(self) -> int:
        """Size of the validation set; of a run that did not write it down, as far as it was seen."""
        size = (self.facts.get("data") or {}).get("valset", {}).get("examples")
        size = size or (self.facts.get("settings") or {}).get("n_examples")
        return int(size or 1 + max((example for row in self.rows.values() for example in row), default=-1))

    @cached_property
    def rows(self) -> dict[Key, dict[int, float]]:
        """Scores by combination and example."""
        found: dict[Key, dict[int, float]] = {}
        for each in self.evaluations:
            if each.key is not None and each.scores:
                row = found.setdefault(each.key, {})
                for example, score in each.scores.items():
                    row.setdefault(example, score)
        return found

    @cached_property
    def scale(self) -> Scale:
        """The units that its scores are told in."""
        return scale_of(score for row in self.rows.values() for score in row.values())

    @cached_property
    def beliefs(self) -> Beliefs | None:
        """What the model believes of the prompts at the end; ``None`` while nothing was scored."""
        from dspy.promptune.findings.beliefs import believe

        return believe(self) if self.rows else None

    @cached_property
    def chances(self) -> tuple[float, float, float] | None:
        """Probability of being the best prompt: of the winner, of the others that were tried, of those not tried."""
        if self.beliefs is None or self.best is None:
            return None
        found = {key: (self.beliefs.of(key) or (0.0, 0.0, 0.0))[2] for key in (self.best, *self.rows)}
        return found[self.best], sum(found.values()) - found[self.best], max(0.0, 1.0 - sum(found.values()))

    def codes(self, key: Key) -> str:
        """A combination in a word: ``I3 D1``; with several predictors, ``I3 D1 | I0 D2``."""
        words: dict[int, list[str]] = {}
        for part, index in zip(self.space.parts, key, strict=True):
            words.setdefault(part.predictor, []).append(f"{part.kind[0].upper()}{index}")
        return " | ".join(" ".join(each) for each in words.values())

    def of_predictor(self, number: int) -> str:
        """`` of predictor 1 (solve)``, by the name that the program has for it; nothing where there is no other."""
        if len({part.predictor for part in self.space.parts}) < 2:
            return ""
        names = list((self.facts.get("program") or {}).get("predictors") or ())
        name = f" ({names[number].removesuffix('.predict')})" if number < len(names) else ""
        return f" of predictor {number}{name}"


def mean(values: Any) -> float:
    """Mean of some numbers; NaN of none."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def record_of(run: Any) -> RunRecord:
    """The record of a run: a :class:`~dspy.promptune.SearchRun`, or the Optuna study of a stored one.

    Raises:
        StorageError: It is neither, or a study without candidates: another tool's, or of a run that was not searching
            yet when it ended.
    """
    if isinstance(run, RunRecord):
        return run
    if getattr(run, "space", None) is not None:
        said = {"best": run.best_params, "spent": run.spent, "ended": run.ended}
        said.update(cases=run.cases, lineage=run.lineage, expected_score=run.expected_score, interval=run.interval)
        said["history"] = [(calls, run.space.key(params)) for calls, params in run.history]
        name = str(run.facts.get("study_name") or run.facts.get("program", {}).get("class") or "search")
        embedder = getattr(getattr(run.study, "sampler", None), "embedder", None)
        return _record(name, run.space, {**run.facts, **said}, run.trials, embedder)
    if hasattr(run, "get_trials") and hasattr(run, "user_attrs"):
        space, trials = _space(run.study_name, run.user_attrs.get("candidates")), run.get_trials(deepcopy=False)
        facts = dict(run.user_attrs)
        if any(map(is_text, trials)):
            space = space.open()
            facts["lineage"] = lineage_of(space, restored(space, trials).values())
        return _record(run.study_name, space, facts, trials)
    raise StorageError(f"{type(run).__name__} is no run: give program.optimization_run, or the study of a stored run.")


def _record(
    name: str, space: PromptSpace, facts: Mapping[str, Any], trials: Sequence[FrozenTrial], embedder: Any = None
) -> RunRecord:
    from dspy.promptune.samplers.failures import evaluated
    from dspy.promptune.samplers.trials import key_of, observation

    trials = list(filter(evaluated, trials))
    clock = clock_of(trials)
    scrub = SecretMasker().text
    evaluations = tuple(
        _evaluation(trial, key_of(trial.params, space), span, lane, scrub)
        for trial, span, lane in zip(trials, clock.spans, clock.lanes, strict=True)
    )
    history, replayed = _history(facts.get("history"), evaluations, space)
    facts = {**facts, "refused": refusals(trials)}
    best = key_of(facts.get("best") or {}, space) or (history[-1].key if history else None)
    seen = [observation(trial, space) for trial in trials if trial.state.name == "COMPLETE"]
    return RunRecord(
        name=name, space=space, evaluations=evaluations, history=history, replayed=replayed, best=best,
        facts={key: value for key, value in facts.items() if key not in ("history", "best_program", "candidates")},
        spent=facts.get("spent") or {}, ended=facts.get("ended"), embedder=embedder or _embedder(facts),
        seconds=clock.seconds, idle=clock.idle, observations=[one for one in seen if one is not None],
        example_failures=failures_of(trials),
    )  # fmt: skip


def _space(name: str, candidates: Mapping[str, Any] | None) -> PromptSpace:
    if not candidates:
        raise StorageError(
            f"Run {name!r} has no candidates to show: it ended before its search began (resume=True continues it), "
            "or was not made by promptune."
        )
    kinds: dict[str, dict[int, list[Any]]] = {"instruction": {}, "demos": {}}
    for part, texts in candidates.items():
        if found := PART.fullmatch(part):
            kinds[found[2]][int(found[1])] = decode(texts)
    return PromptSpace(kinds["instruction"], kinds["demos"] or None)


def _embedder(facts: Mapping[str, Any]) -> Any:
    from dspy.promptune.options import OURS

    options = facts.get("options") or {}
    sampler = options.get("sampler")
    named = facts.get("embedder") or options.get("embedder")
    return named or ("onehot" if sampler == "onehot" else "minilm" if sampler in OURS else None)


def _evaluation(trial: FrozenTrial, key: Key | None, span: Span, lane: int, scrub: Any) -> Evaluation:
    from dspy.promptune.storage.history import told_scores

    noted = trial.user_attrs
    scores = dict(told_scores(trial)) or dict(trial.intermediate_values) or dict(noted.get("kept", ()))
    error = noted.get("error")
    states = {"COMPLETE": "complete", "FAIL": "unfinished" if unfinished(error) else "failed"}
    return Evaluation(
        number=trial.number, key=key, kind=str(noted.get("kind", "block")),
        state=states.get(trial.state.name, "running"), scores=scores,
        paid=int(noted.get("paid", len(trial.intermediate_values))), span=span, lane=lane,
        error=None if error is None else scrub(str(error)), tokens=noted.get("tokens"), cost=noted.get("cost"),
        errors=int(noted.get("errors", 0)), unreadable=int(noted.get("unreadable", 0)),
    )  # fmt: skip


# ---------------------------------------------------------------------- what was best when


def _history(given: Any, evaluations: Sequence[Evaluation], space: PromptSpace) -> tuple[tuple[Moment, ...], bool]:
    """The recorded history with the seconds of its entries, or one made from the scores; and whether it was made."""
    ended = sorted((each for each in evaluations if each.state != "running"), key=lambda each: each.span.ended)
    entries = [(int(calls), tuple(key)) for calls, key in given or ()]
    total = sum(each.paid for each in ended)
    shown = {each.key for each in evaluations if each.scores}  # earlier versions kept none of a cut one
    known = [(calls, found) for calls, key in entries if (found := space.find(key)) in shown and found is not None]
    if not known or known[-1][0] > total or _begins_late(known, ended):
        return tuple(_replay(ended)), bool(ended)
    moments, paid, position = [], 0, 0
    for calls, key in known:
        while position < len(ended) and paid < calls:
            paid += ended[position].paid
            position += 1
        moments.append(Moment(calls, ended[max(0, position - 1)].span.ended if ended else 0.0, key))
    return tuple(moments), False


def _begins_late(known: Sequence[tuple[int, Key]], ended: Sequence[Evaluation]) -> bool:
    """Whether a history is that of a later start of the run alone."""
    first = next((each.paid for each in ended if each.paid), 0)
    early = sum(each.paid for each in ended[: max(4, len(ended) // 4)])
    return known[0][0] > max(first, early)


def _replay(ended: Sequence[Evaluation]) -> list[Moment]:
    """After each evaluation the combination with the highest mean, means of few examples drawn to that of all."""
    rows: dict[Key, dict[int, float]] = {}
    moments: list[Moment] = []
    calls = 0
    for each in ended:
        calls += each.paid
        if each.key is None or not each.scores:
            continue
        rows.setdefault(each.key, {}).update(each.scores)
        level = mean(score for row in rows.values() for score in row.values())
        worth = {key: (sum(row.values()) + SHRINK * level) / (len(row) + SHRINK) for key, row in rows.items()}
        moments.append(Moment(calls, each.span.ended, max(worth, key=lambda key: worth[key])))
    return moments

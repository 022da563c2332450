"""The prompts of a run in the order of what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

from dspy.promptune.findings.record import RunRecord, mean
from dspy.promptune.findings.statistics import interval
from dspy.promptune.naming import prompt_name
from dspy.promptune.space import Key

__all__ = ["Standing", "leaderboard"]

SHRINK = 4.0  # examples' worth of trust in the common level, where there is no model


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One prompt.

    Attributes:
        key: The combination.
        name: In words.
        texts: What it consists of, part by part: ``(part, text)``.
        score: Mean of its scores, in the metric's units.
        low: Lower end of the 95 % interval of the score, NaN of one graded score.
        high: Upper end.
        examples: Validation examples it was scored on.
        paid: Examples that were scored for it, over all its evaluations.
        expected: Posterior mean, its score on new data as the model has it; ``None`` without a model.
        sd: Posterior standard deviation; ``None`` without a model.
        p_best: Probability that no other prompt of the space is better; ``None`` without a model.
        best: Whether it is the one that the run returned.
        original: Whether it is the original program's.
    """

    key: Key
    name: str
    texts: tuple[tuple[str, str], ...]
    score: float
    low: float
    high: float
    examples: int
    paid: int
    expected: float | None
    sd: float | None
    p_best: float | None
    best: bool
    original: bool


def leaderboard(record: RunRecord) -> list[Standing]:
    """All prompts with a score: the returned one first, then by what they are expected to score.

    Without a model a mean counts as if a few more examples had had the mean of all scores, so that a prompt does not
    lead by two lucky examples.
    """
    level = mean(score for row in record.rows.values() for score in row.values())
    found = [_standing(record, key) for key in record.rows]

    def worth(each: Standing) -> float:
        if each.expected is not None:
            return each.expected
        return (each.score * each.examples + SHRINK * level) / (each.examples + SHRINK)

    return sorted(found, key=lambda each: (not each.best, -worth(each), each.key))


def _standing(record: RunRecord, key: Key) -> Standing:
    scores = list(record.rows[key].values())
    low, high = interval(scores)
    belief = record.beliefs.of(key) if record.beliefs is not None else None
    expected, sd, p_best = belief or (None, None, None)
    return Standing(
        key=key, name=prompt_name(record.space, key), texts=texts_of(record, key), score=mean(scores), low=low,
        high=high, examples=len(scores), paid=sum(each.paid for each in record.evaluations if each.key == key),
        expected=expected, sd=sd, p_best=p_best, best=key == record.best, original=key == record.default,
    )  # fmt: skip


def texts_of(record: RunRecord, key: Key) -> tuple[tuple[str, str], ...]:
    """``(part, text)`` of a combination, parts in words: "instruction 3", "demo set 1 of predictor 0"."""
    found = []
    for i, (part, index) in enumerate(zip(record.space.parts, key, strict=True)):
        what = "instruction" if part.kind == "instruction" else "demo set"
        found.append(
            (f"{what} {index}{record.of_predictor(part.predictor)}", record.space.texts(i)[index].strip() or "(none)")
        )
    return tuple(found)

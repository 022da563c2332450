"""Candidates that came during a search: each is a trial of the study before it is used, and stands in its order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState, create_trial

from dspy.promptune.allocation.records import TEXT, is_text
from dspy.promptune.allocation.writing import Text
from dspy.promptune.errors import StorageError
from dspy.promptune.space import PromptSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["PROPOSED", "appended", "check_distributions", "lineage_of", "noted_text", "refusals", "restored"]

PROPOSED = "proposed"  # user attribute ``origin``, where the text was not written from failures but proposed in step 2


def lineage_of(space: PromptSpace, texts: Iterable[Text]) -> list[dict[str, Any]]:
    """Who was written from whom, see :class:`dspy.promptune.run.search.SearchRun`."""
    return [
        {
            "part": text.part,
            "index": text.index,
            "predictor": space.parts[space.names.index(text.part)].predictor,
            "parent": space.params(text.parent),
            "cost": text.calls,
            "at": text.at,
        }
        for text in texts
        if not (text.proposed or text.refused)
    ]


def refusals(trials: Iterable[FrozenTrial]) -> list[str]:
    """Why requests for a text brought nothing, in the order of the trials."""
    return [trial.user_attrs["refused"] for trial in trials if "refused" in trial.user_attrs]


def appended(space: PromptSpace, noted: Mapping[str, Any], *, again: bool = False) -> Text | None:
    """The text of a trial, in the space, or a request that brought none.

    ``None`` where the text is there already or not of this space. ``again`` takes it where an earlier start of the same
    stored search, in this process, has appended it to the space.
    """
    part, parent = noted.get("part"), space.find(tuple(noted.get("parent", ())))
    if part not in space.names or parent is None:
        return None
    if "refused" in noted:
        marks = {name: noted.get(name, False) for name in ("failed", "uncalled")}
        return Text(part, -1, parent, noted["calls"], noted["at"], refused=noted["refused"], **marks)
    place = space.names.index(part)
    known, proposed = len(space.parts[place]), noted.get("origin") == PROPOSED
    index = space.append(part, noted["text"], None if proposed else parent[place])
    if index < known and not (again and space.place and space.parts[place].written.get(index) == space.place):
        return None
    return Text(part, index, parent, noted["calls"], noted["at"], noted["text"], proposed)


def restored(space: PromptSpace, trials: Sequence[FrozenTrial]) -> dict[int, Text]:
    """Append the texts that trials stand for, in the order of their numbers: what came of requests, by these."""
    ordered = sorted((trial for trial in trials if is_text(trial)), key=lambda trial: trial.number)
    found: dict[int, Text] = {}
    there: set[tuple[str, int]] = set()
    for trial in ordered:
        text = appended(space, trial.user_attrs, again=True)
        if text is not None and (text.refused or (text.part, text.index) not in there):
            there.add((text.part, text.index))
            found[trial.number] = text
    return found


def check_distributions(space: PromptSpace, trials: Sequence[FrozenTrial], place: str) -> None:
    """Refuse to continue an open space where a study has a closed one, or the other way round, or one of another size.

    Raises:
        StorageError: The study was begun the other way.
    """
    from optuna.distributions import CategoricalDistribution

    own = space.distributions()
    there = next((trial.distributions for trial in trials if own.keys() & trial.distributions.keys()), own)
    closed = isinstance(next(there[name] for name in own if name in there), CategoricalDistribution)
    if closed == space.is_open:
        how = "without" if closed else "with"
        raise StorageError(
            f"The study in {place} was begun {how} instructions written during the search, and its trials "
            f"cannot be mixed with others: go on {how} them (reflect=, propose=), or use another study_name."
        )
    if closed and there != {**there, **own}:
        raise StorageError(f"The study in {place} has other numbers of candidates: use another study_name.")


def noted_text(noted: Mapping[str, Any]) -> FrozenTrial:
    """The trial that stands for a text: PRUNED, without parameters."""
    return create_trial(state=TrialState.PRUNED, user_attrs={"kind": TEXT, **noted})

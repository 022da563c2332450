"""Reading a study: which prompts were measured, and which are being measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dspy.promptune.gp.data import Observation
from dspy.promptune.space import Key, PromptSpace


def measured(study: Study, space: PromptSpace) -> list[Observation]:
    """The finished trials of a study as observations to be maximised, in the order of their numbers.

    A trial counts when it is complete, its value is finite and its parameters are a combination of the space; its
    user attributes ``scores`` and ``examples`` are taken where they are well formed.
    """
    sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.COMPLETE,))
    found = [observation(trial, space, sign) for trial in trials]
    return [one for one in found if one is not None]


def running(study: Study, space: PromptSpace, but: int | None = None) -> list[Key]:
    """The prompts of trials that are running, except trial number ``but``."""
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.RUNNING,))
    keys = [key_of(trial.params, space) for trial in trials if trial.number != but]
    return [key for key in keys if key is not None]


def key_of(params: Mapping[str, Any], space: PromptSpace) -> Key | None:
    """The combination that parameters stand for, or ``None`` where they are not (all) of the space."""
    values = [params.get(name) for name in space.names]
    key = tuple(value for value in values if isinstance(value, int) and not isinstance(value, bool))
    return key if key in space else None


def observation(trial: FrozenTrial, space: PromptSpace, sign: float = 1.0) -> Observation | None:
    """One finished trial as an observation of ``sign`` times its value; ``None`` where it says nothing."""
    key = key_of(trial.params, space)
    value = trial.values[0] if trial.values else None
    if key is None or value is None or not math.isfinite(value):
        return None
    scores = _scores(trial.user_attrs.get("scores"), sign)
    examples = _examples(trial.user_attrs.get("examples"), scores)
    return Observation(key, sign * value, scores, examples)


def _scores(given: Any, sign: float) -> tuple[float, ...] | None:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        return None
    try:
        scores = tuple(sign * float(score) for score in given)
    except (TypeError, ValueError):
        return None
    return scores if all(map(math.isfinite, scores)) else None


def _examples(given: Any, scores: tuple[float, ...] | None) -> tuple[int, ...] | None:
    if scores is None or not isinstance(given, Sequence) or len(given) != len(scores):
        return None
    return tuple(given) if all(isinstance(example, int) for example in given) else None

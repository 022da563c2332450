"""Reading a study: which prompts were measured, and which are being measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dspy.promptune.gp import data
from dspy.promptune.gp.data import Observation
from dspy.promptune.samplers.failures import FailedPrompts, OutOfRunning, blamed
from dspy.promptune.space import Key, PromptSpace


class TrialHistory:
    """What the trials of a study say to a sampler; whoever makes the trials can keep it up to date one by one.

    Beyond some hundreds of observations they are condensed now and then, so that no result costs more for those
    before it (:func:`dspy.promptune.gp.data.condensed`).

    Args:
        study: Its trials are read once.
        space: The prompts.
        but: The number of a running trial that does not count.

    Attributes:
        count: Observations so far, of which :attr:`observations` may be fewer.
        running: Prompts of running trials, by number.
        failed: Prompts whose trials failed; those that are out of the running are not proposed again.
    """

    def __init__(self, study: Study, space: PromptSpace, but: int | None = None) -> None:
        found = measured(study, space)
        self.count = len(found)
        self.running = running(study, space, but=but)
        self.failed: OutOfRunning = failed(study, space)
        self._past = data.condensed(found)
        self._new: dict[int, Observation] = {}

    @property
    def observations(self) -> list[Observation]:
        """In the order of their trials' numbers."""
        return [*self._past, *(self._new[number] for number in sorted(self._new))]

    def begin(self, number: int, key: Key) -> None:
        """A trial is running."""
        self.running[number] = key

    def end(self, number: int, found: Observation | None = None) -> None:
        """A trial has ended, and says this if anything."""
        self.running.pop(number, None)
        if found is None or not math.isfinite(found.value):
            return
        self.count += 1
        self._new[number] = found
        if len(self._past) + len(self._new) > data.MANY:
            self._past, self._new = data.condensed(self.observations), {}


def measured(study: Study, space: PromptSpace) -> list[Observation]:
    """The finished trials of a study as observations to be maximized, in the order of their numbers.

    A trial counts when it is complete, its value is finite and its parameters are a combination of the space; its
    user attributes ``scores`` and ``examples`` are taken where they are well formed.
    """
    sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.COMPLETE,))
    found = [observation(trial, space, sign) for trial in trials]
    return [one for one in found if one is not None]


def failed(study: Study, space: PromptSpace) -> FailedPrompts:
    """The prompts whose trials failed through their own fault."""
    found = FailedPrompts()
    for trial in study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.FAIL,)):
        key = key_of(trial.params, space) if blamed(trial) else None
        if key is not None:
            found.note(key)
    return found


def running(study: Study, space: PromptSpace, but: int | None = None) -> dict[int, Key]:
    """The prompts of trials that are running, by number, except trial number ``but``."""
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.RUNNING,))
    keys = {trial.number: key_of(trial.params, space) for trial in trials if trial.number != but}
    return {number: key for number, key in keys.items() if key is not None}


def key_of(params: Mapping[str, Any], space: PromptSpace) -> Key | None:
    """The combination that parameters stand for, or ``None`` where they are not (all) of the space."""
    return space.find([params.get(name) for name in space.names])


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

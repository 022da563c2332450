"""Attempts at training examples: what instructions are written from."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import counted
from dspy.promptune.distributed.metrics import takes_predictor, verdict_of
from dspy.promptune.identity.encoding import digest
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["Attempt", "Attempts", "steps_of"]

logger = logging.getLogger(__name__)

SHOWN = 14  # attempts that a text is written from, at most
FAILED = 3  # of them failures, so that nothing more has to be run


@dataclass(frozen=True, eq=False)
class Attempt:
    """One run of a program on a training example.

    Attributes:
        example: Its number in the training set.
        score: By the metric.
        prediction: Of the whole program; empty where its answer could not be read.
        steps: What each predictor read and wrote, by its number; the last time, where it was called several times.
        trace: ``(predictor, inputs, outputs)`` of each call.
        said: What went wrong, where that is known without the metric, or what the metric said with the score; ``None``
            where it is to be asked.
        told: The attempt in words, by the number of the predictor, once it was shown.
        earlier: Whether it is of an earlier start: then ``told`` is all that is known.
    """

    example: int
    score: float
    prediction: Any
    steps: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]]
    trace: Any = field(default=None, repr=False)
    said: str | None = None
    told: dict[int, str] = field(default_factory=dict, repr=False)
    earlier: bool = False

    def tells(self, predictor: int) -> bool:
        """Whether there is something to show for a predictor: it was called, as far as a trace says who was."""
        return predictor in self.told if self.earlier else not self.steps or predictor in self.steps


class Attempts:
    """Attempts at training examples: those of step 1, which cost nothing more, and those of parents. Thread-safe.

    Args:
        trainset: The training examples.
        metric: The user's.
        valset: The validation examples: what is equal to one of them is never shown, unless nothing else is left.
    """

    def __init__(self, trainset: Sequence[Any], metric: Callable[..., Any], valset: Sequence[Any] = ()) -> None:
        self.trainset, self.metric = _apart(list(trainset), valset), metric
        self._asks_for_each = takes_predictor(metric)
        self._numbers = {id(example): i for i, example in enumerate(self.trainset)}
        self._free: list[Attempt] = []
        self._of: dict[Key, dict[int, Attempt]] = {}
        self._shown: set[tuple[int, int]] = set()  # free attempts that a text was written from, and for which predictor
        self._lock = threading.Lock()

    def found(self, example: Any, prediction: Any, trace: Any, score: float, program: Module) -> None:
        """Step 1 has run a program on an example."""
        i = self._numbers.get(id(example))
        if i is None or trace is None:
            return
        try:
            value, said = self.verdict(example, prediction)
        except Exception:  # a judge that gives no answer now gave one in step 1
            value, said = score, None
        with self._lock:
            self._free.append(Attempt(i, value, prediction, steps_of(trace, program), trace, said))

    def verdict(self, example: Any, prediction: Any) -> tuple[float, str | None]:
        """The score as a search has it, without a trace: with one, many metrics return another; and what they say.

        What a metric says about a predictor is to be asked for each, ``None``.
        """
        value, said = verdict_of(self.metric, example, prediction)
        return value, None if self._asks_for_each else said

    def remember(self, noted: Mapping[str, Any]) -> None:
        """An attempt of an earlier start, as :class:`Reflector` wrote it down."""
        predictor, key = noted["predictor"], noted["of"]
        attempt = Attempt(noted["example"], noted["score"], None, {}, told={predictor: noted["told"]}, earlier=True)
        if key is not None:
            self.add(tuple(key), attempt)
            return
        with self._lock:
            self._shown.add((len(self._free), predictor))
            self._free.append(attempt)

    def add(self, key: Key, attempt: Attempt) -> None:
        """A parent was run on an example."""
        with self._lock:
            self._of.setdefault(key, {})[attempt.example] = attempt

    def free(self, predictor: int) -> list[Attempt]:
        """Attempts of step 1 from which nothing was written for a predictor, failures first; now they count as used.

        None where there are too few failures among them.
        """
        with self._lock:
            free = [(j, one) for j, one in enumerate(self._free) if one.tells(predictor)]
            new = [one for j, one in free if (j, predictor) not in self._shown]
            is_failure = self._failing()
            by_example = {one.example: one for one in new}
            chosen = sorted(by_example.values(), key=lambda one: not is_failure(one))[:SHOWN]
            if sum(map(is_failure, chosen)) < FAILED:
                return []
            self._shown.update((j, predictor) for j, one in enumerate(self._free) if one in chosen)
            return chosen

    def of(self, key: Key) -> dict[int, Attempt]:
        """Attempts of one prompt, by example."""
        with self._lock:
            return dict(self._of.get(key, {}))

    def _failing(self) -> Callable[[Attempt], bool]:
        """Tells failures: attempts with less than the best score there was, of scores that may be below 0."""
        known = itertools.chain(self._free, *(row.values() for row in self._of.values()))
        scores = [one.score for one in known] or [0.0]
        best = max(scores) if max(scores) or min(scores) else 1e-9  # where all have nothing, all have failed
        return lambda attempt: attempt.score < best

    def chosen(self, key: Key, predictor: int, rng: random.Random) -> list[Attempt]:
        """At most ``SHOWN`` attempts, one an example, drawn at random: a parent's failures first, then others'.

        What other prompts failed on shows what the task asks for, and costs nothing more.
        """
        with self._lock:
            own = {i: one for i, one in self._of.get(key, {}).items() if one.tells(predictor)}
            rows = [row for other, row in self._of.items() if other != key]
            tried = [*self._free, *(one for row in rows for one in row.values())]
            others = [one for one in tried if one.example not in own and one.tells(predictor)]
            shown = rng.sample(list(own.values()), len(own)) + rng.sample(others, len(others))
            is_failure = self._failing()
            groups = (is_failure, lambda one: not is_failure(one) and one.example in own)
            ordered = [one for group in groups for one in shown if group(one)]
            return list({one.example: one for one in reversed(ordered)}.values())[::-1][:SHOWN]


def steps_of(trace: Any, program: Module) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What each predictor of a program read and wrote.

    A copy of a predictor, such as ``dspy.BestOfN`` runs, stands for the only one that has its signature.
    """
    predictors = program.predictors()
    numbers = {id(each): i for i, each in enumerate(predictors)}
    steps: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for called, inputs, outputs in trace:
        if id(called) in numbers:
            same = [numbers[id(called)]]
        else:
            same = [i for i, each in enumerate(predictors) if each.signature.equals(called.signature)]
        if len(same) == 1:
            steps[same[0]] = (inputs, dict(outputs.items()))
    return steps


def _apart(trainset: list[Any], valset: Sequence[Any]) -> list[Any]:
    """The training examples that are no validation examples; all of them, with a warning, where none is."""
    held = {digest(dict(example.items())) for example in valset}
    rest = [example for example in trainset if digest(dict(example.items())) not in held]
    if trainset and not rest:
        logger.warning(
            "All training examples are validation examples as well: instructions are written from them, and their "
            "scores there say little. Give a trainset and a valset that have nothing in common, or the trainset alone."
        )
        return trainset
    if len(rest) < len(trainset):
        shared = counted(len(trainset) - len(rest), "training example")
        logger.info("No instruction is written from %s that the validation set has, too.", shared)
    return rest

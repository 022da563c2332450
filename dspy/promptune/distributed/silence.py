"""Empty replies that are no accident: a model that answers has nothing to say to one prompt on one example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dspy.promptune.space import Key

__all__ = ["Pair", "SilentPairs"]

Pair = tuple[Key, int]
"""A prompt and the index of a validation example."""

REPLIES = 6  # empty ones in one job, in two attempts at least, that are no accident
LAST = 3  # pairs that may be silent though no other is answered: more, and the model is down
ANY = -1  # so many answers there were when a pair was first asked in vain, that there are more by now


class SilentPairs:
    """Tells empty replies that stay so from a model that is down for a while.

    A pair is silent where it is asked in vain again, in the same job or in a later one, and others were answered
    between the two. So are the last few in a third job, though nobody else is asked any more: a job is tried again at
    once, but not twice before others are.
    """

    def __init__(self) -> None:
        self._answers = 0  # so far, about
        self._first: dict[Pair, int] = {}  # how many there were when a pair was first asked in vain, a whole job long,
        self._jobs: Counter[Pair] = Counter()  # and how many such jobs there were
        self._vain: set[Pair] = set()  # asked in vain since the last answer,
        self._last = 0  # and how many of these were silent, though no other was answered

    @property
    def pairs(self) -> list[Pair]:
        """Those to which there was nothing but empty replies in a whole job."""
        return list(self._first)

    def answered(self, count: int = 1) -> None:
        """So many answers came."""
        self._answers += count
        self._vain.clear()
        self._last = 0

    def since(self, pair: Pair) -> int | None:
        """How many answers there were when a pair was first asked in vain in an earlier job, if it was."""
        return self._first.get(pair)

    def asked_in_vain(self, pair: Pair, since: int | None) -> int:
        """Another attempt at a pair brought empty replies; how many answers there were at the first such attempt."""
        self._vain.add(pair)
        return self._answers if since is None else since

    def is_silent(self, pair: Pair, replies: int, since: int) -> bool:
        """Whether a pair is silent after so many empty replies in this job; ``since`` is of :meth:`asked_in_vain`."""
        again, others = pair in self._first, self._answers > since
        last = not others and self._jobs[pair] > 1 and self._answers > 0 and len(self._vain) + self._last <= LAST
        silent = last or (others and (again or replies >= REPLIES))
        if silent:
            self._vain.discard(pair)
            self._last += last
        return silent

    def note(self, pairs: Iterable[Pair], since: int | None = None) -> None:
        """These were asked in vain a whole job long, at first when there were so many answers, or as many as now."""
        for pair in pairs:
            self._jobs[pair] += 1
            self._first.setdefault(pair, self._answers if since is None else since)

    def expect(self, pairs: Iterable[Pair]) -> None:
        """These were so elsewhere, and others have been answered since."""
        self._first.update(dict.fromkeys(pairs, ANY))

    def among(self, key: Key, examples: Sequence[int]) -> list[int]:
        """Positions of the examples that were asked in vain, while others have been answered since."""
        asked = [self._first.get((key, example), self._answers) for example in examples]
        return [i for i, answers in enumerate(asked) if self._answers > answers]

"""Empty replies that are no accident: a model that answers has nothing to say to one prompt on one example."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dspy.promptune.space import Key

__all__ = ["Pair", "SilentPairs"]

Pair = tuple[Key, int]
"""A prompt and the index of a validation example."""

ANY = -1  # so many answers there were when a pair was first asked, that there are more by now


class SilentPairs:
    """Tells an empty reply that stays one from a model that is down for a while.

    A pair is asked in vain where every reply is empty, the model's own retries included. It stays empty where it is
    asked in vain again, and others were answered meanwhile or, where it is the only one, before.
    """

    def __init__(self) -> None:
        self._answers = 0  # so far, about
        self._first: dict[Pair, int] = {}  # how many there were when a pair was first asked in vain, a whole job long
        self._vain: set[Pair] = set()  # asked in vain since the last answer

    @property
    def pairs(self) -> list[Pair]:
        """Those to which there was nothing but empty replies in a whole job."""
        return list(self._first)

    def answered(self, count: int = 1) -> None:
        """So many answers came."""
        self._answers += count
        self._vain.clear()

    def asked(self, pair: Pair) -> int:
        """A pair is asked: how many answers there were when it was first asked in vain, or are now."""
        return self._first.get(pair, self._answers)

    def stays(self, pair: Pair, times: int, answers: int) -> bool:
        """A pair was asked in vain so many times in this job, since so many answers: whether it is silent."""
        self._vain.add(pair)
        again = pair in self._first
        others = self._answers > answers or (again and self._answers > 0 and self._vain == {pair})
        if times + again < 2 or not others:
            return False
        self._vain.discard(pair)
        return True

    def note(self, pairs: Iterable[Pair], answers: int | None = None) -> None:
        """These were asked in vain a whole job long, which began when there were so many answers."""
        for pair in pairs:
            self._first.setdefault(pair, self._answers if answers is None else answers)

    def expect(self, pairs: Iterable[Pair]) -> None:
        """These were so elsewhere, and others have been answered since."""
        self._first.update(dict.fromkeys(pairs, ANY))

    def among(self, key: Key, examples: Sequence[int]) -> list[int]:
        """Positions of the examples that were asked in vain, while others have been answered since."""
        return [i for i, example in enumerate(examples) if self._answers > self.asked((key, example))]

"""Averages of prompts over their minibatches, the highest of them found without looking at all."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from dspy.promptune.space import Key

__all__ = ["Averages"]


class Averages:
    """The average of each prompt over the means of its minibatches."""

    def __init__(self) -> None:
        self._means: dict[Key, list[float]] = {}
        self._place: dict[Key, int] = {}
        self._closed: set[Key] = set()
        self._heap: list[tuple[float, int, Key]] = []  # with entries that are out of date

    def __len__(self) -> int:
        return len(self._means)

    def __contains__(self, key: object) -> bool:
        return key in self._means

    def add(self, key: Key, mean: float) -> None:
        """One more minibatch of a prompt."""
        self._means.setdefault(key, []).append(mean)
        self._place.setdefault(key, len(self._place))
        self._push(key)

    def close(self, key: Key) -> None:
        """From now on another prompt is wanted."""
        self._closed.add(key)

    def best(self, free: Callable[[Key], bool] = lambda key: True) -> Key | None:
        """Of the prompts that are ``free`` and not closed, the one with the highest average; the first of equals."""
        aside: list[Key] = []
        found = None
        while self._heap and found is None:
            low, _, key = self._heap[0]
            if key in self._closed or low != -self._average(key):
                heapq.heappop(self._heap)
            elif free(key):
                found = key
            else:
                heapq.heappop(self._heap)
                aside.append(key)
        for key in aside:
            self._push(key)
        return found

    def _push(self, key: Key) -> None:
        heapq.heappush(self._heap, (-self._average(key), self._place[key], key))

    def _average(self, key: Key) -> float:
        return math.fsum(self._means[key]) / len(self._means[key])

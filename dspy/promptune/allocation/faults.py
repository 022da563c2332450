"""Whose fault it is that evaluations fail: their prompts', or that of an example on which every prompt fails."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence

from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.samplers.failures import FAILURES
from dspy.promptune.space import Key

__all__ = ["Faults"]

logger = logging.getLogger(__name__)

GOLDEN = 0.618  # multiples of it, without their whole part, are spread evenly
SILENT = 3  # failures without an example in common that put out a prompt without scores
ACCUSERS = 2  # prompts that have scores on other examples, and fail because of one


class Faults:
    """The failed evaluations of a run, each of several examples, and what explains them.

    While no prompt has a score on an example, that one may explain the failure of any evaluation it was part of; two
    failures that nothing of this kind explains put a prompt out of the running. So do :data:`SILENT` without an example
    in common where the prompt has no scores, or so many more than it succeeds. Until then a prompt is evaluated on
    other examples (if it never succeeded on one, if possible with another prompt's score), and when there are none left
    on a few of those that may explain a failure, until one is found. An example that is found for two prompts with
    scores elsewhere is left out for all, and what failed with it is forgotten. Other prompts come to what may explain a
    failure last, and while nothing is scored at all, each prompt is tried on one.

    Args:
        table: The scores of all prompts.

    Attributes:
        out: Prompts that are out of the running.
        examples: Examples that are left out.
    """

    def __init__(self, table: ScoreTable) -> None:
        self.out: set[Key] = set()
        self.examples: set[int] = set()
        self._table = table
        self._failures: dict[Key, list[frozenset[int]]] = {}
        self._successes: Counter[Key] = Counter()
        self._accusers: dict[int, set[Key]] = {}
        self._doubted: set[int] = set()  # of prompts in the running
        self._silent, self._scored = SILENT, 0  # failures that put out a prompt, examples with a score when last judged
        self._steps: dict[Key, int] = {}  # examples to try next of those that may explain a failure, at most

    def __contains__(self, key: Key) -> bool:
        """Whether a prompt has failed at all."""
        return key in self._failures

    def keys(self) -> Collection[Key]:
        """The prompts that have failed."""
        return self._failures.keys()

    def failed(self, job: Job) -> None:
        """An evaluation has failed, and no provider was to blame."""
        self._failures.setdefault(job.key, []).append(frozenset(job.examples))
        self._steps[job.key] = 1
        self._judge()

    def told(self, job: Job) -> None:
        """An evaluation has ended well; its scores are in the table."""
        self._successes[job.key] += 1
        if job.key in self._steps:
            self._steps[job.key] *= 2
        if job.key in self._failures or (self._failures and len(self._table.examples) > self._scored):
            self._judge()

    def relent(self, n_examples: int) -> bool:
        """Nothing is left to evaluate: whether a prompt is back in the running.

        One that met examples on which every prompt fails, up to half of ``n_examples``, looks like one that always
        fails.
        """
        out = self.out
        while self.out == out and self._silent <= n_examples // 2:
            self._silent *= 2
            self._judge()
        return self.out != out

    def whole(self, examples: Sequence[int]) -> Sequence[int]:
        """Those of the examples that explain no failure of a prompt in the running, scored or not."""
        if not self._failures:
            return examples
        closed = self.examples | self._doubted
        return [example for example in examples if example not in closed]

    def open(self, key: Key, examples: Sequence[int]) -> Sequence[int]:
        """Those of the examples, none of which has a score, that a prompt is to be evaluated on next."""
        found = self.whole(examples)
        if not found:
            closed = self.examples.union(*self._doubts(key))
            found = [example for example in examples if example not in closed]
        if not found:
            return self.doubtful(key, examples)
        known = self._successes[key] if key in self._failures else self._table.examples or not self._failures
        if known:
            return found
        return self._turned(key, [each for each in found if each in self._table.examples] or found)[:1]

    def doubtful(self, key: Key, examples: Sequence[int]) -> Sequence[int]:
        """A few of the examples, one of which explains a failure of a prompt: at most half of those that may."""
        doubts = [each for each in self._doubts(key) if len(each) > 1]
        if not doubts:
            return ()
        few = [example for example in examples if example in doubts[0]]
        return self._turned(key, few)[: min(self._steps[key], len(doubts[0]) // 2)]

    def _turned(self, key: Key, examples: Sequence[int]) -> Sequence[int]:
        """Beginning elsewhere for each prompt and after each failure, so that no few examples stop them all."""
        failures = self._failures.get(key, ())
        turn = list(self._failures).index(key) + len(failures) if failures else len(self._failures)
        first = int(turn * GOLDEN % 1 * len(examples))
        return [*examples[first:], *examples[:first]]

    def _doubts(self, key: Key) -> list[frozenset[int]]:
        """What may explain the failures of a prompt, the smallest sets first; what one explains needs no other."""
        found: list[frozenset[int]] = []
        for each in sorted((each - self._table.examples for each in self._unexplained(key)), key=len):
            if each and not any(smaller <= each for smaller in found):
                found.append(each)
        return found

    def _unexplained(self, key: Key) -> list[frozenset[int]]:
        """The failures of a prompt, without those that had an example in them that is left out."""
        return [examples for examples in self._failures.get(key, ()) if not examples & self.examples]

    def _judge(self) -> None:
        self._scored = len(self._table.examples)
        for key in self._failures:
            for example in [min(each) for each in self._doubts(key) if len(each) == 1 and self._table.count(key)]:
                self._accusers.setdefault(example, set()).add(key)
                if len(self._accusers[example]) >= ACCUSERS:
                    self.examples.add(example)
                    why = f"{len(self._accusers[example])} prompts that work elsewhere fail on it, and none does not"
                    logger.warning("Validation example %d is left out: %s.", example, why)
        self.out = set(filter(self._is_out, self._failures))
        self._doubted = set().union(
            *(each for key in self._failures if key not in self.out for each in self._doubts(key))
        )

    def _is_out(self, key: Key) -> bool:
        failures = self._unexplained(key)
        if len(failures) < FAILURES:
            return False
        if sum(examples <= self._table.examples for examples in failures) >= FAILURES:
            return True
        common = frozenset.intersection(*failures) - self._table.examples
        successes = self._successes[key]
        return not common and len(set(failures)) >= self._silent + successes

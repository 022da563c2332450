"""Failures in a row: when a run gives up."""

from __future__ import annotations

from collections import Counter

from dspy.promptune.allocation.ledger import CallLedger
from dspy.promptune.counted import counted
from dspy.promptune.space import Key, PromptSpace

__all__ = ["FailureStreak", "Silence"]

MIN_STREAK = 5  # failures one after another, with no example scored between them, before a run gives up
PATIENCE = 4  # times as many failures of prompts once an example was scored: the program works, these prompts do not
REFUSALS = 2  # prompts in a row for which the provider refuses the account, before a run gives up
DOUBTS = 2  # evaluations in a row without an answer that are no fault yet of a prompt that was answered before
SHARE = 0.2  # of its calls: so many may be lost to prompts that fail, while a good one may be among the others
FOR_OTHERS = 0.5  # of its calls: more may be lost where trying all the others takes no more than this


class FailureStreak:
    """The failures since an example was last scored: those of prompts, and evaluations that got no answer.

    Where no answer comes, none will for another prompt: a few such failures are enough. Where prompts are at fault, the
    others may be sound: a run looks for one as long as that does not take a fifth of its calls, and beyond it as long
    as the calls left, and half of all, pay for every prompt that was not tried yet. Where they do not, so many
    different prompts must have failed. A ``limit`` of ``None`` is 5, or two rounds of ``n_jobs``.
    """

    def __init__(self, limit: int | None, n_jobs: int, ledger: CallLedger, space: PromptSpace) -> None:
        self._limit = limit or max(MIN_STREAK, 2 * n_jobs)
        self._ledger, self._space = ledger, space
        self._failed: set[Key] = set()  # prompts without scores, whose failures are in a row or not
        self._blamed: Counter[Key] = Counter()
        self._refused: set[Key] = set()
        self._unanswered = self._lost = 0
        self._patience = 1

    def scored(self, key: Key) -> None:
        """An example was scored with this prompt: nothing failed since."""
        self._failed.discard(key)
        self._blamed.clear()
        self._refused.clear()
        self._unanswered = self._lost = 0
        self._patience = PATIENCE

    def failed(self, key: Key, lost: int, *, blamed: bool, refused: bool = False) -> str | None:
        """A job has failed, its prompt's fault or not, and took calls for nothing; says of what that is too many.

        ``refused``: the provider takes no calls of this account.
        """
        if not blamed:
            self._unanswered += 1
            self._refused |= {key} if refused else set()  # of one prompt alone a filter may be the cause
            silent = f"{counted(self._unanswered, 'evaluation')} got no answer in a row"
            return silent if len(self._refused) >= REFUSALS or self._unanswered >= self._limit else None
        self._blamed[key] += 1
        self._lost += lost
        table, failed = self._ledger.table, self._blamed.total()
        if not table.count(key):
            self._failed.add(key)
        untried = self._space.size - len(table) - len(self._failed)
        enough = min(self._ledger.left(), FOR_OTHERS * self._ledger.max_calls)
        paid = 0 < untried * self._lost <= failed * enough  # each at the mean of these failures
        many = (len(self._blamed) if untried > 0 else failed) >= self._limit * self._patience
        if paid or not many or self._lost <= SHARE * self._ledger.max_calls:
            return None
        return f"{counted(failed, 'evaluation')} failed in a row, {counted(self._lost, 'call')} lost"


class Silence:
    """Who is to blame that no answer comes: the model, or the prompt that it has no answer for.

    Some prompts get none, however often they are asked: a filter empties it, or it does not fit beside the reasoning.
    Where others were answered, the first prompt that is not is the suspect until an answer comes, so that others are
    tried; those that get none either are not, for then the model is down.
    """

    def __init__(self) -> None:
        self._answered: set[Key] = set()
        self._silent: Counter[Key] = Counter()
        self._suspect: Key | None = None

    def scored(self, key: Key) -> None:
        """An example was scored with this prompt."""
        self._answered.add(key)
        self._suspect = None
        del self._silent[key]

    def blames(self, key: Key) -> bool:
        """Whether it is the prompt's fault that no answer came for any example of an evaluation."""
        if not self._answered - {key} or self._suspect not in (None, key):
            return False
        self._suspect = key
        self._silent[key] += 1
        return self._silent[key] > DOUBTS * (key in self._answered)

"""When a new instruction is written, from which prompt, and for which predictor: a decision like any other."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dspy.promptune.gp.improvement import log_improvement
from dspy.promptune.gp.joint import Joint, promising
from dspy.promptune.gp.posterior import PoolPosterior
from dspy.promptune.space import Key, PromptSpace

__all__ = ["Text", "WriteDecision", "WritingPolicy", "WritingState"]

CONSIDERED = 200  # prompts among which the parent is drawn
UNPROVEN = 0.05  # share of all calls that writing may take before a text has proved better than what was there
PROOF = 0.5  # standard deviations of the difference, from which on it has: few scores can tell more apart
LAST = 0.25  # of the calls: what is left at the end belongs to measuring what there is
SPACING = 8.0  # calls of measuring between two texts at least, so that each is looked at
UNKNOWN = 4.0  # calls that a text may take of those that are being written while none has come
FAILURES = 6  # requests in a row that brought nothing, after which no more are made; each doubles the spacing
LATEST = 8  # requests of which the next one's cost is the mean
PRIOR = (0.06, 3.0)  # sd of a child about its parent, in ranges of the metric, and how many texts' record it is worth


@dataclass(frozen=True)
class Text:
    """What came of a request for a text: the text, or nothing that can be used.

    Attributes:
        part: Name of the part it belongs to, such as ``"0_predictor_instruction"``.
        index: Its index in the part; -1 where nothing came.
        parent: The prompt it was written from.
        calls: Calls that writing it took, those for evidence included.
        at: Calls that the run had spent when it came.
        text: The text.
        proposed: Whether it was proposed before anything was measured, and came late: nothing was written from.
        refused: Why nothing came; empty for a text.
        failed: Whether that was an error, which may not come again in another start.
        uncalled: Whether it was that the predictor is never called: nothing more is asked for it.
    """

    part: str
    index: int
    parent: Key
    calls: float = 1.0
    at: int = 0
    text: str = field(default="", repr=False)
    proposed: bool = False
    refused: str = ""
    failed: bool = False
    uncalled: bool = False


@dataclass(frozen=True)
class WriteDecision:
    """Write for this part, from this prompt."""

    part: str
    parent: Key


@dataclass(frozen=True, kw_only=True)
class WritingState:
    """How the run stands.

    Attributes:
        max_calls: Calls that the run may take.
        left: Of them, those that nobody has claimed.
        spent: Calls that are spent, on measuring and writing.
        written: Of them, calls for writing.
        in_flight: Texts that are being written.
        places: Texts that may be written at once.
        blocked: Whether nothing can be measured until there is another text.
    """

    max_calls: int
    left: float
    spent: int
    written: float
    in_flight: int
    places: int = 1
    blocked: bool = False


class WritingPolicy:
    """Writes where one more text is worth more per call than one more measurement.

    What a text is worth is learned from the record: children less parents, by their posterior means and what is still
    uncertain of them; a request that brought nothing is a child like its parent. Until a text has proved better than
    all that was not written, writing takes at most ``UNPROVEN`` of the calls: where texts bring nothing, a run soon
    stops to write. The parent is the best prompt of a joint draw from the posterior (Thompson), the parts take turns.

    Args:
        space: The prompts; it is open.
        rng: Draws parents.
        block: Examples of one measurement.
    """

    def __init__(self, space: PromptSpace, rng: random.Random, block: int = 5) -> None:
        self._space, self._block = space, block
        self._random = np.random.default_rng(rng.getrandbits(32))
        self._written: dict[str, set[int]] = {name: set() for name in space.names}  # indices, by part
        self._parts = [part.name for part in space.parts if part.kind == "instruction"]
        self._turn = rng.randrange(len(self._parts))
        self.asked: list[Text] = []  # what came of all requests, in this order

    @property
    def texts(self) -> list[Text]:
        """The texts that were written, in their order."""
        return [text for text in self.asked if not text.refused]

    @property
    def fruitless(self) -> int:
        """The latest requests, as many as brought nothing in a row though their predictor is called."""
        latest = (text for text in reversed(self.asked) if not text.uncalled)
        return sum(1 for _ in itertools.takewhile(lambda text: text.refused, latest))

    @property
    def expected(self) -> float:
        """Calls that the next request will take: the mean of the latest."""
        latest = self.asked[-LATEST:]
        return sum(text.calls for text in latest) / len(latest) if latest else 1.0

    def wrote(self, text: Text) -> None:
        """A text is in the space, or a request brought nothing."""
        if text.proposed:
            return
        self.asked.append(text)
        if not text.refused:
            self._written[text.part].add(text.index)

    def next(self, state: WritingState, pool: Sequence[Key], posterior: PoolPosterior) -> WriteDecision | None:
        """What to write now; ``None`` where measuring is worth more.

        Args:
            state: How the run stands.
            pool: The prompts about which something is believed.
            posterior: These beliefs.
        """
        if not self._may(state):
            return None
        proven = self.proven(pool, posterior)
        each = self.expected if self.asked or not state.in_flight else UNKNOWN
        if not proven and state.written + each * (1 + state.in_flight) > UNPROVEN * state.max_calls:
            return None
        if not state.blocked and not self._worth_it(state, pool, posterior):
            return None
        part = self._next_part()
        return None if part is None else WriteDecision(part, self._parent(pool, posterior))

    def proven(self, pool: Sequence[Key], posterior: PoolPosterior) -> bool:
        """Whether the best prompt with a written text is better than the best without, by ``PROOF``."""
        written = np.array([self._is_written(key) for key in pool])
        if not written.any():
            return False
        if written.all():
            return True
        mean = posterior.mean
        new, old = (int(np.argmax(np.where(each, mean, -np.inf))) for each in (written, ~written))
        covariance = posterior.covariance(np.array([new, old]))
        spread = math.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
        return bool(mean[new] - mean[old] > PROOF * spread)

    def child(self, text: Text) -> Key:
        """The parent with the text in it."""
        i = self._space.names.index(text.part)
        return (*text.parent[:i], text.index, *text.parent[i + 1 :])

    # ------------------------------------------------------------------

    def _may(self, state: WritingState) -> bool:
        fruitless = self.fruitless
        if state.in_flight >= state.places or fruitless >= FAILURES:
            return False
        if state.left - self.expected < LAST * state.max_calls:
            return False
        since = state.spent - max((text.at for text in self.asked), default=-math.inf)
        return state.blocked or since >= SPACING * (1 + state.in_flight) * 2**fruitless

    def _next_part(self) -> str | None:
        """Whose turn it is, if anybody's."""
        uncalled = {text.part for text in self.asked if text.uncalled}
        turns = [(self._turn + 1 + i) % len(self._parts) for i in range(len(self._parts))]
        self._turn = next((turn for turn in turns if self._parts[turn] not in uncalled), self._turn)
        part = self._parts[self._turn]
        return None if part in uncalled else part

    def _is_written(self, key: Key) -> bool:
        named = zip(self._space.names, key, strict=True)
        return any(index in self._written[name] for name, index in named)

    def _parent(self, pool: Sequence[Key], posterior: PoolPosterior) -> Key:
        places = promising(posterior, CONSIDERED)
        joint = Joint(posterior, places)
        draw = self._random.multivariate_normal(joint.mean, joint.covariance, check_valid="ignore", method="eigh")
        return pool[int(places[int(np.argmax(draw))])]

    def _worth_it(self, state: WritingState, pool: Sequence[Key], posterior: PoolPosterior) -> bool:
        """Whether the gain to be expected of a text is more per call than that of a measurement."""
        from dspy.promptune.gp.allocation import log_worth

        mean, spread = self.record(pool, posterior)
        gain = float(np.exp(log_improvement(np.array([mean]), np.array([spread]), 0.0)[0]))
        cost = self.expected + 2 * self._block  # a text is worth nothing until it is measured
        best = -math.inf
        for blocks in (1, 2, 4, 8):
            size = blocks * self._block
            worth = log_worth(posterior, posterior.noise(size))
            best = max(best, float(np.max(worth)) - math.log(size))
        return math.log(max(gain, 1e-12 * posterior.unit)) - math.log(cost) > best

    def record(self, pool: Sequence[Key], posterior: PoolPosterior) -> tuple[float, float]:
        """Mean and standard deviation of the next child less its parent, by the children so far and the prior."""
        spread, weight = PRIOR[0] * posterior.unit, PRIOR[1]
        place = {key: j for j, key in enumerate(pool)}
        pairs, n = [], weight
        for text in self.asked:
            if text.refused:
                n += 1
            elif (child := self.child(text)) in place and text.parent in place:
                pairs.append((place[child], place[text.parent]))
                n += 1
        members, found = np.unique(np.array(pairs, dtype=int), return_inverse=True)
        children, parents = found.reshape(-1, 2).T
        means, covariance = posterior.mean[members], posterior.covariance(members)
        variances = np.diag(covariance)
        differences = means[children] - means[parents]
        known = np.maximum(0.0, variances[children] + variances[parents] - 2 * covariance[children, parents])
        mean = float(differences.sum()) / n
        second = (weight * spread**2 + float(np.sum(differences**2 + known))) / n
        return mean, math.sqrt(max(second - mean**2, 1e-8 * posterior.unit**2))

"""One proposal: from what was measured to the next prompts to try."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np

from dspy.promptune.gp.batches import BATCHES, Request
from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.joint import random_batches
from dspy.promptune.gp.posterior import first_highest
from dspy.promptune.gp.surrogate import Surrogate
from dspy.promptune.samplers.options import QEIOptions
from dspy.promptune.space import Key, PromptSpace

LEADERS = 20  # prompts whose neighbors are looked at where the space is larger than the pool
BUSY = 4  # prompts that are waiting are one in so many of a pool larger spaces have, at most


class Proposer:
    """Chooses batches of prompts by a model's beliefs about a pool.

    Args:
        space: The prompts.
        surrogate: The model.
        options: Acquisition, size of the pool, and how batches are found.
    """

    def __init__(self, space: PromptSpace, surrogate: Surrogate, options: QEIOptions) -> None:
        self._space, self._surrogate, self._options = space, surrogate, options

    def propose(
        self,
        observations: Sequence[Observation],
        waiting: Sequence[Key],
        q: int,
        rng: random.Random,
        *,
        out: Collection[Key] = (),
    ) -> list[Key]:
        """The next prompts, at most ``q``, given what was measured and what is ``waiting`` for its result.

        None of those that are ``out`` of the running is among them; there may be no other.

        Raises:
            ArithmeticError: No posterior could be computed.
        """
        pool = [key for key in self.pool(observations, waiting, rng) if key not in out]
        if not pool:
            return []
        posterior = self._surrogate.posterior(observations, pool)
        position = {key: j for j, key in enumerate(pool)}
        observed = dict.fromkeys(position[one.key] for one in observations if one.key in position)
        if not observed:  # all that was measured is out of the running: the likeliest of the others is the yardstick
            observed = {first_highest(posterior.mean): None}
        pending = dict.fromkeys(position[key] for key in waiting if key in position)
        request = Request(q=q, observed=list(observed), pending=list(pending), seed=rng.getrandbits(31))
        candidates = []
        if self._options.greedy:
            candidates.append(BATCHES[self._options.acquisition](posterior, request))
        if self._options.n_batches:
            free = sorted(set(range(len(pool))) - set(request.pending)) or list(range(len(pool)))
            size, count = min(request.q, len(free)), self._options.n_batches
            candidates.extend(random_batches(posterior.optimistic, free, size, count, rng))
        chosen = candidates[0] if len(candidates) == 1 else self._best(candidates, observations, pool, request)
        return [pool[j] for j in chosen]

    def pool(self, observations: Sequence[Observation], waiting: Sequence[Key], rng: random.Random) -> list[Key]:
        """The combinations looked at: all, or the leaders with their neighbors, those waiting, and random ones."""
        size = self._options.max_space_size
        if self._space.size <= size:
            return self._space.pool(size, rng)
        seen = list(dict.fromkeys(one.key for one in observations))
        busy = list(dict.fromkeys(waiting))
        crowd = busy if len(busy) > size // BUSY else []
        posterior = self._surrogate.posterior(observations, [*seen, *crowd])
        leaders = [seen[j] for j in np.argsort(-posterior.mean[: len(seen)])[:LEADERS]]
        if crowd:
            busy = [crowd[j] for j in np.argsort(-posterior.optimistic[len(seen) :])[: size // BUSY]]
        return self._space.pool(size, rng, dict.fromkeys([*leaders, *busy]))

    def _best(
        self, candidates: list[list[int]], observations: Sequence[Observation], pool: list[Key], request: Request
    ) -> list[int]:
        """The batch with the highest joint value by BoTorch; the first of equals."""
        from dspy.promptune.gp.botorch_model import acquisition, score_batches

        model, rows = self._surrogate.botorch_model(observations), np.array(pool, dtype=np.float64)
        seen = list(dict.fromkeys(one.key for one in observations))
        best = float(self._surrogate.posterior(observations, seen).mean.max())
        name = self._options.acquisition
        full = [batch for batch in candidates if len(batch) == len(candidates[-1])]
        function = acquisition(name, model, best=best, seed=request.seed, pending=rows[list(request.pending)])
        return full[int(np.argmax(score_batches(function, [rows[batch] for batch in full])))]

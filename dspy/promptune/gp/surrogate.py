"""From observations to beliefs: when to refit, and what to do when a fit fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.model import Evidence, PromptGP, evidence
from dspy.promptune.gp.parts import MAX_DIMS, Array, lineage, project
from dspy.promptune.gp.posterior import PoolPosterior, highest
from dspy.promptune.gp.threads import one_thread
from dspy.promptune.space import Key, Part

if TYPE_CHECKING:
    from dspy.promptune.gp.botorch_model import PromptModel

logger = logging.getLogger(__name__)

_Known = tuple[dict[int, int], tuple[bool, ...]]  # who was written from whom, and who is without demos

REFIT_GROWTH = 1.25  # hyper-parameters move little between refits at this growth, and a long run fits some 20 times
FIRST_FIT = 6  # observations; below it the priors say more than the data
SETTLED = 200  # observations of a fit that fewer of them, the best of many, are no reason to repeat


class Surrogate:
    """A Gaussian process over the prompts of one space that keeps its hyper-parameters between calls.

    Args:
        vectors: For each part, ``(n_candidates, d)`` embeddings.
        max_dims: Directions kept of each part's vectors.
        parts: The parts, which say which candidates were written from which, and which are without demos; without them
            none is.

    Attributes:
        version: How often candidates were added; a posterior is valid for the version it was computed at.
    """

    def __init__(self, vectors: Sequence[Array], max_dims: int = MAX_DIMS, parts: Sequence[Part] = ()) -> None:
        self._vectors = [np.asarray(part, dtype=np.float64) for part in vectors]
        self._max_dims = max_dims
        known = [_known(part) for part in parts] or [({}, (False,) * len(part)) for part in self._vectors]
        self._begin(known)

    def _begin(self, known: list[_Known]) -> None:
        self._known = known
        points = [project(part, self._max_dims) for part in self._vectors]
        lineages = [lineage(parents, len(part)) for (parents, _), part in zip(known, points, strict=True)]
        self.gp = PromptGP(points, lineages, [bare for _, bare in known])
        self._prior = self.gp.hyperparameters()
        self._fitted = 0
        self.version = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Candidates known of each part."""
        return tuple(len(part) for part in self._vectors)

    def extend(self, part: int, vectors: Array, grown: Part | None = None) -> None:
        """Add candidates to a part, after those it has; fitted hyper-parameters stay.

        The part is projected again, so that points of earlier candidates move too: a posterior computed before does
        not hold for the extended space, and ``version`` says that one is needed.

        Args:
            part: Position of the part.
            vectors: ``(n_new, d)`` embeddings; where ``d`` grew, as it does for one-hot vectors, the candidates before
                have zeros there.
            grown: The part with them.
        """
        old, new = self._vectors[part], np.asarray(vectors, dtype=np.float64)
        width = max(old.shape[1], new.shape[1])
        padded = [np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in (old, new)]
        self._vectors[part] = np.concatenate(padded)
        parents, bare = self._known[part]
        parents, bare = (parents, (*bare, *[False] * len(new))) if grown is None else _known(grown)
        self._known[part] = parents, bare
        points = project(self._vectors[part], self._max_dims)
        self.gp.kernel.set_points(part, points, lineage(parents, len(points)), bare)
        self.version += 1

    def __getstate__(self) -> dict[str, Any]:
        """Without GPyTorch's modules, which cannot be pickled: they are built again from the vectors."""
        return {
            "vectors": self._vectors,
            "max_dims": self._max_dims,
            "known": self._known,
            "hyperparameters": self.gp.hyperparameters(),
            "prior": self._prior,
            "fitted": self._fitted,
            "version": self.version,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._vectors, self._max_dims = state["vectors"], state["max_dims"]
        self._begin(state["known"])
        self.gp.set_hyperparameters(state["hyperparameters"])
        self._prior, self._fitted, self.version = state["prior"], state["fitted"], state["version"]

    def promising(self, keys: Sequence[Key]) -> list[Key]:
        """Of prompts of which nothing is known, those with the highest prior mean."""
        expected = self.gp.kernel.expected(torch.tensor(keys)).numpy()
        return [key for key, high in zip(keys, highest(expected), strict=True) if high]

    def posterior(self, observations: Sequence[Observation], pool: Sequence[Key]) -> PoolPosterior:
        """Beliefs about ``pool`` given ``observations`` (at least one), refitting when they grew enough.

        Raises:
            ArithmeticError: The covariance cannot be factorised even with the priors' hyper-parameters.
        """
        data = evidence(observations, self.gp.kernel)
        with one_thread():
            self._refit(data)
            return self._condition(data, np.array(pool, dtype=np.int64))

    def botorch_model(self, observations: Sequence[Observation]) -> PromptModel:
        """The same beliefs as a BoTorch model, with the hyper-parameters as they are."""
        from dspy.promptune.gp.botorch_model import PromptModel

        with one_thread():
            return PromptModel(self.gp, evidence(observations, self.gp.kernel))

    def _refit(self, data: Evidence) -> None:
        if min(self._fitted, SETTLED) <= len(data) < max(FIRST_FIT, REFIT_GROWTH * self._fitted):
            return
        if len(data) < FIRST_FIT or float(np.ptp(data.values)) == 0.0:
            return
        self._fitted = len(data)
        try:
            self.gp.fit(data)
        except (ArithmeticError, RuntimeError) as error:
            logger.warning("Fit to %d results failed (%s): the previous hyper-parameters stay.", len(data), error)

    def _condition(self, data: Evidence, pool: Array) -> PoolPosterior:
        try:
            return PoolPosterior(self.gp, pool, data)
        except (np.linalg.LinAlgError, RuntimeError) as error:
            logger.warning("Posterior of %d results failed (%s): back to the priors.", len(data), error)
        self.gp.set_hyperparameters(self._prior)
        try:
            return PoolPosterior(self.gp, pool, data)
        except (np.linalg.LinAlgError, RuntimeError) as error:
            raise ArithmeticError(f"No posterior from {len(data)} results: {error}") from error


def _known(part: Part) -> _Known:
    return dict(part.parents), part.bare

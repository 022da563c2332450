"""Searching prompts by meaning: the sampler that proposes batches by expected improvement."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial

from dspy.promptune.errors import OptionError
from dspy.promptune.features import EmbedderLike, embed_parts
from dspy.promptune.gp.data import Observation, condensed
from dspy.promptune.gp.parts import MAX_DIMS
from dspy.promptune.gp.surrogate import Surrogate
from dspy.promptune.samplers.options import QEIOptions, folded
from dspy.promptune.samplers.proposal import Proposer
from dspy.promptune.samplers.trials import TrialHistory, measured
from dspy.promptune.space import Key, PromptSpace

logger = logging.getLogger(__name__)

STRIDE = 16  # with more jobs at once, so many times fewer proposals: those ahead are not much better informed


class QEISampler(BaseSampler):
    """Proposes prompts by a Gaussian process over what their parts mean, several at a time.

    The study's trials are read as measurements with their own noise: user attribute ``scores`` holds the per-example
    results behind a value, and ``examples`` (optional) which validation examples they were. Running trials are
    pending: their prompts count as chosen. Trials that failed, or whose value is not finite, are ignored. A prompt
    may be proposed again where measuring it again is worth more than a new one.

    Used with plain Optuna::

        sampler = make_sampler("qei", space=space, seed=0, batch_size=8)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        trial = study.ask(space.distributions())
        trial.set_user_attr("scores", [0.0, 1.0, 1.0])
        study.tell(trial, 2 / 3)
        sampler.best(study)  # the parameters believed best

    Safe to share between threads: one proposal is made at a time.

    Args:
        space: The prompts. Without them the sampler waits for :meth:`bind`, which ``MIPROv2.compile`` calls.
        seed: Any integer, 0 included; ``None`` draws one.
        embedder: Turns texts into vectors, see :func:`dspy.promptune.features.embed_parts`.
        options: ``acquisition``, ``batch_size``, ``max_space_size``, ``n_batches`` and ``min_cold_start`` of
            :class:`dspy.promptune.samplers.options.QEIOptions`.

    Raises:
        OptionError: An unknown option, or a value out of its range.
        EmbeddingError: The embedder failed; nothing has been evaluated by then.
    """

    space: PromptSpace

    def __init__(
        self,
        space: PromptSpace | None = None,
        *,
        seed: int | None = None,
        embedder: EmbedderLike = "minilm",
        **options: Any,
    ) -> None:
        self.options = QEIOptions.of(options)
        self.embedder = embedder
        self._given: dict[str, Any] = {"seed": seed, "embedder": embedder, **options}
        self.bound = space is not None
        if space is not None:
            self._settle(space, seed, embedder)

    def bind(self, space: PromptSpace) -> QEISampler:
        """This sampler if it is for this very space already; otherwise one with its options for ``space``.

        Raises:
            OptionError: It is for a space of other sizes.
        """
        if self.bound and (self.space.names != space.names or self.space.sizes != space.sizes):
            raise OptionError(f"The sampler is for {self.space!r}, not for {space!r}: build it without a space.")
        return self if self.bound and self.space is space else QEISampler(space, **self._given)

    def _settle(self, space: PromptSpace, seed: int | None, embedder: EmbedderLike) -> None:
        self.space = space
        self._own = space.distributions()
        dims = 10**6 if embedder == "onehot" else MAX_DIMS
        self.surrogate = Surrogate(embed_parts(space, embedder), dims, space.parts)
        self._proposer = Proposer(space, self.surrogate, self.options)
        self._lock = threading.RLock()
        self._random = random.Random(seed)
        self._foreign = RandomSampler(folded(seed))
        self._intersection = IntersectionSearchSpace()
        self._planned: list[Key] = []
        self._planned_at: tuple[int, int] | None = None

    def __repr__(self) -> str:
        space = repr(self.space) if self.bound else "no space yet"
        return f"QEISampler({space}, acquisition={self.options.acquisition!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock, so that samplers and their studies can be pickled and copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.bound:
            self._lock = threading.RLock()

    def grow(self) -> bool:
        """Take in the candidates that were appended to the space since the last call; False where there are none.

        Only new texts are embedded. What was fitted stays.

        Raises:
            EmbeddingError: The embedder failed.
        """
        with self._lock:
            known = self.surrogate.sizes
            if known == self.space.sizes:
                return False
            vectors = embed_parts(self.space, self.embedder)
            for part, (rows, count) in enumerate(zip(vectors, known, strict=True)):
                if len(rows) > count:
                    self.surrogate.extend(part, rows[count:], self.space.parts[part])
            self._own = self.space.distributions()
            self._planned.clear()
            return True

    def reseed_rng(self) -> None:
        """Draw a new random state, as Optuna asks of samplers copied to other processes."""
        with self._lock:
            self._random = random.Random()
            self._foreign.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The prompt space, and whatever other parameters all finished trials of the study have."""
        if not self.bound:
            raise OptionError("This QEISampler has no space yet: build it with one, QEISampler(space), or bind it.")
        self.grow()
        own = self._own
        with self._lock:
            common = self._intersection.calculate(study)
        if common and not set(own) & set(common):
            return common
        return {**common, **own}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One combination of the prompt space; parameters that are not the space's are drawn at random."""
        self._raise_error_if_multi_objective(study)
        self.grow()
        mine = all(_same(search_space.get(name), distribution) for name, distribution in self._own.items())
        with self._lock:
            params = {
                name: self._foreign.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
                if not (mine and name in self._own)
            }
            if mine:
                read = partial(TrialHistory, study, self.space, trial.number)
                params.update(self.space.params(self._next(study._study_id, read)))
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for parameters that are not part of the prompt space."""
        self._raise_error_if_multi_objective(study)
        with self._lock:
            return self._foreign.sample_independent(study, trial, param_name, param_distribution)

    def best(self, study: Study) -> dict[str, int]:
        """The parameters with the highest posterior mean among the prompts that were measured.

        Raises:
            ValueError: No trial of the study has a usable result yet.
        """
        with self._lock:
            self.grow()
            return self.space.params(self.best_key(condensed(measured(study, self.space))))

    def best_key(self, observations: Sequence[Observation]) -> Key:
        """The key with the highest posterior mean among those observed."""
        if not observations:
            raise ValueError("No result yet: tell at least one finite value before asking for the best.")
        keys = list(dict.fromkeys(one.key for one in observations))
        try:
            posterior = self.surrogate.posterior(observations, keys)
        except ArithmeticError as error:
            logger.warning("%s: the best average is taken instead.", error)
            return max(observations, key=lambda one: one.value).key
        return keys[int(np.argmax(posterior.mean))]

    def belief(self, observations: Sequence[Observation], key: Key) -> tuple[float, float]:
        """Posterior mean and standard deviation of a prompt's score on new examples, in the metric's units.

        Raises:
            ArithmeticError: No posterior could be computed.
        """
        with self._lock:
            posterior = self.surrogate.posterior(observations, [key])
        return float(posterior.mean[0]), math.sqrt(float(posterior.variance[0]))

    def next_key(self, study: Study, seen: TrialHistory) -> Key:
        """What a trial would be given that is asked for now; for those who make the trials, and know what they say."""
        with self._lock:
            return self._next(study._study_id, lambda: seen)

    def _next(self, study_id: int, read: Callable[[], TrialHistory]) -> Key:
        stride = self.options.batch_size // STRIDE
        if stride > 1 and self._planned and self._planned_at and self._planned_at[0] == study_id:
            return self._planned.pop(0)
        seen = read()
        self._planned = [key for key in self._planned if key not in seen.failed.out]
        waiting = list(seen.running.values())
        state = (study_id, seen.count)
        if self._planned_at != state or not self._planned:
            q = max(1, stride, self.options.batch_size - len(waiting))
            self._planned = self._propose(seen.observations, waiting, q, seen.failed.out)
            self._planned_at = state
        return self._planned.pop(0)

    def _propose(self, observations: list[Observation], waiting: list[Key], q: int, out: Collection[Key]) -> list[Key]:
        if len(observations) >= self.options.min_cold_start:
            try:
                if chosen := self._proposer.propose(observations, waiting, q, self._random, out=out):
                    return chosen
            except (ArithmeticError, RuntimeError) as error:
                logger.warning("Proposing from %d results failed (%s): random instead.", len(observations), error)
        return self._unseen(observations, waiting, q, out)

    def _unseen(self, observations: list[Observation], waiting: list[Key], q: int, out: Collection[Key]) -> list[Key]:
        """Random combinations, new ones while there are any; of those out of the running only where all are."""
        seen = {one.key for one in observations} | set(waiting) | set(out)
        pool = self.space.pool(len(seen) + 8 * q, self._random)
        new = [key for key in pool if key not in seen] or [key for key in pool if key not in out] or pool
        first = self.surrogate.promising(new)
        known = set(first)
        rest = [key for key in new if key not in known]
        return [*self._random.sample(first, min(q, len(first))), *self._random.sample(rest, len(rest))][:q]


def _same(given: BaseDistribution | None, own: BaseDistribution) -> bool:
    """Whether a distribution is the prompt space's; comparing hundreds of choices is left for strangers."""
    return given is own or given == own

"""What a run believes of its prompts, kept up to date from one block of scores to the next."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.allocation.records import Job
from dspy.promptune.gp.allocation import RULES, Question, challenge, finalist, most_moving
from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.joint import Joint, promising, random_batches
from dspy.promptune.gp.posterior import Mark, PoolPosterior, highest
from dspy.promptune.samplers.proposal import BUSY
from dspy.promptune.samplers.qei import QEISampler
from dspy.promptune.space import Key, PromptSpace

logger = logging.getLogger(__name__)

GROWTH = 1.2  # beliefs are rebuilt, and hyper-parameters refitted, when the observations grew by this factor
CROWD = 64  # jobs at once; beyond it a look at each result and each running job would cost too much
LAG = 8  # in a crowd: beliefs are rebuilt when so many times fewer results than there are jobs have come
LOOKED = 512  # in a crowd: prompts that are compared


class Beliefs:
    """The posterior over a pool of prompts: rebuilt now and then, and grown block by block in between.

    Args:
        sampler: Its model and options are used.
        space: The prompts; candidates appended to the sampler's space are believed in from the next decision on.
        n_examples: Size of the validation set.
        rng: Draws the pool, where the space is larger.

    Attributes:
        pool: The prompts about which something is believed.
    """

    def __init__(self, sampler: QEISampler, space: PromptSpace, n_examples: int, rng: random.Random) -> None:
        self._sampler, self._surrogate, self._options = sampler, sampler.surrogate, sampler.options
        self._space, self._whole, self._random = space, n_examples, rng
        self._posterior: PoolPosterior | None = None
        self._mark: Mark | None = None
        self.pool: list[Key] = []
        self._place: dict[Key, int] = {}
        self._measured: set[int] = set()
        self._built = self._seen = self._version = 0

    @property
    def current(self) -> bool:
        """Whether there are beliefs; without, :meth:`rebuild` is due."""
        grown = self._sampler.space.sizes != self._surrogate.sizes or self._version != self._surrogate.version
        return self._posterior is not None and not grown

    @property
    def posterior(self) -> PoolPosterior:
        """What is believed of the pool, running jobs aside; there must be beliefs."""
        assert self._posterior is not None
        self._settle()
        return self._posterior

    def forget(self) -> None:
        """Be rebuilt from all scores before the next use."""
        self._posterior = None

    def rebuild(self, observations: Sequence[Observation], running: Iterable[Job] = ()) -> bool:
        """Believe what these observations say; False, with a warning, where that cannot be computed.

        The prompts of ``running`` jobs are in the pool, so that their scores can be added when they come.
        """
        if not observations:
            return False
        self._sampler.grow()
        self._version = self._surrogate.version
        try:
            self.pool = self._new_pool(observations, [job.key for job in running])
            self._posterior = self._surrogate.posterior(observations, self.pool)
        except (ArithmeticError, RuntimeError) as error:
            logger.warning("No beliefs from %d results (%s): averages and chance instead.", len(observations), error)
            return False
        self._place = {key: j for j, key in enumerate(self.pool)}
        self._measured = {self._place[one.key] for one in observations}
        self._mark = self._posterior.mark()
        self._built = self._seen = len(observations)
        return True

    def add(self, key: Key, mean: float, examples: Sequence[int], beside: int = 0) -> None:
        """One more block of scores of a prompt, ``beside`` so many jobs that are running."""
        self._seen += 1
        if beside > CROWD:
            if self._seen >= min(GROWTH * self._built, self._built + beside // LAG):
                self.forget()
            return
        if self._posterior is None or key not in self._place or self._seen >= GROWTH * self._built:
            self.forget()
            return
        self._settle()
        j = self._place[key]
        self._posterior.observe(j, self._posterior.noise(len(examples))[j], mean, examples)
        self._measured.add(j)
        self._mark = self._posterior.mark()

    def best(self, out: Collection[Key] = ()) -> Key:
        """Of the prompts that were measured, the one with the highest posterior mean; the first of equals.

        Args:
            out: Prompts that count only where no other was measured.
        """
        assert self._posterior is not None
        self._settle()
        measured = sorted(self._measured)
        places = np.array([j for j in measured if self.pool[j] not in out] or measured)
        return min(self.pool[j] for j in places[highest(self._posterior.mean[places])])

    def choose(self, running: Sequence[Job], closed: Iterable[Key], block: int, count: int = 1) -> list[Key]:
        """The prompts that get the next blocks, one given another; none where all are closed.

        Args:
            running: Jobs whose scores will come: their uncertainty is taken as gone.
            closed: Prompts that cannot be measured any more.
            block: Examples in a job.
            count: How many; a prompt may be among them again.
        """
        joint, places, out = self._as_if_told(running, closed)
        if self._options.n_batches and isinstance(joint, PoolPosterior):
            chosen = self._best_batch(joint, running, out, block, count)
        else:
            chosen = self._greedy(joint, out, block, count)
        return [self.pool[places[j]] for j in chosen]

    def promising(self, keys: Sequence[Key]) -> list[Key]:
        """Of prompts that were not measured, those with the highest prior mean."""
        self._sampler.grow()
        return self._surrogate.promising(keys)

    def first_of(self, keys: Sequence[Key], closed: Collection[Key], block: int) -> Key:
        """Of these prompts the one that would get the next block; the first where nothing is believed of any."""
        among = [key for key in keys if key in self._place and key not in closed]
        if not among:
            return keys[0]
        return self.choose((), set(self.pool).difference(among), block)[0]

    def decide(self, running: Sequence[Job], closed: Iterable[Key]) -> Key | None:
        """Of the prompts that may win, the one whose next scores decide most; ``None`` where all are closed."""
        joint, places, out = self._as_if_told(running, closed)
        members = np.flatnonzero(np.isin(places, list(self._measured)))
        chosen = finalist(joint, members, out)
        return None if chosen is None else self.pool[places[chosen]]

    def _greedy(self, posterior: PoolPosterior | Joint, out: NDArray[np.bool_], block: int, count: int) -> list[int]:
        """Blocks one after another, each as the acquisition has it once those before count as measured."""
        noise, rule = posterior.noise(1), RULES[self._options.acquisition]
        if self._space.is_open and rule is challenge:
            rule = most_moving  # the leader's challenger alone would leave new texts untried
        question = Question(noise=noise, block=block, whole=self._whole, closed=out, rng=self._random)
        chosen: list[int] = []
        while len(chosen) < count and not out.all():
            chosen.append(rule(posterior, question))
            if len(chosen) < count:
                posterior.observe(chosen[-1], float(noise[chosen[-1]]) / block)
        return chosen

    def _best_batch(
        self, posterior: PoolPosterior, running: Sequence[Job], out: NDArray[np.bool_], block: int, count: int
    ) -> list[int]:
        """Of the greedy batch and random ones, the best by BoTorch's acquisition function on the look-ahead model."""
        from dspy.promptune.gp.lookahead import best_of_batches

        free = np.flatnonzero(~out).tolist()
        if not free:
            return []
        size = min(count, len(free))
        batches = random_batches(posterior.optimistic, free, size, self._options.n_batches, self._random)
        if self._options.greedy:
            batches.append(self._greedy(posterior, out, block, size))
        self._settle()
        pending = [(self._place[job.key], len(job.examples)) for job in running if job.key in self._place]
        return best_of_batches(
            self._options.acquisition,
            posterior,
            batches,
            block=block,
            pending=pending,
            seed=self._random.getrandbits(31),
        )

    def _as_if_told(
        self, running: Sequence[Job], closed: Iterable[Key]
    ) -> tuple[PoolPosterior | Joint, NDArray[np.intp], NDArray[np.bool_]]:
        """Beliefs with running jobs as measured, the positions in the pool that they are about, and which are closed.

        In a crowd only the most promising prompts are looked at, and all scores of a running prompt are taken together.
        """
        assert self._posterior is not None
        self._settle()
        out = np.zeros(len(self.pool), dtype=bool)
        out[[self._place[key] for key in closed if key in self._place]] = True
        jobs = [(self._place[job.key], job) for job in running if job.key in self._place]
        noise = self._posterior.noise(1)
        if len(jobs) <= CROWD:
            for j, job in jobs:
                self._posterior.observe(j, noise[j] / len(job.examples), None, job.examples)
            return self._posterior, np.arange(len(self.pool)), out
        awaited: dict[int, int] = {}
        for j, job in jobs:
            awaited[j] = awaited.get(j, 0) + len(job.examples)
        places = promising(self._posterior, LOOKED, np.flatnonzero(out))
        joint = Joint(self._posterior, places)
        for j, place in enumerate(places):
            if place in awaited:
                joint.observe(j, noise[place] / awaited[place])
        return joint, places, out[places]

    def _settle(self) -> None:
        """Take off the running jobs."""
        if self._posterior is not None and self._mark is not None:
            self._posterior.rewind(self._mark)

    def _new_pool(self, observations: Sequence[Observation], running: Sequence[Key]) -> list[Key]:
        measured = list(dict.fromkeys(one.key for one in observations))
        if self._space.size <= self._options.max_space_size:
            return self._space.pool(self._options.max_space_size, self._random)
        means = self._surrogate.posterior(observations, measured).mean
        leaders = [measured[j] for j in np.argsort(-means)]
        size = self._options.max_space_size
        busy = list(dict.fromkeys(running))[: size // BUSY]
        return self._space.pool(size + len(leaders), self._random, [*leaders, *busy])

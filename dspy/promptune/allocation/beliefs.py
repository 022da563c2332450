"""What a run believes of its prompts, kept up to date from one block of scores to the next."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.allocation.records import Job
from dspy.promptune.gp.allocation import next_member
from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.joint import Joint, promising
from dspy.promptune.gp.posterior import Mark, PoolPosterior
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
        sampler: Its model and the size of its pool are used.
        space: The prompts.
        rng: Draws the pool, where the space is larger.

    Attributes:
        pool: The prompts about which something is believed.
    """

    def __init__(self, sampler: QEISampler, space: PromptSpace, rng: random.Random) -> None:
        self._surrogate, self._size = sampler.surrogate, sampler.options.max_space_size
        self._space, self._random = space, rng
        self._posterior: PoolPosterior | None = None
        self._mark: Mark | None = None
        self.pool: list[Key] = []
        self._place: dict[Key, int] = {}
        self._measured: set[int] = set()
        self._built, self._seen = 0, 0

    @property
    def current(self) -> bool:
        """Whether there are beliefs; without, :meth:`rebuild` is due."""
        return self._posterior is not None

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
        means = self._posterior.mean[places]
        return min(self.pool[j] for j in places[means == means.max()])

    def choose(self, running: Iterable[Job], closed: Iterable[Key], size: int, count: int = 1) -> list[Key]:
        """The prompts whose next ``size`` scores are worth most, one given another; none where all are closed.

        Args:
            running: Jobs whose scores will come: their uncertainty is taken as gone.
            closed: Prompts that cannot be measured any more.
            size: Examples in the next job.
            count: How many; a prompt may be among them again.
        """
        assert self._posterior is not None
        self._settle()
        jobs = [(self._place[job.key], job) for job in running if job.key in self._place]
        out = np.zeros(len(self.pool), dtype=bool)
        out[[self._place[key] for key in closed if key in self._place]] = True
        if len(jobs) > CROWD:
            return self._choose_in_a_crowd(jobs, out, size, count)
        noise = self._posterior.noise(1)
        for j, job in jobs:
            self._posterior.observe(j, noise[j] / len(job.examples), None, job.examples)
        chosen: list[Key] = []
        while len(chosen) < count and not out.all():
            member = next_member(self._posterior, self._posterior.noise(size), out)
            chosen.append(self.pool[member])
            if len(chosen) < count:
                self._posterior.observe(member, float(noise[member]) / size)
        return chosen

    def _choose_in_a_crowd(
        self, jobs: Sequence[tuple[int, Job]], out: NDArray[np.bool_], size: int, count: int
    ) -> list[Key]:
        """The same among the most promising prompts, with all scores of a running prompt taken together."""
        assert self._posterior is not None
        awaited: dict[int, int] = {}
        for j, job in jobs:
            awaited[j] = awaited.get(j, 0) + len(job.examples)
        places = promising(self._posterior, LOOKED, np.flatnonzero(out))
        joint, noise = Joint(self._posterior, places), self._posterior.noise(1)[places]
        for j, place in enumerate(places):
            if place in awaited:
                joint.observe(j, noise[j] / awaited[place])
        chosen: list[Key] = []
        while len(chosen) < count and not out[places].all():
            member = next_member(joint, noise / size, out[places])
            chosen.append(self.pool[places[member]])
            joint.observe(member, noise[member] / size)
        return chosen

    def _settle(self) -> None:
        """Take off the running jobs."""
        if self._posterior is not None and self._mark is not None:
            self._posterior.rewind(self._mark)

    def _new_pool(self, observations: Sequence[Observation], running: Sequence[Key]) -> list[Key]:
        measured = list(dict.fromkeys(one.key for one in observations))
        if self._space.size <= self._size:
            return self._space.pool(self._size, self._random)
        means = self._surrogate.posterior(observations, measured).mean
        leaders = [measured[j] for j in np.argsort(-means)]
        busy = list(dict.fromkeys(running))[: self._size // BUSY]
        return self._space.pool(self._size + len(leaders), self._random, [*leaders, *busy])

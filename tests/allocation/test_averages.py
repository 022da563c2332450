"""The highest average without a look at all of them."""

import random
from statistics import fmean

from dspy.promptune.allocation.averages import Averages


def test_the_best_is_the_one_that_a_look_at_all_would_find():
    """Averages that rise and fall, ties, prompts that are taken for a while and prompts that are closed."""
    rng = random.Random(0)
    averages, means, closed = Averages(), {}, set()
    for _ in range(400):
        key = (rng.randrange(30),)
        mean = rng.randrange(5) / 4
        averages.add(key, mean)
        means.setdefault(key, []).append(mean)
        if rng.random() < 0.05:
            averages.close(key)
            closed.add(key)
        taken = {(rng.randrange(30),) for _ in range(8)}
        free = {key: fmean(found) for key, found in means.items() if key not in closed | taken}
        expected = max(free, key=free.__getitem__, default=None)
        assert averages.best(lambda key, taken=taken: key not in taken) == expected


def test_without_minibatches_there_is_no_best():
    """None, and it is false."""
    assert not Averages() and Averages().best() is None

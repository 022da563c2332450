"""What a surrogate keeps: its hyper-parameters through growth, pickling and copies."""

import copy
import pickle

import numpy as np
import pytest

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.surrogate import Surrogate

RNG = np.random.default_rng(0)
INSTRUCTIONS, DEMOS = RNG.normal(size=(8, 5)), RNG.normal(size=(4, 5))
SEEN = [Observation((i % 6, i % 4), i / 12, (float(i > 5),) * 4, (0, 1, 2, 3)) for i in range(12)]
POOL = [(i, j) for i in range(6) for j in range(4)]


def fitted():
    """A surrogate of six instructions and four demo sets, fitted to twelve results."""
    surrogate = Surrogate([INSTRUCTIONS[:6], DEMOS])
    surrogate.posterior(SEEN, POOL)
    return surrogate


def test_appended_candidates_are_believed_in_as_if_they_had_always_been_there():
    """With the same hyper-parameters, the extended model and one built with all candidates agree, without a new fit."""
    parents = {6: 2, 7: 6}
    grown, whole = fitted(), Surrogate([INSTRUCTIONS, DEMOS], parents=[parents, {}])
    before = grown.gp.hyperparameters()
    grown.extend(0, INSTRUCTIONS[6:], parents)
    whole.gp.set_hyperparameters(before)
    whole._fitted = len(SEEN)
    pool = [(i, j) for i in range(8) for j in range(4)]
    assert grown.posterior(SEEN, pool).mean == pytest.approx(whole.posterior(SEEN, pool).mean)
    assert grown.gp.hyperparameters().tolist() == before.tolist()
    assert (grown.sizes, grown.version) == ((8, 4), 1)


def test_a_text_is_believed_to_be_about_as_good_as_its_parent():
    """Of two new texts that mean the same, the one written from the better prompt has the higher mean."""
    surrogate = Surrogate([np.eye(6)], max_dims=10**6, parents=[{4: 0, 5: 1}])
    seen = [Observation((i,), level, (level,) * 20, tuple(range(20))) for i, level in enumerate((0.9, 0.1, 0.5, 0.5))]
    mean = surrogate.posterior(seen, [(4,), (5,)]).mean
    assert mean[0] == pytest.approx(mean[1])  # both parents were there before anything was written
    surrogate.extend(0, np.eye(8)[6:], {4: 0, 5: 1, 6: 4, 7: 5})
    seen += [Observation((i,), level, (level,) * 20, tuple(range(20))) for i, level in ((4, 0.9), (5, 0.1))]
    better, worse = surrogate.posterior(seen, [(6,), (7,)]).mean
    assert better > worse + 0.05


def test_vectors_that_grow_wider_leave_earlier_candidates_apart():
    """One-hot vectors of a longer list have a column more."""
    surrogate = Surrogate([np.eye(3)], max_dims=10**6)
    surrogate.extend(0, np.eye(4)[3:])
    points = surrogate.gp.kernel.points_0
    gaps = (points[:, None] - points[None]).square().sum(-1).numpy()
    assert gaps[~np.eye(4, dtype=bool)] == pytest.approx(np.ones(12))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_believes_the_same(copied):
    """Hyper-parameters and who was written from whom, and so means and variances, survive."""
    surrogate = Surrogate([INSTRUCTIONS[:6], DEMOS], parents=[{5: 1}, {}])
    surrogate.posterior(SEEN, POOL)
    first, second = surrogate.posterior(SEEN, POOL), copied(surrogate).posterior(SEEN, POOL)
    assert second.mean.tolist() == first.mean.tolist()
    assert second.variance.tolist() == first.variance.tolist()

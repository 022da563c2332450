"""What a surrogate keeps: its hyper-parameters through growth, pickling and copies."""

import copy
import pickle

import numpy as np
import pytest
import torch

from dspy.promptune.gp.data import Observation
from dspy.promptune.gp.surrogate import Surrogate
from dspy.promptune.space import Part

RNG = np.random.default_rng(0)
INSTRUCTIONS, DEMOS = RNG.normal(size=(8, 5)), RNG.normal(size=(4, 5))
SEEN = [Observation((i % 6, i % 4), i / 12, (float(i > 5),) * 4, (0, 1, 2, 3)) for i in range(12)]
POOL = [(i, j) for i in range(6) for j in range(4)]


def parts(n, parents=None):
    """So many instructions, some written from others, and four demo sets, the first of them empty."""
    instructions = Part("0_predictor_instruction", 0, "instruction", tuple("abcdefgh"[:n]), parents or {})
    return [instructions, Part("0_predictor_demos", 0, "demos", ([], ["one"], ["two"], ["three"]))]


def fitted(known=()):
    """A surrogate of six instructions and four demo sets, fitted to twelve results."""
    surrogate = Surrogate([INSTRUCTIONS[:6], DEMOS], parts=known)
    surrogate.posterior(SEEN, POOL)
    return surrogate


def test_appended_candidates_are_believed_in_as_if_they_had_always_been_there():
    """With the same hyper-parameters, the extended model and one built with all candidates agree, without a new fit."""
    parents = {6: 2, 7: 6}
    grown, whole = fitted(parts(6)), Surrogate([INSTRUCTIONS, DEMOS], parts=parts(8, parents))
    before = grown.gp.hyperparameters()
    grown.extend(0, INSTRUCTIONS[6:], parts(8, parents)[0])
    whole.gp.set_hyperparameters(before)
    whole._fitted = len(SEEN)
    pool = [(i, j) for i in range(8) for j in range(4)]
    assert grown.posterior(SEEN, pool).mean == pytest.approx(whole.posterior(SEEN, pool).mean)
    assert grown.gp.hyperparameters().tolist() == before.tolist()
    assert (grown.sizes, grown.version) == ((8, 4), 1)


def test_a_text_is_believed_to_be_about_as_good_as_its_parent():
    """Of two new texts that mean the same, the one written from the better prompt has the higher mean."""
    surrogate = Surrogate([np.eye(6)], max_dims=10**6, parts=parts(6, {4: 0, 5: 1})[:1])
    seen = [Observation((i,), level, (level,) * 20, tuple(range(20))) for i, level in enumerate((0.9, 0.1, 0.5, 0.5))]
    mean = surrogate.posterior(seen, [(4,), (5,)]).mean
    assert mean[0] == pytest.approx(mean[1])  # both parents were there before anything was written
    surrogate.extend(0, np.eye(8)[6:], parts(8, {4: 0, 5: 1, 6: 4, 7: 5})[0])
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
    surrogate = Surrogate([INSTRUCTIONS[:6], DEMOS], parts=parts(6, {5: 1}))
    surrogate.posterior(SEEN, POOL)
    first, second = surrogate.posterior(SEEN, POOL), copied(surrogate).posterior(SEEN, POOL)
    assert second.mean.tolist() == first.mean.tolist()
    assert second.variance.tolist() == first.variance.tolist()


def test_prompts_without_demos_are_expected_to_be_worse_until_scores_say_otherwise():
    """One score is not enough to think the same of both kinds; many good ones without demos turn it around."""
    surrogate = Surrogate([np.eye(6), np.eye(4)], parts=parts(6))
    pool = [(5, 0), (5, 3)]
    assert surrogate.promising([(0, 0), (1, 0), (1, 2), (0, 3)]) == [(1, 2), (0, 3)]
    seen = [Observation((0, 1), 0.5, (0.0, 1.0), (0, 1))]
    without, with_demos = surrogate.posterior(seen, pool).mean
    assert with_demos - without > 0.05
    seen = [Observation((i, j), float(j == 0), (float(j == 0),) * 9, tuple(range(9))) for i in range(4) for j in (0, 1)]
    without, with_demos = surrogate.posterior(seen, pool).mean
    assert without - with_demos > 0.2


def test_botorchs_model_expects_the_same():
    """The same means as the pool's posterior, of prompts with and without demos, seen and not."""
    surrogate = fitted(parts(6))
    found = surrogate.botorch_model(SEEN).posterior(torch.tensor(POOL, dtype=torch.float64)[:, None]).mean
    assert found.ravel().numpy() == pytest.approx(surrogate.posterior(SEEN, POOL).mean)

"""The covariance of two prompts, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from dspy.promptune.gp.kernel import LEVEL, PRIORS, PartsKernel
from dspy.promptune.gp.parts import lineage

SD = {name: median for name, (median, _) in PRIORS.items()}
POINTS = [np.array([[0.0], [1.0]]), np.array([[0.0], [0.6], [2.0]])]


def matern(distance):
    """Matern 5/2 with the prior's lengthscale."""
    r = math.sqrt(5) * distance / SD["length"]
    return (1 + r + r * r / 3) * math.exp(-r)


def covariance(kernel, first, second):
    """Of one prompt with another."""
    return kernel.forward(torch.tensor([first]).double(), torch.tensor([second]).double()).item()


def test_prompts_with_nothing_in_common_share_what_their_meanings_share():
    """Level, one smooth term a part, and the product of both; nothing of what belongs to a candidate."""
    a, b = matern(1.0), matern(1.4)
    expected = LEVEL**2 + SD["smooth"] ** 2 * (a + b) + SD["joint"] ** 2 * a * b
    assert covariance(PartsKernel(POINTS), [0, 1], [1, 2]) == pytest.approx(expected)


def test_prompts_with_the_same_instruction_share_what_belongs_to_it():
    """The same candidate adds its own variance; only the same combination adds the single one."""
    b = matern(0.6)
    expected = LEVEL**2 + SD["smooth"] ** 2 * (1 + b) + SD["own"] ** 2 + SD["joint"] ** 2 * b
    assert covariance(PartsKernel(POINTS), [1, 0], [1, 1]) == pytest.approx(expected)


def test_the_variance_of_a_prompt_is_the_sum_of_all_components():
    """Every component is 1 between a prompt and itself."""
    expected = LEVEL**2 + 2 * SD["smooth"] ** 2 + 2 * SD["own"] ** 2 + SD["joint"] ** 2 + SD["single"] ** 2
    assert covariance(PartsKernel(POINTS), [1, 2], [1, 2]) == pytest.approx(expected)


def test_equal_texts_are_likely_but_not_certain_to_score_the_same():
    """Candidates are matched by index: duplicates share their meaning, not their own component."""
    kernel = PartsKernel([np.zeros((2, 1))])
    same, twin = covariance(kernel, [0], [0]), covariance(kernel, [0], [1])
    assert same - twin == pytest.approx(SD["single"] ** 2)


def test_one_part_has_no_terms_that_would_say_the_same_twice():
    """With a single part, what belongs to the candidate is what belongs to the combination."""
    names = {name for name, _ in PartsKernel(POINTS[:1]).named_parameters()}
    assert names == {"log_smooth", "log_step", "log_single", "log_length", "log_scale"}


def test_candidates_share_the_writings_behind_both():
    """With 1 from 0, and 3 and 4 from 1: siblings share their parent's, a child has its parent's and its own."""
    kernel = PartsKernel([np.zeros((5, 1))], [lineage({1: 0, 3: 1, 4: 1}, 5)])
    shared = kernel.forward(torch.arange(5.0)[:, None], torch.arange(5.0)[:, None]).detach().numpy()
    shared -= LEVEL**2 + SD["smooth"] ** 2 + SD["single"] ** 2 * np.eye(5)
    count = [[0, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 2, 1], [0, 1, 0, 1, 2]]
    assert shared == pytest.approx(SD["step"] ** 2 * np.array(count))


def test_batches_and_diagonals_agree_with_the_plain_matrix():
    """BoTorch calls with batch dimensions and gpytorch with diag=True; all are the same numbers."""
    kernel = PartsKernel(POINTS, [lineage({}, 2), lineage({1: 0, 2: 1}, 3)])
    x = torch.tensor([[0, 0], [1, 2], [0, 1], [1, 1]]).double()
    plain = kernel.forward(x, x)
    assert torch.allclose(kernel.forward(x.reshape(2, 2, 2), x), plain.reshape(2, 2, 4))
    assert torch.allclose(kernel.forward(x, x, diag=True), plain.diagonal())
    assert torch.allclose(kernel(x).to_dense(), plain)
    assert torch.linalg.eigvalsh(plain).min() > 0

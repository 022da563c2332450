"""Expected improvement of blocks of examples: the means that measuring them will leave behind, as a BoTorch model.

Before blocks ``J`` are measured, with noise ``N``, the posterior means that they will leave behind are jointly Gaussian
with the present means and the covariance ``S[., J] (S[J, J] + N)^-1 S[J, .]`` (Frazier, Powell and Dayanik 2009), where
``S`` is the present posterior covariance. BoTorch's acquisition functions on this distribution value blocks; the closed
forms of :mod:`dspy.promptune.gp.allocation` are the same values for one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.monte_carlo import qExpectedImprovement
from botorch.posteriors.gpytorch import GPyTorchPosterior
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.distributions import MultivariateNormal
from numpy.typing import NDArray
from torch import Tensor

from dspy.promptune.errors import OptionError
from dspy.promptune.gp.allocation import rivals
from dspy.promptune.gp.botorch_model import SAMPLES, OneOutput, score_batches
from dspy.promptune.gp.joint import Joint
from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.posterior import PoolPosterior, first_highest

Blocks = Sequence[tuple[int, int]]
"""Blocks of examples: position of the prompt in the pool, and how many; 0 for a prompt that is only compared."""

JITTER, TINY = 1e-10, 1e-200  # added to the diagonal, in units of the largest variance; the least such unit
NEVER = 1e12  # variance of a block without examples, in units of a prompt's own: it moves nothing


class LookAheadModel(OneOutput):
    """Joint distribution of posterior means after blocks are measured.

    A row of the input is a block: the position of its prompt, and its number of examples. A prompt with 0 examples is
    compared and not measured. All blocks of a q-batch are measured before any two prompts of it are compared, and with
    them BoTorch's ``X_pending``.

    Args:
        posterior: Beliefs about the pool.
        noise: ``(P,)`` variance of one further score of each prompt about its true score.
        leader: Where given, what is modeled are differences to the mean of this prompt, which moves too; otherwise the
            means themselves.
    """

    def __init__(self, posterior: PoolPosterior | Joint, noise: Array, leader: int | None = None) -> None:
        super().__init__()
        self._beliefs, self._noise, self._leader = posterior, noise, leader

    def posterior(self, X: Tensor, *args: Any, **kwargs: Any) -> GPyTorchPosterior:
        """Means after measuring ``X`` (``batch x q x 2``: position and examples), in the metric's units."""
        places, sizes = X[..., 0].long(), X[..., 1]
        if self._leader is not None:
            places = torch.nn.functional.pad(places, (0, 1), value=self._leader)
            sizes = torch.nn.functional.pad(sizes, (0, 1))
        mean, covariance = self._present(places)
        own = torch.as_tensor(self._noise)[places] / sizes.clamp_min(1)
        noise = torch.where(sizes > 0, own, NEVER * covariance.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True))
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(noise))
        moves = torch.linalg.solve_triangular(factor, covariance, upper=False).transpose(-1, -2)
        if self._leader is not None:
            mean, moves = mean[..., :-1] - mean[..., -1:], moves[..., :-1, :] - moves[..., -1:, :]
        after = moves @ moves.transpose(-1, -2)
        unit = after.diagonal(dim1=-2, dim2=-1).amax().clamp_min(TINY)
        jitter = JITTER * unit * torch.eye(after.shape[-1], dtype=after.dtype)
        return GPyTorchPosterior(MultivariateNormal(mean, after + jitter))

    def _present(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Means and covariance of ``... x q`` positions as they are now."""
        distinct, inverse = np.unique(places.numpy(), return_inverse=True)
        index = torch.as_tensor(inverse.reshape(places.shape))
        mean = torch.as_tensor(self._beliefs.mean[distinct])[index]
        covariance = torch.as_tensor(covariance_of(self._beliefs, distinct))
        return mean, covariance[index.unsqueeze(-1), index.unsqueeze(-2)]


def covariance_of(posterior: PoolPosterior | Joint, places: NDArray[np.intp]) -> Array:
    """Posterior covariance of some positions, ``(m, m)``."""
    if isinstance(posterior, Joint):
        block: Array = posterior.covariance[np.ix_(places, places)]
        return block
    return posterior.covariance(places)


def block_acquisition(
    name: str,
    posterior: PoolPosterior | Joint,
    noise: Array,
    *,
    pending: Blocks = (),
    seed: int = 0,
    samples: int = SAMPLES,
) -> AcquisitionFunction:
    """BoTorch's acquisition function of that name for blocks, rows of position and examples.

    Args:
        name: ``"qei"``: expected improvement over the prompt with the highest mean, whose mean will move too;
            ``"qlogei"``: logarithm of the expected improvement over that mean as it is now; ``"qlognei"``: logarithm
            of the improvement over whichever of the best prompts will then have the highest mean.
        posterior: Beliefs about the pool.
        noise: ``(P,)`` variance of one further score of each prompt.
        pending: Blocks that are running: measured, and compared, with those that are valued.
        seed: Of the quasi-random samples.
        samples: How many.
    """
    common: dict[str, Any] = {"sampler": SobolQMCNormalSampler(torch.Size([samples]), seed=seed)}
    if len(pending):
        common["X_pending"] = torch.as_tensor(np.array(pending, dtype=np.float64))
    leader = first_highest(posterior.mean)
    if name == "qei":
        return qExpectedImprovement(LookAheadModel(posterior, noise, leader), best_f=0.0, **common)
    model = LookAheadModel(posterior, noise)
    if name == "qlogei":
        return qLogExpectedImprovement(model, best_f=float(posterior.mean[leader]), **common)
    if name == "qlognei":
        baseline = torch.tensor([[float(place), 0.0] for place in rivals(posterior)], dtype=torch.float64)
        return qLogNoisyExpectedImprovement(model, baseline, prune_baseline=False, cache_root=False, **common)
    raise OptionError(f"acquisition={name!r}: BoTorch's are qei, qlogei and qlognei.")


def best_of_batches(
    name: str,
    posterior: PoolPosterior,
    batches: Sequence[Sequence[int]],
    *,
    block: int,
    pending: Blocks = (),
    seed: int = 0,
) -> list[int]:
    """The batch of positions whose blocks are worth most by BoTorch; the first of equals.

    Args:
        name: Acquisition, see :func:`block_acquisition`.
        posterior: Beliefs about the pool, without the pending blocks.
        batches: Of one size.
        block: Examples in each block.
        pending: Blocks that are running.
        seed: Of the quasi-random samples.
    """
    function = block_acquisition(name, posterior, posterior.noise(1), pending=pending, seed=seed)
    rows = [np.array([[place, block] for place in batch], dtype=np.float64) for batch in batches]
    return list(batches[first_highest(score_batches(function, rows))])

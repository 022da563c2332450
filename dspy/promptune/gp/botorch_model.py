"""The same posterior as a BoTorch model, and BoTorch's own acquisition functions on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.monte_carlo import qExpectedImprovement
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from dspy.promptune.errors import OptionError
from dspy.promptune.gp.model import Evidence, PromptGP
from dspy.promptune.gp.parts import Array
from dspy.promptune.gp.threads import one_thread

SAMPLES = 256  # of BoTorch's quasi-Monte-Carlo average; its selection is stable to about 1 % from here


class OneOutput(Model):
    """A BoTorch model of one number, without a batch of models."""

    @property
    def num_outputs(self) -> int:
        """One number."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """No batch of models."""
        return torch.Size()


class PromptModel(OneOutput):
    """What :class:`~dspy.promptune.gp.posterior.PoolPosterior` believes, for prompts given as rows of indices.

    Args:
        gp: Prior and noise.
        data: What was observed.
    """

    def __init__(self, gp: PromptGP, data: Evidence) -> None:
        super().__init__()
        self._gp, self._data = gp, data
        self._rows = torch.as_tensor(data.rows)
        with torch.no_grad():
            self._factor = torch.linalg.cholesky(gp.kernel.forward(self._rows, self._rows) + gp.noise(data))
        values = torch.as_tensor(data.values)[:, None]
        self._white = torch.linalg.solve_triangular(self._factor, values, upper=False)

    def posterior(self, X: Tensor, *args: Any, **kwargs: Any) -> GPyTorchPosterior:
        """Joint posterior of the true scores of ``X`` (``batch x q x parts``), in the metric's units."""
        with torch.no_grad():
            prior = self._gp.kernel.forward(X, X)
            cross = self._gp.kernel.forward(self._rows, X)
        solved = torch.linalg.solve_triangular(self._factor, cross, upper=False)
        about = self._gp.kernel.expected(X) + (solved.transpose(-1, -2) @ self._white).squeeze(-1)
        mean = self._data.centre + self._data.unit * about
        covariance = prior - solved.transpose(-1, -2) @ solved
        covariance = covariance + 1e-9 * torch.eye(X.shape[-2], dtype=covariance.dtype)
        return GPyTorchPosterior(MultivariateNormal(mean, self._data.unit**2 * covariance))


def acquisition(name: str, model: PromptModel, *, best: float, seed: int, pending: Array | None) -> AcquisitionFunction:
    """BoTorch's acquisition function of that name on ``model``.

    Args:
        name: ``"qei"``, ``"qlogei"`` or ``"qlognei"``.
        model: Beliefs.
        best: Value to improve on; ``qlognei`` improves on the uncertain best of what was observed instead.
        seed: Of the quasi-random samples.
        pending: ``(m, parts)`` prompts being evaluated, or ``None``.
    """
    common: dict[str, Any] = {"sampler": SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed)}
    if pending is not None and len(pending):
        common["X_pending"] = torch.as_tensor(pending, dtype=torch.float64)
    if name == "qei":
        return qExpectedImprovement(model, best_f=best, **common)
    if name == "qlogei":
        return qLogExpectedImprovement(model, best_f=best, **common)
    if name == "qlognei":
        baseline = torch.unique(model._rows, dim=0).double()
        return qLogNoisyExpectedImprovement(model, baseline, prune_baseline=True, cache_root=False, **common)
    raise OptionError(f"acquisition={name!r}: BoTorch's are qei, qlogei and qlognei.")


def score_batches(function: AcquisitionFunction, batches: Sequence[Array]) -> Array:
    """The joint value of each of some batches of equal size (``q x parts`` each), ``(n,)``."""
    with torch.no_grad(), one_thread(), undisturbed():
        stacked = torch.stack([torch.as_tensor(batch, dtype=torch.float64) for batch in batches])
        values: Array = function(stacked).numpy()
    return values


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave torch's global random generator as it was: BoTorch seeds it."""
    with torch.random.fork_rng(devices=[]):
        yield

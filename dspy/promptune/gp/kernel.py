"""The kernel between prompts: what two combinations of candidates have in common, part by part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import NormalPrior
from torch import Tensor

from dspy.promptune.gp.parts import Array

# Log-normal priors, as (median, spread of the logarithm). Standard deviations are in units of the metric, where a
# metric runs from 0 to 1; lengths are in units of the typical distance between two candidates of a part.
PRIORS = {
    "smooth": (0.10, 0.60),  # sd of what a part's meaning decides
    "own": (0.05, 0.50),  # sd of what belongs to a candidate and not to its meaning
    "joint": (0.07, 0.60),  # sd of what only the combination of meanings decides
    "single": (0.05, 0.50),  # sd of what belongs to one combination alone
    "step": (0.06, 0.50),  # sd of what writing a candidate from another one changes
    "length": (0.60, 0.50),  # lengthscale of a part
    "scale": (1.0, 0.50),  # of all standard deviations together: on some tasks prompts hardly matter, on some much
}
WIDER = 1.8  # as much wider are the spreads of more than two parts: some of them may decide much, others nothing
BARE = (0.10, 0.10)  # mean and sd of what prompts without demos are worse by
LEVEL = 0.3  # sd of the common level, integrated out with the rest
BOUNDS = (-12.0, 4.0)  # of every logarithm


class PartsKernel(Kernel):  # type: ignore[misc]
    """Covariance of the true scores of two prompts, given as candidate indices.

    With ``m_i`` the Matern-5/2 kernel on the vectors of part ``i`` and ``e_i`` 1 where both prompts use the same
    candidate::

        k = level^2 + scale^2 (
            sum_i (smooth_i^2 m_i + own_i^2 e_i + step^2 s_i) + joint^2 prod_i m_i + single^2 [same prompt]
        )

    ``s_i`` is the number of writings that both candidates have behind them (:func:`dspy.promptune.gp.parts.lineage`): a
    candidate written from another one is as good as that one, give or take a step. It is the covariance of a random
    walk along a tree (Felsenstein 1985, "Phylogenies and the comparative method").

    Prompts without demos are expected to be worse. With ``b`` the share of such demo sets in a prompt (of the parts
    that have any), its prior mean is ``-BARE[0] b``, and ``k`` has ``BARE[1]^2 b b'`` more. So it is on all recorded
    tables with demos but the control, by .06 to .32; a few scores say whether it is so here.

    The scale makes nothing possible that the others do not; its prior lets all of them be small, or large, at once.

    Inputs are indices written as floats, so that BoTorch can carry them, and what a covariance costs does not depend
    on how wide the embeddings were. With one part, ``own`` and ``joint`` would say what ``single`` and ``smooth``
    say, and are left out.

    Args:
        points: For each part, ``(n_candidates, r)`` from :func:`dspy.promptune.gp.parts.project`.
        lineages: For each part, ``(n_candidates, n_written)`` from :func:`dspy.promptune.gp.parts.lineage`; none where
            no candidate was written from another.
        bare: For each part, whether each candidate is a demo set without a demo.
    """

    def __init__(
        self, points: Sequence[Array], lineages: Sequence[Array] = (), bare: Sequence[Sequence[bool]] = ()
    ) -> None:
        super().__init__()
        self.n_parts = len(points)
        for i, part in enumerate(points):
            n = len(part)
            self.set_points(i, part, lineages[i] if lineages else np.zeros((n, 0)), bare[i] if bare else [False] * n)
        for name, (median, spread) in PRIORS.items():
            if name in ("own", "joint") and self.n_parts == 1:
                continue
            count = 1 if name in ("step", "joint", "single", "scale") else self.n_parts
            self._add(f"log_{name}", math.log(median), spread * (WIDER if self.n_parts > 2 else 1), count)

    def set_points(self, part: int, points: Array, lineage: Array, bare: Sequence[bool]) -> None:
        """The candidates of a part, ``(n_candidates, r)``, the writings behind them, ``(n_candidates, n_written)``, and
        which of them are without demos; they may be more than before."""
        self.register_buffer(f"points_{part}", torch.as_tensor(points, dtype=torch.float64))
        self.register_buffer(f"lineage_{part}", torch.as_tensor(lineage, dtype=torch.float64))
        self.register_buffer(f"bare_{part}", torch.as_tensor(bare, dtype=torch.float64))
        known = [getattr(self, f"bare_{i}", None) for i in range(self.n_parts)]
        self._with_bare = [i for i, flags in enumerate(known) if flags is not None and bool(flags.any())]

    @property
    def points(self) -> list[Array]:
        """The candidates of each part, ``(n_candidates, r)``."""
        return [getattr(self, f"points_{i}").numpy() for i in range(self.n_parts)]

    def expected(self, rows: Tensor) -> Tensor:
        """Prior means of prompts, given as candidate indices (``... x parts``), about the common level: ``...``."""
        return -BARE[0] * self._share_bare(rows.long())

    def _share_bare(self, rows: Tensor) -> Tensor:
        """Of the parts that have a demo set without a demo, the share in which prompts have it: ``...``."""
        total = torch.zeros(rows.shape[:-1], dtype=torch.float64)
        for i in self._with_bare:
            total = total + getattr(self, f"bare_{i}")[rows[..., i]] / len(self._with_bare)
        return total

    def _add(self, name: str, mean: float, spread: float, count: int) -> None:
        value = torch.full((count,), mean, dtype=torch.float64)
        self.register_parameter(name, torch.nn.Parameter(value))
        self.register_constraint(name, Interval(*BOUNDS, transform=None))
        self.register_prior(f"{name}_prior", NormalPrior(value.clone(), torch.full_like(value, spread)), name)

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        """Covariances of ``x1`` (``... x n x parts``) and ``x2`` (``... x m x parts``): ``... x n x m``.

        With ``diag=True`` those of each row of ``x1`` with the same row of ``x2``: ``... x n``.
        """
        if not diag:
            x1, x2 = x1.unsqueeze(-2), x2.unsqueeze(-3)
        first, second = x1.long(), x2.long()
        total = torch.zeros((), dtype=torch.float64)
        product: Tensor | float = 1.0
        together: Tensor | float = 1.0
        for i in range(self.n_parts):
            smooth, same = self._part(i, first[..., i], second[..., i], diag)
            total = total + torch.exp(2 * self.log_smooth[i]) * smooth
            if self.n_parts > 1:
                total = total + torch.exp(2 * self.log_own[i]) * same
            if getattr(self, f"lineage_{i}").shape[1]:
                total = total + torch.exp(2 * self.log_step) * self._written(i, first[..., i], second[..., i], diag)
            product, together = product * smooth, together * same
        if self.n_parts > 1:
            total = total + torch.exp(2 * self.log_joint) * product
        total = total + torch.exp(2 * self.log_single) * together
        total = torch.exp(2 * self.log_scale) * total
        if self._with_bare:
            total = total + BARE[1] ** 2 * self._share_bare(first) * self._share_bare(second)
        return LEVEL**2 + total

    def _part(self, i: int, first: Tensor, second: Tensor, diag: bool) -> tuple[Tensor, Tensor]:
        """Matern-5/2 values and equality of two broadcastable sets of candidates of part ``i``."""
        points = getattr(self, f"points_{i}")
        if diag:
            squared = (points[first] - points[second]).square().sum(-1)
        else:
            a, b = points[first.squeeze(-1)], points[second.squeeze(-2)]
            squares = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
            squared = squares - 2 * a @ b.transpose(-1, -2)
        distance = math.sqrt(5) * torch.sqrt(squared.clamp_min(1e-12)) * torch.exp(-self.log_length[i])
        smooth = (1 + distance + distance.square() / 3) * torch.exp(-distance)
        return smooth, (first == second).to(smooth.dtype)

    def _written(self, i: int, first: Tensor, second: Tensor, diag: bool) -> Tensor:
        """Writings that both of two broadcastable sets of candidates of part ``i`` have behind them."""
        lineage = getattr(self, f"lineage_{i}")
        if diag:
            return torch.as_tensor((lineage[first] * lineage[second]).sum(-1))
        return torch.as_tensor(lineage[first.squeeze(-1)] @ lineage[second.squeeze(-2)].transpose(-1, -2))

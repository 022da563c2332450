"""The Gaussian process over prompts: its hyper-parameters, how they are fitted, and its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gpytorch.module import Module
from gpytorch.priors import NormalPrior
from scipy.optimize import minimize
from torch import Tensor

from dspy.promptune.gp.data import FLOOR, SPREAD, Beyond, Observation, beyond, variances, weights
from dspy.promptune.gp.errors import CommonErrors, common_errors
from dspy.promptune.gp.kernel import PartsKernel
from dspy.promptune.gp.parts import Array

MAX_ITERATIONS = 40  # uncapped fits of additive kernels have taken minutes; from the last fit, 10 to 20 converge
PERCENT = 100.0  # scores from 0 to this, the larger half included, are percentages
EVERYWHERE = (-math.inf, math.inf)
OUTLYING = 10.0  # ranges of the middle eight tenths of the scores, beyond which one is an outlier
NARROW = 0.5  # share of a metric's range, below which scores that take up no more of it have a range of their own
LEAST = 1e-150  # shortest range: the square of a shorter one is no float any more
MANY, FEW_ITERATIONS = 200, 8  # beyond so many observations an iteration is slow, and hyper-parameters hardly move


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Observations as arrays, in units where a metric runs from 0 to 1.

    Attributes:
        rows: ``(n, parts)`` candidate indices.
        values: ``(n,)`` observed means, less ``centre``, over ``unit``, less what the prior expects of each prompt.
        variances: ``(n,)`` their noise variances over ``unit`` squared; NaN where unknown.
        weights: ``(n, examples seen)`` share of each example in each mean; rows of zeros where unknown.
        columns: The column of each example in ``weights``.
        per_score: Typical variance of one score about its prompt's mean, over ``unit`` squared.
        binary: Whether every score is 0 or ``unit``, so that a prompt's level gives its noise.
        errors: Shares of that variance that the errors of prompts have in common on an example.
        common: That variance as it is where errors are common, over ``unit`` squared.
        centre: Mean of the observed values less what the prior expects, in the metric's own units.
        unit: Length of the metric's range, in its own units.
        ends: Lowest and highest score that the model knows, in the metric's own units, see :func:`ends_of`.
        beyond: What is to be added to the means of prompts for scores beyond that, in the same units.
    """

    rows: Array
    values: Array
    variances: Array
    weights: Array
    columns: dict[int, int]
    per_score: float
    binary: bool
    errors: CommonErrors
    common: float
    centre: float
    unit: float
    ends: tuple[float, float]
    beyond: Beyond

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def noise(self) -> Tensor:
        """Covariance of the noise of the means as far as scores tell it, ``(n, n)``; 0 for a mean without scores."""
        table, given = torch.as_tensor(self.weights), torch.as_tensor(self.variances)
        common = table @ table.T * torch.as_tensor(self.common * self.errors.between(self.rows, self.rows))
        own = torch.where(table.sum(-1) > 0, given * (1 - self.errors.total), given)
        return common + torch.diag(own.clamp_min(FLOOR).nan_to_num(0.0))


def evidence(observations: Sequence[Observation], kernel: PartsKernel | None = None) -> Evidence:
    """Bring observations (at least one) into the units of the priors.

    Args:
        observations: What was measured.
        kernel: Knows the candidates; without it, errors have only difficulty in common, and all prompts one prior mean.
    """
    raw = np.array([one.value for one in observations], dtype=np.float64)
    scores = np.array([score for one in observations for score in one.scores or ()], dtype=np.float64)
    ends = ends_of(raw, scores)
    unit = range_of(raw.clip(*ends), scores.clip(*ends))
    scaled = observations if (unit, ends) == (1.0, EVERYWHERE) else [_over(one, unit, ends) for one in observations]
    noise = variances(scaled)
    sizes = np.array([one.size for one in observations])
    known = np.isfinite(noise)
    per_score = float((noise * sizes)[known].mean()) if known.any() else 0.25
    values = np.array([one.value for one in scaled], dtype=np.float64)
    rows: Any = np.array([one.key for one in observations], dtype=np.int64)
    if kernel is not None:
        values -= kernel.expected(torch.as_tensor(rows)).numpy()
    centre = float(values.mean())
    table, columns = weights(observations)
    binary = bool(np.isin(scores, (0.0, unit)).all())
    return Evidence(
        rows=rows,
        values=values - centre,
        variances=noise,
        weights=table,
        columns=columns,
        per_score=per_score,
        binary=binary,
        errors=common_errors(scaled, () if kernel is None else kernel.points),
        common=_shrunk(per_score, len(columns)) if binary else per_score,
        centre=unit * centre,
        unit=unit,
        ends=ends,
        beyond=Beyond() if ends == EVERYWHERE else beyond(observations, ends),
    )


def _over(one: Observation, unit: float, ends: tuple[float, float]) -> Observation:
    """The same measurement of a metric that runs from 0 to 1, of scores beyond ``ends`` as if they were there."""
    if one.scores is None:
        return Observation(one.key, one.value / unit, None, one.examples)
    scores = np.array(one.scores, dtype=np.float64)
    inside = scores.clip(*ends)
    value = one.value / unit + float(((inside - scores) / unit).mean())
    return Observation(one.key, value, tuple((inside / unit).tolist()), one.examples)


def _shrunk(per_score: float, examples: int) -> float:
    """The variance of a 0/1 score, where few examples may have been easy by chance."""
    return (per_score * examples + SPREAD[0] * SPREAD[1]) / (examples + SPREAD[1])


def ends_of(values: Array, scores: Array) -> tuple[float, float]:
    """Where a metric ends for the model: scores that are far beyond nearly all others would hide what tells them apart.

    A penalty of -10,000 beside scores of 0 and 1 tells the model no more than one of -10. For the mean of the prompt
    that has it, the rest is added again. Metrics from 0 to 1 have ends of their own.

    Args:
        values: ``(n,)`` observed means.
        scores: Per-example scores behind them.

    Returns:
        ``OUTLYING`` times the range of the middle eight tenths of the scores below and above it; infinite where no
        score is beyond.
    """
    if len(scores) and metric_range(values, scores) != 1.0:
        low, high = (float(end) for end in np.quantile(scores, (0.1, 0.9)))
        far = OUTLYING * (high - low)
        if far > 0 and (float(scores.min()) < low - far or float(scores.max()) > high + far):
            return low - far, high + far
    return EVERYWHERE


def range_of(values: Array, scores: Array) -> float:
    """Length of the range that scores take up: the metric's, or their own where they take up less than half of that.

    What tells prompts apart would pass for noise in a longer one: so it is for similarities from .85 to .95, for
    ratings of some 1,500, and for scores that are all small. Arguments are those of :func:`metric_range`.
    """
    whole = metric_range(values, scores)
    own = float(np.ptp(scores)) if len(scores) else 0.0
    return max(own if 0 < own < NARROW * whole else whole, LEAST)


def metric_range(values: Array, scores: Array) -> float:
    """Length of the metric's range: 1 for scores from 0 to 1, 100 for percentages, otherwise as far as scores went.

    Args:
        values: ``(n,)`` observed means.
        scores: Per-example scores behind them; empty where only means are known, which then are taken to span a range
            of six standard deviations.
    """
    seen = np.concatenate([values, scores])
    low, high = float(seen.min()), float(seen.max())
    if low >= 0 and high <= 1:
        return 1.0
    if low >= 0 and PERCENT / 2 <= high <= PERCENT:
        return PERCENT
    if len(scores):
        return max(high, 0.0) - min(low, 0.0)
    return 6 * float(values.std()) or max(abs(high), 1.0)


class PromptGP(Module):  # type: ignore[misc]
    """Prior and likelihood: a :class:`PartsKernel`, the noise of means without scores, and what errors have in common.

    A score of prompt ``k`` on example ``e`` is ``f(k)`` and an error, of which a part belongs to the example and a
    part to what the prompt says (:mod:`dspy.promptune.gp.errors`). They are integrated out, which leaves Gaussian
    noise that observations on the same examples have in common: comparisons are paired, differences are surer than
    levels, those of close prompts most, and many prompts with one lucky candidate are not many witnesses.

    Args:
        points: For each part, ``(n_candidates, r)`` from :func:`dspy.promptune.gp.parts.project`.
        lineages: For each part, which writings are behind each candidate, see :class:`PartsKernel`.
        bare: For each part, whether each candidate is a demo set without a demo, see there.
    """

    def __init__(
        self, points: Sequence[Array], lineages: Sequence[Array] = (), bare: Sequence[Sequence[bool]] = ()
    ) -> None:
        super().__init__()
        self.kernel = PartsKernel(points, lineages, bare)
        self._add("log_noise", math.log(0.08), 0.7)  # sd of an observed mean that came without its scores

    def _add(self, name: str, mean: float, spread: float) -> None:
        value = torch.full((1,), mean, dtype=torch.float64)
        self.register_parameter(name, torch.nn.Parameter(value))
        self.register_prior(f"{name}_prior", NormalPrior(value.clone(), torch.full_like(value, spread)), name)

    def noise(self, data: Evidence) -> Tensor:
        """Covariance of the noise of the observed means, ``(n, n)``."""
        unknown = torch.as_tensor(np.isnan(data.variances))
        own = torch.where(unknown, torch.exp(2 * self.log_noise).clamp_min(FLOOR), 0.0)
        return data.noise + torch.diag(own)

    def loss(self, data: Evidence) -> Tensor:
        """Negative log of likelihood times priors of the hyper-parameters, summed over observations."""
        rows, inverse = np.unique(data.rows, axis=0, return_inverse=True)
        index = torch.as_tensor(inverse.reshape(-1))
        x = torch.as_tensor(rows)
        covariance = self.kernel.forward(x, x)[index][:, index] + self.noise(data)
        factor = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(factor, torch.as_tensor(data.values)[:, None], upper=False)
        loss: Tensor = 0.5 * white.square().sum() + factor.diagonal().log().sum()
        for _, module, prior, value, _ in self.named_priors():
            loss = loss - prior.log_prob(value(module)).sum()
        return loss

    def fit(self, data: Evidence) -> None:
        """Maximize the posterior of the hyper-parameters, from their present values, in a bounded number of steps.

        Raises:
            ArithmeticError: The loss is not finite at the present values; they are kept.
        """
        before = self.hyperparameters()
        limits = {"maxiter": MAX_ITERATIONS if len(data) <= MANY else FEW_ITERATIONS}
        found = minimize(self._objective, before, args=(data,), jac=True, method="L-BFGS-B", options=limits)
        good = bool(np.isfinite(found.fun) and np.isfinite(found.x).all())
        self.set_hyperparameters(found.x if good else before)
        if not good:
            raise ArithmeticError(f"The fit to {len(data)} observations ended at {found.fun}: {found.message}")

    def hyperparameters(self) -> Array:
        """All hyper-parameters in one vector, logarithms where the names say so."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters()]).numpy().copy()

    def set_hyperparameters(self, values: Array) -> None:
        """Take what :meth:`hyperparameters` gave."""
        start = 0
        for parameter in self.parameters():
            stop = start + parameter.numel()
            parameter.data = torch.as_tensor(values[start:stop].copy()).reshape(parameter.shape)
            start = stop

    def _objective(self, values: Array, data: Evidence) -> tuple[float, Array]:
        self.set_hyperparameters(values)
        try:
            loss = self.loss(data)
        except RuntimeError:  # torch's LinAlgError is one
            return np.inf, np.zeros_like(values)
        gradients = torch.autograd.grad(loss, list(self.parameters()), allow_unused=True)
        flat = [
            torch.zeros(p.numel()) if g is None else g.reshape(-1)
            for p, g in zip(self.parameters(), gradients, strict=True)
        ]
        return float(loss.detach()), torch.cat(flat).numpy().astype(np.float64)

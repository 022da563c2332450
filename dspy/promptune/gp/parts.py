"""Vectors of a part's candidates, made ready for a kernel: few dimensions, one common scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from dspy.promptune.gp.threads import one_thread

Array = NDArray[np.float64]

MAX_DIMS = 24  # recorded tables: 16 fits texts that vary in few ways best, 40 long demo sets; the loss between is small


def project(vectors: Array, max_dims: int = MAX_DIMS) -> Array:
    """Project the candidates of one part on their principal directions.

    Rows are L2-normalized, centered on the candidates, rotated, cut to ``max_dims`` and divided by one common number
    so that the mean squared distance between two different candidates is 1. Scores play no part in it.

    Args:
        vectors: ``(n_candidates, d)``, one embedding a candidate.
        max_dims: Directions to keep.

    Returns:
        ``(n_candidates, r)`` with ``r <= min(max_dims, d, n_candidates)``. Identical candidates, or a single one,
        give zeros.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rows = rows - rows.mean(axis=0)
    with one_thread():
        left, singular, _ = (t.numpy() for t in torch.linalg.svd(torch.as_tensor(rows), full_matrices=False))
    kept = min(max_dims, int((singular > 1e-9).sum()))
    if kept == 0:
        return np.zeros((len(rows), 1))
    points: Array = left[:, :kept] * singular[:kept]
    n = len(points)
    mean_squared_distance = 2 * n / (n - 1) * float((points**2).sum(axis=1).mean())
    scaled: Array = points / np.sqrt(mean_squared_distance)
    return scaled


def lineage(parents: Mapping[int, int], n_candidates: int) -> Array:
    """Which writings are behind each candidate of a part: its own, its parent's, that one's parent's, and so on.

    Args:
        parents: For each candidate that was written from another one, that one's index; it came before.
        n_candidates: Candidates of the part.

    Returns:
        ``(n_candidates, n_written)`` of 0 and 1, so that the product of two rows counts what both have behind them.
    """
    behind = np.zeros((n_candidates, len(parents)))
    for column, child in enumerate(sorted(parents)):
        behind[child] = behind[parents[child]]
        behind[child, column] = 1.0
    return behind

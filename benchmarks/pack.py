"""Recorded tables as numbers alone: vectors of the candidates and scores of the prompts, no text.

    python -m benchmarks.pack FOLDER_WITH_JSON [FOLDER]

writes one ``.npz`` a table (``benchmarks/tables.py`` describes both forms). A vector is the packaged embedder's,
L2-normalized, rotated on the principal directions of the table's candidates and cut to 48 columns of 16 bits: what the
model keeps of a part (24 directions) is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import SHIPPED, Table, load_table
from dspy.promptune.features import embed_parts

__all__ = ["main", "pack"]

COLUMNS = 48


def pack(table: Table) -> dict[str, Any]:
    """The arrays of a table's file.

    ``instruction`` and, where there are any, ``demos``: ``candidates x 48``, float16. ``prompts``: the index of each
    part, ``prompts x parts``. ``bare``: the index of the demo set without a demo, if there is one. ``scores``: mean
    accuracies. ``matrix``: 0/1 scores as bits, where they were recorded.
    """
    keys = list(table.truth)
    parts = dict(zip(("instruction", "demos"), embed_parts(table.space), strict=False))
    arrays: dict[str, Any] = {name: rotated(vectors) for name, vectors in parts.items()}
    bare = [i for i, text in enumerate(table.space.texts(1)) if not text.strip()] if len(parts) > 1 else []
    arrays["bare"] = np.array(bare, dtype=np.int16)
    arrays["prompts"] = np.array(keys, dtype=np.int16)
    arrays["scores"] = np.array([table.truth[key] for key in keys])
    arrays["n_examples"] = np.array(table.n_examples)
    if table.columns:
        arrays["matrix"] = np.packbits(np.array([table.columns[key] for key in keys], dtype=bool), axis=1)
    return arrays


def rotated(vectors: np.ndarray) -> np.ndarray:
    """``n x d`` vectors as ``n x 48``, float16, distances and angles nearly unchanged."""
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    points = (left * singular)[:, :COLUMNS]
    return np.pad(points, ((0, 0), (0, COLUMNS - points.shape[1]))).astype(np.float16)


def main(source: str, target: str = str(SHIPPED)) -> None:
    """Pack every JSON table of a folder."""
    for path in sorted(Path(source).glob("*.json")):
        np.savez_compressed(Path(target) / f"{path.stem}.npz", **pack(load_table(path)))


if __name__ == "__main__":
    main(*sys.argv[1:])

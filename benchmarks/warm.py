"""Vectors of the packaged embedder on disk: reading a table's prompts again takes half a minute a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.tables import Table
from dspy.promptune.features import embed, embed_parts

__all__ = ["warm"]


def warm(tables: Sequence[Table], path: Path) -> None:
    """Fill this process's cache with the vectors of all texts of ``tables``, from ``path`` as far as they are there.

    What is not there is embedded and written. The vectors are those that every sampler would compute for itself; of
    tables without texts they are the recorded ones.
    """
    kept = embed._store("minilm")._kept
    recorded = {label: vector for table in tables for label, vector in table.vectors.items()}
    kept.update(recorded)
    tables = [table for table in tables if not table.vectors]
    if path.exists():
        with np.load(path) as stored:
            kept.update(zip(stored["texts"].tolist(), stored["vectors"], strict=True))
    known = set(kept)
    for table in tables:
        embed_parts(table.space)
    if set(kept) - known:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new.npz")
        texts = [text for text in kept if text not in recorded]
        np.savez(draft, texts=np.array(texts), vectors=np.array([kept[text] for text in texts]))
        draft.replace(path)

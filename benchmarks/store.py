"""Finished runs of the regret benchmark on disk, so that a long one can be stopped, resumed and extended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import Table

__all__ = ["Budget", "Store"]


@dataclass(frozen=True)
class Budget:
    """Calls of a run: a fixed number, or, with ``four``, four times the pool's size where that is less."""

    calls: int
    four: bool

    def of(self, table: Table) -> int:
        """The budget on a table."""
        return min(self.calls, 4 * len(table.space)) if self.four else self.calls


class Store:
    """Finished runs on disk: one JSON file a table, method and budget, holding a trace a seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, table: str, method: str, budget: int) -> dict[int, dict[str, Any]]:
        """The runs by seed: ``{"trace": [[calls, accuracy], ...], "seconds": ..., "commit": ...}``."""
        path = self._path(table, method, budget)
        if not path.exists():
            return {}
        return {int(seed): run for seed, run in json.loads(path.read_text()).items()}

    def add(self, table: str, method: str, budget: int, runs: dict[int, dict[str, Any]]) -> None:
        """Write runs beside those already there; the file is replaced whole, so a kill leaves the old one."""
        path = self._path(table, method, budget)
        path.parent.mkdir(parents=True, exist_ok=True)
        merged = self.load(table, method, budget) | runs
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({str(seed): merged[seed] for seed in sorted(merged)}))
        draft.replace(path)

    def _path(self, table: str, method: str, budget: int) -> Path:
        return self.folder / table / f"{method}@{budget}.json"

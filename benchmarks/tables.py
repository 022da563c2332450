"""Recorded tables: scores of real prompts, replayed as prompt spaces without a language model.

A table comes in one of two forms:

- ``*.npz``, as in ``benchmarks/data``: numbers only. Each candidate has a vector and no text (``benchmarks/pack.py``
  makes such files).
- ``*.json``, ``{name, llm, task, n_examples, prompts, scores, matrix}``: ``prompts[i]`` has an ``instruction`` and may
  have ``demos``; ``scores[i]`` is its mean accuracy; ``matrix[i]``, where there is one, its 0/1 score on each example.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dspy.promptune.space import Key, PromptSpace

__all__ = ["Evaluate", "Table", "data_folder", "load_table", "load_tables"]

Evaluate = Callable[[dict[str, int], Sequence[int]], list[float]]
VARIABLE = "PROMPTUNE_TABLES"
EMPTY = "(empty)"  # what an embedder is given in place of a text without a visible character
SHIPPED = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Table:
    """One recorded table.

    ``truth`` holds the mean accuracy of every combination of ``space``; ``columns`` its 0/1 scores on each of
    ``n_examples`` examples, or is empty where only means were recorded. ``vectors`` holds the vector of each
    candidate's label where the table has no texts, and is empty where it has. ``unit`` is what a score of 1 is in the
    metric's units.
    """

    name: str
    space: PromptSpace
    truth: Mapping[Key, float]
    columns: Mapping[Key, np.ndarray]
    n_examples: int
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    unit: float = 1.0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The recorded vectors of ``n`` labels, ``n x d``: an ``embedder`` for a table without texts.

        Raises:
            KeyError: A label that is not the table's, or a table that has texts.
        """
        return np.stack([self.vectors[text or EMPTY] for text in texts])

    @property
    def best(self) -> float:
        """The accuracy of the best combination."""
        return max(self.truth.values())

    def accuracy(self, params: Mapping[str, int]) -> float:
        """The true accuracy of a combination, given as a study's parameters."""
        return self.truth[self.space.key(params)]

    def choices(self) -> list[list[Key]]:
        """What a sampler that reads no texts chooses between: one entry of each list, which together make a key."""
        return [list(self.space.keys())]

    def shuffled(self, seed: int) -> Table:
        """The same table with the candidates of each part in another order, so that ties favor nobody."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(size).tolist() for size in self.space.sizes]
        places = [{old: new for new, old in enumerate(order)} for order in orders]

        def moved(key: Key) -> Key:
            return tuple(place[index] for place, index in zip(places, key, strict=True))

        texts = [[self.space.texts(i)[old] for old in order] for i, order in enumerate(orders)]
        demos = {0: texts[1]} if len(texts) > 1 else None
        return Table(
            self.name,
            PromptSpace({0: texts[0]}, demos, allowed=map(moved, self.truth)),
            {moved(key): value for key, value in self.truth.items()},
            {moved(key): row for key, row in self.columns.items()},
            self.n_examples,
            self.vectors,
        )

    def replay(self, seed: int) -> Evaluate:
        """An ``evaluate`` for ``search``: what the language model scored then, example by example.

        Recorded columns are the same for every seed. Without them a score is a Bernoulli draw at the combination's
        accuracy, fixed by seed, combination and example, so that asking twice gives the same answer.
        """
        drawn: dict[Key, np.ndarray] = {}

        def evaluate(params: dict[str, int], examples: Sequence[int]) -> list[float]:
            key = self.space.key(params)
            row = self.columns.get(key)
            if row is None:
                row = drawn.get(key)
            if row is None:
                rng = np.random.default_rng([seed, *key])
                row = drawn[key] = (rng.random(self.n_examples) < self.truth[key]).astype(float)
            return [float(row[i]) for i in examples]

        return evaluate


def data_folder(folder: str | None = None) -> Path:
    """The folder of the tables: the argument, else ``$PROMPTUNE_TABLES``, else ``benchmarks/data`` of this checkout.

    Raises:
        SystemExit: There is no such folder, or it holds no table.
    """
    path = Path(folder or os.environ.get(VARIABLE) or SHIPPED)
    if not _files(path):
        raise SystemExit(
            f"No recorded tables (*.npz, *.json) in {path}: pass --data DIR, or unset {VARIABLE} to use the tables of "
            "this checkout."
        )
    return path


def load_tables(folder: Path, names: Sequence[str] = ()) -> list[Table]:
    """All tables of a folder by name, or those whose name contains one of ``names``."""
    tables = [load_table(path) for path in _files(folder)]
    chosen = [table for table in tables if not names or any(name in table.name for name in names)]
    if not chosen:
        raise SystemExit(f"No table matches {', '.join(names)}: there are {', '.join(t.name for t in tables)}.")
    return chosen


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.npz"), *folder.glob("*.json")])


def load_table(path: Path) -> Table:
    """One file as a space of one predictor: instruction and demos as its two parts where any prompt has demos."""
    return _load_numbers(path) if path.suffix == ".npz" else _load_texts(path)


def _load_numbers(path: Path) -> Table:
    """A table without texts; candidates are called ``<table> instruction 0``, ``<table> demos 0`` and so on.

    The demo set without a demo, if there is one, is empty here, too.
    """
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    kinds = [kind for kind in ("instruction", "demos") if kind in content]
    parts = [content[kind].astype(float) for kind in kinds]
    labels = [[f"{path.stem} {kind} {j}" for j in range(len(part))] for kind, part in zip(kinds, parts, strict=True)]
    vectors = dict(zip(itertools.chain(*labels), itertools.chain(*parts), strict=True))
    for j in content["bare"]:
        vectors[EMPTY] = vectors[labels[1][j]]
        labels[1][j] = ""
    keys = [tuple(int(index) for index in row) for row in content["prompts"]]
    n = int(content["n_examples"])
    rows = np.unpackbits(content["matrix"], axis=1, count=n).astype(float) if "matrix" in content else None
    return Table(
        name=path.stem,
        space=PromptSpace({0: labels[0]}, {0: labels[1]} if len(labels) > 1 else None, allowed=keys),
        truth=dict(zip(keys, content["scores"].tolist(), strict=True)),
        columns={} if rows is None else dict(zip(keys, rows, strict=True)),
        n_examples=n,
        vectors=vectors,
    )


def _load_texts(path: Path) -> Table:
    """A table with texts. Of prompts with the same instruction and demos the first counts."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    prompts = content["prompts"]
    few_shot = any(prompt.get("demos") for prompt in prompts)
    pairs = [(prompt["instruction"], (prompt.get("demos") or "") if few_shot else "") for prompt in prompts]
    instructions = list(dict.fromkeys(instruction for instruction, _ in pairs))
    demos = list(dict.fromkeys(shots for _, shots in pairs))
    places = [(instructions.index(instruction), demos.index(shots)) for instruction, shots in pairs]
    first: dict[Key, int] = {}
    for i, place in enumerate(places):
        first.setdefault(place if few_shot else place[:1], i)
    matrix = content.get("matrix")
    return Table(
        name=content.get("name") or path.stem,
        space=PromptSpace({0: instructions}, {0: demos} if few_shot else None, allowed=first),
        truth={key: float(content["scores"][i]) for key, i in first.items()},
        columns={key: np.asarray(matrix[i], dtype=float) for key, i in first.items()} if matrix else {},
        n_examples=len(matrix[0]) if matrix else int(content["n_examples"]),
    )

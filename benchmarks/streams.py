"""Open pools on recorded streams: real instructions that become available in the order in which they were written.

    python -m benchmarks.streams FOLDER [--seeds 5] [--rollouts 800 1600]

``FOLDER`` holds the streams, which are not in this repository: ``capo_gen_*.json`` with ``prompts`` (texts, in order)
and ``matrix`` (prompts x 300 scores), and ``gepa_facility_3pred.json`` with scores of three predictors' instructions.

Of each stream's 300 examples 100 are for validation, 50 for training and 150 judge, by the seed. Everybody begins with
prompt 0; to have the next one written costs one call, and three for its evidence. ``open`` is
:func:`dspy.promptune.search` with ``propose=``; ``closed`` has all prompts from the beginning and pays for none, which
nobody can; ``gate`` is a policy like GEPA's: a parent by its share of the Pareto front, three training examples for
parent and child, a child that is better on them is validated in full, and the best validation mean wins. On the three
predictors validation and judging are the same 66 examples, as in the run that was recorded. Markdown goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import mean_and_error
from dspy.promptune import PromptSpace, Written, search

VALIDATED, TRAINED = 100, 50
EVIDENCE = 3  # training examples of a proposal
FACILITY = "gepa_facility_3pred.json"

Curve = list[tuple[int, float]]
"""Calls spent, and what the prompt that would be returned then is worth."""


class Stream:
    """The instructions of each predictor in their order, and the scores of any combination on any example."""

    def __init__(self, name: str, texts: Mapping[int, Sequence[str]], scores: Callable[[Sequence[int]], Any]) -> None:
        self.name, self.texts, self._scores = name, texts, scores
        self.n = len(scores([0] * len(texts)))

    def scores(self, indices: Sequence[int]) -> np.ndarray:
        """One score an example of the prompt with these indices, one a predictor."""
        return np.asarray(self._scores(indices), dtype=float)

    def split(self, seed: int) -> tuple[list[int], list[int], list[int]]:
        """Examples for validation, for training, and those that judge."""
        order = random.Random(seed).sample(range(self.n), self.n)
        if self.n <= VALIDATED + TRAINED:
            return order, order, order
        return order[:VALIDATED], order[VALIDATED : VALIDATED + TRAINED], order[VALIDATED + TRAINED :]


def load(folder: Path) -> list[Stream]:
    """All streams of a folder."""
    found = []
    for path in sorted(folder.glob("capo_gen_*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        matrix = np.array(data["matrix"], dtype=float)
        name = path.stem.removeprefix("capo_gen_ablation_results_")
        found.append(Stream(name, {0: data["prompts"]}, lambda key, matrix=matrix: matrix[key[0]]))
    if (path := folder / FACILITY).exists():
        found.append(_facility(json.loads(path.read_text(encoding="utf-8"))))
    return found


def _facility(data: Mapping[str, Any]) -> Stream:
    names = ("urgency", "sentiment", "categories_tenths")
    rows = [np.array([data[name][str(i)] for i in range(len(data[name]))], dtype=float) for name in names]
    texts = dict(enumerate(data["instructions"][part] for part in "usc"))
    return Stream("facility", texts, lambda key: (rows[0][key[0]] + rows[1][key[1]] + rows[2][key[2]] / 10) / 3)


def ours(stream: Stream, seed: int, calls: int, *, written: bool = True) -> Curve:
    """Our search; with ``written=False`` all prompts are there from the beginning."""
    validated, _, judging = stream.split(seed)
    begin = {i: texts[:1] if written else texts for i, texts in stream.texts.items()}
    space = PromptSpace(begin).open() if written else PromptSpace(begin)

    def key(params: Mapping[str, int]) -> list[int]:
        texts = [part.candidates[params[part.name]] for part in space.parts]
        return [list(stream.texts[i]).index(text) for i, text in enumerate(texts)]

    def evaluate(params: Mapping[str, int], examples: Sequence[int]) -> list[float]:
        row = stream.scores(key(params))
        return [float(row[validated[example]]) for example in examples]

    def propose(request: Any) -> Written:
        known = set(request.known)
        new = next((text for text in stream.texts[request.predictor] if text not in known), None)
        return Written([] if new is None else [new], calls=1.0 + EVIDENCE)

    found = search(
        space, evaluate, n_examples=len(validated), max_calls=calls, seed=seed,
        propose=propose if written else None,
    )  # fmt: skip
    lineage = found.lineage if written else ()
    curve = []
    for scored, params in found.history:
        paid = sum(text["cost"] for text in lineage if text["at"] <= scored)
        curve.append((int(scored + paid), float(stream.scores(key(params))[judging].mean())))
    return curve


def gate(stream: Stream, seed: int, calls: int) -> Curve:
    """A policy like GEPA's; predictors take turns, and their instructions come in the recorded order."""
    validated, trained, judging = stream.split(seed)
    rng, first = random.Random(seed), tuple(0 for _ in stream.texts)
    pool = {first: stream.scores(first)[validated]}
    spent, turn, used = len(validated), 0, dict.fromkeys(stream.texts, 1)
    curve: Curve = [(spent, float(stream.scores(first)[judging].mean()))]
    while any(used[i] < len(stream.texts[i]) for i in used):
        cost = 2 * EVIDENCE + 1
        if spent + cost > calls:
            break
        part, turn = turn % len(used), turn + 1
        parent = _on_front(pool, rng)
        shown = rng.sample(trained, EVIDENCE)
        before = stream.scores(parent)[shown]
        if before.min() >= 1.0:
            spent += EVIDENCE
            continue
        if used[part] >= len(stream.texts[part]):
            continue
        child = (*parent[:part], used[part], *parent[part + 1 :])
        used[part] += 1
        spent += cost
        if stream.scores(child)[shown].sum() > before.sum() and child not in pool and spent + len(validated) <= calls:
            pool[child] = stream.scores(child)[validated]
            spent += len(validated)
            best = max(pool, key=lambda each: pool[each].mean())
            curve.append((spent, float(stream.scores(best)[judging].mean())))
    return curve


def _on_front(pool: Mapping[tuple[int, ...], np.ndarray], rng: random.Random) -> tuple[int, ...]:
    """A prompt in proportion to the examples on which none is better."""
    keys = list(pool)
    table = np.stack([pool[each] for each in keys])
    return rng.choices(keys, weights=(table >= table.max(axis=0)).sum(axis=1).tolist())[0]


METHODS: dict[str, Callable[[Stream, int, int], Curve]] = {
    "open": ours,
    "gate": gate,
    "closed": lambda stream, seed, calls: ours(stream, seed, calls, written=False),
}


def value(curve: Curve, calls: int) -> float:
    """What is returned after so many calls; before the first entry, the first prompt that was measured."""
    return next((worth for at, worth in reversed(curve) if at <= calls), curve[0][1])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description="Open pools on recorded streams.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[400, 800, 1600])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--streams", nargs="+", default=[""], help="parts of names")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print("| stream | instructions | method | " + " | ".join(f"{n:,}" for n in given.rollouts) + " |")
    print("|---|---:|---|" + "---:|" * len(given.rollouts))
    for stream in load(given.folder):
        if not any(part in stream.name for part in given.streams):
            continue
        for method in given.methods:
            rows = []
            for calls in given.rollouts:
                ends = [value(METHODS[method](stream, seed, calls), calls) for seed in range(given.seeds)]
                rows.append("{:.3f} ± {:.3f}".format(*mean_and_error(np.array(ends))))
            size = sum(map(len, stream.texts.values()))
            print(f"| {stream.name} | {size} | {method} | " + " | ".join(rows) + " |", flush=True)


if __name__ == "__main__":
    main()

"""Draw the pictures of the documentation that come from a run: ``make pictures``.

The run is a search over made-up scores (no language model): 72 prompts whose true accuracies differ, 60 examples, 900
calls. The same command gives the same pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure

from dspy.promptune import PromptSpace, SearchRun, search

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
EXAMPLES, CALLS = 60, 900
SPACE = PromptSpace({0: [f"instruction {i}" for i in range(12)]}, {0: [f"examples {j}" for j in range(6)]})
Params = Mapping[str, int]


def unit(*parts: object) -> float:
    """A number in [0, 1) that the parts decide."""
    return int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:12], 16) / 16**12


def accuracy(params: Params) -> float:
    """The true accuracy of a prompt: what its instruction and its examples bring, 0.25 to 0.85."""
    instruction, demos = params["0_predictor_instruction"], params["0_predictor_demos"]
    return 0.25 + 0.3 * unit("instruction", instruction) + 0.3 * unit("demos", demos)


def evaluate(params: Params, examples: Sequence[int]) -> list[float]:
    """Right or wrong on each example: decided by the prompt's accuracy and how hard the example is."""
    level = accuracy(params)
    return [float(0.5 * unit("hard", e) + 0.5 * unit(e, *params.values()) < level) for e in examples]


def run(sampler: Literal["onehot", "tpe"]) -> SearchRun:
    """One search, one prompt at a time, so that it repeats exactly."""
    return search(SPACE, evaluate, n_examples=EXAMPLES, max_calls=CALLS, sampler=sampler, seed=0)


def spent(found: SearchRun) -> dict[tuple[int, ...], dict[int, int]]:
    """For each prompt, which examples were paid for, and as which call of the run."""
    calls: dict[tuple[int, ...], dict[int, int]] = {}
    count = 0
    for trial in found.trials:
        row = calls.setdefault(SPACE.key(trial.params), {})
        for example in trial.user_attrs.get("examples", ()):
            if example not in row:
                count += 1
                row[example] = count
    return calls


def racing(figure: Figure, found: SearchRun) -> None:
    """Prompts against examples; the color says when."""
    calls = spent(found)
    order = list(dict.fromkeys(e for row in sorted(calls.values(), key=len)[::-1] for e in row))
    rows = sorted(calls, key=lambda key: -len(calls[key]))
    points = [(order.index(e) + 1, i + 1, when) for i, key in enumerate(rows) for e, when in calls[key].items()]
    axes: Any = figure.subplots()
    x, y, when = zip(*points, strict=True)
    dots = axes.scatter(x, y, c=when, s=11, marker="s", cmap="viridis")
    axes.invert_yaxis()
    axes.set(
        xlabel="validation examples, in the order all prompts share",
        ylabel=f"prompts, by examples seen ({len(rows)} of {len(SPACE)})",
        title=f"Racing: {sum(map(len, calls.values()))} calls, one square each",
    )
    figure.colorbar(dots, label="call number")


def spending(figure: Figure, found: Mapping[str, SearchRun]) -> None:
    """Calls a prompt, the best prompts on the left, one panel a sampler."""
    keys = sorted(SPACE.keys(), key=lambda key: -accuracy(SPACE.params(key)))
    panels: Any = figure.subplots(len(found), 1, sharex=True, sharey=True)
    for axes, (name, one) in zip(panels, found.items(), strict=True):
        calls = spent(one)
        counts = [len(calls.get(key, ())) for key in keys]
        share = sum(counts[:10]) / sum(counts)
        best = accuracy(one.best_params)
        axes.bar(range(1, len(keys) + 1), counts, width=0.9, color=["#3f51b5"] * 10 + ["#9fa8da"] * (len(keys) - 10))
        axes.set(
            ylabel="examples",
            title=f"{name}: {share:.0%} of the calls on the ten best prompts; picked one of {best:.2f}",
        )
    panels[-1].set_xlabel(f"the {len(keys)} prompts, best first (best {accuracy(SPACE.params(keys[0])):.2f})")


def draw(name: str, size: tuple[float, float], content: Callable[[Figure], None]) -> None:
    """Write one picture."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    content(figure)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, metadata={"Date": None})
    print(FOLDER / name)


def main() -> None:
    """Draw them all."""
    matplotlib.rcParams.update({"svg.hashsalt": "promptune", "font.size": 9, "axes.titlesize": 10})
    ours, theirs = run("onehot"), run("tpe")
    draw("racing.svg", (8, 5), lambda figure: racing(figure, ours))
    draw("spending.svg", (8, 4.5), lambda figure: spending(figure, {"racing": ours, "TPE, minibatches of 35": theirs}))


if __name__ == "__main__":
    main()

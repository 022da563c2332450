"""Two searches side by side, replayed on recorded scores: less than a minute, no language model, no key.

419 prompts for grade-school arithmetic were scored by Llama 3.3 70B on 300 problems each. The scores were recorded
(`benchmarks/data`), so a search over these prompts can be run again without the model. Two searches spend the same
number of examples: TPE, which is what DSPy's MIPROv2 uses, on minibatches of 35, and `sampler="qei"` with eight
prompts at a time. The curves are the true accuracy of the prompt that each would return: of the first pair, then the
mean of 20 pairs. Single pairs differ widely, so only the mean says which search is better. `DEMO_QUICK=1` takes 5.

    python -m examples.replay [--table NAME] [--searches N]
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.figures import STEP, Array, curves, reach
from benchmarks.methods import METHODS, Trace, trace
from benchmarks.overview import NAMES
from benchmarks.tables import Table, data_folder, load_tables
from dspy.promptune import search

TABLE = "capo_dev_gsm8k_llama_seed43"
OURS, TPE, BOTH = "●", "·", "◉"
ROWS, FRAMES, SECONDS = 15, 40, 0.12


def ours(table: Table, seed: int, calls: int) -> Trace:
    """True accuracy of the prompt in the lead after so many examples, with the options that the README shows."""
    table = table.shuffled(seed)
    run = search(
        table.space,
        table.replay(seed),
        n_examples=table.n_examples,
        max_calls=calls,
        sampler="qei",
        n_jobs=8,
        embedder=table.embed,
        seed=seed,
    )
    return [(spent, table.accuracy(params)) for spent, params in run.history]


def chart(lines: Sequence[tuple[str, Array]], low: float, high: float, width: int) -> list[str]:
    """The curves as lines of text: ``ROWS`` of them from ``high`` down to ``low``, then the axis.

    Args:
        lines: A mark and the values of one curve, at equal distances from the first call to the last one shown.
        low: Accuracy of the lowest row.
        high: Accuracy of the highest row.
        width: Columns of the whole budget.
    """
    cells = [[" "] * width for _ in range(ROWS)]
    for mark, values in lines:
        for column, value in enumerate(values):
            place = round((high - value) / (high - low) * (ROWS - 1))
            row = cells[min(max(place, 0), ROWS - 1)]
            row[column] = mark if row[column] == " " else BOTH
    step = (high - low) / (ROWS - 1)
    drawn = [f"{100 * (high - i * step):4.0f} % │{''.join(row)}" for i, row in enumerate(cells)]
    return [*drawn, "       └" + "─" * width]


def frames(found: Array, base: Array, low: float, high: float, width: int) -> Iterator[list[str]]:
    """The chart as the calls are spent, in ``FRAMES`` pictures."""
    columns = np.linspace(0, len(found) - 1, width).astype(int)
    for frame in range(1, FRAMES + 1):
        shown = columns[: max(1, width * frame // FRAMES)]
        yield [
            *chart([(TPE, base[shown]), (OURS, found[shown])], low, high, width),
            f"        {(shown[-1] + 1) * STEP:,} examples scored   {OURS} qei {percent(found[shown[-1]])}   "
            f"{TPE} TPE {percent(base[shown[-1]])}   {BOTH} both",
        ]


def show(pictures: Iterator[list[str]]) -> None:
    """One picture over the other in a terminal; elsewhere the last one alone."""
    lines: list[str] = []
    live = sys.stdout.isatty()
    for picture in pictures:
        if live:
            print(f"\x1b[{len(lines)}A" if lines else "", *(f"\x1b[2K{line}\n" for line in picture), sep="", end="")
            time.sleep(SECONDS)
        lines = picture
    if not live:
        print("\n".join(lines))


def percent(share: float) -> str:
    """The same number for the same mean, in whatever order it was summed."""
    return f"{round(100 * share, 6):.1f} %"


def verdict(found: Array, base: Array, table: Table) -> str:
    """What the mean curves say, ``searches x places`` each."""
    last, target = float(found[:, -1].mean()), float(base[:, -1].mean())
    calls, share = found.shape[1] * STEP, reach(found, target)
    text = (
        f"Mean of {len(found)} searches, after {calls:,} examples: TPE's prompt is right on {percent(target)},\n"
        f"qei's on {percent(last)}; the best of all {len(table.space)} prompts on {percent(table.best)}."
    )
    gaps = found[:, -1] - base[:, -1]
    text += f"\nqei's is better in {(gaps > 0).sum()} pairs, TPE's in {(gaps < 0).sum()}"
    text += f"; {(gaps == 0).sum()} end alike." if (gaps == 0).any() else "."
    if share < 1:
        return f"{text}\nqei was at TPE's end after {round(share * calls):,} examples, {share:.2f} of TPE's budget."
    return f"{text}\nqei reached TPE's end only with the whole budget, or not at all: look at the other tables."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the searches, draw the first pair as it goes, then the mean of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default=TABLE, help="part of the name of a table in benchmarks/data")
    pairs = 5 if os.environ.get("DEMO_QUICK") == "1" else 20
    parser.add_argument("--searches", type=int, default=pairs, help="pairs of searches, a seed each (default: 20)")
    options = parser.parse_args(argv)
    logging.getLogger("dspy").setLevel(logging.ERROR)
    table = load_tables(data_folder(), [options.table])[0]
    calls = min(2240, 4 * len(table.space))
    start = float(np.mean(list(table.truth.values())))
    width = min(64, shutil.get_terminal_size().columns - 10)
    print(f"Act 1: a recorded search. {len(table.space)} prompts, {table.n_examples} examples, no model is called.")
    print("qei: this package, eight prompts at a time. TPE: as DSPy's MIPROv2, in minibatches of 35.")
    print(f"{NAMES.get(table.name, table.name)}: accuracy of the prompt that each would return.\n", flush=True)
    found, base = [], []
    for seed in range(options.searches):
        found.append(curves([ours(table, seed, calls)], calls, start)[0])
        base.append(curves([trace(table, METHODS["tpe-35"], seed, calls)], calls, start)[0])
        if seed == 0:
            show(frames(found[0], base[0], start, table.best, width))
            print(f"\nThat was one search each. {options.searches - 1} more, for a mean ", end="", flush=True)
        else:
            print(".", end="", flush=True)
    print("\n")
    means = np.mean(found, axis=0), np.mean(base, axis=0)
    print("\n".join(list(frames(*means, start, table.best, width))[-1]))
    print("\n" + verdict(np.array(found), np.array(base), table))


if __name__ == "__main__":
    main()

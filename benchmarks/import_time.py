"""How long `import dspy` takes: this fork against the upstream release it is composed on.

Both packages are laid out from the same wheel, and one interpreter after the other imports each in turn, so that a
busy machine slows both. Prints the medians and their ratio (wanted: at most 1.05) of the elapsed time and of the CPU
time, which other work on the machine disturbs less, and the modules the fork adds.

    python benchmarks/import_time.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import compose  # noqa: E402

WANTED = 1.05
CLOCKS = ("elapsed", "CPU")
CODE = """\
import sys, time
start = time.perf_counter(), time.process_time()
import dspy
stop = time.perf_counter(), time.process_time()
assert dspy.__file__.startswith(sys.argv[1]), dspy.__file__
print(stop[0] - start[0], stop[1] - start[1], *sys.modules)
"""


def lay_both(folder: Path) -> dict[str, Path]:
    """Lay the fork and unmodified upstream out as plain files; the folders to import them from."""
    _, _, wheel = compose.current(ROOT)
    empty = folder / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    sides = {"upstream": folder / "upstream", "fork": folder / "fork"}
    compose.lay(compose.plan(wheel, empty), sides["upstream"])
    compose.lay(compose.plan(wheel, ROOT / "dspy"), sides["fork"])
    return sides


def import_once(path: Path) -> tuple[tuple[float, float], set[str]]:
    """Import dspy from ``path`` in a fresh interpreter; seconds by each clock, and the modules it loaded."""
    env = os.environ | {"PYTHONPATH": str(path), "DSPY_CACHEDIR": str(ROOT / "build/import-time/cache")}
    command = [sys.executable, "-c", CODE, str(path)]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    return (float(said[0]), float(said[1])), set(said[2:])


def measure(sides: dict[str, Path], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Import each side once a round, in alternating order; the seconds of each import by each clock."""
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            times[side].append(import_once(sides[side])[0])
    return times


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    sides = lay_both(ROOT / "build/import-time")
    modules = {side: import_once(path)[1] for side, path in sides.items()}  # writes the byte code, not counted
    times = measure(sides, rounds)
    print(f"import dspy, {rounds} rounds, one interpreter after the other")
    for number, clock in enumerate(CLOCKS):
        medians = {side: statistics.median(pair[number] for pair in values) for side, values in times.items()}
        ratio = medians["fork"] / medians["upstream"]
        seconds = ", ".join(f"{side} {median:.3f} s" for side, median in medians.items())
        print(f"{clock:>8}: {seconds}; ratio of medians {ratio:.3f} (wanted: at most {WANTED})")
    added = sorted(modules["fork"] - modules["upstream"])
    print(f" modules: {len(modules['upstream'])}; the fork adds " + " ".join(added))


if __name__ == "__main__":
    main()

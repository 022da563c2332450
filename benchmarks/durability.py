"""What crashes and a failing provider cost: a compile killed again and again, and one with one call in five failing.

    python -m benchmarks.durability [--kills 100] [--seeds 8] [--parts kills faults] 2>/dev/null

The runs and the checks are those of the tests (tests/durable/test_kill.py, test_faults.py), repeated more often. A
check that does not hold ends the command with an error.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from statistics import mean, stdev

from tests.durable.test_faults import RATES, VALSET, run, true_scores
from tests.durable.test_kill import LIMIT, RULE, check, killed, undisturbed
from tests.server import LMServer

PLACES = (("SQLite", "runs.db", "tpe"), ("journal", "runs.log", "onehot"))


def kills(count: int) -> None:
    """Figures of one storage a line."""
    print(f"Kills: {LIMIT} calls in flight at most; every death is followed by a look at what is on disk.\n")
    print("| storage | kills | in step 1 / 2 / 3 | database opened | finished results lost | requests "
          "| examples paid twice, in all / by one kill | score after kills | undisturbed |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name, file, sampler in PLACES:
        with tempfile.TemporaryDirectory() as folder:
            config = {"kills": count, "kills_each": 12, "options": {"sampler": sampler}}
            toll = check(*killed(str(Path(folder) / file), **config))
        calm = [undisturbed(sampler=sampler)["score"] for _ in range(3)]
        steps = " / ".join(str(toll.steps_of[step]) for step in ("bootstrap", "propose", "search"))
        print(
            f"| {name} | {toll.deaths} | {steps} | {toll.deaths} of {toll.deaths} | 0 | {toll.requests} | "
            f"{toll.twice} / {toll.most_twice} | {mean(toll.scores):.1f} | {mean(calm):.1f} |", flush=True
        )  # fmt: skip


def faults(seeds: int) -> None:
    """The true accuracy of the winner with and without faults, over seeds of the faults."""
    print(f"\nFaults: {RATES}\n")
    differences, failed, trials = [], 0, 0
    with LMServer(RULE) as judge:
        for seed in range(seeds):
            program, records = run(RATES, seed)
            calm, _ = run({}, seed)
            failed += sum(record.status != 200 for record in records)
            trials += sum(trial.state.name == "FAIL" for trial in program.optimization_run.trials)
            best, without = (sum(true_scores(each, judge.url)) / len(VALSET) for each in (program, calm))
            differences.append(best - without)
            print(f"seed {seed}: true accuracy {best:.3f} with faults, {without:.3f} without", flush=True)
    error = stdev(differences) / len(differences) ** 0.5 if seeds > 1 else float("nan")
    print(f"Difference {mean(differences):+.3f} (standard error {error:.3f}, {seeds} runs each); {failed} requests "
          f"failed, {trials} trials FAILED; every run ended.")  # fmt: skip


def main() -> None:
    """Both parts, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=("kills", "faults"), default=("kills", "faults"))
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if "kills" in args.parts:
        kills(args.kills)
    if "faults" in args.parts:
        faults(args.seeds)


if __name__ == "__main__":
    main()

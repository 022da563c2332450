"""What crashes and a failing provider cost: a compile killed again and again, and one with one call in five failing.

    python -m benchmarks.durability [--kills 200] [--starts 50] [--seeds 24] [--parts kills starts faults] 2>/dev/null

The kills are those of tests/storage/test_kill.py, repeated more often. A start is made by four processes at once, of
which one may evaluate. The faults are those of test_faults.py, on a
task with many prompts that are nearly as good: every seed is compiled twice, with and without faults, and the
server's rule says how often each winner is right in truth. A check that does not hold ends the command with an error.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna

import dspy
from dspy.promptune import PromptSpace, StorageError, search
from tests.server import Faults, Latency, LMServer, Prompt, Quality, TaskRule
from tests.storage.lives import forked, metric, result
from tests.storage.postgresql import running
from tests.storage.test_faults import RATES
from tests.storage.test_kill import LIMIT, check, killed, undisturbed

PLACES = (("SQLite", "runs.db", "tpe"), ("journal", "runs.log", "onehot"))
PARTS = ("kills", "starts", "faults")
RIVALS = 4  # processes that start one study
BUDGET = 400  # calls of a study whose process is killed
ANSWERS = {f"What is the code of item {i}?": str(i % 5) for i in range(80)}
TRAIN = 40  # of them; the others are the validation set
RULE = TaskRule(ANSWERS, quality=Quality(base=0.5, instruction=0.2, demos=0.2))


def kills(count: int) -> None:
    """Figures of one storage a line; ``count`` deaths in all."""
    print(f"Kills: {LIMIT} calls in flight at most; every death is followed by a look at what is on disk. The budget "
          f"of each study is {BUDGET} calls.\n")  # fmt: skip
    print("| storage | kills | in step 1 / 2 / 3 | database opened | finished results lost | requests "
          "| examples paid twice, in all / by one kill | most requests of a study | score after kills "
          "| undisturbed |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    with every_storage() as places:
        for name, storage, sampler in places:
            _killed(name, storage, sampler, -(-count // len(places)))


def _killed(name: str, storage: str, sampler: str, count: int) -> None:
    config = {"kills": count, "kills_each": 12, "options": {"sampler": sampler, "max_lm_calls": BUDGET}}
    studies, records = killed(storage, **config)
    toll = check(studies, records)
    served = [sum(each["began"] <= record.start <= each["ended"] for record in records) for each in studies]
    assert max(served) <= BUDGET, "more calls were served than the budget allows"
    calm = [undisturbed(sampler=sampler)["score"] for _ in range(3)]
    steps = " / ".join(str(toll.steps_of[step]) for step in ("bootstrap", "propose", "search"))
    scores = [score for score in toll.scores if not math.isnan(score)]
    print(
        f"| {name} | {toll.deaths} | {steps} | {toll.deaths} of {toll.deaths} | 0 | {toll.requests} | "
        f"{toll.twice} / {toll.most_twice} | {max(served)} of {BUDGET} | {mean(scores):.1f} | {mean(calm):.1f} |",
        flush=True,
    )  # fmt: skip


@contextlib.contextmanager
def every_storage() -> Iterator[list[tuple[str, str, str]]]:
    """Name, place and sampler of each kind of storage that can be had here."""
    with tempfile.TemporaryDirectory() as folder, running() as server:
        places = [(name, str(Path(folder) / file), sampler) for name, file, sampler in PLACES]
        yield [*places, ("PostgreSQL", server, "tpe")] if server else places


def starts(count: int) -> None:
    """How often an evaluation was made twice when four processes started one study at the same moment."""
    print("\n| storage | starts of four processes at once | refused | evaluations made twice |\n|---|---|---|---|")
    optuna.storages.RDBStorage("sqlite://")  # loads once what every process needs
    with every_storage() as places:
        for name, storage, _ in places:
            share = -(-count // len(places))
            refused, twice = zip(*(_started(storage, f"start {i}") for i in range(share)), strict=True)
            print(f"| {name} | {share} | {sum(refused)} of {share * RIVALS} | {sum(twice)} |", flush=True)


def _started(storage: str, name: str) -> tuple[int, int]:
    """How many of the processes were refused, and how many evaluations were made more than once."""
    at = time.time() + 0.3
    lives = [forked(_searched, storage, name, at) for _ in range(RIVALS)]
    found = [result(*life) for life in lives]
    pairs = Counter(tuple(pair) for each in found for pair in each or ())
    assert any(found), "nobody was let in"
    return found.count(None), sum(times > 1 for times in pairs.values())


def _searched(storage: str, name: str, at: float) -> list[tuple[int, int]] | None:
    """Prompts and examples that a search evaluated, which began at this time; ``None`` where it was refused."""
    pairs = []

    def evaluate(params: dict[str, int], examples: Sequence[int]) -> list[float]:
        pairs.extend((params["0_predictor_instruction"], example) for example in examples)
        time.sleep(0.02)
        return [0.5] * len(examples)

    space, options = PromptSpace({0: list("abcd")}), {"minibatch_size": 5, "sampler": "random", "seed": 1}
    time.sleep(max(0.0, at - time.time()))
    with contextlib.suppress(StorageError):
        search(space, evaluate, n_examples=10, max_calls=40, storage=storage, study_name=name, resume=True, **options)
        return pairs
    assert not pairs, "a process that was refused had evaluated"
    return None


def faults(seeds: int) -> None:
    """The true accuracy of the winner with and without faults, a pair of compiles for each seed."""
    print(f"\nFaults: {RATES}\n")
    print("| seed | requests failed | trials FAILED | winner's true accuracy with faults | without | all prompts |")
    print("|---|---|---|---|---|---|")
    pairs, failed, lost, scores = [], 0, 0, 0
    for seed in range(seeds):
        disturbed, records = compiled(seed, RATES)
        calm, _ = compiled(seed, {})
        scores += sum(map(true_scores, (disturbed, calm)))
        refused = sum(record.status != 200 for record in records)
        ended = [trial.state.name for trial in disturbed.optimization_run.trials].count("FAIL")
        failed, lost = failed + refused, lost + ended
        pairs.append((accuracy(disturbed), accuracy(calm), average(calm)))
        with_faults, without, usual = pairs[-1]
        print(f"| {seed} | {refused} | {ended} | {with_faults:.3f} | {without:.3f} | {usual:.3f} |", flush=True)
    differences = [one - other for one, other, _ in pairs]
    error = stdev(differences) / len(pairs) ** 0.5 if seeds > 1 else float("nan")
    columns = [mean(column) for column in zip(*pairs, strict=True)]
    print(
        f"\nMeans {columns[0]:.4f} with faults, {columns[1]:.4f} without, {columns[2]:.4f} of all prompts. Difference "
        f"{mean(differences):+.4f}, standard error {error:.4f}, {len(pairs)} pairs, "
        f"{sum(abs(each) > 1e-9 for each in differences)} of them with different winners. {failed} requests failed, "
        f"{lost} trials FAILED, every run ended, and all {scores:,} scores are what the rule says without a failure."
    )


def compiled(seed: int, rates: dict[str, float]) -> tuple[Any, list[Any]]:
    """A compile with this seed on a server with these faults, and the server's records."""
    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
    server = LMServer(
        RULE, latency=Latency(0.002), faults=Faults(rates=rates, retry_after=0.02, seed=seed), process=True
    )
    with server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False, timeout=1)
        with dspy.context(lm=lm):
            optimizer = dspy.MIPROv2(metric=metric, auto=None, num_candidates=8, num_threads=4, seed=seed)
            program = optimizer.compile(
                dspy.Predict("question -> answer"), trainset=data[:TRAIN], valset=data[TRAIN:], num_trials=12,
                sampler="qei", embedder="ngram", n_jobs=2, example_timeout=1, disable_progress_bar=True,
            )  # fmt: skip
        return program, server.records()


def prompt_of(program: Any, question: str) -> Prompt:
    """What the server is asked by a program."""
    (predictor,) = program.predictors()
    return Prompt.read(dspy.ChatAdapter().format(predictor.signature, predictor.demos, {"question": question}))


def accuracy(program: Any) -> float:
    """How often a program is right in truth: the probability by the server's rule."""
    return RULE.quality.of(prompt_of(program, ""))


def average(program: Any) -> float:
    """The same on average over all combinations that a run searched."""
    space = program.optimization_run.space
    return mean(accuracy(space.build(program, key)) for key in space.keys())


def true_scores(program: Any) -> int:
    """The number of scores of a run, every one of which must be what the rule says when nothing fails."""
    run, questions, count = program.optimization_run, list(ANSWERS)[TRAIN:], 0
    for trial in run.trials:
        if trial.value is not None:
            built = run.space.build(program, run.space.key(trial.params))
            truth = [float(RULE.right(prompt_of(built, questions[i]))) for i in trial.user_attrs["examples"]]
            assert trial.user_attrs["scores"] == truth, f"trial {trial.number} has a score that is not true"
            count += len(truth)
    return count


def main() -> None:
    """Both parts, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if "kills" in args.parts:
        kills(args.kills)
    if "starts" in args.parts:
        starts(args.starts)
    if "faults" in args.parts:
        faults(args.seeds)


if __name__ == "__main__":
    main()

"""Optimize a real program on a language model that runs on this machine: no key, no account, a few minutes.

The program sorts letters to a local newspaper by their subject. Its language model is SmolLM2 (135 million parameters)
on the CPU. It is too small to follow an instruction alone, and too small to write new ones, so the candidates are ours:
six instructions and fourteen sets of examples, 105 prompts with the original ones. `sampler="qei"` finds a good one of
them for the price of some four full evaluations. Then 60 letters that took no part in the choice judge the program as
it is, `LabeledFewShot` with three draws of six letters, and the program that was found.

    python examples/demo.py [--seed N] [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.promptune import LocalLM

HERE = Path(__file__).parent
START = time.monotonic()
COLUMNS = "right, 95 % interval, LM calls to make the program"
SUBJECTS = ("food", "sport", "weather", "music")
INSTRUCTIONS = [
    "What is the letter about: food, sport, weather, music?",
    "Sort letters to a local newspaper. The subject is food, sport, weather or music.",
    "Name the subject of the letter in one word: food, sport, weather or music.",
    "Read the letter and choose its subject: music, weather, sport or food.",
    "You are the editor of a local newspaper. Which page is the letter for: food, sport, weather or music?",
    "Food is eating and cooking, sport is games and matches, weather is rain and sun, music is songs and concerts.",
]


class SortLetter(dspy.Signature):
    """Choose the subject of the letter: food, sport, weather or music."""

    letter: str = dspy.InputField()
    subject: str = dspy.OutputField()


class ShortChat(dspy.ChatAdapter):  # type: ignore[misc]
    """DSPy's chat format without the prose around it: a model this small loses the thread of a long prompt."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The messages, and the first line of the answer, so that only the subject is left to write."""
        return [*super().format(signature, demos, inputs), {"role": "assistant", "content": "[[ ## subject ## ]]\n"}]

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """The instruction and nothing else."""
        return str(signature.instructions)

    def user_message_output_requirements(self, signature: type[dspy.Signature]) -> str:
        """Nothing: the examples show what an answer looks like."""
        return ""

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The subject that the answer names first, in whatever form; "none" if it names none of the four."""
        text = completion.lower()
        named = [(text.find(subject), subject) for subject in SUBJECTS if subject in text]
        return {"subject": min(named)[1] if named else "none"}


class Sorter(dspy.Module):  # type: ignore[misc]
    """The program: one predictor, in the short format."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = dspy.Predict(SortLetter)

    def forward(self, letter: str) -> dspy.Prediction:
        """The subject of one letter."""
        with dspy.context(adapter=ShortChat(use_json_adapter_fallback=False)):
            return self.sort(letter=letter)


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """1 for the right subject, else 0."""
    return bool(example.subject == prediction.subject)


def letters(split: str, at_most: int = 100) -> list[dspy.Example]:
    """Letters of one split, "train" (100), "validation" (40) or "test" (100), in an order that mixes the subjects."""
    lines = (HERE / "letters.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.pop("split") == split]
    random.Random(split).shuffle(rows)
    each = [[row for row in rows if row["subject"] == subject] for subject in SUBJECTS]
    mixed = [row for group in zip(*each, strict=True) for row in group][:at_most]
    return [dspy.Example(**row).with_inputs("letter") for row in mixed]


def demo_sets(trainset: Sequence[dspy.Example], seed: int) -> list[list[dspy.Example]]:
    """Fourteen sets of labeled letters: two of 6 at random, and twelve of 4, one of each subject."""
    draw = random.Random(seed)
    found = [draw.sample(list(trainset), 6) for _ in range(2)]
    for _ in range(12):
        found.append([draw.choice([each for each in trainset if each.subject == subject]) for subject in SUBJECTS])
        draw.shuffle(found[-1])
    return found


def say(text: str) -> None:
    """Print a line, with the seconds since the start."""
    print(f"[{time.monotonic() - START:4.0f} s] {text}", flush=True)


class Counter(dspy.utils.BaseCallback):  # type: ignore[misc]
    """Counts the calls that reach the language model."""

    calls = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """One more; the count is for people, so a lost one in a race of threads is no matter."""
        self.calls += 1


@dataclass(frozen=True)
class Judged:
    """A program on the test letters: 1 for each that it is right on, else 0, and the calls that it took to make it."""

    name: str
    scores: list[float]
    silent: int
    spent: int

    def __str__(self) -> str:
        from scipy.stats import binomtest

        n, right = len(self.scores), round(sum(self.scores))
        ends = binomtest(right, n).proportion_ci(method="wilson")
        line = f"{self.name:28} {right:3} of {n} right ({100 * ends.low:3.0f} to {100 * ends.high:3.0f} %)"
        line += f" {self.spent:5} LM calls"
        return line + (f"; no subject: {self.silent}" if self.silent else "")


def judge(name: str, program: dspy.Module, testset: list[dspy.Example], spent: int = 0) -> Judged:
    """Run a program on all test letters, one at a time: so the server has the beginning of each prompt at hand."""
    evaluate = dspy.Evaluate(devset=testset, metric=exact, num_threads=1, display_progress=False, max_errors=10**6)
    results = evaluate(program).results
    silent = sum(getattr(prediction, "subject", "none") == "none" for _, prediction, _ in results)
    found = Judged(name, [float(score) for _, _, score in results], silent, spent)
    say(str(found))
    return found


def few_shot(trainset: Sequence[dspy.Example], draw: int) -> dspy.Module:
    """The program with six labeled letters, drawn at random."""
    shuffled = random.Random(draw).sample(list(trainset), len(trainset))
    return dspy.LabeledFewShot(k=6).compile(Sorter(), trainset=shuffled)


def compared(found: Judged, base: Sequence[Judged]) -> str:
    """How much more often the program that was found is right than few shots are in the mean, letter by letter."""
    from scipy.stats import ttest_1samp

    means = [sum(scores) / len(base) for scores in zip(*(each.scores for each in base), strict=True)]
    gaps = [100 * (score - mean) for score, mean in zip(found.scores, means, strict=True)]
    low, high = ttest_1samp(gaps, 0).confidence_interval()
    draws = f"the mean of {len(base)} draws" if len(base) > 1 else "one draw"
    line = f"{sum(gaps) / len(gaps):+.0f} points against {draws} of LabeledFewShot (95 %: {low:+.0f} to {high:+.0f})"
    return line + (", which may be chance." if low <= 0 <= high else ".")


def optimize(lm: dspy.LM, trainset: list[dspy.Example], valset: list[dspy.Example], seed: int, trials: int) -> Any:
    """The best of our own candidates, four prompts at a time: the server has the beginning of each at hand."""
    optimizer = dspy.MIPROv2(
        metric=exact,
        prompt_model=lm,
        task_model=lm,
        auto=None,
        num_candidates=1,  # none but ours
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
        num_threads=1,
        max_errors=10**6,
    )
    return optimizer.compile(
        Sorter(),
        trainset=trainset,
        valset=valset,
        num_trials=trials,
        seed=seed,
        program_aware_proposer=False,
        data_aware_proposer=False,
        instructions=INSTRUCTIONS,
        demo_sets=demo_sets(trainset, seed),
        sampler="qei",
        n_jobs=4,
    )


def show(program: Any) -> None:
    """The winning prompt."""
    predictor = program.predictors()[0]
    print(f"\nThe prompt that was found\n    {predictor.signature.instructions}")
    for demo in predictor.demos:
        print(f"    {demo['subject']:8} {demo['letter']}")


def main() -> None:
    """Judge two baselines, optimize, judge the result, save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a third of the letters, as with DEMO_QUICK=1")
    parser.add_argument("--out", type=Path, default=HERE / "out" / "demo.json")
    arguments = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    quick = arguments.quick or os.environ.get("DEMO_QUICK") == "1"
    trainset = letters("train")
    valset, testset = letters("validation", 16 if quick else 40), letters("test", 20 if quick else 60)

    print("Act 2: a real program on a model of 135 million parameters, in this process.")
    say("Starting the language model (the first time, it is downloaded: 93 MB)")
    counter = Counter()
    with LocalLM(max_tokens=3, stop=["\n"], cache=False, callbacks=[counter]) as lm:
        dspy.configure(lm=lm, adapter=dspy.ChatAdapter())
        say(f"Sorting {len(testset)} test letters ({COLUMNS})")
        rows = [judge("as it is", Sorter(), testset)]
        for draw in range(1 if quick else 3):
            rows.append(judge(f"LabeledFewShot(k=6), draw {draw + 1}", few_shot(trainset, draw), testset))
        say(f"Searching {len(INSTRUCTIONS) + 1} instructions x 15 sets of examples on {len(valset)} validation letters")
        before = counter.calls
        best = optimize(lm, trainset, valset, arguments.seed, 1 if quick else 2)
        found = judge('sampler="qei"', best, testset, counter.calls - before)
    print(f"\nOn the test letters: {COLUMNS}", *rows, found, "", compared(found, rows[1:]), sep="\n")
    show(best)
    print("\nIntervals (95 %) are those of the test letters; the comparison is letter by letter.")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    best.save(arguments.out)
    say(f"Saved: {arguments.out}")


if __name__ == "__main__":
    main()

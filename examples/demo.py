"""Optimise a real program on a language model that runs on this machine: no key, no account, a few minutes.

The program sorts letters to a local newspaper by their subject. Its language model is SmolLM2 (135 million parameters)
on the CPU: too small to follow the instruction as it stands, so a good instruction and well-chosen examples decide
what it is worth. MIPROv2 looks for them by meaning (`sampler="qei"`), four prompts at a time (`n_jobs=4`).

    python examples/demo.py [--seed N] [--sampler NAME] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.promptune import LocalLM

HERE = Path(__file__).parent
START = time.monotonic()


class SortLetter(dspy.Signature):
    """What is the letter about: food, sport, weather, music?"""

    letter: str = dspy.InputField()
    subject: Literal["food", "sport", "weather", "music"] = dspy.OutputField()


class ShortChat(dspy.ChatAdapter):  # type: ignore[misc]
    """DSPy's chat format without the prose around it: a model this small loses the thread of a long prompt."""

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """The instruction and nothing else."""
        return str(signature.instructions)

    def user_message_output_requirements(self, signature: type[dspy.Signature]) -> str:
        """Nothing: the examples show what an answer looks like."""
        return ""


class Sorter(dspy.Module):  # type: ignore[misc]
    """The program: one predictor, in the short format; an answer that cannot be read is a wrong answer."""

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


def letters(split: str) -> list[dspy.Example]:
    """The letters of one split: "train" (100), "validation" (40) or "test" (100)."""
    lines = (HERE / "letters.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.pop("split") == split]
    return [dspy.Example(**row).with_inputs("letter") for row in rows]


def say(text: str) -> None:
    """Print a line, with the seconds since the start."""
    print(f"[{time.monotonic() - START:5.0f} s] {text}", flush=True)


class Counter(dspy.utils.BaseCallback):  # type: ignore[misc]
    """Counts the calls that reach the language model."""

    calls = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """One more; the count is for people, so a lost one in a race of threads is no matter."""
        self.calls += 1


def accuracy(program: dspy.Module, split: list[dspy.Example]) -> float:
    """Percent of the letters sorted rightly."""
    evaluate = dspy.Evaluate(devset=split, metric=exact, num_threads=4, display_progress=False, max_errors=10**6)
    return float(evaluate(program).score)


def optimise(program: dspy.Module, lm: dspy.LM, seed: int, sampler: str) -> Any:
    """The program with the best instruction and examples found for it."""
    optimizer = dspy.MIPROv2(
        metric=exact,
        prompt_model=lm.copy(max_tokens=80, stop=None),
        task_model=lm,
        auto=None,
        num_candidates=6,
        max_bootstrapped_demos=1,
        max_labeled_demos=6,
        num_threads=1,  # for each of the four prompts at once: the model answers four requests at a time
        max_errors=10**6,  # answers that cannot be read are wrong answers, not a reason to stop
    )
    return optimizer.compile(
        program,
        trainset=letters("train"),
        valset=letters("validation"),
        num_trials=5,
        seed=seed,
        program_aware_proposer=False,  # a model this small makes nothing of source code
        data_aware_proposer=False,
        tip_aware_proposer=False,  # it would repeat the tip instead of following it
        sampler=sampler,
        n_jobs=4,
    )


def report(program: Any, before: float, after: float, calls: int) -> None:
    """Print what was found."""
    predictor = program.predictors()[0]
    say("Done.\n")
    print(f"Instruction: {predictor.signature.instructions}")
    print(f"Examples shown to the model ({len(predictor.demos)}):")
    for demo in predictor.demos:
        print(f"    {demo['subject']:8} {demo['letter']}")
    print(f"\nRight on the {len(letters('test'))} test letters: {before:.0f} % before, {after:.0f} % after")
    print(f"Language model calls: {calls}; time: {time.monotonic() - START:.0f} s")


def main() -> None:
    """Measure, optimise, measure again, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", default="qei")
    parser.add_argument("--out", type=Path, default=HERE / "out" / "demo.json")
    arguments = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")

    say("Starting the language model (the first time, it is downloaded: 93 MB)")
    counter = Counter()
    with LocalLM(max_tokens=12, stop=["\n\n"], cache=False, callbacks=[counter]) as lm:
        dspy.configure(lm=lm, adapter=dspy.JSONAdapter())  # for writing instructions; the program has its own
        program = Sorter()
        test = letters("test")
        say("Sorting 100 test letters with the program as it is")
        before = accuracy(program, test)
        say(f"{before:.0f} % right")
        say("Optimising")
        best = optimise(program, lm, arguments.seed, arguments.sampler)
        say(f"Best on the 40 validation letters: {best.score:.0f} % right. Sorting the test letters with it")
        after = accuracy(best, test)
        report(best, before, after, counter.calls)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    best.save(arguments.out)
    print(f"Saved: {arguments.out}")


if __name__ == "__main__":
    main()

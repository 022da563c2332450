"""Optimize grade-school arithmetic on any OpenAI-compatible endpoint, or on the language model that runs here.

    python examples/gsm8k.py --model openai/gpt-4o-mini                      # with OPENAI_API_KEY set
    python examples/gsm8k.py --model openai/NAME --api-base http://HOST:PORT/v1 --api-key KEY
    python examples/gsm8k.py --local                                         # SmolLM2 on this machine, no key

The data is a file of lines {"question": ..., "answer": "steps #### number"}, the form in which GSM8K is published;
without --data it is a small sample written for this repository. Two thirds of it are learned from, the rest chooses
the prompt.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import dspy
from dspy.datasets.gsm8k import gsm8k_metric
from dspy.promptune import LocalLM

HERE = Path(__file__).parent


def problems(file: Path, limit: int, seed: int) -> list[dspy.Example]:
    """At most `limit` problems of a file, shuffled."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    random.Random(seed).shuffle(rows)
    return [example(row) for row in rows[:limit]]


def example(row: dict[str, str]) -> dspy.Example:
    """A problem as the program sees it: the number is the answer, the steps are its reasoning."""
    steps, _, number = row["answer"].rpartition("####")
    found = dspy.Example(question=row["question"], reasoning=steps.strip(), answer=number.strip().replace(",", ""))
    return found.with_inputs("question")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="openai/gpt-4o-mini", help="provider/name, as dspy.LM takes it")
    parser.add_argument("--api-base", help="address of an OpenAI-compatible endpoint")
    parser.add_argument("--api-key", help="its key; default: the provider's environment variable")
    parser.add_argument("--local", action="store_true", help="use the language model that runs on this machine")
    parser.add_argument("--data", type=Path, default=HERE / "word_problems.jsonl", help="JSONL of problems")
    parser.add_argument("--limit", type=int, default=300, help="problems used at most")
    parser.add_argument("--n-jobs", type=int, default=2, help="prompts evaluated at once")
    parser.add_argument("--num-threads", type=int, default=8, help="examples of one prompt evaluated at once")
    parser.add_argument(
        "--num-candidates", type=int, default=6, help="instructions, and sets of examples, to choose from"
    )
    parser.add_argument("--num-trials", type=int, default=18, help="sets the budget, as in DSPy")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "out" / "gsm8k.json", help="where the program is saved")
    return parser.parse_args()


def language_model(chosen: argparse.Namespace) -> dspy.LM:
    """The language model that the options name."""
    if chosen.local:
        return LocalLM(max_tokens=chosen.max_tokens)
    endpoint = {"api_base": chosen.api_base, "api_key": chosen.api_key}
    given = {name: value for name, value in endpoint.items() if value}
    return dspy.LM(chosen.model, max_tokens=chosen.max_tokens, **given)


def optimize(program: dspy.Module, data: list[dspy.Example], chosen: argparse.Namespace) -> Any:
    """The optimized program."""
    cut = len(data) * 2 // 3
    optimizer = dspy.MIPROv2(
        metric=gsm8k_metric, auto=None, num_candidates=chosen.num_candidates, num_threads=chosen.num_threads
    )
    return optimizer.compile(
        program,
        trainset=data[:cut],
        valset=data[cut:],
        num_trials=chosen.num_trials,
        seed=chosen.seed,
        n_jobs=chosen.n_jobs,
        sampler="qei",
        max_space_size=100,
        n_batches=200,
        batch_size=4,
        min_cold_start=4,
    )


def main() -> None:
    """Optimize, print the result, save it."""
    chosen = options()
    dspy.configure(lm=language_model(chosen))
    best = optimize(dspy.ChainOfThought("question -> answer"), problems(chosen.data, chosen.limit, chosen.seed), chosen)
    predictor = best.predictors()[0]
    print(f"Right on the validation problems: {best.score:.1f} %")
    print(f"Instruction: {predictor.signature.instructions}\nExamples: {len(predictor.demos)}")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    best.save(chosen.out)
    print(f"Saved: {chosen.out}")


if __name__ == "__main__":
    main()

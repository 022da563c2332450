"""Does an installed wheel work? Run outside the checkout, with the interpreter of the environment that has it."""

import importlib.metadata
from collections.abc import Mapping, Sequence

import dspy
from dspy._upstream.teleprompt.mipro_optimizer_v2 import MIPROv2 as UpstreamMIPROv2
from dspy.promptune import PromptSpace, search

TASKS = ["Sort the word list.", "Name the capital city.", "Add the two numbers.", "Translate the word into French."]


def evaluate(params: Mapping[str, int], examples: Sequence[int]) -> list[float]:
    """Score 1.0 on most examples for the third instruction, on few for the others."""
    chosen = params["0_predictor_instruction"]
    return [float(example % 4 != 0) if chosen == 2 else float(example % 4 == 0) for example in examples]


def main() -> None:
    """Import, look at what was installed, and search a small space whose best prompt is known."""
    version = importlib.metadata.version("dspy")
    assert version.startswith(f"{dspy.__version__}+promptune."), version
    assert issubclass(dspy.MIPROv2, UpstreamMIPROv2)
    space = PromptSpace(instructions={0: TASKS})
    run = search(space, evaluate, n_examples=40, max_calls=160, sampler="qei", n_jobs=2, seed=0)
    assert run.best_params == {"0_predictor_instruction": 2}, run.best_params
    print(f"dspy {version} from {dspy.__path__[0]}: the search found {run.best_params} in {run.calls} calls")


if __name__ == "__main__":
    main()

"""Compiles that signals end while instructions are proposed: ``python -m tests.compile.arriving URL STORAGE LIVES``.

The packages load once, and every life is a fork. Its process id is printed when it begins, and when it has ended what
it found, or ``null``, as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import dspy
from tests.storage.lives import QUESTIONS, compiled, forked

BUDGET = 600  # calls of a language model, of which a tenth may be made before all instructions are there
VALSET = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in list(QUESTIONS.items())[-12:]]


def life(url: str, storage: str) -> dict[str, Any]:
    """One compile, taken up where the last one ended."""
    program = compiled(
        url, storage, study_name="arriving", valset=VALSET, num_trials=30, minibatch_size=..., max_lm_calls=BUDGET,
        max_bootstrapped_demos=0, max_labeled_demos=0, sampler="qei", embedder="ngram", reflect=True,
        disable_progress_bar=True,
    )  # fmt: skip
    run = program.optimization_run
    spent = sum(step.get("calls", 0) for step in run.spent.values())
    return {"ended": run.ended, "spent": spent, "instructions": list(run.space.parts[0].candidates)}


def main(url: str, storage: str, lives: int) -> None:
    """One life after the other."""
    import dspy.promptune.compile.engine
    import dspy.promptune.samplers  # noqa: F401

    logging.disable(logging.CRITICAL)
    for _ in range(lives):
        pid, read = forked(life, url, storage)
        print(pid, flush=True)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        print(text or json.dumps(None), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

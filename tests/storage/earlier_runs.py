"""Runs that an earlier version wrote, and the calls that take them up again.

:func:`write` and :func:`pack`, called with version 0.1.0 of this fork, wrote the files in ``tests/storage/earlier``: a
search and a compile, each in a SQLite file and in a journal, ended early by their budgets.
"""

from __future__ import annotations

import gzip
import random
import sqlite3
from pathlib import Path
from typing import Any

import dspy
from dspy.promptune import PromptSpace, search

SPACE = {0: [f"Say the color of thing {i}." for i in range(5)]}, {0: [f"demos {i}" for i in range(4)]}
QUESTIONS = {f"What is the code of item {i}?": str(i % 5) for i in range(30)}
SIGNATURE = dspy.Signature("question -> answer", "Say the code.")
EVALUATED: list[tuple[int, ...]] = []


def evaluate(params: dict[str, int], examples: Any) -> list[float]:
    """Scores decided by the combination and the example; what is evaluated is noted."""
    key = tuple(params.values())
    EVALUATED.extend((*key, example) for example in examples)
    return [float(random.Random(f"{key} {example}").random() < 0.2 + 0.1 * sum(key)) for example in examples]


def searched(storage: str, max_calls: int, **options: Any) -> Any:
    """The search, up to so many examples."""
    return search(
        PromptSpace(*SPACE), evaluate, n_examples=30, max_calls=max_calls, sampler="random", minibatch_size=5, seed=1,
        storage=storage, study_name="search", resume=True, **options,
    )  # fmt: skip


class Rules(dspy.BaseLM):
    """Answers three questions in four rightly, and proposes numbered instructions; its calls are counted."""

    forward_contract = "legacy"

    def __init__(self) -> None:
        super().__init__("rules", cache=False, num_retries=0)
        self.served: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Rules:
        return self.copy()

    def forward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
        from types import SimpleNamespace

        messages = messages or [{"role": "user", "content": prompt}]
        last = str(messages[-1]["content"])
        self.served.append(len(last))
        question = next((q for q in QUESTIONS if q in last.partition("Respond with")[0]), "")
        wanted = last.partition("Respond with")[2]
        if "answer" in wanted and question:
            lucky = random.Random(str(messages)).random() < 0.75
            text = f"[[ ## answer ## ]]\n{QUESTIONS[question] if lucky else 'unknown'}\n\n[[ ## completed ## ]]"
        else:
            number = {**self.kwargs, **kwargs}.get("rollout_id")
            fields = [name for name in ("observations", "summary", "proposed_instruction") if name in wanted]
            fields = fields or ["program_description", "module_description"]
            text = "\n\n".join(f"[[ ## {name} ## ]]\nGive the code (version {number})." for name in fields)
            text += "\n\n[[ ## completed ## ]]"
        choice = SimpleNamespace(message=SimpleNamespace(content=text, tool_calls=None), finish_reason="stop")
        usage = {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 60}
        return SimpleNamespace(choices=[choice], usage=usage, model="rules")


def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Right or wrong."""
    return bool(example.answer == prediction.answer)


def compiled(storage: str, lm: Rules, **options: Any) -> Any:
    """The compile, within the limits given."""
    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in QUESTIONS.items()]
    with dspy.context(lm=lm):
        optimizer = dspy.MIPROv2(metric=metric, auto=None, num_candidates=3, num_threads=2, seed=3)
        return optimizer.compile(
            dspy.Predict(SIGNATURE), sampler="random", num_trials=6, minibatch_size=8,
            minibatch_full_eval_steps=4, trainset=data[:10], valset=data[10:], storage=storage, study_name="compile",
            tip_aware_proposer=False, resume=True, **options,
        )  # fmt: skip


def write(folder: Path) -> None:
    """Both runs in both kinds of storage, the journal and the database with the same names."""
    for name in ("runs.db", "runs.log"):
        searched(str(folder / name), 40)
        compiled(str(folder / name), Rules(), max_lm_calls=90)


def pack(folder: Path) -> None:
    """The files as the tests keep them; in another process, when nothing holds the database open."""
    with sqlite3.connect(folder / "runs.db") as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    for name in ("runs.db", "runs.log"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), mtime=0))

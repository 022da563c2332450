"""What type checkers and editors know of a user's script."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dspy

SCRIPT = """
import dspy
from dspy.promptune import OptimizedModule, PromptSpace, SearchRun, search

program = dspy.Predict("question -> answer")
optimizer = dspy.MIPROv2(metric=lambda example, prediction, trace=None: 1.0)
best: OptimizedModule = optimizer.compile(
    program, trainset=[], sampler="qei", schedule="async", acquisition="qlogei", resume="force", embedder=len
)
run: SearchRun = best.optimization_run
score: float = run.best_score
answer = best(question="?").answer
own = best.some_predictor_of_mine
words: str = run.best_score  # wrong
optimizer.compile(program, trainset=[], sampler="qie")  # wrong
optimizer.compile(program, trainset=[], schedule="asynch")  # wrong
optimizer.compile(program, trainset=[], acquisition="ei")  # wrong
optimizer.compile(program, trainset=[], resume="yes")  # wrong
optimizer.compile(program, trainset=[], embedder="mini")  # wrong
optimizer.compile(program, trainset=[], executor_keys="env")  # wrong
optimizer.compile(program, trainset=[], smapler="qei")  # wrong
space = PromptSpace({0: ["a", "b"]})
run = search(space, lambda params, examples: [1.0 for _ in examples], n_examples=3, max_calls=6, schedule="batch")
search(space, lambda params, examples: [1.0 for _ in examples], n_examples=3, max_calls=6, sampler="qie")  # wrong
"""

WRONG = {number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# wrong")}
PACKAGE = Path(dspy.__file__).parent
HEAVY = "torch botorch gpytorch litellm openai scipy pandas sqlalchemy numpy pydantic anyio requests datasets PIL"


def checked(command, folder, **environment):
    """What a type checker prints of the script, in a folder of its own."""
    (folder / "user.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", *command, "user.py"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    return done.stdout


def test_the_package_says_that_it_is_typed():
    """The marker is there by which type checkers take an installed package's types."""
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.slow
def test_pyright_finds_every_misspelled_value_and_nothing_else(tmp_path):
    """A user's script: options and values of the door are checked, and the result has its attributes."""
    pytest.importorskip("basedpyright")
    settings = {"extraPaths": [str(PACKAGE.parent)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    told = checked(["basedpyright", "--outputjson", "--pythonpath", sys.executable], tmp_path)
    found = json.loads(told)["generalDiagnostics"]
    assert {1 + each["range"]["start"]["line"] for each in found if each["severity"] == "error"} == WRONG


@pytest.mark.slow
def test_mypy_finds_every_misspelled_value_and_nothing_else(tmp_path):
    """The same script under mypy, which reads the libraries beneath DSPy for half a minute unless they are skipped."""
    skipped = ",".join(f"{name}.*" for name in HEAVY.split())
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nfollow_imports = silent\n[mypy-{skipped}]\nfollow_imports = skip\nignore_missing_imports = true\n"
    )
    told = checked(["mypy", "--config-file", "mypy.ini"], tmp_path, MYPYPATH=str(PACKAGE.parent))
    assert {int(number) for number in re.findall(r"^user\.py:(\d+): error", told, re.MULTILINE)} == WRONG

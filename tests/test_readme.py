"""The README says what is true."""

import inspect
import re
from pathlib import Path

import pytest

import dspy
from dspy.promptune.samplers.options import QEIOptions

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks() -> list[str]:
    """The Python blocks of the README."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_the_search_without_programs_runs(capsys):
    """The README's search runs as printed and finds the instruction that its scores prefer."""
    (block,) = [block for block in blocks() if "search(" in block]
    exec(block, {})
    assert "'0_predictor_instruction': 1" in capsys.readouterr().out


@pytest.mark.parametrize("block", blocks())
def test_every_block_is_python(block):
    """Each Python block of the README compiles."""
    compile(block, "README.md", "exec")


def test_the_table_names_every_new_option():
    """The table lists exactly the options that compile has beyond upstream's, and minibatch_size."""
    from dspy._upstream.teleprompt.mipro_optimizer_v2 import MIPROv2

    theirs = inspect.signature(MIPROv2.compile).parameters
    ours = set(inspect.signature(dspy.MIPROv2.compile).parameters) - set(theirs)
    rows = re.findall(r"^\| (`.*?) \|", README.read_text(), flags=re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == ours | {"minibatch_size"}


def test_the_table_has_the_samplers_defaults():
    """The defaults that the table prints are those of the sampler's options."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", README.read_text(), flags=re.M))
    for name in ("min_cold_start", "max_space_size", "n_batches"):
        assert int(rows[name]) == getattr(QEIOptions(), name)

"""The package's rooms stay small enough to read."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dspy" / "promptune"
DOOR = PACKAGE.parent / "teleprompt" / "mipro_optimizer_v2.py"
WINGS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
DOORS = {"compile", "search"}  # hold docstrings and little else


def _files():
    return [*sorted(PACKAGE.rglob("*.py")), DOOR]


def _lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("wing", WINGS)
def test_no_wing_is_above_2500_lines(wing):
    """A wing has at most 2,500 lines."""
    assert sum(map(_lines, (PACKAGE / wing).glob("*.py"))) <= 2500


def test_no_file_is_above_400_lines():
    """A file has at most 400 lines."""
    assert {path.name: _lines(path) for path in _files() if _lines(path) > 400} == {}


def test_no_function_is_above_60_lines():
    """A function has at most 60 lines, but for the two public doors."""
    long = {
        f"{path.name}:{node.name}": node.end_lineno - node.lineno + 1
        for path in _files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in DOORS
        if node.end_lineno - node.lineno + 1 > 60
    }
    assert long == {}

"""The package's rooms stay small enough to read."""

import ast
import functools
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


@functools.cache
def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


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
        for node in ast.walk(_tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in DOORS
        if node.end_lineno - node.lineno + 1 > 60
    }
    assert long == {}


def _nodes(kind):
    for path in _files():
        for node in ast.walk(_tree(path)):
            if isinstance(node, kind):
                yield path.name, node


def test_assertions_only_say_what_is_not_none():
    """``python -O`` leaves assertions out: one that did or checked more than types would be missed."""
    texts = {f"{name}: {ast.unparse(node.test)}" for name, node in _nodes(ast.Assert)}
    assert {text for text in texts if not text.endswith(" is not None")} == set()


def test_no_prompt_is_a_docstring():
    """``python -OO`` leaves docstrings out: a signature that had its instruction there would ask for nothing."""
    signatures = {
        name: node
        for name, node in _nodes(ast.ClassDef)
        if any("Signature" in ast.unparse(base) for base in node.bases)
    }
    assert "reflection.py" in signatures
    assert [name for name, node in signatures.items() if ast.get_docstring(node)] == []

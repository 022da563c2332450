"""The Python versions that the metadata promises: the overlay is valid source of each."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

import compose

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = sorted((ROOT / "dspy").rglob("*.py"))
VERSIONS = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))


def interpreter(version):
    """An interpreter of a version, of pyenv or on the path."""
    name = ".".join(map(str, version))
    installed = sorted((Path.home() / ".pyenv/versions").glob(f"{name}.*/bin/python"))
    return str(installed[-1]) if installed else shutil.which(f"python{name}")


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: ".".join(map(str, version)))
def test_the_overlay_is_source_of_this_version(version):
    """Every file of the overlay is parsed by the version's interpreter, or else by its grammar as this one knows it."""
    python = interpreter(version)
    if python is None:
        for path in OVERLAY:
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=version)
        return
    code = "import ast, sys; [ast.parse(open(p, encoding='utf-8').read(), p) for p in sys.stdin.read().split('\\n')]"
    done = subprocess.run([python, "-c", code], input="\n".join(map(str, OVERLAY)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_the_range_of_the_metadata_is_tested():
    """Upstream's range begins with the first of these versions; the last is the newest with wheels of torch."""
    wanted = compose.metadata(compose.current(ROOT)[2])["Requires-Python"]
    assert ">=3.10" in wanted and "<3.16" in wanted and VERSIONS[0] == (3, 10)

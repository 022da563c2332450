"""A small upstream wheel, made here, for composing on."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import compose

METADATA = """\
Metadata-Version: 2.4
Name: dspy
Version: 9.9.1
Requires-Python: >=3.10
Requires-Dist: requests>=2
Requires-Dist: tomli>=2; python_version < "3.11"
Provides-Extra: dev
Requires-Dist: pytest>=6; extra == "dev"
Requires-Dist: uvloop; (sys_platform != "win32" and python_version < "3.14") and extra == "dev"
Provides-Extra: empty
"""

RELATIVE = """\
from . import base as b
from .base import (
    NAME,
)
from ..teleprompt import base
"""

FILES = {
    "dspy/__init__.py": "from dspy.teleprompt.mipro import Optimizer\n",
    "dspy/teleprompt/__init__.py": "",
    "dspy/teleprompt/mipro.py": "from dspy.teleprompt.base import NAME\n\n\nclass Optimizer:\n    name = NAME\n",
    "dspy/teleprompt/base.py": "NAME = 'upstream'\n",
    "dspy/teleprompt/relative.py": RELATIVE,
    "dspy/primitives/runner.js": "// not Python\r\n",
    "dspy-9.9.1.dist-info/METADATA": METADATA,
    "dspy-9.9.1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "dspy-9.9.1.dist-info/licenses/LICENSE": "Do as you like, but keep this text.\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel of an upstream of a few files."""
    path = tmp_path / "dspy-9.9.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def overlay(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """A function that writes an overlay folder from a mapping of paths below dspy/ to texts."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "overlay" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "overlay"

    return write


@pytest.fixture
def pins(tmp_path: Path, wheel: Path) -> compose.Pins:
    """The pins of an upstream.toml that names that wheel, with its true hash, and another release."""
    digest = compose.sha256(wheel)
    path = tmp_path / "upstream.toml"
    path.write_text(
        f"""\
overlay = "0.1.0"
default = "9.9.1"

[wheels]
"9.9.1" = {{ name = "{wheel.name}", sha256 = "{digest}" }}
"9.9.0" = {{ name = "dspy-9.9.0-py3-none-any.whl", sha256 = "{"0" * 64}" }}
""",
        encoding="utf-8",
    )
    return compose.Pins.read(path)

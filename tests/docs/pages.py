"""The documentation's pages as the tests read them: blocks of code, their marks, and links.

A mark is an HTML comment on the line before a block, or on the first line of a page:

- ``<!-- skip: reason -->`` the block is compiled, not run;
- ``<!-- needs: some.module -->`` the block is run where that module is installed, otherwise only compiled;
- a first line ``# configuration: ...`` says the same as ``skip`` where readers should see it;
- ``<!-- continue -->`` (page) the page goes on where the first block of the quick start ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = {"tutorial.md": "tutorial.ipynb"}
"""Pages that ``make docs`` writes, and from what."""

_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>skip|needs): (?P<what>[^>]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```",
    flags=re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of Python, where it begins, and whether it can be run here."""

    page: Path
    line: int
    text: str
    runs: bool

    def code(self):
        """Compiled so that errors name page and line."""
        return compile("\n" * self.line + self.text, str(self.page), "exec")


def pages() -> list[Path]:
    """Written pages of the documentation, and the repository's own Markdown files."""
    names = ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "benchmarks/README", "benchmarks/RESULTS")
    own = [ROOT / f"{name}.md" for name in names]
    return [*(page for page in sorted(DOCS.glob("*.md")) if page.name not in GENERATED), *own]


def python_blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("text")), match["text"], _runs(match))
        for match in _BLOCK.finditer(text)
        if match["kind"] == "python"
    ]


def commands(page: Path) -> list[str]:
    """The lines of blocks without a language: what a reader types, or sees."""
    found = [match["text"] for match in _BLOCK.finditer(page.read_text(encoding="utf-8")) if not match["kind"]]
    return [line for text in found for line in text.splitlines()]


def links(page: Path) -> list[str]:
    """Targets of the links and pictures outside blocks."""
    return _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))


def _runs(block: re.Match[str]) -> bool:
    if block["mark"] == "needs":
        try:
            return find_spec(block["what"]) is not None
        except ModuleNotFoundError:
            return False
    return block["mark"] is None and not block["text"].startswith("# configuration")

"""Hooks of mkdocs: docstrings are written for Sphinx, pages are Markdown, and results live beside benchmarks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>~?([^<]*)</code>")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page of results is `benchmarks/RESULTS.md`, its pictures those of this site."""
    if page.file.src_uri != "results.md":
        return markdown
    return (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").replace("(../docs/", "(")


def on_page_content(html: str, **_: Any) -> str:
    """A role such as ``:class:`X``` becomes the code ``X``, and ``::`` before an example a colon."""
    return ROLE.sub(r"<code>\1</code>", html).replace("::</p>", ":</p>")

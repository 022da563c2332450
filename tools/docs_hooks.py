"""Hooks of mkdocs: docstrings are written for Sphinx's roles, pages are Markdown."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>~?([^<]*)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """A role such as ``:class:`X``` becomes the code ``X``, and ``::`` before an example a colon."""
    return ROLE.sub(r"<code>\1</code>", html).replace("::</p>", ":</p>")

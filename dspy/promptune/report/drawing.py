"""What all figures have in common: colors that can be read on light and dark, and texts that stay texts."""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING, Any

from dspy.promptune.errors import OptionError
from dspy.promptune.findings.record import RunRecord
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["COLORS", "SCALE", "as_text", "empty", "figure", "hover", "prompt_lines"]

COLORS = {
    "block": "#3b82f6", "minibatch": "#14b8a6", "full": "#8b5cf6", "failed": "#ef4444", "running": "#64748b",
    "waiting": "#94a3b8", "proposal": "#f59e0b", "best": "#f59e0b", "line": "#3b82f6", "quiet": "#94a3b8",
    "unfinished": "#64748b",
}  # fmt: skip
SCALE = [[0.0, "#5563d6"], [0.5, "#22a699"], [1.0, "#f6b93b"]]  # low to high, each end apart from white and from black
WIDTH, SHOWN = 70, 420  # characters of a line, and of a text, in a hover label
NARROW = 36  # characters of a line that fits on a phone


def graph_objects() -> Any:
    """The plotting library.

    Raises:
        OptionError: It is not installed.
    """
    try:
        import plotly.graph_objects
    except ImportError:
        raise OptionError("Figures and reports need plotly, which is not installed: pip install plotly.") from None
    return plotly.graph_objects


def figure(height: int = 420, **layout: Any) -> Figure:
    """An empty figure with the margins, legend and hover labels of this package."""
    go = graph_objects()
    found: Figure = go.Figure()
    found.update_layout(
        height=height,
        margin={"l": 56, "r": 16, "t": 16, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left", "traceorder": "normal"},
        hoverlabel={"align": "left"},
        **layout,
    )
    return found


def empty(text: str) -> Figure:
    """A figure that says why it is empty."""
    found = figure(160)
    lines = "<br>".join(textwrap.wrap(text, NARROW))
    found.add_annotation(text=lines, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    return found.update_xaxes(visible=False).update_yaxes(visible=False)


def as_text(text: str) -> str:
    """A text for plotly, which reads some HTML: what looks like a tag or an entity is shown as it was written."""
    return html.escape(text, quote=False)


def hover(text: str, shown: int = SHOWN) -> str:
    """A text broken into lines for a hover label, cut where it is long."""
    cut = text if len(text) <= shown else text[:shown].rstrip() + " …"
    lines = [piece for line in cut.splitlines() or [""] for piece in textwrap.wrap(line, WIDTH) or [""]]
    return "<br>".join(map(as_text, lines))


def prompt_lines(record: RunRecord, key: Key) -> str:
    """The texts of a combination for a hover label, part by part."""
    found = []
    several = bool(record.of_predictor(0))
    for i, (part, index) in enumerate(zip(record.space.parts, key, strict=True)):
        text = record.space.texts(i)[index].strip()
        what = part.kind if part.kind == "demos" else "instruction"
        where = as_text(record.of_predictor(part.predictor))
        found.append(f"<b>{what} {index}{where}</b><br>{hover(text or '(none)', SHOWN // (1 + several))}")
    return "<br>".join(found)

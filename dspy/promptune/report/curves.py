"""Best so far: what the run would have returned, against what it had cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import counted
from dspy.promptune.errors import OptionError
from dspy.promptune.findings.record import Moment, RunRecord, mean
from dspy.promptune.findings.statistics import interval
from dspy.promptune.naming import prompt_name
from dspy.promptune.report.drawing import COLORS, as_text, empty, figure, graph_objects

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["draw_best_so_far", "draw_switch"]

AXES = {"calls": "examples scored", "seconds": "seconds of search"}
Scores = dict[int, float]


def draw_best_so_far(record: RunRecord, against: str) -> Figure:
    """See :func:`dspy.promptune.plots.best_so_far`."""
    if against not in AXES:
        raise OptionError(f"against={against!r}: it must be one of {', '.join(AXES)}.")
    if not record.history:
        return empty("Nothing was scored yet.")
    found = figure(380, xaxis_title=AXES[against], yaxis_title=f"mean score ({record.scale.unit})")
    factor = record.scale.factor
    go, at = graph_objects(), _places(record, against)
    known = _known_then(record)
    for edge, name in ((1, None), (0, "95 % of what was known then")):
        ends = [factor * each for each in (interval(list(row.values()))[edge] for row in known)]
        found.add_trace(
            go.Scatter(
                x=at, y=[*ends, ends[-1]], name=name, mode="lines", showlegend=name is not None, hoverinfo="skip",
                line={"width": 0, "shape": "hv"}, fill=None if edge else "tonexty", fillcolor="rgba(148,163,184,0.22)",
            )
        )  # fmt: skip
    then = [factor * mean(row.values()) for row in known]
    now = [factor * mean(record.rows[moment.key].values()) for moment in record.history]
    texts = [_text(record, moment) for moment in record.history]
    for name, values, style in (
        ("best, as known then", then, {"color": COLORS["quiet"], "width": 1.5, "dash": "dot"}),
        ("best, as known at the end", now, {"color": COLORS["line"], "width": 3}),
    ):
        looks: dict[str, Any] = {"line": {**style, "shape": "hv"}, "mode": "lines", "hoverinfo": "text"}
        found.add_trace(go.Scatter(x=at, y=[*values, values[-1]], name=name, hovertext=[*texts, texts[-1]], **looks))
    _add_default(found, record)
    return found


def draw_switch(record: RunRecord) -> Figure:
    """Best so far against examples; ``layout.meta`` tells the page how to show it against seconds."""
    found = draw_best_so_far(record, "calls")
    if not record.history:
        return found
    views = [
        {"label": f"by {what}", "x": _places(record, against), "title": AXES[against]}
        for against, what in (("calls", "examples"), ("seconds", "time"))
    ]
    return found.update_layout(meta={"views": views})


def _places(record: RunRecord, against: str) -> list[float]:
    end = float(record.calls if against == "calls" else record.seconds)
    return [*(float(getattr(moment, against)) for moment in record.history), end]


def _known_then(record: RunRecord) -> list[Scores]:
    """The scores that there were of each moment's best at that moment."""
    ended = sorted((each for each in record.evaluations if each.scores), key=lambda each: each.span.ended)
    rows: dict[tuple[int, ...], Scores] = {}
    found, position = [], 0
    for moment in record.history:
        while position < len(ended) and ended[position].span.ended <= moment.seconds:
            each = ended[position]
            if each.key is not None:
                rows.setdefault(each.key, {}).update(each.scores)
            position += 1
        found.append(dict(rows.get(moment.key) or record.rows[moment.key]))
    return found


def _text(record: RunRecord, moment: Moment) -> str:
    row = record.rows[moment.key]
    scored = counted(len(row), "example")
    return (
        f"<b>{as_text(prompt_name(record.space, moment.key))}</b><br>after {counted(moment.calls, 'example')}, "
        f"{moment.seconds:.1f} s<br>{record.scale.score(mean(row.values()))} on the {scored} it had at the end"
    )


def _add_default(found: Figure, record: RunRecord) -> None:
    row = record.rows.get(record.default)
    if row:
        found.add_hline(
            y=record.scale.factor * mean(row.values()), line={"color": COLORS["quiet"], "width": 1, "dash": "dash"},
            annotation_text="original program", annotation_position="bottom right",
        )  # fmt: skip

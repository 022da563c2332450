"""Best so far: what the run would have returned, against what it had cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dspy.promptune.errors import OptionError
from dspy.promptune.report.drawing import COLOURS, as_text, empty, figure, graph_objects, percent
from dspy.promptune.report.record import Moment, RunRecord, mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["draw_best_so_far"]

AXES = {"calls": "examples scored", "seconds": "seconds of search"}


def draw_best_so_far(record: RunRecord, against: str) -> Figure:
    """See :func:`dspy.promptune.plots.best_so_far`."""
    if against not in AXES:
        raise OptionError(f"against={against!r}: it must be one of {', '.join(AXES)}.")
    if not record.history:
        return empty("Nothing was scored yet.")
    found = figure(400, xaxis_title=AXES[against], yaxis_title="mean score (%)")
    _add_evaluations(found, record, against)
    _add_default(found, record)
    go = graph_objects()
    at = [float(getattr(moment, against)) for moment in record.history]
    end = float(record.calls if against == "calls" else record.seconds)
    then = [100 * each for each in _known_then(record)]
    now = [100 * mean(record.rows[moment.key].values()) for moment in record.history]
    texts = [_text(record, moment) for moment in record.history]
    for name, values, style in (
        ("best, as known then", then, {"color": COLOURS["quiet"], "width": 1.5, "dash": "dot"}),
        ("best, as known at the end", now, {"color": COLOURS["line"], "width": 3}),
    ):
        line = {**style, "shape": "hv"}
        x, y, hovers = [*at, end], [*values, values[-1]], [*texts, texts[-1]]
        found.add_trace(go.Scatter(x=x, y=y, name=name, mode="lines", line=line, hovertext=hovers, hoverinfo="text"))
    return found


def _known_then(record: RunRecord) -> list[float]:
    """Mean of each moment's best over the scores there were at that moment."""
    ended = sorted((each for each in record.evaluations if each.scores), key=lambda each: each.span.ended)
    rows: dict[tuple[int, ...], dict[int, float]] = {}
    found, position = [], 0
    for moment in record.history:
        while position < len(ended) and ended[position].span.ended <= moment.seconds:
            each = ended[position]
            if each.key is not None:
                rows.setdefault(each.key, {}).update(each.scores)
            position += 1
        found.append(mean((rows.get(moment.key) or record.rows[moment.key]).values()))
    return found


def _text(record: RunRecord, moment: Moment) -> str:
    row = record.rows[moment.key]
    return (
        f"<b>{as_text(record.codes(moment.key))}</b><br>after {moment.calls:,} examples, {moment.seconds:.1f} s<br>"
        f"{percent(mean(row.values()))} % on the {len(row)} examples it had at the end"
    )


def _add_evaluations(found: Figure, record: RunRecord, against: str) -> None:
    """A dot an evaluation, larger with more examples."""
    scored = sorted((each for each in record.evaluations if each.scores), key=lambda each: each.span.ended)
    calls, at = 0, []
    for each in scored:
        calls += each.paid
        at.append(float(calls if against == "calls" else each.span.ended))
    most = max((len(each.scores) for each in scored), default=1)
    hovers = [
        f"trial {each.number}: <b>{as_text(record.codes(each.key)) if each.key else '?'}</b><br>"
        f"{percent(each.mean)} % on {len(each.scores)} examples ({as_text(each.kind)})"
        for each in scored
    ]
    found.add_trace(
        graph_objects().Scatter(
            x=at, y=[100 * each.mean for each in scored], mode="markers", name="evaluations", hovertext=hovers,
            hoverinfo="text", opacity=0.45, marker=_dots([4 + 8 * (len(e.scores) / most) ** 0.5 for e in scored]),
        )
    )  # fmt: skip


def _dots(sizes: Sequence[float]) -> dict[str, object]:
    return {"color": COLOURS["minibatch"], "size": list(sizes)}


def _add_default(found: Figure, record: RunRecord) -> None:
    row = record.rows.get(record.default)
    if row:
        found.add_hline(
            y=100 * mean(row.values()), line={"color": COLOURS["quiet"], "width": 1, "dash": "dash"},
            annotation_text="program as it came", annotation_position="bottom right",
        )  # fmt: skip

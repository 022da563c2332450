"""What ran when: one lane for each evaluation at once, and one for the proposals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import counted
from dspy.promptune.findings.record import Evaluation, RunRecord
from dspy.promptune.report.drawing import COLORS, as_text, empty, figure, graph_objects, hover

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["draw_timeline"]

PROPOSALS = -1  # the lane of the proposals
Stretch = Callable[[Evaluation], tuple[float, float]]


def draw_timeline(record: RunRecord) -> Figure:
    """See :func:`dspy.promptune.plots.timeline`."""
    evaluations = list(record.evaluations)
    if not evaluations:
        return empty("Nothing was evaluated yet.")
    lanes = 1 + max(each.lane for each in evaluations)
    found = figure(150 + 30 * (lanes + 1), barmode="overlay", bargap=0.25, xaxis_title="seconds of search")
    _add(found, record, "waiting", evaluations, lambda each: (each.span.asked, each.span.begun))
    for kind in ("block", "minibatch", "full"):
        scored = [each for each in evaluations if each.state == "complete" and each.kind == kind]
        _add(found, record, kind, scored, lambda each: (each.span.begun, each.span.ended))
    for state in ("failed", "unfinished", "running"):
        some = [each for each in evaluations if each.state == state]
        _add(found, record, state, some, lambda each: (each.span.begun, each.span.ended))
    _add(found, record, "proposal", evaluations, lambda each: (each.span.proposed, each.span.asked), PROPOSALS)
    names = ["proposals", *(f"place {lane + 1}" for lane in range(lanes))]
    found.update_yaxes(
        tickvals=list(range(PROPOSALS, lanes)), ticktext=names, autorange="reversed", showgrid=False, zeroline=False
    )
    return found.update_layout(margin={"l": 78})


def _add(
    found: Figure, record: RunRecord, what: str, evaluations: Sequence[Evaluation], stretch: Stretch,
    lane: int | None = None,
) -> None:  # fmt: skip
    shown = [(each, *stretch(each)) for each in evaluations]
    least = record.seconds / 2000  # what is shorter could not be seen, and a failure at once must be
    long = [(e, a, max(b - a, least)) for e, a, b in shown if b > a or what not in ("waiting", "proposal", "minibatch")]
    if not long:
        return
    thin: dict[str, Any] = {"width": 0.22} if what == "waiting" else {}
    found.add_trace(
        graph_objects().Bar(
            y=[each.lane if lane is None else lane for each, _, _ in long],
            base=[begin for _, begin, _ in long], x=[length for _, _, length in long], orientation="h", name=what,
            hovertext=[_text(record, each, what) for each, _, _ in long], hoverinfo="text",
            marker={"color": COLORS[what], "line": {"width": 0}}, **thin,
        )
    )  # fmt: skip


def _text(record: RunRecord, each: Evaluation, what: str) -> str:
    span = each.span
    lines = [f"<b>trial {each.number}: {as_text(record.codes(each.key)) if each.key else '?'}</b>"]
    if what == "proposal":
        return "<br>".join([*lines, f"proposed in {span.asked - span.proposed:.2f} s, at {span.proposed:.1f} s"])
    if what == "waiting":
        return "<br>".join([*lines, f"waited {span.begun - span.asked:.2f} s for a worker"])
    lines.append(f"{as_text(each.kind)}, {span.begun:.1f} to {span.ended:.1f} s ({span.busy:.2f} s busy)")
    if each.scores:
        lines.append(
            f"{record.scale.score(each.mean)} on {counted(len(each.scores), 'example')}, {each.paid} newly scored"
        )
    if each.error:
        lines.append(hover(each.error))
    return "<br>".join(lines)

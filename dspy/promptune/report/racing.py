"""Where the examples went: few on weak prompts, many on the leaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy.promptune.counted import counted
from dspy.promptune.findings.record import Evaluation, RunRecord, mean
from dspy.promptune.report.drawing import COLORS, as_text, empty, figure, graph_objects, prompt_lines
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["draw_spending"]

SHOWN = 25  # prompts with a bar of their own


def draw_spending(record: RunRecord) -> Figure:
    """See :func:`dspy.promptune.plots.spending`."""
    paid: dict[Key, int] = {}
    for each in record.evaluations:
        if each.key is not None and each.paid:
            paid[each.key] = paid.get(each.key, 0) + each.paid
    if not paid:
        return empty("Nothing was scored yet.")
    ranked = sorted(paid, key=lambda key: (-paid[key], key))
    shown, others = ranked[:SHOWN], ranked[SHOWN:]
    place = {key: i for i, key in enumerate(shown)}
    found = figure(130 + 22 * (len(shown) + bool(others)), barmode="stack", bargap=0.2, xaxis_title="examples scored")
    for kind in ("block", "minibatch", "full"):
        some = [each for each in record.evaluations if each.kind == kind and each.paid and each.key in place]
        _add(found, record, kind, some, place)
    if others:
        rest = sum(paid[key] for key in others)
        text = f"{counted(len(others), 'more prompt')} took {counted(rest, 'example')}, {rest / len(others):.1f} each"
        found.add_trace(
            graph_objects().Bar(
                x=[rest / len(others)], y=[len(shown)], orientation="h", name="others, on average", hovertext=[text],
                hoverinfo="text", marker={"color": COLORS["quiet"]},
            )
        )  # fmt: skip
    names = [as_text(record.codes(key)) + (" ★" if key == record.best else "") for key in shown]
    ticks = [*names, f"{len(others)} others"] if others else names
    found.update_yaxes(tickvals=list(range(len(ticks))), ticktext=ticks, autorange="reversed", showgrid=False)
    for key, i in place.items():
        score = record.scale.score(mean(record.rows[key].values())) if key in record.rows else "no score"
        found.add_annotation(x=paid[key], y=i, text=score, showarrow=False, xanchor="left", xshift=4)
    found.update_yaxes(automargin=True)
    return found.update_layout(margin={"l": 78, "r": 60})


def _add(found: Figure, record: RunRecord, kind: str, some: list[Evaluation], place: dict[Key, int]) -> None:
    if not some:
        return
    found.add_trace(
        graph_objects().Bar(
            x=[each.paid for each in some], y=[place[each.key] for each in some if each.key is not None],
            orientation="h", name=kind, hovertext=[_text(record, each) for each in some], hoverinfo="text",
            marker={"color": COLORS[kind], "line": {"width": 1, "color": "rgba(255,255,255,0.55)"}},
        )
    )  # fmt: skip


def _text(record: RunRecord, each: Evaluation) -> str:
    assert each.key is not None
    head = f"<b>{as_text(record.codes(each.key))}</b>, trial {each.number}: {each.paid} examples ({as_text(each.kind)})"
    score = f", {record.scale.score(each.mean)}" if each.scores else ""
    return f"{head}{score}<br>{prompt_lines(record, each.key)}"

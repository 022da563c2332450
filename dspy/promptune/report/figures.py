"""The figures of a run, by plotly. Texts of prompts are escaped: what looks like markup stays text."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dspy.promptune.errors import OptionError
from dspy.promptune.report.believed import Believed, believed, main_effects
from dspy.promptune.report.record import Evaluation, RunRecord, record_of
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["best_so_far", "effects", "prompt_map", "spending", "timeline"]

KINDS = {"block": "#4c78a8", "minibatch": "#72b7b2", "full": "#54a24b", "failed": "#e45756"}
ACCENT, QUIET = "#f58518", "#9aa0a6"
SCALE = "Viridis"
SHOWN = 320  # characters of a text in a hover
TRIED = 60  # prompts in the bars of the spending, those with the most examples


def best_so_far(run: Any, against: Literal["calls", "seconds"] = "calls") -> Figure:
    """The score of the prompt that the run would have returned, against what it had spent by then.

    The score of a prompt is the mean of all its scores at the end of the run, so the line moves only where the choice
    changed.

    Args:
        run: A run, or the study of a stored one.
        against: ``"calls"`` (examples scored) or ``"seconds"`` (since the first proposal).

    Raises:
        OptionError: ``against`` is neither, or plotly is not installed.
    """
    if against not in ("calls", "seconds"):
        raise OptionError(f'against={against!r}: it must be "calls" or "seconds".')
    record = record_of(run)
    history = [(calls, key) for calls, key in record.history if not math.isnan(record.mean(key))]
    x = [float(calls) for calls, _ in history]
    if against == "seconds":
        x = _seconds_at(record, x)
    y = [100 * record.mean(key) for _, key in history]
    last = float(record.calls if against == "calls" else record.seconds)
    figure = _figure(f"Best so far against {against}", "examples scored" if against == "calls" else "seconds", "score")
    hover = [_describe(record, key) for _, key in history]
    figure.add_scatter(
        x=[*x, last], y=[*y, y[-1] if y else None], text=[*hover, hover[-1] if hover else ""], mode="lines+markers",
        line={"shape": "hv", "color": KINDS["block"], "width": 3}, hovertemplate="%{y:.1f}<br>%{text}<extra></extra>",
        name="best so far",
    )  # fmt: skip
    before = record.mean(record.default)
    if not math.isnan(before):
        figure.add_hline(y=100 * before, line={"dash": "dot", "color": QUIET}, annotation_text="as it came")
    return figure


def timeline(run: Any) -> Figure:
    """What ran when: one lane for each evaluation that ran at the same time, waits and failures included."""
    record = record_of(run)
    figure = _figure("What ran when", "seconds since the first proposal", "lane")
    lanes = _lanes(record.evaluations)
    groups: dict[str, list[Evaluation]] = {}
    for one in record.evaluations:
        groups.setdefault(one.kind if one.state == "COMPLETE" else "failed", []).append(one)
    waits = [one for one in record.evaluations if one.began - one.proposed > 0.005]
    figure.add_bar(
        x=[one.began - one.proposed for one in waits], base=[one.proposed for one in waits],
        y=[lanes[one.number] for one in waits], orientation="h", marker={"color": QUIET, "opacity": 0.35}, width=0.25,
        name="proposed, waiting", hovertemplate="waited %{x:.2f} s<extra></extra>",
    )  # fmt: skip
    for kind, ones in groups.items():
        figure.add_bar(
            x=[max(one.ended - one.began, 0.002) for one in ones], base=[one.began for one in ones],
            y=[lanes[one.number] for one in ones], orientation="h", width=0.8, name=kind,
            marker={"color": KINDS.get(kind, QUIET), "line": {"width": 0}},
            text=[_of_trial(record, one) for one in ones], textposition="none",
            hovertemplate="%{text}<br>%{x:.2f} s<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0.1, hovermode="closest")
    return figure


def prompt_map(run: Any, beliefs: Believed | None = None) -> Figure:
    """The prompts on a plane: alike ones are near, colour is the posterior mean, size is certainty."""
    record = record_of(run)
    beliefs = beliefs or believed(record)
    figure = _figure("The map of prompts", "", "")
    sizes = 6 + 22 * _unit(-np.log(beliefs.sd + 1e-6))
    measured = np.array([key in record.rows for key in beliefs.keys])
    for name, chosen, symbol in (("not tried", ~measured, "circle-open"), ("tried", measured, "circle")):
        members = np.flatnonzero(chosen)
        figure.add_scatter(
            x=beliefs.place[members, 0], y=beliefs.place[members, 1], mode="markers", name=name,
            marker={"size": sizes[members], "color": 100 * beliefs.mean[members], "coloraxis": "coloraxis",
                    "symbol": symbol, "opacity": 0.85, "line": {"width": 1}},
            text=[_describe(record, beliefs.keys[i]) for i in members],
            customdata=np.stack([100 * beliefs.mean[members], 100 * beliefs.sd[members]], axis=-1),
            hovertemplate="%{customdata[0]:.1f} ± %{customdata[1]:.1f}<br>%{text}<extra></extra>",
        )  # fmt: skip
    _ring(figure, beliefs, record.best, "the winner", ACCENT)
    _ring(figure, beliefs, record.default, "as it came", QUIET)
    axis = {"showticklabels": False, "zeroline": False}
    figure.update_layout(xaxis=axis, yaxis=axis, coloraxis={"colorscale": SCALE, "colorbar": {"title": "posterior"}})
    return figure


def effects(run: Any, beliefs: Believed | None = None) -> Figure:
    """What each instruction and each demo set adds or takes, and how instructions and demo sets go together.

    Bars are main effects: the mean posterior of the prompts with a candidate, less that of all. The last panel, for a
    program with both, is the posterior mean of each combination of the first predictor's.
    """
    from plotly.subplots import make_subplots

    record = record_of(run)
    beliefs = beliefs or believed(record)
    names, rows = record.space.names, main_effects(record, beliefs)
    pairs = len(names) > 1 and names[1].endswith("_demos")
    titles = [*map(_title, names), *(["interaction of predictor 0"] if pairs else [])]
    gap = min(0.12, 0.5 / len(titles))
    figure = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=gap)
    for part, effect in enumerate(rows):
        figure.add_bar(
            x=[str(index) for index, _, _ in effect], y=[100 * value for _, value, _ in effect],
            marker={"color": [ACCENT if record.best[part] == index else KINDS["block"] for index, _, _ in effect]},
            text=[_hover(record.text(part, index)) for index, _, _ in effect], textposition="none",
            customdata=[scored for _, _, scored in effect],
            hovertemplate="%{y:+.1f}, %{customdata:.0f} examples<br>%{text}<extra></extra>",
            row=part + 1, col=1, showlegend=False,
        )  # fmt: skip
    if pairs:
        _interaction(figure, record, beliefs, len(titles))
    _style(figure, "What instructions and demo sets add", height=90 + 230 * len(titles))
    return figure


def spending(run: Any) -> Figure:
    """Where the calls went: examples of each prompt, in the order in which prompts were first proposed."""
    record = record_of(run)
    figure = _figure("Where the calls went", "prompt, in the order of first proposal", "examples scored")
    spent: dict[Key, dict[str, int]] = {}
    for one in record.evaluations:
        row = spent.setdefault(one.key, {})
        row[one.kind] = row.get(one.kind, 0) + one.paid
    shown = sorted(spent, key=lambda key: -sum(spent[key].values()))[:TRIED]
    order = [key for key in spent if key in shown]
    labels = [str(1 + list(spent).index(key)) for key in order]
    for kind in dict.fromkeys(kind for key in order for kind in spent[key]):
        figure.add_bar(
            x=labels, y=[spent[key].get(kind, 0) for key in order], name=kind,
            marker={"color": KINDS.get(kind, QUIET)}, text=[_describe(record, key) for key in order],
            textposition="none", hovertemplate="%{y} examples<br>%{text}<extra></extra>",
        )  # fmt: skip
    if record.best in order:
        place = order.index(record.best)
        figure.add_annotation(x=labels[place], y=sum(spent[record.best].values()), text="the winner", showarrow=True)
    figure.update_layout(barmode="stack", xaxis={"type": "category", "showticklabels": len(order) <= 30})
    return figure


# ---------------------------------------------------------------------- pieces


def _figure(title: str, x: str, y: str) -> Figure:
    try:
        from plotly.graph_objects import Figure
    except ImportError:
        raise OptionError("Figures need plotly, which is not installed: pip install plotly.") from None
    figure = Figure()
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    _style(figure, title, height=420)
    return figure


def _style(figure: Figure, title: str, *, height: int) -> None:
    figure.update_layout(
        title={"text": title, "x": 0.0, "xanchor": "left"}, height=height, margin={"l": 55, "r": 15, "t": 50, "b": 100},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0.0},
    )  # fmt: skip
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zerolinecolor="rgba(128,128,128,0.4)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zerolinecolor="rgba(128,128,128,0.4)")


def _interaction(figure: Figure, record: RunRecord, beliefs: Believed, row: int) -> None:
    """The posterior means of the first predictor's combinations, over whatever the others are."""
    total = np.zeros(record.space.sizes[:2])
    count = np.zeros_like(total)
    for key, mean in zip(beliefs.keys, beliefs.mean, strict=True):
        total[key[:2]] += mean
        count[key[:2]] += 1
    means = np.where(count > 0, 100 * total / np.maximum(count, 1), np.nan)
    hover = "instruction %{y}, demo set %{x}: %{z:.1f}<extra></extra>"
    bar = {"len": 0.9 / row, "y": 0.1}
    figure.add_heatmap(z=means, colorscale=SCALE, hovertemplate=hover, row=row, col=1, colorbar=bar)
    figure.update_xaxes(title="demo set", row=row, col=1)
    figure.update_yaxes(title="instruction", row=row, col=1)


def _ring(figure: Figure, beliefs: Believed, key: Key, name: str, color: str) -> None:
    if key not in beliefs.keys:
        return
    x, y = beliefs.place[beliefs.keys.index(key)]
    ring = {"size": 34, "symbol": "circle-open", "color": color, "line": {"width": 3}}
    figure.add_scatter(x=[x], y=[y], mode="markers", marker=ring, name=name, hoverinfo="skip")


def _lanes(evaluations: Sequence[Evaluation]) -> dict[int, int]:
    """The lane of each evaluation: the first that is free when it begins."""
    ends: list[float] = []
    lanes = {}
    for one in sorted(evaluations, key=lambda one: one.began):
        lane = next((i for i, end in enumerate(ends) if end <= one.began + 1e-3), len(ends))
        if lane == len(ends):
            ends.append(0.0)
        ends[lane] = one.ended
        lanes[one.number] = lane + 1
    return lanes


def _seconds_at(record: RunRecord, calls: Sequence[float]) -> list[float]:
    """When so many examples were scored."""
    ended = sorted(record.evaluations, key=lambda one: one.ended)
    sums = np.cumsum([one.paid for one in ended])
    return [ended[min(int(np.searchsorted(sums, each)), len(ended) - 1)].ended for each in calls]


def _unit(values: Any) -> Any:
    span = float(np.ptp(values)) if len(values) else 0.0
    return (values - values.min()) / span if span > 0 else np.full(len(values), 0.5)


def _title(name: str) -> str:
    number, _, kind = name.partition("_predictor_")
    return f"{'instructions' if kind == 'instruction' else 'demo sets'} of predictor {number}"


def _of_trial(record: RunRecord, one: Evaluation) -> str:
    said = f"trial {one.number}, {one.kind}, {one.paid} examples"
    if one.error is not None:
        return f"{said}<br>{_hover(one.error)}"
    return f"{said}, mean {100 * one.mean:.1f}<br>{_describe(record, one.key)}"


def _describe(record: RunRecord, key: Key) -> str:
    """A prompt for a hover: its parameters, score, and instructions."""
    row = record.rows.get(key, {})
    scored = f"{100 * record.mean(key):.1f} on {len(row)} examples" if row else "not tried"
    texts = [
        f"<b>{name} {index}</b>: {_hover(record.text(part, index))}"
        for part, (name, index) in enumerate(zip(record.space.names, key, strict=True))
        if name.endswith("_instruction") or part + 1 == len(key)
    ]
    return "<br>".join([scored, *texts])


def _hover(text: str) -> str:
    """A text as plotly shows it: without markup, in short lines."""
    short = " ".join(text.split())
    short = short if len(short) <= SHOWN else short[: SHOWN - 3] + "..."
    return "<br>".join(html.escape(line) for line in textwrap.wrap(short, 60)) or "(empty)"

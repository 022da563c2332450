"""The map of prompts, and what each candidate brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspy.promptune.report.beliefs import Beliefs, Effect, Interaction, effects_of
from dspy.promptune.report.drawing import (
    COLOURS,
    SCALE,
    as_text,
    empty,
    figure,
    graph_objects,
    hover,
    percent,
    prompt_lines,
)
from dspy.promptune.report.record import RunRecord, mean
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["draw_effects", "draw_prompt_map"]

BAR = {"thickness": 12, "outlinewidth": 0, "len": 0.9}
UNTRIED = 400  # combinations shown that were never tried
NO_BELIEFS = "Too little was scored for the model."


def draw_prompt_map(record: RunRecord) -> Figure:
    """See :func:`dspy.promptune.plots.prompt_map`."""
    beliefs = record.beliefs
    if beliefs is None:
        return empty(NO_BELIEFS)
    found = figure(520)
    tried = [j for j, key in enumerate(beliefs.keys) if key in record.rows]
    untried = [j for j, key in enumerate(beliefs.keys) if key not in record.rows]
    untried = untried[:: max(1, len(untried) // UNTRIED)]
    low, high = (100 * float(edge(beliefs.mean)) for edge in (np.min, np.max))
    sizes = _sizes(beliefs)
    for name, members, looks in (
        ("never tried", untried, {"opacity": 0.35, "symbol": "circle-open"}),
        ("tried", tried, {"opacity": 0.9, "line": {"width": 1, "color": "rgba(127,127,127,0.6)"}}),
    ):
        marker: dict[str, Any] = {
            **looks, "color": [100 * float(beliefs.mean[j]) for j in members], "size": [sizes[j] for j in members],
            "colorscale": SCALE, "cmin": low, "cmax": high, "showscale": name == "tried",
            "colorbar": {"title": {"text": "believed<br>score (%)"}, **BAR},
        }  # fmt: skip
        _add_prompts(found, record, beliefs, members, name=name, marker=marker, mode="markers")
    for name, key, symbol in (("as it came", record.default, "square-open"), ("winner", record.best, "circle-open")):
        marked = [beliefs.keys.index(key)] if key in beliefs.keys else []
        marker = {"symbol": symbol, "size": [sizes[j] + 9 for j in marked], "color": COLOURS["failed"]}
        marker["line"] = {"width": 2.5}
        looks = {"text": [name] * len(marked), "textposition": "top center", "cliponaxis": False}
        _add_prompts(found, record, beliefs, marked, name=name, marker=marker, mode="markers+text", **looks)
    found.update_xaxes(showticklabels=False, zeroline=False, title="direction in which the texts differ most")
    return found.update_yaxes(showticklabels=False, zeroline=False, title="second direction").update_layout(
        margin={"l": 40, "b": 36}
    )


def _sizes(beliefs: Beliefs) -> list[float]:
    """Diameters in pixels: 6 for the least certain, 22 for the most."""
    low, high = float(beliefs.sd.min()), float(beliefs.sd.max())
    sure = (high - beliefs.sd) / (high - low) if high > low else np.full(len(beliefs.sd), 0.5)
    return [float(size) for size in 6 + 16 * sure]


def _add_prompts(found: Figure, record: RunRecord, beliefs: Beliefs, members: list[int], **looks: Any) -> None:
    found.add_trace(
        graph_objects().Scatter(
            x=[float(beliefs.place[j, 0]) for j in members], y=[float(beliefs.place[j, 1]) for j in members],
            hovertext=[_belief(record, beliefs, j) for j in members], hoverinfo="text", **looks,
        )
    )  # fmt: skip


def _belief(record: RunRecord, beliefs: Beliefs, j: int) -> str:
    key: Key = beliefs.keys[j]
    row = record.rows.get(key, {})
    measured = f"measured {percent(mean(row.values()))} % on {len(row)} examples" if row else "never tried"
    believed = f"believed {percent(beliefs.mean[j])} ± {percent(beliefs.sd[j])} %"
    return f"<b>{as_text(record.codes(key))}</b>: {believed}, {measured}<br>{prompt_lines(record, key)}"


# ---------------------------------------------------------------------- effects


def draw_effects(record: RunRecord) -> Figure:
    """See :func:`dspy.promptune.plots.effects`."""
    from plotly.subplots import make_subplots

    beliefs = record.beliefs
    if beliefs is None:
        return empty(NO_BELIEFS)
    effects, interaction = effects_of(beliefs, record.space.sizes)
    if not effects:
        return empty("There was nothing to choose from.")
    heights = [220] * len(effects) + ([340] if interaction else [])
    titles = [_part_name(record, effect.part) for effect in effects] + (["interaction"] if interaction else [])
    found = make_subplots(
        rows=len(heights), cols=1, row_heights=heights, subplot_titles=titles,
        vertical_spacing=min(0.12, 70 / sum(heights)),
    )  # fmt: skip
    for row, effect in enumerate(effects, 1):
        _add_effect(found, record, effect, row)
    if interaction:
        _add_interaction(found, record, interaction, len(heights))
    return found.update_layout(
        height=sum(heights) + 80, showlegend=False, hoverlabel={"align": "left"},
        margin={"l": 56, "r": 16, "t": 36, "b": 48},
    )  # fmt: skip


def _part_name(record: RunRecord, part: int) -> str:
    this = record.space.parts[part]
    kind = "instructions" if this.kind == "instruction" else "demo sets"
    several = len({each.predictor for each in record.space.parts}) > 1
    return f"{kind} of predictor {this.predictor}" if several else kind


def _labels(record: RunRecord, part: int) -> list[str]:
    letter = record.space.parts[part].kind[0].upper()
    return [f"{letter}{j}" for j in range(record.space.sizes[part])]


def _add_effect(found: Figure, record: RunRecord, effect: Effect, row: int) -> None:
    texts = record.space.texts(effect.part)
    labels = _labels(record, effect.part)
    chosen = record.best[effect.part] if record.best else None
    colours = [COLOURS["best"] if j == chosen else COLOURS["line"] for j in range(len(labels))]
    hovers = [
        f"<b>{label}</b>{' (the winner has it)' if j == chosen else ''}: {percent(effect.mean[j])} % over all else, "
        f"± {percent(effect.sd[j])} with what it is combined with<br>{hover(texts[j].strip() or '(none)')}"
        for j, label in enumerate(labels)
    ]
    found.add_trace(
        graph_objects().Scatter(
            x=labels, y=list(100 * effect.mean), mode="markers", marker={"size": 10, "color": colours},
            error_y={"type": "data", "array": list(100 * effect.sd), "color": COLOURS["quiet"], "width": 3},
            hovertext=hovers, hoverinfo="text",
        ),
        row=row, col=1,
    )  # fmt: skip
    found.update_yaxes(title_text="believed (%)", row=row, col=1)
    found.update_xaxes(type="category", row=row, col=1)


def _add_interaction(found: Figure, record: RunRecord, interaction: Interaction, row: int) -> None:
    down, across = _labels(record, interaction.rows), _labels(record, interaction.columns)
    most = float(np.nanmax(np.abs(interaction.excess))) or 1.0
    hovers = [
        [
            f"<b>{a} with {b}</b>: believed {percent(interaction.mean[i, j])} %,<br>"
            f"{100 * interaction.excess[i, j]:+.1f} points beyond what each brings alone"
            for j, b in enumerate(across)
        ]
        for i, a in enumerate(down)
    ]
    table = [[None if value != value else 100 * float(value) for value in line] for line in interaction.excess]
    found.add_trace(
        graph_objects().Heatmap(
            z=table, x=across, y=down, zmin=-100 * most, zmax=100 * most, hovertext=hovers, hoverinfo="text",
            colorscale=[[0, "#d9534f"], [0.5, "rgba(140,140,140,0.15)"], [1, "#2f7de1"]], xgap=1, ygap=1,
            colorbar={**BAR, "title": {"text": "points"}, "len": 0.3, "y": 0, "yanchor": "bottom"},
        ),
        row=row, col=1,
    )  # fmt: skip
    bare = {"type": "category", "showgrid": False, "row": row, "col": 1}
    found.update_yaxes(title_text=_part_name(record, interaction.rows), **bare)
    found.update_xaxes(title_text=_part_name(record, interaction.columns), **bare)

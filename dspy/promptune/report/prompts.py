"""What every prompt is expected to score, and what each candidate brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dspy.promptune.counted import counted
from dspy.promptune.findings.beliefs import Beliefs, Effect, effects_of
from dspy.promptune.findings.record import RunRecord, mean
from dspy.promptune.naming import prompt_name
from dspy.promptune.report.compared import labels
from dspy.promptune.report.drawing import COLORS, SCALE, as_text, empty, figure, graph_objects, hover, prompt_lines
from dspy.promptune.space import Key

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["draw_effects", "draw_estimates"]

BAR = {"thickness": 12, "outlinewidth": 0, "len": 0.9}
ROWS = {"autorange": "reversed", "showgrid": False, "zeroline": False, "automargin": True}  # of a list, from the top
LEAST = 0.05  # of the span of scores to either side of the middle that the colors span at least: less is noise
SHOWN = 30  # prompts of a list
LABEL, NARROW = 60, 17  # characters of a text on an axis, and on that of a phone
MOST_CELLS = 40  # rows or columns of a matrix that can be read
NO_BELIEFS = "Too little was scored for a model of the prompts."


def draw_estimates(record: RunRecord) -> Figure:
    """See :func:`dspy.promptune.plots.estimates`."""
    beliefs = record.beliefs
    if beliefs is None:
        return empty(NO_BELIEFS)
    chosen = [part for part, size in enumerate(record.space.sizes) if size > 1]
    if len(chosen) == 2 and max(record.space.sizes) <= MOST_CELLS:
        return _matrix(record, beliefs, (chosen[0], chosen[1]))
    return _list(record, beliefs)


def _matrix(record: RunRecord, beliefs: Beliefs, parts: tuple[int, int]) -> Figure:
    """Rows and columns are candidates of the two parts with a choice, the best ones first."""
    scale = record.scale
    order = {effect.part: _ranked(effect) for effect in effects_of(beliefs, record.space.sizes)}
    down, across = order[parts[0]], order[parts[1]]
    keys = [[_combined(record, parts, (i, j)) for j in across] for i in down]
    means = [[_expected(record, key) for key in row] for row in keys]
    middle = float(np.nanmean(np.array(means, dtype=float)))
    reach = max(LEAST * scale.span * scale.factor, float(np.nanmax(np.abs(np.array(means, dtype=float) - middle))))
    found = figure(max(260, 110 + 30 * len(down)))
    found.add_trace(
        graph_objects().Heatmap(
            z=means, x=[f"D{j}" if record.space.parts[parts[1]].kind == "demos" else f"I{j}" for j in across],
            y=_labels(record, parts[0], down), zmin=middle - reach, zmax=middle + reach, colorscale=SCALE,
            text=[[_count(record, key) for key in row] for row in keys], texttemplate="%{text}",
            hovertext=[[_belief(record, beliefs, key) for key in row] for row in keys], hoverinfo="text",
            xgap=2, ygap=2,
            colorbar={"title": {"text": f"expected<br>score ({scale.unit})"}, **BAR}, name="expected",
        )
    )  # fmt: skip
    found.update_yaxes(type="category", autorange="reversed", showgrid=False, automargin=True)
    found.update_xaxes(type="category", showgrid=False, title=_part_name(record, parts[1]))
    return found.update_layout(meta={"narrow": _narrow(record, parts[0], down)})


def _list(record: RunRecord, beliefs: Beliefs) -> Figure:
    """The prompts that were tried and are expected to score most, each with the interval of what is believed."""
    factor = record.scale.factor
    tried = [key for key in beliefs.keys if key in record.rows]
    shown = sorted(tried, key=lambda key: -(_expected(record, key) or 0.0))[:SHOWN]
    beliefs_of = [beliefs.of(key) or (np.nan, np.nan, np.nan) for key in shown]
    found = figure(
        110 + 24 * len(shown),
        xaxis_title=f"expected score ({record.scale.unit}), with the middle 95 % of what is believed",
    )
    found.add_trace(
        graph_objects().Scatter(
            x=[factor * mean for mean, _, _ in beliefs_of], y=list(range(len(shown))), mode="markers", name="expected",
            error_x={"type": "data", "array": [1.96 * factor * s for _, s, _ in beliefs_of], "color": COLORS["quiet"]},
            marker={"size": 9, "color": [COLORS["best" if key == record.best else "line"] for key in shown]},
            hovertext=[_belief(record, beliefs, key) for key in shown], hoverinfo="text",
        )
    )  # fmt: skip
    ticks = [as_text(record.codes(key)) + (" ★" if key == record.best else "") for key in shown]
    return found.update_yaxes(tickvals=list(range(len(shown))), ticktext=ticks, **ROWS)


def _combined(record: RunRecord, parts: tuple[int, int], pair: tuple[int, int]) -> Key:
    key = [0] * len(record.space.sizes)
    key[parts[0]], key[parts[1]] = pair
    return tuple(key)


def _expected(record: RunRecord, key: Key) -> float | None:
    belief = record.beliefs.of(key) if record.beliefs is not None else None
    return None if belief is None else record.scale.factor * belief[0]


def _count(record: RunRecord, key: Key) -> str:
    """Examples of a cell; a star marks the winner."""
    count = len(record.rows.get(key, ()))
    return f"{count or ''}{' ★' if key == record.best else ''}".strip()


def _belief(record: RunRecord, beliefs: Beliefs, key: Key) -> str:
    scale, row, belief = record.scale, record.rows.get(key, {}), beliefs.of(key)
    measured = f"measured {scale.score(mean(row.values()))} on {counted(len(row), 'example')}" if row else "never tried"
    expected = "" if belief is None else f"expected {scale.number(belief[0])} ± {scale.score(belief[1])}, "
    return f"<b>{as_text(prompt_name(record.space, key))}</b>: {expected}{measured}<br>{prompt_lines(record, key)}"


# ---------------------------------------------------------------------- effects


def draw_effects(record: RunRecord) -> Figure:
    """See :func:`dspy.promptune.plots.effects`."""
    from plotly.subplots import make_subplots

    if record.beliefs is None:
        return empty(NO_BELIEFS)
    effects = effects_of(record.beliefs, record.space.sizes)
    if not effects:
        return empty("There was nothing to choose from.")
    heights = [60 + 26 * len(_ranked(effect)[:SHOWN]) for effect in effects]
    titles = [_part_name(record, effect.part) for effect in effects]
    found = make_subplots(
        rows=len(heights), cols=1, row_heights=heights, subplot_titles=titles,
        vertical_spacing=min(0.5 / max(1, len(heights) - 1), 70 / (sum(heights) + 80)),
    )  # fmt: skip
    for row, effect in enumerate(effects, 1):
        _add_effect(found, record, effect, row)
    last = f"xaxis{len(heights) if len(heights) > 1 else ''}"
    found.update_layout(
        {last: {"title": {"text": f"expected score ({record.scale.unit}); bars: spread over what it is combined with"}}}
    )
    shown = [(effect.part, _ranked(effect)[:SHOWN]) for effect in effects]
    narrow = {wide: text for part, some in shown for wide, text in _narrow(record, part, some).items()}
    return found.update_layout(
        meta={"narrow": narrow}, height=sum(heights) + 100, showlegend=False, hoverlabel={"align": "left"},
        margin={"l": 56, "r": 16, "t": 36, "b": 48},
    )  # fmt: skip


def _part_name(record: RunRecord, part: int) -> str:
    this = record.space.parts[part]
    kind = "instructions" if this.kind == "instruction" else "demo sets"
    return kind + as_text(record.of_predictor(this.predictor))


def _ranked(effect: Effect) -> list[int]:
    """Candidates, the one with the highest effect first, without those that equal an earlier one."""
    return [int(j) for j in np.argsort(-effect.mean, kind="stable") if np.isfinite(effect.mean[j])]


def _labels(record: RunRecord, part: int, candidates: Sequence[int], width: int = LABEL) -> list[str]:
    """Candidates on an axis: their codes, and of their texts what tells them apart."""
    code, texts = record.space.parts[part].kind[0].upper(), record.space.texts(part)
    cut = labels([texts[j] for j in candidates], width)
    return [as_text(f"{code}{j} {text}") for j, text in zip(candidates, cut, strict=True)]


def _narrow(record: RunRecord, part: int, candidates: Sequence[int]) -> dict[str, str]:
    """The labels of a phone by those of wide screens; ``layout.meta`` tells the page."""
    return dict(zip(_labels(record, part, candidates), _labels(record, part, candidates, NARROW), strict=True))


def _add_effect(found: Figure, record: RunRecord, effect: Effect, row: int) -> None:
    texts, shown = record.space.texts(effect.part), _ranked(effect)[:SHOWN]
    chosen = record.best[effect.part] if record.best else None
    colors = [COLORS["best"] if j == chosen else COLORS["line"] for j in shown]
    scale, ticks = record.scale, _labels(record, effect.part, shown)
    hovers = [
        f"<b>{label}</b>{' (the winner has it)' if j == chosen else ''}: "
        f"{scale.score(effect.mean[j])} over all else, ± {scale.number(effect.sd[j])} with what it is combined with<br>"
        f"{hover(texts[j].strip() or '(none)')}"
        for j, label in zip(shown, ticks, strict=True)
    ]
    looks: dict[str, Any] = {"mode": "markers", "marker": {"size": 10, "color": colors}, "hoverinfo": "text"}
    found.add_trace(
        graph_objects().Scatter(
            x=list(scale.factor * effect.mean[shown]), y=list(range(len(shown))), hovertext=hovers, **looks,
            error_x={"type": "data", "array": list(scale.factor * effect.sd[shown]), "color": COLORS["quiet"]},
        ),
        row=row, col=1,
    )  # fmt: skip
    found.update_yaxes(tickvals=list(range(len(shown))), ticktext=ticks, **ROWS, row=row, col=1)

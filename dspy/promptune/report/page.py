"""One HTML page that shows a run and needs nothing else: no network, no other file."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from dspy.promptune.errors import OptionError
from dspy.promptune.report.compared import compared
from dspy.promptune.report.curves import draw_best_so_far
from dspy.promptune.report.drawing import graph_objects, percent
from dspy.promptune.report.headline import headline
from dspy.promptune.report.prompts import draw_effects, draw_prompt_map
from dspy.promptune.report.racing import draw_spending
from dspy.promptune.report.record import RunRecord, record_of
from dspy.promptune.report.timeline import draw_timeline

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["page", "summary", "write"]

Draw = Callable[[RunRecord], "Figure"]

FIGURES: tuple[tuple[str, str, str, Draw], ...] = (
    (
        "best-calls", "Best so far, by calls",
        "What the run would have returned after so many examples. Bold: that prompt's mean over all its examples; "
        "dotted: what was known of it at that moment.",
        lambda record: draw_best_so_far(record, "calls"),
    ),
    (
        "best-seconds", "Best so far, by time", "The same against seconds of search.",
        lambda record: draw_best_so_far(record, "seconds"),
    ),
    (
        "timeline", "What ran when",
        "One lane for each evaluation that ran at once. Amber: prompts being chosen. Thin grey: a chosen prompt that "
        "waited. Red: an evaluation that failed.",
        draw_timeline,
    ),
    (
        "map", "The map of prompts",
        "Each dot is a prompt; near ones say similar things. Colour: the score it is believed to have; size: how "
        "certain that is. Point at a dot to read it.",
        draw_prompt_map,
    ),
    (
        "effects", "What each part brings",
        "The believed score of each instruction and demo set over everything it can be combined with (bars: how much "
        "it depends on that), and what two of them bring together beyond what each brings alone. Amber: the winner's.",
        draw_effects,
    ),
    (
        "spending", "Where the calls went",
        "Examples each prompt was scored on, evaluation by evaluation: weak prompts get few, leaders many. ★ won.",
        draw_spending,
    ),
)  # fmt: skip


def write(run: Any, path: str | os.PathLike[str]) -> Path:
    """Write the page of a run (see :func:`~dspy.promptune.report.record_of`) to a file, and return its path.

    Raises:
        OptionError: plotly is not installed, the run cannot be shown, or the file's folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise OptionError(f"{target} has no folder: create {target.parent} first.")
    target.write_text(page(run), encoding="utf-8")
    return target


def page(run: Any) -> str:
    """The page of a run, some 5 MB: plotly's own code is in it.

    Raises:
        OptionError: plotly is not installed, or the run cannot be shown.
    """
    graph_objects()
    from plotly.offline import get_plotlyjs

    record = record_of(run)
    parts = {
        "title": html.escape(f"{record.name}: optimisation report"),
        "name": html.escape(record.name),
        "subtitle": html.escape(_subtitle(record)),
        "headline": _cards(record),
        "notes": _notes(record),
        "figures": "\n".join(_figure(record, *each) for each in FIGURES),
        "winner": _winner(record),
        "failures": _failures(record),
        "trials": _trials(record),
        "reproduce": _reproduce(record),
        "style": _file("page.css"),
        "script": _file("page.js"),
        "plotly": get_plotlyjs(),
    }
    return Template(_file("page.html")).substitute(parts)


def summary(run: Any) -> str:
    """A few lines for a notebook: the numbers of the headline, and the winner's texts."""
    record = record_of(run)
    cells = "".join(
        f"<tr><td>{html.escape(each.name)}</td><td><b>{html.escape(each.value)}</b></td>"
        f"<td>{html.escape(each.note)}</td></tr>"
        for each in headline(record)
    )
    texts = "".join(
        f"<details><summary>{html.escape(name)}</summary><pre style='white-space:pre-wrap'>{html.escape(text)}"
        f"</pre></details>"
        for name, _, text in _texts(record)
    )
    hint = "<p><code>.report('report.html')</code> writes the whole report.</p>"
    title = f"<p><b>{html.escape(record.name)}</b>: {html.escape(_subtitle(record))}</p>"
    return f"<div>{title}<table>{cells}</table>{texts}{hint}</div>"


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(value: str) -> str:
    """JSON that can stand in a script element: it holds no ``<``, so no tag and no comment begins in it."""
    for character in "<>&\u2028\u2029":
        value = value.replace(character, f"\\u{ord(character):04x}")
    return value


# ---------------------------------------------------------------------- the sections


def _subtitle(record: RunRecord) -> str:
    facts = record.facts
    model = ((facts.get("language_model") or {}).get("task_model") or {}).get("model")
    options = facts.get("options") or {}
    sampler = options.get("sampler") or "tpe"
    words = [
        f"{record.space.size:,} combinations of {' × '.join(map(str, record.space.sizes))} candidates",
        f"sampler {sampler}",
        f"{options['n_jobs']} at once" if options.get("n_jobs") else "",
        f"metric {facts['metric']}" if facts.get("metric") else "",
        f"model {model}" if model else "",
        f"ended: {record.ended}" if record.ended else "has not ended",
    ]
    return "; ".join(word for word in words if word) + "."


def _cards(record: RunRecord) -> str:
    return "\n".join(
        f'<div class="card"><span class="name">{html.escape(each.name)}</span>'
        f'<span class="value">{html.escape(each.value)}</span><span class="note">{html.escape(each.note)}</span></div>'
        for each in headline(record)
    )


def _notes(record: RunRecord) -> str:
    """What a reader should know before believing the page."""
    notes = [
        "The winner was chosen on the examples it is scored on here, so its score is somewhat optimistic: judge it on "
        "examples that the run has not seen."
    ]
    if record.replayed:
        notes.append("“Best so far” is reconstructed from the scores: the run did not write it down.")
    if record.idle:
        notes.append(f"The run was taken up again: {record.idle:,.0f} idle seconds are cut out of all times.")
    beliefs = record.beliefs
    if beliefs is None:
        notes.append("There is no model of the prompts: too little was scored.")
    elif beliefs.substitute:
        notes.append(f"Map and effects are by the embedder “{beliefs.embedder}”: {beliefs.substitute}.")
    else:
        notes.append(f"Map and effects are by the run's embedder, “{beliefs.embedder}”.")
    return "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)


def _figure(record: RunRecord, name: str, title: str, text: str, draw: Draw) -> str:
    found = draw(record)
    found.update_layout(template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return (
        f'<section class="figure"><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>'
        f'<div class="plot" id="{name}" style="min-height:{int(found.layout.height)}px"></div>'
        f'<script type="application/json" data-for="{name}">{_json(found.to_json(engine="json"))}</script></section>'
    )


def _texts(record: RunRecord) -> list[tuple[str, str, str]]:
    """Of each part: its name in words, the original's text, the winner's."""
    if record.best is None:
        return []
    found = []
    several = len({part.predictor for part in record.space.parts}) > 1
    for i, (part, index) in enumerate(zip(record.space.parts, record.best, strict=True)):
        texts = record.space.texts(i)
        name = "Instruction" if part.kind == "instruction" else "Demos"
        where = f" of predictor {part.predictor}" if several else ""
        found.append((f"{name}{where} ({name[0]}{index})", texts[0], texts[index]))
    return found


def _winner(record: RunRecord) -> str:
    found = [_part(name, before, after) for name, before, after in _texts(record)]
    return "\n".join(found) or "<p>Nothing was scored yet.</p>"


def _part(name: str, before: str, after: str) -> str:
    if before == after:
        body = html.escape(after) or "(none)"
        return f'<h3>{html.escape(name)}: as it came</h3><pre class="text">{body}</pre>'
    return (
        f'<h3>{html.escape(name)}</h3><pre class="text">{compared(before, after)}</pre>'
        f'<details><summary>the winner\'s text alone</summary><pre class="text">{html.escape(after)}</pre></details>'
    )


def _failures(record: RunRecord) -> str:
    rows = "".join(
        f"<tr><td>{each.number}</td><td>{html.escape(record.codes(each.key) if each.key else '?')}</td>"
        f'<td>{each.span.ended:.1f} s</td><td class="text">{html.escape(each.error or "not recorded")}</td></tr>'
        for each in record.failures
    )
    if not rows:
        return "<p>No evaluation failed.</p>"
    head = "<tr><th>trial</th><th>prompt</th><th>at</th><th>error</th></tr>"
    return f'<div class="wide"><table id="failures">{head}{rows}</table></div>'


def _trials(record: RunRecord) -> str:
    head = "".join(f"<th>{each}</th>" for each in ("trial", "prompt", "kind", "state", "examples", "score", "seconds"))
    rows = []
    for each in record.evaluations:
        cells = (
            each.number, record.codes(each.key) if each.key else "?", each.kind, each.state, len(each.scores),
            percent(each.mean), f"{each.span.busy:.2f}",
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _reproduce(record: RunRecord) -> str:
    facts = record.facts
    named = {
        name: facts[name]
        for name in ("versions", "settings", "options", "metric", "language_model", "embedder", "data", "program")
        if facts.get(name)
    }
    blocks = "".join(
        f"<details><summary>{html.escape(name.replace('_', ' '))}</summary>"
        f'<pre class="text">{html.escape(json.dumps(value, indent=2, ensure_ascii=False, default=str))}</pre></details>'
        for name, value in {**named, "spent": dict(record.spent)}.items()
    )
    return f'<pre class="text" id="command">{html.escape(_command(record))}</pre>{blocks}'


def _command(record: RunRecord) -> str:
    """The call that makes such a run, with all options that were recorded."""
    facts = record.facts
    version = (facts.get("versions") or {}).get("dspy")
    settings, options = facts.get("settings") or {}, dict(facts.get("options") or {})
    lines = [f"# dspy {version}, python {facts['versions'].get('python')}"] if version else []
    if facts.get("kind") == "search":
        given = {name: value for name, value in options.items() if value is not None and name != "full_every"}
        return "\n".join([*lines, f"search(space, {facts.get('metric')}, {_keywords(given)})"])
    budget = options.pop("budget", None)
    wanted = ("max_bootstrapped_demos", "max_labeled_demos", "init_temperature", "metric_threshold", "seed")
    first = {name: settings[name] for name in wanted if settings.get(name) is not None}
    given = {name: value for name, value in options.items() if value is not None}
    return "\n".join(
        [
            *lines, f"# within {budget} scored examples (auto=, num_trials=)",
            f"optimizer = dspy.MIPROv2(metric={facts.get('metric')}, {_keywords(first)})",
            f"optimizer.compile(program, trainset=trainset, valset=valset, {_keywords(given)})",
        ]
    )  # fmt: skip


def _keywords(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())

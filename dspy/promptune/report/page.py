"""The report of a run: one page that needs nothing else, no network included."""

from __future__ import annotations

import difflib
import html
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dspy.promptune.errors import OptionError
from dspy.promptune.report.believed import Believed, believed
from dspy.promptune.report.record import RunRecord, record_of

__all__ = ["page", "summary", "write"]

Z90 = 1.645


def write(run: Any, path: str | Path) -> Path:
    """Write the report of a run to a file, and return its path.

    Raises:
        OptionError: The folder is not there, or plotly is not installed.
        StorageError: There is nothing to report yet.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise OptionError(f"{target} has no folder: create {target.parent} first.")
    target.write_text(page(run), encoding="utf-8")
    return target


def page(run: Any) -> str:
    """The report of a run as HTML."""
    record = record_of(run)
    beliefs = believed(record)
    template = Template(files("dspy.promptune.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=_text(f"Optimisation report: {record.name}"),
        lead=_text(f"{record.space!r}. Ended: {record.ended}."),
        tiles=_tiles(record, beliefs),
        winner="".join(_winner(record)),
        figures=_figures(record, beliefs),
        note=_note(record, beliefs),
        failures=_failures(record),
        facts="".join(_facts(record)),
    )


def summary(run: Any) -> str:
    """The headline of a run as a small table of HTML, for notebooks."""
    record = record_of(run)
    rows = [
        ("score as it came", _percent(record.mean(record.default))),
        ("score of the winner", _percent(record.mean(record.best))),
        ("winner", ", ".join(f"{name}={index}" for name, index in zip(record.space.names, record.best, strict=True))),
        ("examples scored", f"{record.calls:,}"),
        ("seconds", f"{record.seconds:.1f}"),
        ("ended", record.ended),
    ]
    cells = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table><p><code>.report('report.html')</code> writes the whole story.</p>"


# ---------------------------------------------------------------------- parts of the page


def _tiles(record: RunRecord, beliefs: Believed) -> str:
    mean, sd = beliefs.at(record.best)
    n = len(record.rows.get(record.best, {}))
    tiles = [
        (_percent(record.mean(record.default)), f"before, on {len(record.rows.get(record.default, {}))} examples", ""),
        (_percent(record.mean(record.best)), f"after, on {n} examples", "main"),
        (_interval(record, mean - Z90 * sd, mean + Z90 * sd), "what the winner is worth (90 %)", ""),
        (f"{record.calls:,}", f"examples scored, {len(record.rows)} prompts", ""),
        (f"{record.total('calls') or record.calls:,.0f}", "calls to language models", ""),
        *_money(record),
        (_seconds(record.seconds), "for the search", ""),
        (f"{record.busy / max(record.seconds, 1e-9):.1f}x", "faster than one prompt after another", ""),
    ]
    return "".join(f'<div class="tile {kind}"><b>{_text(value)}</b><span>{_text(said)}</span></div>'
                   for value, said, kind in tiles)  # fmt: skip


def _interval(record: RunRecord, low: float, high: float) -> str:
    """An interval of scores; where all are between 0 and 1, so is what a prompt is worth."""
    scores = [score for row in record.rows.values() for score in row.values()]
    if scores and min(scores) >= 0 and max(scores) <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _money(record: RunRecord) -> list[tuple[str, str, str]]:
    found = []
    if tokens := record.total("tokens"):
        found.append((f"{tokens:,.0f}", "tokens", ""))
    if cost := record.total("cost"):
        found.append((f"${cost:.2f}" if cost >= 0.01 else f"${cost:.4f}", "cost", ""))
    return found


def _winner(record: RunRecord) -> Iterator[str]:
    for part, (name, index) in enumerate(zip(record.space.names, record.best, strict=True)):
        before, after = record.text(part, record.default[part]), record.text(part, index)
        same = " (as it came)" if before == after else ""
        yield f"<h3>{_text(name)} {index}{same}</h3>"
        yield f'<div class="text">{_diff(before, after) or "(empty)"}</div>'


def _diff(before: str, after: str) -> str:
    """Two texts as one, word by word, what differs marked."""
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    parts = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = _text("".join(old[a:b])), _text("".join(new[c:d]))
        if what == "equal":
            parts.append(come)
            continue
        parts.append((f"<del>{gone}</del>" if gone else "") + (f"<ins>{come}</ins>" if come else ""))
    return "".join(parts)


def _figures(record: RunRecord, beliefs: Believed) -> str:
    from dspy.promptune.report.figures import best_so_far, effects, prompt_map, spending, timeline

    made: list[Callable[[], Any]] = [
        partial(best_so_far, record),
        partial(best_so_far, record, "seconds"),
        partial(spending, record),
        partial(prompt_map, record, beliefs),
        partial(effects, record, beliefs),
        partial(timeline, record),
    ]
    drawn = []
    for i, make in enumerate(made):
        options = {"responsive": True, "displaylogo": False}
        text = make().to_html(full_html=False, include_plotlyjs=i == 0, config=options, div_id=f"figure-{i}")
        drawn.append(f'<div class="figure">{text}</div>')
    return "".join(drawn)


def _note(record: RunRecord, beliefs: Believed) -> str:
    own = record.facts.get("embedder") or "minilm"
    said = f"Map and effects: the Gaussian process fitted to all that was measured, with {beliefs.embedder} embeddings"
    other = "" if own == beliefs.embedder else f" (the run itself used {own}, which cannot be loaded by its name)"
    return _text(f"{said}{other}. Effects are means over {len(beliefs.keys):,} of {len(record.space):,} combinations.")


def _failures(record: RunRecord) -> str:
    failed = [one for one in record.evaluations if one.error is not None]
    if not failed:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr><td>{one.number}</td><td>{_text(one.kind)}</td><td>{_text(str(one.key))}</td>"
        f"<td>{_text(one.error or '')}</td></tr>"
        for one in failed
    )
    return f"<table><tr><th>trial</th><th>kind</th><th>prompt</th><th>error</th></tr>{rows}</table>"


def _facts(record: RunRecord) -> Iterator[str]:
    facts = {**record.facts, "spent": record.spent}
    for name, value in facts.items():
        said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)
        yield f'<details><summary>{_text(name)}</summary><div class="text">{_text(said)}</div></details>'
    texts = {name: record.space.texts(i) for i, name in enumerate(record.space.names)}
    for name, candidates in texts.items():
        rows = "".join(f"<tr><td>{i}</td><td>{_text(text)}</td></tr>" for i, text in enumerate(candidates))
        yield f"<details><summary>{_text(name)}: {len(candidates)} candidates</summary><table>{rows}</table></details>"


def _text(value: str) -> str:
    return html.escape(value)


def _percent(value: float) -> str:
    return "not measured" if math.isnan(value) else f"{100 * value:.1f} %"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"

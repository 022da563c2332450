"""One HTML page that shows a run and needs nothing else: no network, no other file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import counted
from dspy.promptune.findings.headline import duration, headline
from dspy.promptune.findings.held_out import HeldOut, evaluated
from dspy.promptune.findings.leaderboard import leaderboard
from dspy.promptune.findings.lineage import lineage
from dspy.promptune.findings.record import Evaluation, RunRecord, record_of
from dspy.promptune.findings.scale import chance
from dspy.promptune.findings.verdict import Verdict, shortened
from dspy.promptune.naming import prompt_name
from dspy.promptune.outputs import output
from dspy.promptune.report.compared import compared
from dspy.promptune.report.curves import draw_switch
from dspy.promptune.report.drawing import graph_objects
from dspy.promptune.report.prompts import draw_effects, draw_estimates
from dspy.promptune.report.racing import draw_spending
from dspy.promptune.report.reproduce import command
from dspy.promptune.report.timeline import draw_timeline
from dspy.promptune.space import Key
from dspy.promptune.visible import visible, without_halves

if TYPE_CHECKING:
    from jinja2 import Environment
    from plotly.graph_objects import Figure

__all__ = ["page", "summary", "verdict_lines", "write"]

LEADERS = 10
EXCERPT = 90  # characters of a prompt's texts in the leaderboard
LONG = 1200  # characters of a text, from which on it is folded
LISTED = 20  # lines about what steps 1 and 2 could not make
FACTS = ("versions", "settings", "options", "metric", "language_model", "embedder", "data", "program")


@dataclass(frozen=True, kw_only=True)
class FigureOnPage:
    """A figure, what is said of it, and whether it is shown only when it is asked for."""

    name: str
    title: str
    text: str
    draw: Callable[[RunRecord], Figure]
    folded: bool = False


FIGURES = (
    FigureOnPage(
        name="best", title="Best so far", draw=draw_switch,
        text="What the run would have returned after so many examples, or so much time. Bold: that prompt's mean over "
        "all its examples; dotted, with its 95 % band: what was known of it at that moment.",
    ),
    FigureOnPage(
        name="estimates", title="What every prompt is expected to score", draw=draw_estimates,
        text="The model's estimate for each combination, the best first. In a matrix, the number in a cell is that of "
        "the examples it was scored on; without one it is the model alone that says it. In a list, bars are the middle "
        "95 % of what is believed. ★ is the winner. Point at one for its texts.",
    ),
    FigureOnPage(
        name="effects", title="Effect of each part", draw=draw_effects,
        text="The expected score of each instruction and demo set over everything it can be combined with. Bars: how "
        "much it depends on that. Amber: the winner's.",
    ),
    FigureOnPage(
        name="spending", title="Where the examples went", draw=draw_spending, folded=True,
        text="Examples each prompt was scored on, evaluation by evaluation: weak prompts get few, leaders many. ★ won.",
    ),
    FigureOnPage(
        name="timeline", title="What ran when", draw=draw_timeline, folded=True,
        text="One lane for each evaluation that ran at once. Amber: prompts being chosen. Thin gray: a chosen prompt "
        "that waited. Red: an evaluation that failed.",
    ),
)  # fmt: skip


def write(
    run: Any, path: str | os.PathLike[str], testset: Sequence[Any] | None = None, *, renewed: int | None = None
) -> Path:
    """Write the page of a run (see :func:`~dspy.promptune.findings.record.record_of`) to a file, and return its path.

    ``renewed`` is after how many seconds an open page loads itself again.

    Raises:
        OptionError: plotly is not installed, the run cannot be shown, the file cannot be written, or the run's
            programs are not at hand to be evaluated on ``testset``.
    """
    target = output(path)
    graph_objects()
    record = record_of(run)
    held_out = None if testset is None else evaluated(getattr(run, "programs", None), testset, record.scale)
    target.write_text(without_halves(page(record, held_out, renewed=renewed)), encoding="utf-8")
    return target


def page(run: Any, held_out: HeldOut | None = None, *, renewed: int | None = None) -> str:
    """The page of a run, some 5 MB: plotly's own code is in it.

    Args:
        run: The run.
        held_out: Scores of the original program and the winner on examples that had no part in the search.
        renewed: Seconds after which an open page loads itself again; ``None`` for a page that stays as it is.

    Raises:
        OptionError: plotly is not installed, or the run cannot be shown.
    """
    graph_objects()
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    record = record_of(run)
    leaders = leaderboard(record)
    tree = lineage(record, leaders)
    return _rendered(
        "page.html", record, leaders=leaders[:LEADERS], others=max(0, len(leaders) - LEADERS), everything=leaders,
        test=held_out, renewed=renewed, figures=[_drawn(record, figure) for figure in FIGURES], lineage=tree,
        failed=_failed(record), unfinished=len(record.having("unfinished")), command=command(record),
        facts=_facts(record), notes=_notes(record),
        style=Markup(_file("page.css")), script=Markup(_file("page.js")), plotly=Markup(get_plotlyjs()),
    )  # fmt: skip


def summary(run: Any) -> str:
    """A few lines for a notebook: the verdict, the numbers of the headline, and the winner's texts."""
    return _rendered("summary.html", record_of(run))


def verdict_lines(run: Any) -> list[str]:
    """The block at the end of a compile; nothing is fitted for it."""
    return Verdict(record_of(run), model=False).lines()


# ---------------------------------------------------------------------- rendering


def _rendered(template: str, record: RunRecord, **more: Any) -> str:
    common = {
        "name": record.name, "subtitle": _subtitle(record), "verdict": Verdict(record), "scale": record.scale,
        "failures": record.example_failures, "missing": shortened(record.missing, LISTED), "headline": headline(record),
        "winner": _winner(record), "long": LONG,
    }  # fmt: skip
    return _environment(record).from_string(_file(template)).render({**common, **more})


def _shown(value: Any) -> Any:
    return visible(value) if type(value) is str else value


def _environment(record: RunRecord) -> Environment:
    """Everything that is not marked as HTML is escaped, and what a browser would act on is written out."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_shown)
    trials: dict[Key | None, list[Evaluation]] = {}
    for each in record.evaluations:
        trials.setdefault(each.key, []).append(each)
    environment.filters.update(
        counted=counted,
        chance=chance,
        kept=lambda text: text.replace(" %", "\u00a0%"),  # no line ends between a number and its sign
        excerpt=_excerpt,
        prompt=lambda key: "?" if key is None else prompt_name(record.space, key),
        trials=lambda key: trials.get(key, []),
    )
    return environment


def _excerpt(texts: Sequence[tuple[str, str]]) -> str:
    """The beginnings of a prompt's instructions, one for each predictor; of its first text where it has none."""
    said = [text for part, text in texts if not part.startswith("demo")] or [texts[0][1]]
    most = max(EXCERPT // len(said), 40)
    flat = [" ".join(text.split()) for text in said]
    return " | ".join(text if len(text) <= most else text[:most].rstrip() + "…" for text in flat)


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _drawn(record: RunRecord, figure: FigureOnPage) -> dict[str, Any]:
    from markupsafe import Markup

    found = figure.draw(record)
    found.update_layout(template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    drawn = Markup(_json(found.to_json(engine="json")))
    return {**figure.__dict__, "height": int(found.layout.height), "json": drawn}


def _json(value: str) -> str:
    """JSON that can stand in a script element: it holds no ``<``, so no tag and no comment begins in it."""
    for character in "<>&\u2028\u2029":
        value = value.replace(character, f"\\u{ord(character):04x}")
    return value


# ---------------------------------------------------------------------- what is on it


def _subtitle(record: RunRecord) -> str:
    facts = record.facts
    model = ((facts.get("language_model") or {}).get("task_model") or {}).get("model")
    options = facts.get("options") or {}
    sizes = " × ".join(str(len(part.distinct)) for part in record.space.parts)
    going = "has not ended" if record.rows or not record.having("failed") else "no trial was scored"
    words = [
        f"{counted(len(record.space), 'combination')} of {sizes} candidates",
        f"sampler {options.get('sampler') or 'tpe'}",
        f"{options['n_jobs']} at once" if options.get("n_jobs") else "",
        f"metric {facts['metric']}" if facts.get("metric") else "",
        f"model {model}" if model else "",
        f"ended: {record.ended}" if record.ended else going,
    ]
    return "; ".join(word for word in words if word) + "."


def _winner(record: RunRecord) -> list[Mapping[str, Any]]:
    """Of each part its name in words, the winner's text, and how it differs from the original's."""
    from markupsafe import Markup

    if record.best is None:
        return []
    found: list[Mapping[str, Any]] = []
    for i, (part, index) in enumerate(zip(record.space.parts, record.best, strict=True)):
        before, after = (record.space.texts(i)[j] for j in (0, index))
        name = "Instruction" if part.kind == "instruction" else "Demos"
        where = record.of_predictor(part.predictor)
        found.append(
            {
                "title": f"{name}{where} ({name[0]}{index})" + (": unchanged" if before == after else ""),
                "same": before == after, "after": after, "compared": Markup(compared(before, after)),
            }
        )  # fmt: skip
    return found


def _failed(record: RunRecord) -> list[tuple[Evaluation, str]]:
    """The trials that failed, each different error once."""
    first: dict[str, int] = {}
    found = []
    for each in record.having("failed"):
        error = each.error or "not recorded"
        same = first.setdefault(error, each.number)
        found.append((each, error if same == each.number else f"as trial {same}"))
    return found


def _notes(record: RunRecord) -> list[str]:
    """What a reader should know before believing the page."""
    notes = [
        "Examples scored are pairs of a prompt and a validation example; each may take several language-model calls.",
        "Intervals are Wilson's for scores of 0 and 1, Student's for others and for paired gains.",
    ]
    if record.replayed:
        notes.append("“Best so far” is reconstructed from the scores: the run did not write it down.")
    if record.idle:
        notes.append(f"The run was taken up again: {duration(record.idle)} without a process are cut out of all times.")
    if refused := record.facts.get("refused"):
        reasons = "; ".join(f"{counted(count, 'time')}: {why}" for why, count in Counter(refused).items())
        notes.append(f"Requests for a new instruction that brought nothing: {len(refused)} ({reasons}).")
    beliefs = record.beliefs
    if beliefs is None:
        notes.append("There is no model of the prompts: too little was scored.")
    elif beliefs.substitute:
        notes.append(f"Estimates are by the embedder “{beliefs.embedder}”: {beliefs.substitute}.")
    else:
        notes.append(f"Estimates are by the run's embedder, “{beliefs.embedder}”.")
    return notes


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    named = {name: record.facts[name] for name in FACTS if record.facts.get(name)}
    values = {**named, "spent": dict(record.spent)}
    return [
        (name.replace("_", " "), json.dumps(value, indent=2, ensure_ascii=False, default=str))
        for name, value in values.items()
    ]

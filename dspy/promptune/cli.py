"""The command ``dspy-promptune``: list, show, export, report and delete runs in a storage."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import bounded, counted, dollars, score_text
from dspy.promptune.errors import PromptuneError, StorageError
from dspy.promptune.outputs import output
from dspy.promptune.secrets import MASK, said
from dspy.promptune.visible import as_text, visible

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["main"]

WORDS = {"examples_scored": "examples scored", "lm_calls": "LM calls"}  # of a summary, where they are not its names
GOES_ON = "not ended: resume=True continues it"
LIVE = (
    "To see the trials as they come: pip install optuna-dashboard, then\n\n    optuna-dashboard sqlite:///runs.db\n\n"
    'for storage="runs.db" (or optuna-dashboard runs.log, or the database\'s URL), and open the address it prints.'
)
STORAGE = "a SQLite file, an Optuna journal (*.log), or a URL such as postgresql://user@host/base"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what was asked, 1 with a message where it could not."""
    args = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of what the terminal has no sign for
    try:
        args.do(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on: that is no error, and there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        print(f"error: {visible(_why(error, args.storage))}", file=sys.stderr)
        return 1
    return 0


def _why(error: Exception, storage: str) -> str:
    """What went wrong, in one line."""
    if isinstance(error, (PromptuneError, ImportError)):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} cannot be written: {error.strerror}."
    return (
        f"The storage {_place(storage)} holds what cannot be read as a run ({said(error, 120)}): it is damaged, or "
        "another program has written to it."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dspy-promptune", description="Look at stored runs.")
    parser.add_argument("--version", action="version", version=f"dspy {version('dspy')}")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = _command(commands, "runs", "list the runs in a storage", _runs)
    runs.add_argument("--json", action="store_true", help="as JSON")
    show = _command(commands, "show", "show one run: what it is, what it found, its trials", _show)
    show.add_argument("--study", metavar="NAME", help="which run; not needed where there is only one")
    export = _command(commands, "export", "write a run's trials, or its best program, to a file", _export)
    export.add_argument("--study", metavar="NAME", help="which run; not needed where there is only one")
    export.add_argument("--csv", type=Path, metavar="FILE", help="the trials as CSV")
    export.add_argument("--json", type=Path, metavar="FILE", help="the whole run as JSON")
    export.add_argument("--program", type=Path, metavar="FILE", help="the best program as JSON, for program.load(FILE)")
    report = _command(commands, "report", "write a run's report, one page of HTML", _report)
    report.add_argument("--study", metavar="NAME", help="which run; not needed where there is only one")
    report.add_argument(
        "-o", "--output", type=Path, metavar="FILE", default=Path("report.html"), help="the page; default: report.html"
    )
    report.add_argument(
        "--watch", type=_seconds, nargs="?", const=10, metavar="SECONDS",
        help="write the page again every 10 (or SECONDS) seconds until the run ends; an open page renews itself",
    )  # fmt: skip
    report.epilog, report.formatter_class = LIVE, argparse.RawDescriptionHelpFormatter
    prune = _command(commands, "prune", "delete runs and all that they have paid for", _prune)
    prune.add_argument("--study", metavar="NAME", help="only this one, whoever made it; default: all runs of promptune")
    prune.add_argument("--yes", action="store_true", help="do it; without this nothing is deleted")
    return parser


def _command(commands: Any, name: str, text: str, do: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("storage", metavar="STORAGE", help=STORAGE)
    parser.set_defaults(do=do)
    return parser


# ---------------------------------------------------------------------- the commands


def _runs(args: argparse.Namespace) -> None:
    rows = [_summary(study) for study in _studies(args.storage)]
    if args.json:
        print(as_text(rows))
        return
    told = [_told(row) for row in rows]
    columns = [name for name in told[0] if name != "complete"] if told else []
    print(_table(columns, told, WORDS) if told else f"There are no runs in {_place(args.storage)}.")


def _show(args: argparse.Namespace) -> None:
    from dspy.promptune.run.failures import failures_of
    from dspy.promptune.run.tables import trial_rows

    study = _study(args)
    attributes, (verdict, winner) = _attributes(study), _found(study)
    for name, value in {**_told(_summary(study)), **verdict}.items():
        print(f"{WORDS.get(name, name):>15}  {visible(str(value))}")
    for name in ("metric", "language_model", "embedder", "versions", "settings", "options", "spent", "best"):
        if name in attributes:
            word = "best parameters" if name == "best" else name.replace("_", " ")
            print(f"{word:>15}  {visible(as_text(attributes[name], None))}")
    for name, text in winner.items():
        print(visible(f"\n{name}:\n{text}"))
    rows = trial_rows(study.get_trials(deepcopy=False))
    for line in [*attributes.get("missing", ()), *failures_of(study.get_trials(deepcopy=False)).lines()]:
        print(f"\n{visible(line)}")
    hidden = ("started", "ended")
    columns = tuple(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    print(f"\n{_table([name for name in columns if name not in hidden], rows)}")


def _export(args: argparse.Namespace) -> None:
    from dspy.promptune.limits.answers import whole
    from dspy.promptune.run.tables import trial_rows

    if not (args.csv or args.json or args.program):
        raise StorageError("Nothing to write: give --csv FILE, --json FILE or --program FILE.")
    named = [path.resolve() for path in (args.csv, args.json, args.program) if path]
    if len(set(named)) < len(named):
        raise StorageError("Two of --csv, --json and --program name the same file: give each its own.")
    study = _study(args)
    trials = study.get_trials(deepcopy=False)
    if args.csv:
        rows = trial_rows(trials)
        with output(args.csv).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)) or ["number"])
            writer.writeheader()
            writer.writerows({name: _field(value) for name, value in row.items()} for row in rows)
        print(f"{counted(len(rows), 'row')} in {args.csv}, one for each trial and each written text.")
    if args.json:
        run = {"study": study.study_name, **study.user_attrs, "trials": [_whole(trial) for trial in trials]}
        output(args.json).write_text(as_text(run), encoding="utf-8")
        print(f"The run in {args.json}.")
    if args.program:
        program = study.user_attrs.get("best_program")
        if program is None:
            raise StorageError(f"Run {study.study_name!r} has no best program: {_no_program(study)}.")
        text, target = json.dumps(program, indent=2, default=str, ensure_ascii=False), output(args.program)
        if MASK in text:
            print(f"note: {MASK} stands in the program for a credential that it held.", file=sys.stderr)
        if (readable := whole(text)) != text:
            print("note: U+FFFD stands in the program for half a character that it held.", file=sys.stderr)
        target.write_text(readable, encoding="utf-8")
        print(f"The best program in {args.program}.")


def _no_program(study: Study) -> str:
    if "no_best_program" in study.user_attrs:
        return str(study.user_attrs["no_best_program"])
    if study.user_attrs.get("kind") == "search":
        return "it searched a table"
    if "format" not in study.user_attrs:
        return "promptune did not make it"
    ended = study.user_attrs.get("ended")
    return f"no prompt was scored, and {ended}" if ended else "it has not ended"


def _report(args: argparse.Namespace) -> None:
    from dspy.promptune.report.page import write

    while args.watch and _held(study := _study(args)) is not None:
        if "candidates" in study.user_attrs:
            told = f"{_trials(study)} in {write(study, args.output, renewed=args.watch)}"
        else:
            told = "No report yet: the candidates are being made"
        print(f"{told}; Ctrl-C ends this, not the run.", flush=True)
        try:
            time.sleep(args.watch)
        except KeyboardInterrupt:
            break
    study = _study(args)
    print(f"The report in {write(study, args.output)}.{f' {_end_of(study)}' if args.watch else ''}")


def _trials(study: Study) -> str:
    return counted(len(_evaluated(study)), "trial")


def _evaluated(study: Study) -> list[FrozenTrial]:
    """A study's trials, without proposals that were not followed and texts that were asked for."""
    from dspy.promptune.allocation.records import is_text
    from dspy.promptune.samplers.failures import evaluated

    return [trial for trial in study.get_trials(deepcopy=False) if evaluated(trial) and not is_text(trial)]


def _end_of(study: Study) -> str:
    """What a run ended with, in a sentence or two."""
    from dspy.promptune.run.failures import unfinished

    if _held(study) is not None:
        return "The run goes on."
    if "ended" in study.user_attrs:
        return f"The run ended: {visible(str(study.user_attrs['ended']))}."
    errors = [trial.user_attrs["error"] for trial in _evaluated(study) if "error" in trial.user_attrs]
    failed = [visible(" ".join(str(error).split()))[:300] for error in errors if not unfinished(error)]
    last = f" The last of {counted(len(failed), 'failed trial')}: {failed[-1]}" if failed else ""
    return f"Nobody runs it any more: it raised an error or was killed, and resume=True continues it.{last}"


def _seconds(text: str) -> int:
    """A whole number of seconds, one at least; argparse shows what is said of another."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds, 1 or more")
    return int(text)


def _prune(args: argparse.Namespace) -> None:
    import optuna

    named = args.study is not None
    chosen, kept = [], []
    for study in [_study(args, read_only=False)] if named else _studies(args.storage, read_only=False):
        name, why = f"{study.study_name!r} ({_trials(study)})", _spared(study, named)
        if why is None:
            chosen.append((name, study))
        else:
            kept.append(f"{name} stays: {why}.")
    names = ", ".join(name for name, _ in chosen)
    if not chosen:
        raise StorageError(" ".join([f"Nothing is deleted from {_place(args.storage)}.", *kept]))
    if not args.yes:
        raise StorageError(" ".join([f"This deletes {names} for good: add --yes to do it.", *kept]))
    for _, study in chosen:
        optuna.delete_study(study_name=study.study_name, storage=study._storage)
    print("\n".join([f"Deleted: {names}.", *kept]))


def _spared(study: Study, named: bool) -> str | None:
    """Why a study is not deleted; ``None`` where it may be."""
    if held := _held(study):
        return f"it is being run by {held}, end that first"
    if named:
        return None
    if not _attributes(study):
        return "it is not of promptune, delete it by its name with --study"
    if any(trial.values and "scores" not in trial.user_attrs for trial in study.get_trials(deepcopy=False)):
        return "it has trials of another program too, delete it by its name with --study"
    return None


# ---------------------------------------------------------------------- reading


def _studies(storage: str, *, read_only: bool = True) -> list[Study]:
    import optuna

    from dspy.promptune.storage.backend import open_storage, quiet_optuna
    from dspy.promptune.storage.messages import explain

    with quiet_optuna():
        opened = open_storage(storage, must_exist=True, read_only=read_only)
        try:
            names = [each.study_name for each in opened.storage.get_all_studies()]
            return [optuna.load_study(study_name=name, storage=opened.storage) for name in names]
        except Exception as error:
            raise explain(error, opened.place) from error


def _study(args: argparse.Namespace, *, read_only: bool = True) -> Study:
    found = _studies(args.storage, read_only=read_only)
    where, names = _place(args.storage), ", ".join(repr(study.study_name) for study in found)
    named = [study for study in found if args.study in (None, study.study_name)]
    if len(named) == 1:
        return named[0]
    if args.study is None:
        many = f"Which run? Name it with --study; there are {names} in {where}."
        raise StorageError(many if found else f"There are no runs in {where}.")
    raise StorageError(f"There is no run {args.study!r} in {where}: there are {names or 'none'}.")


def _place(storage: str) -> str:
    from dspy.promptune.storage.messages import place_of

    return place_of(storage)


def _summary(study: Study) -> dict[str, Any]:
    """What is to be said of a run: ``percent`` is whether all its scores are from 0 to 1."""
    from dspy.promptune.run.failures import unfinished

    attributes, trials = _attributes(study), _evaluated(study)
    states = [trial.state.name for trial in trials]
    cut = sum(trial.state.name == "FAIL" and unfinished(trial.user_attrs.get("error")) for trial in trials)
    spent = attributes.get("spent", {}).values()
    ended = attributes.get("ended", GOES_ON if attributes else "not of promptune")
    return {
        "study": study.study_name,
        "kind": attributes.get("kind", "other"),
        "trials": len(states),
        "complete": states.count("COMPLETE"),
        "failed": states.count("FAIL") - cut,
        "unfinished": len(states) - states.count("COMPLETE") - states.count("FAIL") + cut,
        "best": attributes.get("best_score", ""),
        "percent": bounded(score for trial in trials for score in trial.user_attrs.get("scores", ())),
        "examples_scored": sum(int(trial.user_attrs.get("paid", len(trial.intermediate_values))) for trial in trials),
        "lm_calls": sum(amounts.get("calls", 0) for amounts in spent) or "",
        "cost": sum(amounts.get("cost", 0.0) for amounts in spent) or "",
        "state": f"run by {held}" if (held := _held(study)) else ended,
    }


def _told(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary for people: numbers with their units, and thousands set apart."""
    told = {name: value for name, value in summary.items() if name != "percent"}
    told["best"] = told["best"] if told["best"] == "" else score_text(float(told["best"]), summary["percent"])
    told["cost"] = dollars(told["cost"]) if told["cost"] else ""
    return {name: f"{value:,}" if isinstance(value, int) else value for name, value in told.items()}


def _held(study: Study) -> str | None:
    """Who is running a study, in words."""
    from dspy.promptune.storage.drivers import sharers
    from dspy.promptune.storage.held_study import LEASE
    from dspy.promptune.storage.lease import holder

    notes = study._storage.get_study_system_attrs(study._study_id)
    return " and ".join(sharers(notes)) or holder(notes.get(LEASE))


def _attributes(study: Study) -> Mapping[str, Any]:
    """Those of a run; none of a study that was made by somebody else, whatever it has under these names."""
    return study.user_attrs if "format" in study.user_attrs and "kind" in study.user_attrs else {}


def _found(study: Study) -> tuple[dict[str, str], dict[str, str]]:
    """What a run found, in a sentence, and the texts of its winner; nothing of a study that cannot be read as a run."""
    from dspy.promptune.findings.record import record_of
    from dspy.promptune.findings.verdict import Verdict

    verdict: dict[str, str] = {}
    winner: dict[str, str] = {}
    with contextlib.suppress(Exception):
        record = record_of(study)
        chosen = zip(record.space.names, record.best or (), strict=False)
        winner = {name: record.space.texts(i)[j] for i, (name, j) in enumerate(chosen)}
        verdict = {"verdict": Verdict(record, model=False).sentence()}
    return verdict, winner


def _whole(trial: Any) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.values[0] if trial.values else None,
        "params": trial.params,
        "attributes": trial.user_attrs,
        "scores": trial.intermediate_values,
        "started": trial.datetime_start,
        "ended": trial.datetime_complete,
    }


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], words: Mapping[str, str] | None = None) -> str:
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    lines = [[(words or {}).get(name, name) for name in columns], *cells]
    widths = [max(len(line[j]) for line in lines) for j in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _field(value: Any) -> Any:
    """A value in a CSV file: a text that a spreadsheet would take for a formula is marked as a text."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        value = "'" + value
    return visible(value) if isinstance(value, str) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else visible(" ".join(str(value).split()))
    return text if len(text) <= 60 else text[:57] + "..."

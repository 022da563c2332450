"""The call that makes such a run, as code that runs."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

from dspy.promptune.allocation.policy import FULL_EVERY
from dspy.promptune.findings.record import RunRecord

__all__ = ["command"]

YOURS = ("__main__", "builtins")  # modules whose names cannot be imported from elsewhere


def command(record: RunRecord) -> str:
    """Python that runs where ``program``, ``trainset`` and ``valset`` are the reader's own.

    It has what the user gave and nothing else, so that defaults stay defaults. Values that cannot be written down, such
    as a teacher or an executor, are named in a comment.
    """
    facts = record.facts
    versions = facts.get("versions") or {}
    lines = [f"# dspy {versions['dspy']}, Python {versions.get('python')}"] if versions.get("dspy") else []
    if facts.get("kind") == "search" or "call" not in facts:
        return "\n".join([*lines, *_search(facts)])
    call = facts["call"]
    lines += ["import dspy", "", *_metric(str(facts.get("metric") or "metric"))]
    lines.append("# program, trainset and valset are yours" + _language_model(facts))
    data = {"trainset": "trainset"} | ({"valset": "valset"} if call.get("valset") else {})
    first, unwritten = _arguments(call.get("optimizer") or {})
    second, more = _arguments(call.get("compile") or {})
    lines.append(f"optimizer = dspy.MIPROv2({_joined({'metric': 'metric'}, first)})")
    lines.append(f"best = optimizer.compile(program, {_joined(data, second)})")
    if unwritten or more:
        lines.append(f"# also given: {', '.join([*unwritten, *more])}")
    return "\n".join(lines)


def _search(facts: Mapping[str, Any]) -> list[str]:
    options = {name: value for name, value in (facts.get("options") or {}).items() if value is not None}
    every = options.pop("full_every", None)
    options["full_eval_steps"] = None if every == FULL_EVERY else every  # a race refuses it
    given, unwritten = _arguments({name: value for name, value in options.items() if value is not None})
    lines = ["from dspy.promptune import search", "", f"# space and evaluate ({facts.get('metric')}) are yours"]
    lines.append(f"run = search(space, evaluate, {_joined({}, given)})")
    return lines + ([f"# also given: {', '.join(unwritten)}"] if unwritten else [])


def _metric(name: str) -> list[str]:
    """An import, where the metric has a name that can be imported; otherwise a comment that says what it is called."""
    module, _, function = name.rpartition(".")
    importable = all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))
    if module and importable and module.split(".")[0] not in YOURS:
        alias = "" if function == "metric" else " as metric"
        return [f"from {module} import {function}{alias}", ""]
    return [f"# metric is yours: it was {name}"]


def _language_model(facts: Mapping[str, Any]) -> str:
    model = ((facts.get("language_model") or {}).get("task_model") or {}).get("model")
    return f"; the model was {model}" if model else ""


def _arguments(values: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Arguments as code, and the names of those that have none."""
    written = {name: value for name, value in values.items() if _plain(value)}
    return {name: repr(value) for name, value in written.items()}, [name for name in values if name not in written]


def _plain(value: Any) -> bool:
    """Whether a value was written down as it was, and not by the name of an object."""
    if isinstance(value, Mapping):
        return "__object__" not in value and all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _joined(*groups: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for group in groups for name, value in group.items())

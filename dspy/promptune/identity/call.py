"""The user's own call, written down so that a report can say how to repeat it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from dspy.promptune.identity.manifest import name_of

__all__ = ["call_of"]

OBJECT = "__object__"  # the name of a value that has no form in JSON
ELSEWHERE = ("metric", "trainset", "valset", "log_dir", "verbose", "track_stats", "storage", "study_name", "resume")
HERE = ("share", "callbacks", "disable_progress_bar", "requires_permission_to_run", "provide_traceback")


def call_of(optimizer: Any, upstream: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """What was given to ``MIPROv2(...)`` and to ``compile(...)`` and is not the default.

    Args:
        optimizer: The optimizer, whose attributes have the names of its arguments.
        upstream: All of upstream's options of ``compile``.
        added: This fork's, as far as they were given.

    Returns:
        ``{"optimizer": {...}, "compile": {...}, "valset": whether one was given}``, as JSON.
    """
    first = {name: getattr(optimizer, name, None) for name in _defaults(type(optimizer).__init__)}
    if first.get("prompt_model") is first.get("task_model"):
        first.pop("prompt_model", None)
    first.pop("task_model", None)  # the report names it beside the call
    defaults = _defaults(type(optimizer).compile)
    return {
        "optimizer": _given(first, {**_defaults(type(optimizer).__init__), "teacher_settings": {}}),
        "compile": {**_given(upstream, defaults), **_given(added, {})},
        "valset": upstream.get("valset") is not None,
    }


def _defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(inspect.unwrap(function)).parameters.items()
    return {name: parameter.default for name, parameter in parameters if parameter.default is not parameter.empty}


def _given(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        default = defaults.get(name)
        if name in ELSEWHERE or name in HERE or value is default or (_plain(value) and value == default):
            continue
        found[name] = value if _plain(value) else {OBJECT: name_of(value)}
    return found


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _plain(each) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))

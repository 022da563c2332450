"""Examples and demos as JSON, and back: plain values only, nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import dspy

__all__ = ["as_json", "decode", "digest", "encode", "restorable"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
EXAMPLE = "example"  # the name under which an encoded example keeps its fields


def encode(value: Any) -> Any:
    """A value as JSON. What JSON has no form for becomes a text, for people to read; see :func:`restorable`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)) and type(value) in (int, float):
        return value
    if isinstance(value, dspy.Example):
        fields = {str(name): encode(each) for name, each in value.items()}
        inputs = getattr(value, "_input_keys", None)
        return {EXAMPLE: fields, "inputs": None if inputs is None else sorted(inputs)}
    if isinstance(value, Mapping):
        return {str(name): encode(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(each) for each in value]
    if hasattr(value, "model_dump_json"):
        return json.loads(value.model_dump_json())
    return ADDRESS.sub("", str(value))


def decode(value: Any) -> Any:
    """What :func:`encode` made, of plain values and examples."""
    if isinstance(value, list):
        return [decode(each) for each in value]
    if isinstance(value, dict):
        if set(value) == {EXAMPLE, "inputs"}:
            example = dspy.Example(**{name: decode(each) for name, each in value[EXAMPLE].items()})
            return example if value["inputs"] is None else example.with_inputs(*value["inputs"])
        return {name: decode(each) for name, each in value.items()}
    return value


def restorable(value: Any) -> bool:
    """Whether decoding gives back an equal value: true of texts, numbers, lists, mappings, and examples of them."""
    if isinstance(value, dspy.Example):
        return type(value) is dspy.Example and all(map(restorable, value.values()))
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(restorable, value.values()))
    if isinstance(value, list):
        return all(map(restorable, value))
    return value is None or type(value) in (bool, int, float, str)


def as_json(value: Any) -> str:
    """One line of JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def digest(value: Any) -> str:
    """Sixteen hex digits that stand for a value that can be encoded."""
    return hashlib.blake2b(as_json(encode(value)).encode(), digest_size=8).hexdigest()

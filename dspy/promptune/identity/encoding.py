"""Values of programs and data sets as JSON, and back: by value, nothing is ever unpickled."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import json
import pathlib
import re
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pydantic

import dspy

__all__ = ["TAG", "as_json", "decode", "digest", "encode", "is_written", "know_types", "restorable", "type_name"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LIKE_A_SET = re.compile(r"\{[^{}:]+\}")  # in the text of an object
EXAMPLE = "example"  # the name under which an encoded example keeps its fields
TAG = "promptune:type"  # the name under which a value says what it is, where JSON has no form of its own for it

_types: dict[str, type] = {}  # of models, enumerations and the like, by their names, as far as runs have met them
_WRITTEN: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    datetime.datetime: ("datetime", datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.date: ("date", datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: ("time", datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.timedelta: (
        "timedelta", lambda d: [d.days, d.seconds, d.microseconds], lambda found: datetime.timedelta(*found),
    ),
    decimal.Decimal: ("decimal", str, decimal.Decimal),
    fractions.Fraction: ("fraction", str, fractions.Fraction),
    uuid.UUID: ("uuid", str, uuid.UUID),
    bytes: ("bytes", lambda value: base64.b64encode(value).decode(), base64.b64decode),
    bytearray: ("bytearray", lambda value: base64.b64encode(value).decode(), lambda v: bytearray(base64.b64decode(v))),
    complex: ("complex", lambda value: [value.real, value.imag], lambda found: complex(*found)),
    range: ("range", lambda r: [r.start, r.stop, r.step], lambda found: range(*found)),
    pathlib.PosixPath: ("path", str, pathlib.Path),
    pathlib.WindowsPath: ("path", str, pathlib.Path),
}  # fmt: skip
_READ = {name: read for name, _, read in _WRITTEN.values()}
_COLLECTIONS: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}


def encode(value: Any, lost: list[Any] | None = None) -> Any:
    """A value as JSON that is the same for equal values, in any process.

    Args:
        value: Texts, numbers, collections, examples, dates, decimals, bytes, enumerations, pydantic models (with these
            ``dspy.Image`` and the like), dataclasses, arrays, and what consists of such.
        lost: Is given those values that have no form in JSON: a text stands for each, for people to read.
    """
    lost = [] if lost is None else lost
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(each, lost) for each in value]
    if kind is dict:
        return _mapping(value, lost)
    if kind in _WRITTEN:
        name, write, _ = _WRITTEN[kind]
        return {TAG: name, "value": write(value)}
    if kind in _COLLECTIONS:
        items = [encode(each, lost) for each in value]
        return {TAG: _COLLECTIONS[kind], "value": items if kind is tuple else sorted(items, key=as_json)}
    return _structured(value, lost)


def is_written(kind: type) -> bool:
    """Whether values of exactly this type are written by a rule of their own, and hold nothing."""
    return kind in _WRITTEN


def _mapping(value: Mapping[Any, Any], lost: list[Any]) -> Any:
    plain = all(type(name) is str for name in value)
    if plain and TAG not in value and set(value) != {EXAMPLE, "inputs"}:
        return {name: encode(each, lost) for name, each in value.items()}
    return {TAG: "dict", "value": [[encode(name, lost), encode(each, lost)] for name, each in value.items()]}


def _structured(value: Any, lost: list[Any]) -> Any:
    """What has parts with names, or arrays of numbers."""
    if isinstance(value, dspy.Example):
        fields = {str(name): encode(each, lost) for name, each in value.items()}
        inputs = getattr(value, "_input_keys", None)
        if type(value) is not dspy.Example:
            lost.append(value)
        return {EXAMPLE: fields, "inputs": None if inputs is None else sorted(inputs)}
    if isinstance(value, enum.Enum):
        return _typed("enum", value, value.name)
    if isinstance(value, pydantic.BaseModel):
        fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
        return _typed("model", value, {name: encode(each, lost) for name, each in fields.items()})
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return _typed("dataclass", value, {name: encode(getattr(value, name), lost) for name in names})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _typed("namedtuple", value, [encode(each, lost) for each in value])
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        data = base64.b64encode(value.tobytes()).decode()
        return {TAG: "array", "dtype": str(value.dtype), "shape": list(value.shape), "value": data}
    return _text(value, lost)


def _text(value: Any, lost: list[Any]) -> Any:
    """What cannot be restored: subclasses of collections by their items, images by their bytes, the rest as a text."""
    lost.append(value)
    if isinstance(value, Mapping):
        return {str(name): encode(each, lost) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(each, lost) for each in value]
    if isinstance(value, (str, int, float)):
        return next(kind(value) for kind in (str, int, float) if isinstance(value, kind))
    if getattr(getattr(value, "dtype", None), "hasobject", False) and hasattr(value, "tolist"):
        return encode(value.tolist(), lost)  # an array of objects has no bytes but their addresses
    if callable(getattr(value, "tobytes", None)) and not isinstance(value, memoryview):
        size = [str(getattr(value, name, "")) for name in ("mode", "size", "shape", "dtype")]
        return f"{type(value).__qualname__} {' '.join(size)} {hashlib.blake2b(value.tobytes()).hexdigest()}"
    text = ADDRESS.sub("", str(value))
    return f"{type(value).__qualname__} {_unordered(value)}" if LIKE_A_SET.search(text) else text


def _unordered(value: Any) -> str:
    """A digest of an object whose text shows something in an order that is another in each process."""
    from dspy.promptune.identity.fingerprint import fingerprint

    return str(fingerprint(value, "")["code"]).rpartition(":")[2]


def _typed(name: str, value: Any, content: Any) -> dict[str, Any]:
    kind = type(value)
    _types[type_name(kind)] = kind
    return {TAG: name, "type": type_name(kind), "value": content}


def type_name(kind: type) -> str:
    """How a type is written down: module and name."""
    return f"{kind.__module__}:{kind.__qualname__}"


def know_types(annotation: Any) -> None:
    """Values of this type can be read back, wherever in a function it was defined; so those inside of it."""
    if isinstance(annotation, type) and type_name(annotation) not in _types:
        _types[type_name(annotation)] = annotation
        for field in getattr(annotation, "model_fields", {}).values():
            know_types(field.annotation)
        if dataclasses.is_dataclass(annotation):
            for each in dataclasses.fields(annotation):
                know_types(each.type)
    for inner in get_args(annotation):
        know_types(inner)


def decode(value: Any) -> Any:
    """What :func:`encode` made. A model whose type is not there any more comes back as a plain mapping."""
    if isinstance(value, list):
        return [decode(each) for each in value]
    if not isinstance(value, dict):
        return value
    if TAG in value:
        return _tagged(value[TAG], value)
    if set(value) == {EXAMPLE, "inputs"}:
        example = dspy.Example({name: decode(each) for name, each in value[EXAMPLE].items()})
        return example if value["inputs"] is None else example.with_inputs(*value["inputs"])
    return {name: decode(each) for name, each in value.items()}


def _tagged(name: str, value: Mapping[str, Any]) -> Any:
    content = value["value"]
    if name in _READ:
        return _READ[name](content)
    if name == "dict":
        return {decode(key): decode(each) for key, each in content}
    if name == "array":
        import numpy

        found = numpy.frombuffer(base64.b64decode(content), value["dtype"]).reshape(value["shape"]).copy()
        return found if value["shape"] else found[()]
    for kind, collection in _COLLECTIONS.items():
        if name == collection:
            return kind(decode(each) for each in content)
    return _instance(name, _type(value["type"]), content)


def _instance(name: str, kind: Any, content: Any) -> Any:
    """A value of a type that is what it was said to be; of another, or none, its plain content."""
    found = decode(content)
    if name == "enum" and _is(kind, enum.Enum):
        return kind[found]
    if name == "model" and _is(kind, pydantic.BaseModel):
        return kind.model_construct(**found)
    if name == "namedtuple" and _is(kind, tuple) and hasattr(kind, "_fields"):
        return kind._make(found)
    if name == "dataclass" and isinstance(kind, type) and dataclasses.is_dataclass(kind):
        made: Any = object.__new__(kind)
        for field, each in found.items():
            object.__setattr__(made, field, each)
        return made
    return found


def _is(kind: Any, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _type(name: str) -> Any:
    """A type by its name, of the modules that are loaded: none is loaded for it."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and found.__module__ == module else _types.get(name)


def restorable(value: Any) -> bool:
    """Whether decoding gives back an equal value."""
    lost: list[Any] = []
    encode(value, lost)
    return not lost


def as_json(value: Any) -> str:
    """One line of JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def digest(value: Any) -> str:
    """Sixteen hex digits that stand for a value, by :func:`encode`."""
    text = as_json(encode(value))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

"""What an object consists of: of the user's its attributes, of others' what they would tell ``pickle``."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pydantic

from dspy.promptune.identity.encoding import digest

__all__ = ["COPIED", "is_opaque", "reduced_of", "seen_from", "state_of", "told_of"]

COPIED = frozenset({"__doc__", "__module__", "__name__", "__qualname__", "__annotations__", "__type_params__"})


def is_opaque(kind: Any) -> bool:
    """Whether objects of a package's class say nothing of themselves, so that all is told that they happen to hold."""
    return bool(kind.__reduce_ex__ == object.__reduce_ex__ and kind.__reduce__ == object.__reduce__)


def reduced_of(value: Any) -> list[Any] | str | None:
    """What ``pickle`` would write of an object, though nothing is pickled; ``None`` if it would refuse."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        found = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        return (
            found if isinstance(found, str) else [list(part) if isinstance(part, Iterator) else part for part in found]
        )
    except Exception:
        return None


def told_of(value: Any) -> Any:
    """A digest of what data frames, tensors, images and arrays hold; ``None`` for other objects."""
    if getattr(getattr(value, "dtype", None), "hasobject", False):
        return None  # its bytes would be addresses
    for tell in ("to_csv", "numpy", "tobytes"):
        if not callable(getattr(value, tell, None)):
            continue
        size = [str(getattr(value, name, "")) for name in ("mode", "size", "shape", "dtype") if tell == "tobytes"]
        with contextlib.suppress(Exception):
            value = value.detach().cpu() if hasattr(value, "detach") else value
            value = value.float() if "bfloat16" in str(getattr(value, "dtype", "")) else value
            return [digest(getattr(value, tell)()), size]
    return None


def seen_from(file: Any, value: Any) -> Any:
    """A path around the file that holds it, as one from there: the same wherever they are. Other texts as they are."""
    text = str(value)
    if not isinstance(file, str) or not os.path.isabs(text) or "\0" in text:
        return value
    folder, place = os.path.dirname(os.path.abspath(file)) + os.sep, text.rstrip(os.sep) + os.sep
    around = place.startswith(folder) or (folder.startswith(place) and place != os.sep)
    return f"{type(value).__name__} from here: {os.path.relpath(text, folder)}" if around else value


def state_of(value: Any) -> dict[str, Any]:
    """The attributes of an object, but for those that repeat a function it wraps, and results that are kept."""
    state: dict[str, Any] = {**getattr(value, "__dict__", {})}
    if isinstance(value, pydantic.BaseModel):
        state |= {**(value.__pydantic_extra__ or {}), **(value.__pydantic_private__ or {})}
    else:
        names = [name for kind in type(value).__mro__ for name in _listed(vars(kind).get("__slots__", ()))]
        state |= {name: getattr(value, name) for name in names if hasattr(value, name)}
    kept = {"__weakref__", "__dict__", *COPIED}
    return {str(name): part for name, part in state.items() if name not in kept and not _is_kept(value, name)}


def _is_kept(value: Any, name: str) -> bool:
    return isinstance(inspect.getattr_static(type(value), str(name), None), functools.cached_property)


def _listed(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else [str(each) for each in slots]

"""Demo sets as text, and when two candidates of a part are the same one."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["demo_set_text", "equal_candidates", "first_equal", "is_demo_set", "same_fields"]


def demo_set_text(candidate: Any) -> str:
    """One text for a candidate: itself, or its examples written out as ``field: value`` lines."""
    if isinstance(candidate, str):
        return candidate
    return "\n\n".join(_example_text(example) for example in candidate)


def _example_text(example: Any) -> str:
    return "\n".join(f"{name}: {value}" for name, value in _fields(example).items())


def _fields(example: Any) -> dict[str, Any]:
    """What a prompt shows of an example: everything but upstream's mark of a bootstrapped one."""
    return {name: value for name, value in example.items() if name != "augmented"}


def first_equal(candidates: Sequence[Any]) -> tuple[int, ...]:
    """For each candidate the index of the first one that is equal: same text, and equal values behind it."""
    first: list[int] = []
    alike: dict[str, list[int]] = {}
    for i, candidate in enumerate(candidates):
        known = alike.setdefault(demo_set_text(candidate), [])
        first.append(next((j for j in known if equal_candidates(candidates[j], candidate)), i))
        if first[i] == i:
            known.append(i)
    return tuple(first)


def same_fields(one: Any, other: Any) -> bool:
    """Whether two examples (or mappings) show the same; values that cannot be compared, as arrays, are pickled."""
    first, second = _fields(one), _fields(other)
    return first.keys() == second.keys() and all(_same(value, second[name]) for name, value in first.items())


def _same(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:  # whatever an array, or a class of the user's, raises
        try:
            return pickle.dumps(one) == pickle.dumps(other)
        except Exception:
            return one is other


def equal_candidates(one: Any, other: Any) -> bool:
    """Whether two candidates with the same text are the same."""
    if isinstance(one, str) or isinstance(other, str):
        return bool(one is other or one == other)
    try:
        return len(one) == len(other) and all(itertools.starmap(same_fields, zip(one, other, strict=True)))
    except Exception:  # no examples: values of a user's own in place of demos
        return False


def is_demo_set(one: Any) -> bool:
    """Whether something is a list of ``dspy.Example`` or of mappings."""
    return isinstance(one, Sequence) and not isinstance(one, (str, bytes)) and all(map(_is_example, one))


def _is_example(one: Any) -> bool:
    return isinstance(one, Mapping) or (hasattr(one, "inputs") and hasattr(one, "items"))

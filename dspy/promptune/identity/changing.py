"""Which places code changes as it runs: counters, logs and caches, which depend on how often it has run.

A method counts as one that runs if something that runs names it. What only the making of an object calls (``__init__``
and what that calls), or what nothing reached ever calls (a setter), gives settings, which are compared.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from dspy.promptune.identity.belonging import user_module
from dspy.promptune.identity.bytecode import Change, Facts, facts
from dspy.promptune.identity.graph import Places, Slot
from dspy.promptune.limits.views import OWN

__all__ = ["Changing"]

MAKING = frozenset("__init__ __post_init__ __new__ __init_subclass__ __set_name__ __setstate__ model_post_init".split())
ENTRIES = frozenset({"forward", "aforward", "acall"})  # what DSPy calls


class Changing:
    """What was reached, and what of it changes.

    Attributes:
        names: Names that something uses which runs.
        functions: Functions of the user's.
        classes: Classes of the user's.
        objects: Objects of such classes, and of DSPy's.
    """

    def __init__(self) -> None:
        self.names: set[str] = set(ENTRIES)
        self.functions: list[types.FunctionType] = []
        self.classes: list[type] = []
        self.objects: list[Any] = []

    def places(self) -> Places:
        """The places that running code changes, and those that it reads."""
        found = Places(set(), set(), set())
        for slot, kind in self._places():
            getattr(found, kind).add(slot)
        return found

    def _places(self) -> Iterator[tuple[Slot, str]]:
        methods = [(kind, name, each) for kind in self.classes for name, each in _methods(kind)]
        own = {id(function) for _, _, function in methods}
        plain = [function for function in self.functions if id(function) not in own]
        for function in plain:
            self.names |= facts(function.__code__).names
            yield from _of_function(function, facts(function.__code__), ())
        for kind, function in self._running(methods):
            code = facts(function.__code__)
            owners = [kind, *(each for each in self.objects if isinstance(each, kind))]
            yield from _of_function(function, code, owners)

    def _running(self, methods: list[tuple[type, str, types.FunctionType]]) -> list[tuple[type, types.FunctionType]]:
        """The methods that something names which runs."""
        found: list[tuple[type, types.FunctionType]] = []
        left = methods
        while True:
            runs = [each for each in left if self._runs(*each)]
            left = [each for each in left if not self._runs(*each)]
            for kind, name, function in runs:
                code = facts(function.__code__)
                self.names |= code.later if name in MAKING else code.names
                if name not in MAKING:
                    found.append((kind, function))
            if not runs:
                return found

    def _runs(self, kind: type, name: str, function: types.FunctionType) -> bool:
        if name in self.names or (name.startswith("__") and name.endswith("__")):
            return True
        return any(name in vars(base) for base in kind.__mro__ if not user_module(base.__module__))


def _methods(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """The functions of a class, those behind decorators included."""
    for name, found in vars(kind).items():
        found = getattr(found, OWN, found)
        for part in ("__func__", "fget", "fset", "fdel", "func"):
            inner = inspect.getattr_static(found, part, None) if not isinstance(found, types.FunctionType) else None
            for each in _unwrapped(getattr(found, part) if inner is not None else None):
                yield name + ("=" if part == "fset" else ""), each
        for each in _unwrapped(found):
            yield name, each


def _unwrapped(value: Any) -> Iterator[types.FunctionType]:
    for _ in range(10):
        if isinstance(value, types.FunctionType):
            yield value
        value = getattr(value, "__wrapped__", None) if isinstance(value, _WRAPPING) else None


_WRAPPING = (types.FunctionType, type(functools.lru_cache(len)))


def _of_function(function: types.FunctionType, code: Facts, owners: Any) -> Iterator[tuple[Slot, str]]:
    """The places that a function changes or reads, as a method of those objects."""
    changes = [(each, "rebound" if each.rebound else "mutated") for each in code.changes]
    for place, what in [*changes, *((each, "read") for each in code.reads)]:
        if owners and place.root == code.first:
            found = [slot for owner in owners if place.path for slot in _follow(owner, place.path)]
        else:
            found = list(_of_variable(function, place))
        yield from ((slot, what) for slot in found)


def _of_variable(function: types.FunctionType, place: Change) -> Iterator[Slot]:
    free = function.__code__.co_freevars
    try:
        if place.root in free and function.__closure__:
            cell = function.__closure__[free.index(place.root)]
            slot, value = (id(cell), ""), cell.cell_contents
        elif place.root in function.__globals__:
            slot, value = (id(function.__globals__), place.root), function.__globals__[place.root]
        else:
            return
    except ValueError:  # not assigned yet
        return
    yield from _follow(value, place.path) if place.path else (slot,)


def _follow(value: Any, path: tuple[str, ...]) -> Iterator[Slot]:
    """The place at the end of a way of attributes."""
    for name in path[:-1]:
        value = type(value) if name == "__class__" else inspect.getattr_static(value, name, None)
    yield from _places(value, path[-1])


def _places(value: Any, name: str) -> Iterator[Slot]:
    """Where an attribute of an object may be: with the object, its class, or a module's variables."""
    yield (id(vars(value)) if isinstance(value, types.ModuleType) else id(value)), name
    kind = value if isinstance(value, type) else type(value)
    for each in kind.__mro__:
        if name in vars(each):
            yield id(each), name

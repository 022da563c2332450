"""What a value reaches, as a graph: a description of each thing once, and the ways from one to the next."""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dspy.promptune.identity.belonging import user_classes
from dspy.promptune.identity.encoding import TAG, as_json, encode, is_written

__all__ = ["AT", "Edge", "Graph", "Node", "Places", "Slot", "inline", "short"]

AT = "promptune:at"  # stands for an edge in the description of a node, by its number
NOTHING = object()
DEEPEST = 40  # levels of plain collections that are written as they are
MOST_PARTS = 5000  # of an object of an installed package: what holds more is no setting
SCALARS = (str, int, float, bool, type(None))
FIXED = (str, int, float, bool, bytes, tuple, frozenset, complex, type(None))  # has no method that changes it
CODE = (types.FunctionType, type, types.ModuleType)

Slot = tuple[int, str]  # a place that can be assigned to: the id of what holds it, and its name in there


@dataclasses.dataclass
class Places:
    """Places where running code puts another value, where it changes the value, and where it reads the value."""

    rebound: set[Slot]
    mutated: set[Slot]
    read: set[Slot]

    def change(self, slot: Slot, value: Any) -> bool:
        """Whether what is at a place depends on how often the code has run."""
        if isinstance(value, CODE):
            return False
        if slot in self.rebound:
            return True
        if slot not in self.mutated or isinstance(value, FIXED):
            return False
        users = callable(value) or user_classes(type(value))
        return not users or slot not in self.read  # of such an object the methods say what changes


@dataclasses.dataclass
class Edge:
    """A way from one node to another.

    Attributes:
        label: What is added to the name of the node it comes from; with ``=`` before it the whole name.
        slot: The place where the value is, if that can be assigned to.
        target: Number of the other node.
    """

    label: str
    slot: Slot | None
    target: int


@dataclasses.dataclass
class Node:
    """One thing.

    Attributes:
        value: The thing itself, which is kept so that no two things have one id.
        host: Number of the object of an installed package that it is a part of, if it is one.
        content: Its description as JSON, with :data:`AT` for each edge.
        edges: The ways to what it consists of.
        places: The ways to what it holds at places that can be assigned to.
        unknown: Whether it has no value that could be compared.
    """

    value: Any
    host: int | None = None
    content: Any = None
    edges: list[Edge] = dataclasses.field(default_factory=list)
    places: list[Edge] = dataclasses.field(default_factory=list)
    unknown: bool = False


class Graph:
    """Nodes in the order in which they were reached."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.here = 0  # the node that is being described
        self._numbers: dict[int, int] = {}
        self._parts: Counter[int | None] = Counter()  # by host
        self._waiting: deque[int] = deque()

    def add(self, value: Any, host: int | None = None) -> int:
        """The number of a thing's node, which is described later."""
        plain = type(value) in SCALARS
        number = None if plain else self._numbers.get(id(value))
        if number is None:
            number = len(self.nodes)
            self.nodes.append(Node(value, host))
            self._parts[host] += 1
            if host is not None and self._parts[host] > MOST_PARTS:
                self.nodes[host].unknown = True
            else:
                self._waiting.append(number)
            if not plain:
                self._numbers[id(value)] = number
        return number

    def of(self, value: Any, label: str, host: int | None = None) -> Any:
        """What stands for a value in the description of this node: itself, or the number of an edge."""
        if (form := inline(value)) is not NOTHING:
            return form
        edges = self.nodes[self.here].edges
        edges.append(Edge(label, None, self.add(value, host)))
        return {AT: len(edges) - 1}

    def at(self, slot: Slot, value: Any, label: str) -> None:
        """Go on to a value at a place that can be assigned to, whatever the value is."""
        self.nodes[self.here].places.append(Edge(label, slot, self.add(value)))

    def walk(self, describe: Callable[[Any], Any]) -> None:
        """Describe everything that is reached."""
        while self._waiting:
            self.here = self._waiting.popleft()
            node = self.nodes[self.here]
            form = inline(node.value)
            node.content = describe(node.value) if form is NOTHING else form

    def named(self, name: str, places: Places) -> Iterator[tuple[str, Node, list[tuple[str, str]]]]:
        """All nodes that count, by name, with the names of what they lead to, but for what changes."""
        names, order, taken = {0: name}, [0], {name}
        for number in order:
            shown: list[tuple[str, str]] = []
            node = self.nodes[number]
            for edge in [*node.edges, *node.places]:
                if edge.slot is not None and places.change(edge.slot, self.nodes[edge.target].value):
                    continue
                if edge.target not in names:
                    whole = edge.label[1:] if edge.label.startswith("=") else names[number] + edge.label
                    names[edge.target] = _unique(whole, taken)
                    order.append(edge.target)
                shown.append((edge.label, names[edge.target]))
            yield names[number], node, shown


def _unique(name: str, taken: set[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name} #{number}"
    taken.add(found)
    return found


def inline(value: Any, level: int = 0) -> Any:
    """A plain value as JSON, the order of its parts included; :data:`NOTHING` for other values."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if is_written(kind):
        return encode(value)
    if level == DEEPEST:
        return NOTHING
    if kind in (list, tuple):
        items = _all(value, level)
        return items if items is NOTHING or kind is list else {TAG: "tuple", "value": items}
    if kind is dict:
        keys, values = _all(value, level), _all(value.values(), level)
        whole = keys is not NOTHING and values is not NOTHING
        return {TAG: "dict", "value": list(zip(keys, values, strict=True))} if whole else NOTHING
    if kind in (set, frozenset):
        items = _all(value, level)
        return NOTHING if items is NOTHING else {TAG: "set", "value": sorted(items, key=as_json)}
    return NOTHING


def _all(values: Iterable[Any], level: int) -> Any:
    found = []
    for each in list(values):
        form = inline(each, level + 1)
        if form is NOTHING:
            return NOTHING
        found.append(form)
    return found


def short(value: Any) -> str:
    """Sixteen hex digits that stand for JSON."""
    return hashlib.blake2b(as_json(value).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

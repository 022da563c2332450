"""What a code object does, names and changes: the same for the same code, whatever its file, lines and docstrings."""

from __future__ import annotations

import dataclasses
import dis
import functools
import re
import types
from typing import Any

from dspy.promptune.identity.encoding import encode

__all__ = ["Change", "Facts", "facts"]

MUTATORS = frozenset(
    "append appendleft add extend insert update setdefault pop popleft popitem remove discard clear sort reverse "
    "write writelines put put_nowait increment inc set acquire release".split()
)
GETS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
BY_TEXT = frozenset({"globals", "vars", "eval", "exec"})
WORD = re.compile(r"[A-Za-z_]\w*")
INNER = frozenset({"get", "setdefault"})  # what these give belongs to the container they are called on
JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
LEAVES = ("RETURN", "RAISE", "RERAISE", "JUMP_FORWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD")
ORDER = ("SWAP", "ROT_")  # what an assignment like ``a.b += c`` does before it stores
COPIES = {1: ("COPY", "DUP_TOP"), 2: ("COPY", "DUP_TOP_TWO")}
SHAPE = 0x3AF  # flags of a code object that say how it is called, and none that say how it was written


@dataclasses.dataclass(frozen=True)
class Change:
    """A place that code changes: a variable, and the attributes on the way from it.

    Attributes:
        root: The variable.
        path: Names of attributes; none for the variable itself.
        rebound: Whether another value is put there, and not the value there changed.
    """

    root: str
    path: tuple[str, ...]
    rebound: bool


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a code object and those inside of it.

    Attributes:
        form: What it does, as JSON.
        names: Variables and attributes; of an attribute that is assigned to also the name with ``=`` after it.
        variables: Global variables.
        later: The names of code inside of it, which may run later.
        bare: Variables that are used as they are, and not only for an attribute.
        imports: Level, module and names of each import.
        changes: Places that it changes.
        reads: Places that it reads, and not only calls a method on that changes them and whose result it drops.
        first: Its first argument.
    """

    form: Any
    names: frozenset[str]
    variables: frozenset[str]
    later: frozenset[str]
    bare: frozenset[str]
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    changes: frozenset[Change]
    reads: frozenset[Change]
    first: str | None


@functools.lru_cache(8192)
def facts(code: types.CodeType) -> Facts:
    """What a code object does, names and changes."""
    inner = [facts(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    scan = _Scan(code)
    imports = [scan.imported(i) for i, step in enumerate(scan.steps) if step.opname == "IMPORT_NAME"]
    later = frozenset().union(*(each.names for each in inner))
    return Facts(
        form=scan.form(),
        names=later.union(code.co_names, scan.stored()),
        variables=scan.variables().union(*(each.variables for each in inner)),
        later=later,
        bare=scan.bare().union(*(each.bare for each in inner)),
        imports=tuple(dict.fromkeys([*imports, *(found for each in inner for found in each.imports)])),
        changes=scan.changes().union(*(each.changes for each in inner)),
        reads=scan.reads().union(*(each.reads for each in inner)),
        first=code.co_varnames[0] if code.co_argcount else None,
    )


class _Scan:
    """The instructions of one code object, and how many values are on the stack before each."""

    def __init__(self, code: types.CodeType) -> None:
        self.code = code
        self.steps: list[dis.Instruction] = []
        self.places: dict[int, int] = {}  # of a step, by the offset at which it or what belongs to it begins
        for step in dis.get_instructions(code):
            self.places[step.offset] = len(self.steps)
            if step.opname not in ("EXTENDED_ARG", "CACHE"):
                self.steps.append(step)

    def form(self) -> Any:
        """Instructions with constants in the order of their use, so that one that is not used changes nothing."""
        consts: dict[int, int] = {}
        used: list[Any] = []
        done: list[Any] = []
        for step in self.steps:
            argument: Any = step.arg
            if step.opcode in dis.hasconst and step.arg is not None:
                if step.arg not in consts:
                    consts[step.arg] = len(used)
                    value = self.code.co_consts[step.arg]
                    used.append(facts(value).form if isinstance(value, types.CodeType) else encode(value))
                argument = consts[step.arg]
            elif step.opcode in JUMPS:
                argument = self.places.get(step.argval)
            done.append([step.opcode, argument])
        code = self.code
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & SHAPE]
        return [done, used, list(code.co_names), list(code.co_varnames), list(code.co_freevars), counts]

    def bare(self) -> frozenset[str]:
        """Variables that are loaded and whose attributes are not taken at once."""
        found: set[str] = set()
        for step, following in zip(self.steps, [*self.steps[1:], None], strict=True):
            if step.opname.startswith("LOAD_") and not (following and following.opname in GETS):
                found.update(_variables(step))
        return frozenset(found)

    def variables(self) -> frozenset[str]:
        """Global variables that are loaded, by name or by a text that is looked up or evaluated."""
        found = {str(step.argval) for step in self.steps if step.opname in GLOBALS}
        if found & BY_TEXT:
            found.update(*(WORD.findall(each) for each in self.code.co_consts if isinstance(each, str)))
        return frozenset(found)

    def stored(self) -> frozenset[str]:
        """Attributes that are assigned to."""
        return frozenset(f"{step.argval}=" for step in self.steps if step.opname == "STORE_ATTR")

    def imported(self, i: int) -> tuple[int, str, tuple[str, ...]]:
        """The import at a step: how many packages up, of which module, which names."""
        level, names = self.steps[i - 2].argval, self.steps[i - 1].argval
        return level if isinstance(level, int) else 0, str(self.steps[i].argval), tuple(names or ())

    def changes(self) -> frozenset[Change]:
        """Places to which something is assigned, as a whole or an item of it, or whose methods change it."""
        found: list[Change | None] = []
        for i, step in enumerate(self.steps):
            name = step.opname
            if name in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"):
                found.append(Change(str(step.argval), (), True))
                continue
            attribute = name in ("STORE_ATTR", "DELETE_ATTR")
            item = name in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")
            call = name in GETS and str(step.argval) in MUTATORS
            if not (attribute or item or call):
                continue
            below = 3 if name == "STORE_SLICE" else 2 if item else 1
            target = self._target(i, below, augmented=not call)
            if target is not None and attribute:
                found.append(Change(target.root, (*target.path, str(step.argval)), True))
            elif target is not None:
                found.append(target)
        return frozenset(filter(None, found))

    def reads(self) -> frozenset[Change]:
        """Variables with the attributes that are taken of them, and of these."""
        found: set[Change] = set()
        for i, step in enumerate(self.steps):
            end = i + 1
            while end < len(self.steps) and self.steps[end].opname in GETS:
                end += 1
            path = tuple(str(each.argval) for each in self.steps[i + 1 : end])
            if path and path[-1] in MUTATORS and self._dropped(end - 1):
                path = path[:-2] if len(path) > 1 else ("",)
            for variable in _variables(step) if path != ("",) else ():
                found.update(Change(variable, path[:length], False) for length in range(len(path) + 1))
        return frozenset(found)

    def _dropped(self, i: int) -> bool:
        """Whether what a method gives that is taken at a step is thrown away."""
        called = (j for j in range(i + 1, len(self.steps)) if self.steps[j - 1].opname.startswith("CALL"))
        after = next((j for j in called if self.depths[j] <= self.depths[i]), None)
        return after is not None and self.steps[after].opname == "POP_TOP"

    @functools.cached_property
    def depths(self) -> list[int]:
        depths: list[int | None] = [None] * len(self.steps)
        depth = 0
        for i, step in enumerate(self.steps):
            known = depths[i]
            depth = depth if known is None else known
            depths[i] = depth
            if step.opcode in JUMPS:
                target = self.places.get(step.argval, 0)
                if i < target < len(depths) and depths[target] is None:
                    depths[target] = depth + _effect(step, jump=True)
            if not step.opname.startswith(LEAVES):
                depth += _effect(step, jump=False)
        return [each or 0 for each in depths]

    def _target(self, i: int, below: int, augmented: bool) -> Change | None:
        """What the object is that a step changes, which lies so deep on the stack."""
        depths = self.depths
        end, depth = i, depths[i]
        if augmented and i and self.steps[i - 1].opname.startswith(ORDER):
            depth -= 1
            places = (j for j in range(i - 1, -1, -1) if depths[j] == depth and self._copies(j, below))
            end = next(places, -1)
        begin = next((j for j in range(end - 1, -1, -1) if depths[j] <= depth - below), None)
        return None if begin is None else self._way(begin, end)

    def _called(self, begin: int, end: int) -> bool:
        """Whether the object is what a call gives; calls in the key of an item of it leave the object below them."""
        depths = self.depths
        calls = (j for j in range(begin, end) if self.steps[j].opname.startswith("CALL"))
        return any(j + 1 >= len(depths) or depths[j + 1] <= depths[begin - 1] + 1 for j in calls)

    def _copies(self, i: int, count: int) -> bool:
        step = self.steps[i]
        return step.opname in COPIES.get(count, ()) and (step.opname != "COPY" or step.arg == count)

    def _way(self, begin: int, end: int) -> Change | None:
        """The variable that an expression begins with, and the attributes that follow it."""
        steps = self.steps[begin:end]
        if steps[0].opname == "LOAD_GLOBAL" and steps[0].argval == "type":  # type(self).count
            calls = [j for j, step in enumerate(steps) if step.opname.startswith("CALL")]
            steps = [steps[1], *steps[calls[0] + 1 :]] if calls and len(steps) > 1 else steps
        variables = _variables(steps[0])
        if not variables:
            return None
        path: list[str] = []
        rest = 1
        while rest < len(steps) and steps[rest].opname in GETS:
            path.append(str(steps[rest].argval))
            rest += 1
        if self._called(begin + 1, end):
            if not path or path[-1] not in INNER:
                return None
            path.pop()
        return Change(variables[-1], tuple(path), False)


def _variables(step: dis.Instruction) -> tuple[str, ...]:
    """The variables that a step loads."""
    if not step.opname.startswith(
        ("LOAD_FAST", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FR")
    ):
        return ()
    return tuple(map(str, step.argval)) if isinstance(step.argval, tuple) else (str(step.argval),)


def _effect(step: dis.Instruction, jump: bool) -> int:
    try:
        return dis.stack_effect(step.opcode, step.arg, jump=jump)
    except ValueError:
        return 0

"""What code a score depends on: a digest of functions and objects with everything of the user's that they reach."""

from __future__ import annotations

import enum
import functools
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, get_args, get_origin

import pydantic

import dspy
from dspy.promptune.identity.belonging import imported, of_user, user_classes, user_module, version_of
from dspy.promptune.identity.bytecode import facts
from dspy.promptune.identity.changing import Changing
from dspy.promptune.identity.encoding import encode, type_name
from dspy.promptune.identity.graph import Graph, short
from dspy.promptune.identity.models import attributes_of, lm_settings, schema_of
from dspy.promptune.identity.objects import COPIED, is_opaque, reduced_of, seen_from, state_of, told_of
from dspy.promptune.limits.views import OWN, without_gateway
from dspy.promptune.secrets import is_credential
from dspy.promptune.space import PromptSpace

__all__ = ["RULE", "Fingerprint", "fingerprint", "lm_settings"]

RULE = 3  # of what a digest covers: digests of another rule are not compared
MOST = 200  # parts whose digests are kept, so that a refusal can name what has changed
WITHOUT_VALUE = frozenset(
    "_thread.lock _thread.RLock threading.Event threading.Condition threading.Semaphore threading.BoundedSemaphore "
    "threading.Lock threading.RLock threading.Thread _thread._local threading.local threading.Barrier "
    "logging.Logger logging.RootLogger logging.LoggerAdapter asyncio.locks.Semaphore asyncio.locks.Lock "
    "queue.Queue _queue.SimpleQueue weakref.ref _io.TextIOWrapper _io.BufferedWriter tqdm.std.tqdm _asyncio.Future "
    "concurrent.futures.thread.ThreadPoolExecutor weakref.WeakKeyDictionary weakref.WeakSet "
    "weakref.ReferenceType weakref.WeakValueDictionary itertools.count _contextvars.ContextVar".split()
)  # what they hold changes as a run goes on, and decides no score
STATE_OF_DSPY = frozenset({"history", "callbacks", "_compiled", "traces", "train", "stage"})
LEFT = frozenset(
    "optimization_run trial_logs candidate_programs mb_candidate_programs prompt_model_total_calls detailed_results "
    "flag_compilation_error_occurred".split()
)  # what optimizers leave on the programs that they return,
LEFT_BESIDE = frozenset({"score", "total_calls"})  # and where these are there: such names may be a program's own
CLASS_NOISE = re.compile(
    r"__(module|dict|weakref|doc|qualname|abstractmethods|annotations\w*|annotate\w*|slotnames|classdictcell|static_attributes|"
    r"firstlineno|parameters|orig_bases|signature|match_args|slots|hash|pydantic\w*|private_attributes|class_vars|"
    r"fields_set|dataclass\w*|type_params|getstate|setstate)__|_abc_impl|model_\w+|__fields__|_field_defaults|_fields"
)
ENUM_NOISE = re.compile(r"_\w*_(?<!__)|__new_member__|__reduce_ex__|__(str|repr|format)__")


class Fingerprint:
    """Descriptions as JSON, of each function, class and object once.

    Attributes:
        unknown: Names of what has no value that could be compared.
        parts: Digests of all that was reached, by name.
        attributes: Of language models of the user's, by name: they are shown where they change, and not compared.
    """

    def __init__(self, value: Any, name: str, within: frozenset[int] = frozenset()) -> None:
        self.unknown: list[str] = []
        self.parts: dict[str, str] = {}
        self.attributes: dict[str, Any] = {}
        self._models: dict[int, Any] = {}  # by the id of their nodes
        self._graph = Graph()
        self._changing = Changing()
        self._within = within  # ids of the sets that this is described for
        self._of = self._graph.of
        self._graph.add(value)
        self._graph.walk(self._describe)
        places = self._changing.places()
        for each, node, leads in self._graph.named(name, places):
            self.parts[each] = short([node.content, leads])
            if (lm := self._models.get(id(node))) is not None:
                self.attributes |= {f"{each}.{part}": known for part, known in attributes_of(lm, places).items()}
            if node.unknown:
                self.unknown.append(f"{each} ({type_name(type(node.value)).replace(':', '.')})")

    @property
    def code(self) -> str:
        """The digest of it all."""
        return short(list(self.parts.items()))

    def _describe(self, value: Any) -> Any:
        host = self._graph.nodes[self._graph.here].host
        if type(value) in (list, tuple):
            return [type(value).__name__, [self._of(each, f"[{i}]", host=host) for i, each in enumerate(value)]]
        if type(value) is dict:
            return ["dict", self._items(value, host)]
        if type(value) in (set, frozenset):
            return ["set", self._unordered(value)]
        if (found := self._code(value)) is not None:
            return found
        if isinstance(value, dspy.Example):
            inputs = getattr(value, "_input_keys", None)
            fields = [[str(key), self._of(each, f"'s {key}")] for key, each in value.items()]
            own = [self._of(type(value), "'s class")] if user_classes(type(value)) else []
            return ["example", fields, None if inputs is None else sorted(inputs), *own]
        kind = type(value)
        if f"{kind.__module__}.{kind.__qualname__}" in WITHOUT_VALUE or isinstance(value, Iterator):
            return self._without_value(value)
        if user_classes(kind) or type_name(kind).startswith("dspy."):
            return self._object(value)
        return self._foreign(value)

    def _items(self, value: Mapping[Any, Any], host: int | None = None) -> Any:
        return [
            [self._of(key, f"[{i}]", host=host), self._of(each, f"[{_key(key)}]", host=host)]
            for i, (key, each) in enumerate(list(value.items()))
        ]

    def _unordered(self, value: Any) -> list[str]:
        """Digests of things that have no order, each by itself; none where one of them leads back to them."""
        if id(value) in self._within:
            return []
        found = [Fingerprint(each, "", self._within | {id(value)}) for each in value]
        if any(each.unknown for each in found):
            self._graph.nodes[self._graph.here].unknown = True
        return sorted(each.code for each in found)

    # ------------------------------------------------------------------ code

    def _code(self, value: Any) -> Any:
        """The description of code, and of what binds or wraps code; ``None`` for other values."""
        if isinstance(value, functools.partial):
            parts = [self._of(value.func, ""), self._of(value.args, "'s arguments")]
            return ["partial", *parts, self._of(value.keywords, "'s arguments")]
        if isinstance(value, types.MethodType):
            self._changing.names.add(value.__func__.__name__)
            return ["method", self._of(value.__func__, ""), self._of(value.__self__, ".__self__")]
        if isinstance(value, (staticmethod, classmethod)):
            return [type(value).__name__, self._of(value.__func__, "")]
        if isinstance(value, (property, functools.cached_property)):
            parts = [getattr(value, part, None) for part in ("fget", "fset", "fdel", "func")]
            return ["property", *(self._of(part, "") for part in parts if part is not None)]
        if isinstance(value, types.FunctionType):
            return self._function(getattr(value, OWN, value))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, (types.ModuleType, type(None))):
            return ["built in", value.__module__, value.__qualname__, version_of(value.__module__ or "")]
        if inspect.getattr_static(value, "__wrapped__", None) is not None and not user_classes(type(value)):
            return ["wrapped", type_name(type(value)), self._of(value.__wrapped__, "")]
        return None

    def _module(self, module: types.ModuleType) -> Any:
        """A module that is used as a value: all of it, where it is the user's."""
        found: list[Any] = ["module", module.__name__, version_of(module.__name__)]
        if not user_module(module.__name__):
            return found
        for name in sorted(vars(module)):
            if not (name.startswith("__") and name.endswith("__")):
                self._global(vars(module), name)
        return found

    def _global(self, variables: dict[str, Any], name: str, label: str | None = None) -> None:
        value = variables[name]
        if isinstance(value, (str, PurePath)):
            value = seen_from(variables.get("__file__"), value)
        self._graph.at((id(variables), name), value, f"'s {label or name}")

    def _function(self, function: types.FunctionType) -> Any:
        name = [function.__module__, function.__qualname__, version_of(function.__module__ or "")]
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closure = [(each, cell) for each, cell in cells if _filled(cell)]
        if not of_user(function):  # of which the version counts, and what the user has put into it
            held = [(each, cell) for each, cell in closure if _of_users(cell.cell_contents)]
            self._cells(held)
            return ["function", *name]
        code = facts(function.__code__)
        self._changing.functions.append(function)
        given = [function.__defaults__ or (), dict(function.__kwdefaults__ or {})]
        self._cells(closure)
        others = self._globals(function, closure)
        self._attributes(function, {each: part for each, part in vars(function).items() if each not in (*COPIED, OWN)})
        return ["function", code.form, [self._of(each, "'s defaults") for each in given], others]

    def _cells(self, closure: list[tuple[str, types.CellType]]) -> None:
        for name, cell in closure:
            self._graph.at((id(cell), ""), cell.cell_contents, f"'s {name}")

    def _attributes(self, owner: Any, attributes: Mapping[str, Any]) -> None:
        for name, value in sorted(attributes.items()):
            self._graph.at((id(owner), name), value, f".{name}")

    def _globals(self, function: types.FunctionType, closure: list[tuple[str, types.CellType]]) -> list[Any]:
        """The globals that a function uses and what it imports; of a module of the user's, what is named of that.

        Returns:
            Modules of others that it imports, with their versions.
        """
        others: list[Any] = []
        code, variables = facts(function.__code__), function.__globals__
        used = sorted(code.variables.intersection(variables))
        for name in used:
            if name in code.bare or not _part(variables[name]):
                self._global(variables, name)
        modules = [(name, variables[name]) for name in used if _part(variables[name])]
        modules += [(name, cell.cell_contents) for name, cell in closure if _part(cell.cell_contents)]
        for level, name, names in code.imports:
            whole, module = imported(level, name, str(variables.get("__package__") or ""))
            if not isinstance(module, types.ModuleType):
                others.append([whole, version_of(whole) if module is None else module.__name__])
                continue
            modules.append((name, module if names or level else sys.modules[whole.partition(".")[0]]))
            for each in names:
                inner = vars(module).get(each) or imported(0, f"{whole}.{each}", "")[1]
                modules += [(each, inner)] if _part(inner) else []
        self._named_parts(modules, code.names)
        return others

    def _named_parts(self, modules: list[tuple[str, Any]], names: frozenset[str]) -> None:
        """What a function names of modules, and of modules in these."""
        seen: set[int] = set()
        for way, module in modules:
            if id(module) in seen:
                continue
            seen.add(id(module))
            for name in sorted(names.intersection(vars(module))):
                inner = vars(module)[name]
                if _part(inner):
                    modules.append((f"{way}.{name}", inner))
                else:
                    self._global(vars(module), name, f"{way}.{name}")

    def _class(self, kind: type) -> Any:
        if issubclass(kind, dspy.Signature):
            return ["signature", self._signature(kind)]
        users = user_classes(kind)
        others = [type_name(each) for each in kind.__mro__ if each not in users and each is not object]
        found: list[Any] = ["class", kind.__qualname__, others]
        if not users:
            return [*found, version_of(kind.__module__)]
        if user_classes(type(kind)):
            found.append(self._of(type(kind), f"={type(kind).__qualname__}"))
        if issubclass(kind, pydantic.BaseModel):
            found += [schema_of(kind), [[n, self._field(field)] for n, field in sorted(kind.model_fields.items())]]
        for each in users:
            self._changing.classes.append(each)
            noise = ENUM_NOISE if issubclass(each, enum.Enum) else None
            self._attributes(
                each,
                {
                    part: value
                    for part, value in vars(each).items()
                    if not CLASS_NOISE.fullmatch(part) and not (noise and noise.fullmatch(part))
                },
            )
            found.append(each.__qualname__)
        return found

    def _field(self, field: Any) -> Any:
        parts = [field.default_factory, *field.metadata]
        return [self._type(field.annotation), [self._of(each, "'s field") for each in parts if callable(each)]]

    def _type(self, annotation: Any) -> Any:
        """A type as it is written, with the code of the user's classes in it."""
        if isinstance(annotation, type) and not get_args(annotation):
            users = user_classes(annotation)
            return self._of(annotation, f"={annotation.__qualname__}") if users else type_name(annotation)
        inner = [each for each in get_args(annotation) if not isinstance(each, (str, int, bytes, type(None)))]
        flat = [part for each in inner for part in (each if isinstance(each, list) else [each])]
        return [str(get_origin(annotation)), str(annotation) if not flat else None, [self._type(e) for e in flat]]

    def _signature(self, signature: Any) -> Any:
        fields = signature.fields.items()
        parts = [[name, str(f.annotation), encode(f.json_schema_extra), self._type(f.annotation)] for name, f in fields]
        return [signature.instructions, parts]

    # ------------------------------------------------------------------ objects

    def _object(self, value: Any) -> Any:
        """An object of the user's or of DSPy's: its class, and what it holds."""
        if isinstance(value, dspy.BaseLM):
            value = without_gateway(value)
        kind = type(value)
        users = user_classes(kind)
        self._changing.objects.append(value)
        found: list[Any] = ["object", self._of(kind, f"={kind.__qualname__}"), self._own(value)]
        if isinstance(value, PromptSpace):
            return [*found, [[part.name, self._of(part.given(), f".{part.name}")] for part in value.parts]]
        if isinstance(value, enum.Enum):
            return [*found, value.name, self._of(value.value, ".value")]
        if isinstance(value, dspy.BaseLM):
            state = {}
            found.append(lm_settings(value))
            if users:
                self._models[id(self._graph.nodes[self._graph.here])] = value
        else:
            state = state_of(value)
        if isinstance(value, dspy.Module):
            left = LEFT | LEFT_BESIDE if LEFT & state.keys() else frozenset()
            state = {each: part for each, part in state.items() if each not in STATE_OF_DSPY | left}
        if isinstance(value, dspy.Predict):
            state["config"] = {each: part for each, part in value.config.items() if not is_credential(each)}
        if not users or any(type_name(each).replace(":", ".") in WITHOUT_VALUE for each in kind.__mro__):
            state = {each: part for each, part in state.items() if not each.startswith("_")}
        self._attributes(value, state)
        return found

    def _own(self, value: Any) -> Any:
        """The items of an object that is a collection too, or the plain value that it is."""
        if isinstance(value, Mapping):
            return self._items(value) if isinstance(value, dict) else None
        if isinstance(value, (list, tuple)):
            return [self._of(each, f"[{i}]") for i, each in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            return self._unordered(value)
        return next((kind(value) for kind in (str, int, float) if isinstance(value, kind)), None)

    def _without_value(self, value: Any) -> Any:
        host = self._graph.nodes[self._graph.here].host
        if host is not None:
            self._graph.nodes[host].unknown = True
        return ["object", type_name(type(value))]

    def _foreign(self, value: Any) -> Any:
        """What an object of another package or of Python consists of, as it says itself."""
        here = self._graph.nodes[self._graph.here]
        kind = type_name(type(value))
        found = ["object", kind, version_of(type(value).__module__)]
        if isinstance(value, (types.GenericAlias, types.UnionType)) or get_origin(value) is not None:
            return [*found, self._type(value)]
        if (told := told_of(value)) is not None:
            return [*found, told]
        parts = reduced_of(value)
        if parts is None and isinstance(value, Mapping):
            return [*found, self._items(value, here.host)]
        if parts is None:
            (here if here.host is None else self._graph.nodes[here.host]).unknown = True
            return found
        if isinstance(parts, str):
            return [*found, parts]
        host = here.host if here.host is not None or not is_opaque(type(value)) else self._graph.here
        return [*found, [self._of(each, "", host=host) for each in parts]]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False


def _of_users(value: Any) -> bool:
    """Whether what a package's function holds is the user's, or a plain value that the user may have given."""
    if isinstance(value, types.FunctionType):
        return of_user(value) or value.__closure__ is not None
    kind = value if isinstance(value, type) else type(value)
    plain = (str, int, float, bool, list, tuple, dict, types.MethodType, functools.partial)
    return bool(user_classes(kind)) or kind in plain or isinstance(value, dspy.Module)


def _part(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and user_module(value.__name__)


def _key(key: Any) -> str:
    return repr(key)[:40] if isinstance(key, (str, int, float, bool)) else type(key).__name__


def fingerprint(value: Any, name: str) -> dict[str, Any]:
    """Digest of a metric or a program by its code and all that it reaches; under the rule of one version of Python.

    Returns:
        ``code``: version of Python, number of the rule, and digest. ``parts``: digests of what it reaches, by name.
        ``unknown``: names of what cannot be compared, if there is such. ``attributes``: of the user's language models.
    """
    made = Fingerprint(value, name)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}{'O' * sys.flags.optimize}"
    found = {"code": f"{python}-{RULE}:{made.code}", "parts": dict(list(made.parts.items())[:MOST])}
    found |= {"attributes": made.attributes} if made.attributes else {}
    return {**found, **({"unknown": sorted(set(made.unknown))} if made.unknown else {})}

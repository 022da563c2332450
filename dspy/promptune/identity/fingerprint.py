"""What code a score depends on: a digest of functions and objects with everything of the user's that they reach."""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import pydantic

import dspy
from dspy.promptune.identity.encoding import digest, encode, type_name
from dspy.promptune.limits.views import OWN, without_gateway
from dspy.promptune.secrets import is_credential
from dspy.promptune.space import PromptSpace

__all__ = ["Fingerprint", "fingerprint", "lm_settings"]

MUTATORS = frozenset(
    "append appendleft add extend insert update setdefault pop popleft popitem remove discard clear sort reverse "
    "write writelines put put_nowait increment inc set acquire release".split()
)
STORES = frozenset({"STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_DEREF"})
LOADS = frozenset({"LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
GETS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
WITHOUT_VALUE = frozenset(
    "_thread.lock _thread.RLock threading.Event threading.Condition threading.Semaphore threading.BoundedSemaphore "
    "threading.Lock threading.RLock threading.Thread _thread._local threading.local threading.Barrier "
    "logging.Logger logging.RootLogger logging.LoggerAdapter asyncio.locks.Semaphore asyncio.locks.Lock "
    "queue.Queue _queue.SimpleQueue weakref.ref _io.TextIOWrapper tqdm.std.tqdm _asyncio.Future "
    "concurrent.futures.thread.ThreadPoolExecutor random.Random weakref.WeakKeyDictionary "
    "weakref.WeakValueDictionary itertools.count _contextvars.ContextVar".split()
)  # what they hold changes as a run goes on, and decides no score
STATE_OF_DSPY = frozenset({"history", "callbacks", "_compiled", "traces", "train", "stage"})
CLASS_NOISE = re.compile(
    r"__(module|dict|weakref|doc|qualname|abstractmethods|annotations|annotate\w*|classdictcell|static_attributes|"
    r"firstlineno|parameters|orig_bases|signature|match_args|slots|hash|pydantic\w*|private_attributes|class_vars|"
    r"fields_set|dataclass\w*)__|_abc_impl|model_\w+|__fields__"
)


class Fingerprint:
    """Descriptions as JSON, of each function, class and object once.

    Attributes:
        unknown: Names of what has no value that could be compared.
    """

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no two things seen have one id

    def of(self, value: Any, name: str) -> Any:
        """The description of a value that is reached under a name."""
        lost: list[Any] = []
        if type(value) in (str, int, float, bool, bytes, type(None)):
            return encode(value)
        if id(value) in self._seen:
            return {"seen": self._seen[id(value)]}
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            return [self.of(each, f"{name}[{i}]") for i, each in enumerate(value)]
        if type(value) is dict:
            return [[encode(key), self.of(each, f"{name}[{key!r}]")] for key, each in value.items()]
        if (found := self._callable(value, name)) is not None:
            return found
        form = encode(value, lost)
        if not lost or callable(getattr(value, "tobytes", None)):
            return form
        return self._object(value, name)

    def _callable(self, value: Any, name: str) -> Any:
        """The description of code, and of what binds or wraps code; ``None`` for other values."""
        if isinstance(value, functools.partial):
            return ["partial", self.of(value.func, name), self.of([list(value.args), value.keywords], name)]
        if isinstance(value, types.MethodType):
            return ["method", self.of(value.__func__, name), self.of(value.__self__, f"{name}.__self__")]
        if isinstance(value, (staticmethod, classmethod)):
            return ["wrapped", self.of(value.__func__, name)]
        if isinstance(value, (property, functools.cached_property)):
            parts = [getattr(value, part, None) for part in ("fget", "fset", "fdel", "func")]
            return ["property", *(self.of(part, name) for part in parts if part is not None)]
        if isinstance(value, types.FunctionType):
            return self._function(getattr(value, OWN, value), name)
        if isinstance(value, type):
            return self._class(value, name)
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__, _version(value.__name__)]
        if isinstance(value, types.BuiltinFunctionType) or (type(value).__module__ == "builtins" and callable(value)):
            return ["built in", getattr(value, "__qualname__", str(type(value)))]
        if hasattr(value, "__wrapped__"):
            return ["wrapped", type_name(type(value)), self.of(value.__wrapped__, name)]
        return None

    def _function(self, function: types.FunctionType, name: str) -> Any:
        if not _of_user(function):
            return ["function", function.__module__, function.__qualname__, _version(function.__module__ or "")]
        codes = list(_codes(function.__code__))
        changed = set().union(*(_changes(code)[0] for code in codes))
        wrapped = getattr(function, "__wrapped__", None)
        reached = {**self._globals(function, codes), **_closure(function)}
        return [
            "function",
            [_code(code, function.__doc__) for code in codes],
            self.of([list(function.__defaults__ or ()), dict(function.__kwdefaults__ or {})], f"{name}'s defaults"),
            [
                [each, None if each in changed and not _has_code(value) else self.of(value, f"{name}'s {each}")]
                for each, value in sorted(reached.items())
            ],
            None if wrapped is None else self.of(wrapped, name),
        ]

    def _globals(self, function: types.FunctionType, codes: list[types.CodeType]) -> dict[str, Any]:
        """The globals that a function names; of a module of the user's, what is named of that."""
        named = {each for code in codes for each in code.co_names}
        found = {each: function.__globals__[each] for each in named if each in function.__globals__}
        for each, value in list(found.items()):
            if isinstance(value, types.ModuleType) and _user_module(value.__name__):
                inner = {f"{each}.{part}": vars(value)[part] for part in named if part in vars(value)}
                found.update(inner)
        return found

    def _class(self, kind: type, name: str) -> Any:
        users = [each for each in kind.__mro__ if _user_module(each.__module__)]
        others = [type_name(each) for each in kind.__mro__ if each not in users and each is not object]
        found: list[Any] = ["class", kind.__qualname__, others]
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) and users:
            found.append(_schema(kind))
        changed = _changed_attributes(users)
        for each in users:
            parts = [
                [part, self.of(value, f"{name}.{part}")]
                for part, value in sorted(vars(each).items())
                if not CLASS_NOISE.fullmatch(part) and part not in changed
            ]
            found.append([each.__qualname__, parts])
        return found

    def _object(self, value: Any, name: str) -> Any:
        """The description of an object: its class, and what it holds beside what its own methods change."""
        kind = type(value)
        if isinstance(value, dspy.BaseLM):
            model = without_gateway(value)
            own = [self.of(each, each.__qualname__) for each in type(model).__mro__ if _user_module(each.__module__)]
            return ["language model", lm_settings(model), own]
        found: list[Any] = ["object", self.of(kind, kind.__qualname__)]
        if f"{kind.__module__}.{kind.__qualname__}" in WITHOUT_VALUE or isinstance(value, Iterator):
            return found
        if isinstance(value, PromptSpace):
            return [*found, [[part.name, self.of(list(part.candidates), part.name)] for part in value.parts]]
        users = [each for each in kind.__mro__ if _user_module(each.__module__)]
        if not users and not kind.__module__.startswith("dspy."):
            return [*found, self._foreign(value, name)]
        return [*found, self._state(value, name, users)]

    def _foreign(self, value: Any, name: str) -> Any:
        """What an object of another package is worth, of those that tell it."""
        if isinstance(value, re.Pattern):
            return [value.pattern, value.flags]
        if isinstance(value, (Mapping, list, tuple, set, frozenset, str, int, float)):
            return encode(value)
        for tell in ("to_csv", "numpy"):  # of data frames, of tensors
            if callable(getattr(value, tell, None)):
                return digest(getattr(value, tell)())
        self.unknown.append(f"{name} ({type(value).__module__}.{type(value).__qualname__})")
        return None

    def _state(self, value: Any, name: str, users: list[type]) -> Any:
        """The attributes of an object of the user's, or of DSPy's, beside those that change as it is used."""
        state = {**getattr(value, "__dict__", {}), **_slots(value)}
        changed = _changed_attributes(users)
        if isinstance(value, dspy.Module):
            changed |= STATE_OF_DSPY
        if isinstance(value, dspy.Predict):
            state["signature"] = _signature(value.signature)
            state["config"] = {each: part for each, part in value.config.items() if not is_credential(each)}
        if not users:
            state = {each: part for each, part in state.items() if not each.startswith("_")}
        held = sorted((str(each), part) for each, part in state.items() if each not in changed)
        own = encode(value) if isinstance(value, (Mapping, list, tuple, set, frozenset, str, int, float)) else None
        return [own, [[each, self.of(part, f"{name}.{each}")] for each, part in held]]


def fingerprint(value: Any, name: str) -> dict[str, Any]:
    """Digest of a metric or a program by its code and all that it reaches; under the rule of one version of Python.

    Returns:
        ``code``: version of Python and digest. ``unknown``: names of what cannot be compared, if there is such.
    """
    made = Fingerprint()
    found = made.of(value, name)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}{'O' * sys.flags.optimize}"
    code = f"{python}:{digest(found)}"
    return {"code": code, **({"unknown": sorted(set(made.unknown))} if made.unknown else {})}


def lm_settings(lm: Any) -> dict[str, Any]:
    """The name of a language model and its settings, but for those that change no answer and for credentials."""
    found: dict[str, Any] = {"model": str(getattr(lm, "model", type(lm).__name__))}
    for name in ("model_type", "use_developer_role", "finetuning_model"):
        if getattr(lm, name, None) not in (None, False):
            found[name] = str(getattr(lm, name))
    for name, value in (getattr(lm, "kwargs", None) or {}).items():
        if value is not None and name not in NO_ANSWER and not is_credential(name):
            found[name] = _without_credentials(value)
    return found


NO_ANSWER = frozenset(
    "api_base base_url api_version organization timeout request_timeout max_retries num_retries cache callbacks "
    "extra_headers headers default_headers user metadata rollout_id stream stream_timeout aws_region_name "
    "vertex_location vertex_project model_list client http_client litellm_params logger_fn launch_kwargs "
    "train_kwargs".split()
)  # where a model is found, and how it is asked, says nothing about what it answers


def _without_credentials(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_credentials(v) for k, v in value.items() if not is_credential(str(k))}
    if isinstance(value, type):
        return [type_name(value), _schema(value) if issubclass(value, pydantic.BaseModel) else None]
    return encode(value)


# ---------------------------------------------------------------------- whose code it is


@functools.cache
def _installed() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({str(Path(found).resolve()) + "/" for name in names if (found := sysconfig.get_paths().get(name))})


@functools.lru_cache(4096)
def _user_module(name: str | None) -> bool:
    """Whether a module is the user's: neither Python's, nor DSPy's, nor of an installed package."""
    if not name or name.partition(".")[0] in ("dspy", "builtins") or name.partition(".")[0] in sys.stdlib_module_names:
        return False
    place = getattr(sys.modules.get(name), "__file__", None)
    if place is None:
        return name == "__main__" or name not in sys.modules or not hasattr(sys.modules[name], "__path__")
    path = Path(place).resolve().as_posix()
    return not any(path.startswith(Path(folder).as_posix() + "/") for folder in _installed())


def _of_user(function: types.FunctionType) -> bool:
    """Of a function by its module, or where that is not known by its file."""
    return _user_module(function.__module__ or function.__globals__.get("__name__") or "__main__")


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@functools.lru_cache(1024)
def _version(module: str) -> str | None:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "dspy":
        return None
    try:
        return version(_distributions().get(top, [top])[0])
    except (PackageNotFoundError, ValueError):  # no such distribution, or no module name at all
        return None


# ---------------------------------------------------------------------- code


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    """A code object and those inside of it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)


def _code(code: types.CodeType, doc: str | None) -> Any:
    """What a code object does: no names of files, no lines, no comments, no docstring."""
    consts = [each for each in code.co_consts if not isinstance(each, types.CodeType) and (doc is None or each != doc)]
    return [digest(code.co_code), encode(consts), list(code.co_names), list(code.co_varnames), list(code.co_freevars)]


def _closure(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


@functools.lru_cache(4096)
def _changes(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """What the code itself changes, so that what it holds depends on how often the code has run.

    Variables from outside, and attributes: by an assignment to them or to an item of what their line names, or by a
    call to one of their methods that changes them.
    """
    variables: set[str] = set()
    attributes: set[str] = set()
    named: set[str] = set()  # variables of this line
    gotten: set[str] = set()  # attributes of this line
    variable: str | None = None
    attribute: str | None = None
    for step in dis.get_instructions(code):
        name = str(step.argval)
        if step.starts_line:
            named, gotten = set(), set()
        if step.opname in LOADS:
            variable = name
            named.add(name)
        elif step.opname in GETS:
            if name in MUTATORS:
                variables.update(filter(None, [variable]))
                attributes.update(filter(None, [attribute]))
            else:
                variable = None
            attribute = name
            gotten.add(name)
        elif step.opname in STORES:
            variables.add(name)
        elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            variables |= named
            attributes |= gotten
        else:
            attributes |= {name} if step.opname in ("STORE_ATTR", "DELETE_ATTR") else set()
            variable = variable if step.opname in ("PRECALL", "PUSH_NULL", "CACHE") else None
    return frozenset(variables), frozenset(attributes)


def _changed_attributes(classes: Iterable[type]) -> set[str]:
    """Attributes that the methods of classes change, but for those that are set as an object is made."""
    found: set[str] = set()
    for kind in classes:
        for name, method in vars(kind).items():
            method = getattr(method, OWN, method)
            function = inspect.unwrap(getattr(method, "__func__", method)) if callable(method) else None
            if isinstance(function, types.FunctionType) and name not in ("__init__", "__post_init__", "__new__"):
                for code in _codes(function.__code__):
                    found |= _changes(code)[1]
    return found


def _slots(value: Any) -> dict[str, Any]:
    names = [name for kind in type(value).__mro__ for name in _listed(vars(kind).get("__slots__", ()))]
    return {name: getattr(value, name) for name in names if hasattr(value, name) and name != "__weakref__"}


def _listed(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else [str(each) for each in slots]


def _schema(kind: Any) -> Any:
    try:
        return digest(kind.model_json_schema())
    except Exception:
        return [[name, str(field.annotation)] for name, field in kind.model_fields.items()]


def _signature(signature: Any) -> Any:
    fields = signature.fields.items()
    return [signature.instructions, [[name, str(f.annotation), encode(f.json_schema_extra)] for name, f in fields]]


def _has_code(value: Any) -> bool:
    return callable(value) or isinstance(value, types.ModuleType)

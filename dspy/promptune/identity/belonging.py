"""Whose code it is: the user's, which is compared, or of an installed package, whose version counts."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

__all__ = ["imported", "of_user", "user_classes", "user_module", "version_of"]


@functools.cache
def _installed() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({str(Path(found).resolve()) + "/" for name in names if (found := sysconfig.get_paths().get(name))})


def _not_ours(name: str) -> bool:
    top = name.partition(".")[0]
    return top in ("dspy", "builtins") or top in sys.stdlib_module_names or top.startswith("_cython")


def _is_installed(place: str) -> bool:
    path = Path(place).resolve().as_posix()
    return any(path.startswith(Path(folder).as_posix() + "/") for folder in _installed())


@functools.lru_cache(4096)
def user_module(name: Any) -> bool:
    """Whether a module is the user's: neither Python's, nor DSPy's, nor of an installed package."""
    if name == "__main__":
        return True
    if not name or not isinstance(name, str) or _not_ours(name):
        return False
    found = sys.modules.get(name)
    place = getattr(found, "__file__", None)
    places = [place] if place else list(getattr(found, "__path__", ()))
    return not places or not all(map(_is_installed, places))


def of_user(function: types.FunctionType) -> bool:
    """Of a function by its module, or where that is not known by its file."""
    return user_module(function.__module__ or function.__globals__.get("__name__") or "__main__")


def user_classes(kind: type) -> list[type]:
    """The user's among the classes that a class inherits from, itself included."""
    return [each for each in kind.__mro__ if user_module(each.__module__)]


def imported(level: int, name: str, package: str) -> tuple[str, Any]:
    """A module that a function imports: its full name, and the user's module itself, which is loaded for it.

    Another's is ``None``: it is not loaded. One that cannot be loaded is the error's type.
    """
    if level:
        try:
            name = importlib.util.resolve_name("." * level + name, package)
        except ImportError as error:
            return name, type(error)
    try:
        if name not in sys.modules and _may_load(name):
            importlib.import_module(name)
    except (Exception, SystemExit) as error:
        return name, type(error)
    module = sys.modules.get(name)
    return name, module if module is not None and user_module(module.__name__) else None


def _may_load(name: str) -> bool:
    """Whether a module that is not loaded is the user's, and not the script that is running."""
    top = name.partition(".")[0]
    if _not_ours(name):
        return False
    if top in sys.modules:
        found = sys.modules[top]
        places = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
    else:
        spec = importlib.util.find_spec(top)
        if spec is None:
            return True  # which says that it is not there
        places = [spec.origin, *(spec.submodule_search_locations or ())]
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    known = [str(place) for place in places if place]
    if main is not None and any(Path(place).resolve() == Path(main).resolve() for place in known):
        return False
    return not any(map(_is_installed, known))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@functools.lru_cache(1024)
def version_of(module: Any) -> str | None:
    """The version of the package that a module is from; ``None`` for Python's, DSPy's and the user's."""
    if not isinstance(module, str):
        return None
    top = module.partition(".")[0]
    if not top or _not_ours(top) or user_module(module):
        return None
    try:
        return version(top)
    except (PackageNotFoundError, ValueError):  # a package of another name, or of none
        names = _distributions().get(top)  # which reads all that is installed
    try:
        return version(names[0]) if names else None
    except PackageNotFoundError:
        return None

"""Compose the package: upstream's wheel with this repository's ``dspy/`` (the overlay) laid over it.

The composition is a plan, a mapping from a path inside the package to what lies there: bytes for what comes out of
upstream's wheel, a ``Path`` for a file of the overlay. ``lay`` writes a plan as files (a wheel) or as links (the
development tree). An upstream file that the overlay replaces is kept under ``dspy/_upstream/<same path>``.

Every failure is a ``ComposeError`` of one line that names the remedy.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = "dspy"
KEPT = "dspy/_upstream"
Plan = dict[str, "bytes | Path"]


class ComposeError(Exception):
    """The package cannot be composed; the message says why and what to do."""


@dataclass(frozen=True)
class Pin:
    """One upstream release this fork composes on: its version, the wheel's file name and its sha256 (hex)."""

    version: str
    wheel: str
    sha256: str


@dataclass(frozen=True)
class Pins:
    """The contents of ``upstream.toml``: our own version, the default release, and every supported one."""

    overlay: str
    default: str
    wheels: Mapping[str, Pin]

    @classmethod
    def read(cls, path: Path) -> Pins:
        """Read the pins from a TOML file."""
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        wheels = {version: Pin(version, row["name"], row["sha256"]) for version, row in table["wheels"].items()}
        return cls(table["overlay"], table["default"], wheels)

    def choose(self, version: str | None) -> Pin:
        """The pin of ``version``, or of the default release when it is empty or None."""
        wanted = version or self.default
        if wanted not in self.wheels:
            known = ", ".join(self.wheels)
            raise ComposeError(
                f"UPSTREAM={wanted} is not supported; set UPSTREAM to one of {known}, or pin that release with "
                f"`make upgrade-upstream VERSION={wanted}`."
            )
        return self.wheels[wanted]

    def composed_version(self, pin: Pin) -> str:
        """The version of the composed distribution, upstream's with ours as the local part."""
        return f"{pin.version}+promptune.{self.overlay}"


def upstream_wheel(pin: Pin, cache: Path, given: str | None = None) -> Path:
    """The pinned wheel, its hash checked: the file ``given``, else the one in ``cache``, downloaded if absent."""
    if given:
        path = Path(given).expanduser().resolve()
        if not path.is_file():
            raise ComposeError(
                f"DSPY_UPSTREAM_WHEEL={given} is not a file; give the absolute path of {pin.wheel}, "
                "or unset it to download the wheel."
            )
    else:
        path = cache / pin.wheel
        if not path.is_file():
            download(pin.version, cache)
    check(path, pin)
    return path


def check(path: Path, pin: Pin) -> None:
    """Refuse a file that is not the pinned wheel."""
    if not path.is_file():
        raise ComposeError(f"pip downloaded no {pin.wheel}; correct the name in upstream.toml.")
    found = sha256(path)
    if found != pin.sha256:
        raise ComposeError(
            f"{path} has sha256 {found}, but upstream.toml pins {pin.sha256} for dspy {pin.version}; download it "
            "again (delete this file), or set UPSTREAM to the release it is."
        )


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(version: str, folder: Path) -> None:
    """Download upstream's wheel of ``version`` into ``folder`` with pip, as the user has configured it."""
    folder.mkdir(parents=True, exist_ok=True)
    # `===` compares the whole string: `==` would also accept a composed wheel of this fork (a local version).
    wanted = f"{PACKAGE}==={version}"
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, wanted], capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        return
    lines = run.stderr.splitlines()
    said = ([line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines or [""])[-1]
    raise ComposeError(
        f"pip could not download dspy {version} ({said}); {_remedy(run.stderr)} or set DSPY_UPSTREAM_WHEEL to the "
        "absolute path of that wheel."
    )


def _remedy(stderr: str) -> str:
    if "No module named pip" in stderr:
        return "install pip in the environment that builds,"
    if "from versions: none" in stderr:
        return "it found no dspy at all: check the network and pip's index settings (`pip config list`),"
    return "check that your package index has that release,"


def plan(wheel: Path, overlay: Path) -> Plan:
    """What lies where in the composed package; ``overlay`` is the folder laid over upstream's ``dspy/``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and ".dist-info/" not in name]
        files: Plan = {name: archive.read(name) for name in names}
    kept: Plan = {}
    for name, source in overlay_files(overlay):
        original = files.get(name)
        if isinstance(original, bytes):
            kept[KEPT + name.removeprefix(PACKAGE)] = with_absolute_imports(name, original)
        files[name] = source
    for package in {parent for name in kept for parent in _parents(name)} - {PACKAGE}:
        kept.setdefault(f"{package}/__init__.py", b'"""Upstream modules that this fork replaces."""\n')
    return dict(sorted((files | kept).items()))


def overlay_files(overlay: Path) -> Iterator[tuple[str, Path]]:
    """Each file of the overlay with its path inside the package, caches left out."""
    if (overlay / "__init__.py").exists():
        raise ComposeError(
            f"{overlay}/__init__.py would make the checkout shadow the installed package; "
            "move what it does into a module of its own."
        )
    for path in sorted(overlay.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".pyo"):
            yield f"{PACKAGE}/{path.relative_to(overlay).as_posix()}", path


def with_absolute_imports(name: str, source: bytes) -> bytes:
    """A module's source with its relative imports made absolute, so that it imports the same things elsewhere.

    ``name`` is the path the module had in the package. A source without relative imports is returned as it is.
    """
    if not name.endswith(".py"):
        return source
    lines = source.splitlines(keepends=True)
    package = PurePosixPath(name).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            absolute = ".".join([*base, node.module] if node.module else base).encode()
            line, column = lines[node.lineno - 1], node.col_offset
            rest, found = re.subn(rb"^from\s*\.[.\s]*[\w.]*\s*(?=import\b)", b"from %b " % absolute, line[column:])
            if not found:
                raise ComposeError(
                    f"{name}, line {node.lineno}: this relative import cannot be made absolute, so the module cannot "
                    f"be kept under {KEPT}; leave it in place and change it from a module of its own."
                )
            lines[node.lineno - 1] = line[:column] + rest
    return b"".join(lines)


def lay(files: Plan, target: Path, *, link: bool = False) -> None:
    """Make ``target`` hold exactly the plan, touching only what differs; with ``link``, overlay files are links.

    Linked, a folder that only the overlay has is one link, so that files added to it are seen at once.
    """
    entries = with_linked_folders(files) if link else files
    _remove_others(target, entries)
    for name, source in entries.items():
        _put(target / name, source, link)


def _remove_others(target: Path, entries: Plan) -> None:
    """Remove what lies in the package and not among the entries; links go, never what they lead to."""
    for folder, folders, files in os.walk(target / PACKAGE, topdown=False, followlinks=False):
        here = Path(folder)
        if here.name == "__pycache__":
            continue
        for path in [here / name for name in files] + [here / name for name in folders if (here / name).is_symlink()]:
            if path.relative_to(target).as_posix() not in entries:
                path.unlink()
        if {path.name for path in here.iterdir()} <= {"__pycache__"}:
            shutil.rmtree(here)


def _put(path: Path, source: bytes | Path, link: bool) -> None:
    if link and isinstance(source, Path):
        if path.is_symlink() and Path(os.readlink(path)) == source:
            return
    elif path.is_file() and not path.is_symlink() and path.read_bytes() == _content(source):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    fresh = path.with_name(path.name + ".new")
    if link and isinstance(source, Path):
        fresh.symlink_to(source)
    else:
        fresh.write_bytes(_content(source))
    os.replace(fresh, path)


def _content(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def with_linked_folders(files: Plan) -> Plan:
    """The plan with each outermost folder that only the overlay has as one entry."""
    mixed = {parent for name, source in files.items() if isinstance(source, bytes) for parent in _parents(name)}
    entries: Plan = {}
    for name, source in files.items():
        folder = next((parent for parent in reversed(_parents(name)) if parent not in mixed), None)
        if isinstance(source, Path) and folder is not None:
            depth = len(PurePosixPath(name).parts) - len(PurePosixPath(folder).parts)
            entries[folder] = source.parents[depth - 1]
        else:
            entries[name] = source
    return entries


def _parents(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name).parents][:-1]


def metadata(wheel: Path) -> Message:
    """The METADATA of a wheel, as an e-mail message."""
    return Parser().parsestr(_dist_info(wheel, "METADATA"))


def license(wheel: Path) -> str:
    """The text of the license that a wheel carries."""
    return _dist_info(wheel, "LICENSE")


def _dist_info(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name and name.rsplit("/", 1)[-1] == file:
                return archive.read(name).decode("utf-8")
    raise ComposeError(f"{wheel} carries no {file}, so it is no wheel this fork can be composed on.")


def requirements(upstream: Message) -> dict[str, list[str]]:
    """Requires-Dist of a METADATA by extra ("" for those always needed), in the form setuptools takes them."""
    table: dict[str, list[str]] = {"": []}
    for extra in upstream.get_all("Provides-Extra") or []:
        table[extra] = []
    for line in upstream.get_all("Requires-Dist") or []:
        need, _, marker = (part.strip() for part in line.partition(";"))
        found = re.fullmatch(r"(?:(.+) and )?extra == ['\"](.+)['\"]", marker)
        if found:
            condition, extra = found.groups()
            table[extra].append(f"{need}; {condition}" if condition else need)
        elif "extra ==" in line:
            raise ComposeError(f"upstream requires {line!r}, a marker of unknown form; teach it to tools/compose.py.")
        else:
            table[""].append(line)
    return table


def current(root: Path) -> tuple[Pins, Pin, Path]:
    """The pins of a checkout, the one the environment chooses (UPSTREAM), and its wheel (DSPY_UPSTREAM_WHEEL)."""
    pins = Pins.read(root / "upstream.toml")
    pin = pins.choose(os.environ.get("UPSTREAM"))
    return pins, pin, upstream_wheel(pin, root / "build/upstream", os.environ.get("DSPY_UPSTREAM_WHEEL"))


def main() -> None:
    """Bring the development tree, build/dev of this checkout, up to date."""
    root = Path(__file__).resolve().parent.parent
    try:
        _, pin, wheel = current(root)
        lay(plan(wheel, root / "dspy"), root / "build/dev", link=True)
    except ComposeError as error:
        sys.exit(f"dspy: {error}")
    print(f"build/dev: dspy {pin.version} with this checkout's overlay")


if __name__ == "__main__":
    main()

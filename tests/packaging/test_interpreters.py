"""The Python versions that the metadata promises, and systems that are not POSIX, as far as that shows without them."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compose

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = sorted((ROOT / "dspy").rglob("*.py"))
VERSIONS = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))


def interpreter(version):
    """An interpreter of a version, of pyenv or on the path."""
    name = ".".join(map(str, version))
    installed = sorted((Path.home() / ".pyenv/versions").glob(f"{name}.*/bin/python"))
    return str(installed[-1]) if installed else shutil.which(f"python{name}")


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: ".".join(map(str, version)))
def test_the_overlay_is_source_of_this_version(version):
    """Every file of the overlay is parsed by the version's interpreter, or else by its grammar as this one knows it."""
    python = interpreter(version)
    if python is None:
        for path in OVERLAY:
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=version)
        return
    code = "import ast, sys; [ast.parse(open(p, encoding='utf-8').read(), p) for p in sys.stdin.read().split('\\n')]"
    done = subprocess.run([python, "-c", code], input="\n".join(map(str, OVERLAY)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_the_range_of_the_metadata_is_tested():
    """Upstream's range begins with the first of these versions; the last is the newest with wheels of torch."""
    wanted = compose.metadata(compose.current(ROOT)[2])["Requires-Python"]
    assert ">=3.10" in wanted and "<3.16" in wanted and VERSIONS[0] == (3, 10)


@pytest.mark.slow
def test_no_module_needs_what_only_posix_has():
    """Every module is imported where Python has no ``fcntl``, ``resource`` and the like, as on Windows."""
    code = (
        "import importlib, pkgutil, sys\n"
        "for name in ('fcntl', 'grp', 'pwd', 'resource', 'syslog', 'termios', 'tty', 'pty'): sys.modules[name] = None\n"
        "import dspy.promptune as ours\n"
        "found = [each.name for each in pkgutil.walk_packages(ours.__path__, f'{ours.__name__}.')]\n"
        "for name in found:\n"
        "    if not name.endswith('__main__'): importlib.import_module(name)\n"
        "print(len(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) == len([path for path in OVERLAY if "promptune" in path.parts]) - 1


def test_no_module_calls_what_only_posix_has():
    """What ``os`` and ``signal`` have on POSIX alone is used only where it was asked whether it is there."""
    posix = {
        "os": {"fork", "getuid", "geteuid", "getgid", "getloadavg", "getpgid", "kill", "killpg", "mkfifo", "nice",
               "pread", "pwrite", "sched_getaffinity", "setsid", "uname", "wait", "O_DIRECTORY"},
        "signal": {"SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "alarm", "pthread_kill", "setitimer"},
    }  # fmt: skip
    used = {
        f"{path.name}: {node.value.id}.{node.attr}"
        for path in OVERLAY
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.attr in posix.get(node.value.id, ())
        if f'hasattr({node.value.id}, "{node.attr}")' not in path.read_text(encoding="utf-8")
    }
    assert used == set()

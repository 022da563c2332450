"""Run DSPy's own test suite on this fork and on unmodified DSPy of the same version, and compare test by test.

``DSPY_TESTS=DIR`` names a folder that holds DSPy's ``tests/`` and ``pyproject.toml``; without it git clones the tag
of the version. Each side gets an environment of its own under build/suite, with the same versions of everything.
The exit code is 1 where a test that passes on unmodified DSPy does not pass on the fork, or is no longer there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import venv
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import compose

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/stanfordnlp/dspy"
EXTRAS = "[dev,test_extras,optuna,numpy]"
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "LM_FOR_TEST", "PYTHONPATH")
WORSE = ("passed", "skipped", "failure", "error", "missing")
Outcomes = dict[str, str]


def main() -> None:
    """Run both sides and print how they differ."""
    try:
        _, pin, upstream = compose.current(ROOT)
    except compose.ComposeError as error:
        sys.exit(f"dspy: {error}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job, and a test sends it
    work = ROOT / "build/suite" / pin.version
    work.mkdir(parents=True, exist_ok=True)
    tests = find_tests(pin.version, work)
    fork = build_wheel(work / "wheel")
    fork_python = environment(work / "fork", fork, ROOT / "constraints.txt")
    upstream_python = environment(work / "upstream", upstream, freeze(fork_python, work / "constraints.txt"))
    ours = run(fork_python, tests, work / "fork-run")
    theirs = run(upstream_python, tests, work / "upstream-run")
    sys.exit(report(ours, theirs, pin.version))


def find_tests(version: str, work: Path) -> Path:
    """A folder with only upstream's tests and pytest settings: no dspy/ in it that would shadow the installed one."""
    given = os.environ.get("DSPY_TESTS")
    source = Path(given) if given else work / "clone"
    if not given and not source.is_dir():
        clone = ["git", "clone", "--quiet", "--depth=1", f"--branch={version}", REPOSITORY, str(source)]
        if subprocess.run(clone, check=False).returncode:
            sys.exit(f"git could not clone tag {version} of {REPOSITORY}; set DSPY_TESTS to a copy of it.")
    if not (source / "tests").is_dir() or not (source / "pyproject.toml").is_file():
        sys.exit(f"DSPY_TESTS={source} must hold DSPy's tests/ and pyproject.toml.")
    target = work / "tests"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source / "tests", target / "tests")
    shutil.copy(source / "pyproject.toml", target)
    return target


def build_wheel(folder: Path) -> Path:
    """Build this checkout's wheel into an emptied folder."""
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(pip, check=True)
    return next(folder.glob("*.whl"))


def environment(folder: Path, wheel: Path, constraints: Path) -> Path:
    """The interpreter of an environment that has ``wheel`` with what the suite needs."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run([*pip, f"{wheel}{EXTRAS}"], check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
    return python


def freeze(python: Path, path: Path) -> Path:
    """Write the versions an environment has as constraints for another one."""
    pip = [str(python), "-m", "pip", "freeze", "--exclude", "dspy"]
    path.write_text(subprocess.run(pip, check=True, capture_output=True, text=True).stdout, encoding="utf-8")
    return path


def run(python: Path, tests: Path, out: Path) -> Outcomes:
    """Run the suite with an interpreter; the outcome of each test."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "home").mkdir(parents=True)
    env = {name: value for name, value in os.environ.items() if name not in KEYS}
    env |= {
        "PATH": f"{python.parent}{os.pathsep}{env['PATH']}",  # tests start `litellm` by name
        "HOME": str(out / "home"),
        "DSPY_CACHEDIR": str(out / "cache"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no fetch at import
        "LITELLM_MASTER_KEY": "fakekey",  # the loopback proxy of some tests does not start without one
    }
    options = ["-m", "not extra and not deno", "-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal", "-q"]
    command = [str(python), "-m", "pytest", *options, f"--junitxml={out}/junit.xml", "tests"]
    print(f"{out.name}: {' '.join(command)}", flush=True)
    with open(out / "log.txt", "w", encoding="utf-8") as log:
        subprocess.run(command, cwd=tests, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not (out / "junit.xml").is_file():
        sys.exit(f"pytest did not finish; see {out}/log.txt.")
    return read_outcomes(out / "junit.xml")


def read_outcomes(junit: Path) -> Outcomes:
    """The outcome of each test in a JUnit file: "passed", "skipped", "failure" or "error" (the worst of several)."""
    outcomes: Outcomes = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
        found = [child.tag for child in case if child.tag in WORSE] + [outcomes.get(name, "passed")]
        outcomes[name] = max(found, key=WORSE.index)
    return outcomes


def report(ours: Mapping[str, str], theirs: Mapping[str, str], version: str) -> int:
    """Print both outcomes and how the failures differ; 1 if a test is worse on the fork than on upstream, else 0."""
    for side, outcomes in (("fork", ours), (f"dspy {version}", theirs)):
        counts = Counter(outcomes.values())
        print(f"{side:>12}: " + ", ".join(f"{counts[kind]} {kind}" for kind in WORSE[:-1]))
    both = [name for name in theirs if not good(theirs[name]) and not good(ours.get(name, "missing"))]
    print(f"failing on both: {len(both)}")
    worse = [name for name in theirs if is_worse(ours.get(name, "missing"), theirs[name])]
    better = [name for name in theirs if is_worse(theirs[name], ours.get(name, "missing"))]
    for title, names in (("worse on the fork", worse), ("better on the fork", better)):
        print(f"{title}: {len(names)}")
        for name in sorted(names):
            print(f"  {name}: fork {ours.get(name, 'missing')}, upstream {theirs[name]}")
    return 1 if worse else 0


def good(outcome: str) -> bool:
    """Whether an outcome is no failure."""
    return outcome in ("passed", "skipped")


def is_worse(one: str, other: str) -> bool:
    """Whether ``one`` is worse than ``other``; the ways to fail are equally bad."""
    return WORSE.index(one) > WORSE.index(other) and good(other)


if __name__ == "__main__":
    main()

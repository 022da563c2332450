"""Scripts in two versions each (``kinds/*.txt``), and the runs that they are, as another process sees them.

``python -m tests.identity.scripts FOLDER`` writes each version below the folder, runs it, and prints what its run is,
as JSON by kind.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import dspy
from dspy.promptune.identity.manifest import compile_manifest

FILES = {
    "low.py": "def f(): return @@\n",
    "upper.py": "import low\n",
    "pack/__init__.py": "",
    "pack/sub.py": "def f(): return @@\n",
    "pack/lazy.py": "def metric(e, p, trace=None):\n    from .sub import f\n    return f()\n",
}


def kinds(*names: str) -> dict[str, list[tuple[str, str]]]:
    """Scripts by kind: of each version the text, and what stands in it for @@."""
    found = {}
    for name in names:
        texts = (Path(__file__).parent / "kinds" / f"{name}.txt").read_text().split("\n=== ")[1:]
        for head, _, script in (text.partition("\n") for text in texts):
            kind, _, values = head.partition(": ")
            versions = [value.replace("\\n", "\n") for value in values.split(" | ")]
            found[kind] = [(script.replace("@@", value), value) for value in versions]
    return found


CHANGED, SAME = kinds("metrics", "programs_and_data"), kinds("same")


def described(folder: Path, script: str, value: str) -> dict[str, Any]:
    """What the run of a script is."""
    for name, text in {**FILES, "script.py": "import dspy\n" + script}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("@@", value))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("low", "upper", "pack", "script")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        found = vars(importlib.import_module("script"))
        lm = found.get("lm") or dspy.LM("openai/x", api_key="none-none")
        data = found.get("data") or [dspy.Example(question="q", answer="a").with_inputs("question")]
        program, metric = found.get("program") or dspy.Predict("question -> answer"), found.get("metric") or len
        parts: dict[str, Any] = {"metric": metric, "lms": {"task_model": lm}, "settings": {}, "options": {}}
        return dict(json.loads(json.dumps(compile_manifest(program, {"trainset": data}, **parts))))
    finally:
        sys.path.remove(str(folder))


def main(place: str) -> None:
    """Print what each kind's runs are."""
    sys.dont_write_bytecode = True
    found: dict[str, list[Any]] = {}
    for kind, versions in {**CHANGED, **SAME}.items():
        folders = [Path(place) / f"{len(found)}{which}" for which in "ab"]
        found[kind] = [described(at, *each) for at, each in zip(folders, versions, strict=True)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

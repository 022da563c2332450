"""Composing a package from an upstream wheel and an overlay."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import compose

REPLACEMENT = """\
from dspy._upstream.teleprompt.mipro import Optimizer as Upstream


class Optimizer(Upstream):
    ours = True
"""
OVERLAY = dict.fromkeys(["teleprompt/extra.py", "promptune/__init__.py", "promptune/a/b.py"], "") | {
    "teleprompt/mipro.py": REPLACEMENT
}


def written(target: Path) -> dict[str, bytes]:
    """The contents of every file below a folder, links followed."""
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def run_in(target: Path, code: str) -> str:
    """What a Python that imports from ``target`` prints for ``code``."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=target).stdout.strip()


def test_every_upstream_file_is_kept_byte_for_byte(wheel, overlay, tmp_path):
    """Each upstream file lies at its path as it was, or under dspy/_upstream where the overlay replaces it."""
    compose.lay(compose.plan(wheel, overlay(OVERLAY)), tmp_path / "out")
    files = written(tmp_path / "out")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" not in name:
                kept = name.replace("dspy/", "dspy/_upstream/") if name == "dspy/teleprompt/mipro.py" else name
                assert files.pop(kept) == archive.read(name), name
    packages = {"dspy/_upstream/__init__.py", "dspy/_upstream/teleprompt/__init__.py"}
    assert set(files) == packages | {f"dspy/{name}" for name in OVERLAY}


def test_a_replacement_can_subclass_what_it_replaces(wheel, overlay, tmp_path):
    """The composed package imports, and our class is upstream's class with more."""
    compose.lay(compose.plan(wheel, overlay(OVERLAY)), tmp_path / "out")
    assert run_in(tmp_path / "out", "import dspy; print(dspy.Optimizer.name, dspy.Optimizer.ours)") == "upstream True"


def test_relative_imports_of_a_kept_module_still_mean_the_same(wheel, overlay, tmp_path):
    """A replaced module that imports relatively shares its imports with the package, it does not import copies."""
    compose.lay(compose.plan(wheel, overlay({"teleprompt/relative.py": ""})), tmp_path / "out")
    code = "import dspy.teleprompt.base as t; from dspy._upstream.teleprompt import relative as r; "
    assert run_in(tmp_path / "out", code + "print(r.b is t, r.base is t, r.NAME)") == "True True upstream"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from .a import b\n", "from dspy.x.a import b\n"),
        ("from ..a.c import (b,\n  c)\n", "from dspy.a.c import (b,\n  c)\n"),
        ("from . import a\n", "from dspy.x import a\n"),
        ("if True:\n    from .  import a as é\n", "if True:\n    from dspy.x import a as é\n"),
        ("s = 'é'; from .a import b  # from .a\n", "s = 'é'; from dspy.x.a import b  # from .a\n"),
        ("s = '''\nfrom .a import b\n'''\n", "s = '''\nfrom .a import b\n'''\n"),
    ],
)
def test_only_relative_import_statements_change(source, expected):
    """A relative import becomes absolute and every other byte of the module stays."""
    assert compose.with_absolute_imports("dspy/x/m.py", source.encode()).decode() == expected


def test_a_relative_import_of_an_odd_form_is_refused():
    """A relative import broken over lines stops the build, with the file and the line."""
    with pytest.raises(compose.ComposeError, match=r"dspy/x/m\.py, line 2: .*leave it in place"):
        compose.with_absolute_imports("dspy/x/m.py", b"\nfrom .a \\\n import b\n")


def test_an_overlay_with_a_root_package_file_is_refused(wheel, overlay):
    """dspy/__init__.py in the overlay would shadow the installed package in a checkout, so it stops the build."""
    with pytest.raises(compose.ComposeError, match=r"__init__\.py would make the checkout shadow"):
        compose.plan(wheel, overlay({"__init__.py": ""}))


def test_caches_of_the_overlay_stay_out(wheel, overlay):
    """Byte code lying in the checkout does not travel."""
    files = compose.plan(wheel, overlay({"promptune/a.py": "", "promptune/__pycache__/a.cpython-311.pyc": ""}))
    assert [name for name in files if "promptune" in name] == ["dspy/promptune/a.py"]


def test_linked_tree_shows_edits_and_new_files_at_once(wheel, overlay, tmp_path):
    """An edit of a linked file, and a new file in a folder only the overlay has, need no second composition."""
    source = overlay(OVERLAY)
    compose.lay(compose.plan(wheel, source), tmp_path / "dev", link=True)
    (source / "promptune/fresh.py").write_text("VALUE = 1\n")
    (source / "teleprompt/mipro.py").write_text(REPLACEMENT.replace("True", "'edited'"))
    code = "import dspy; from dspy.promptune.fresh import VALUE; print(dspy.Optimizer.ours, VALUE)"
    assert run_in(tmp_path / "dev", code) == "edited 1"


def test_composing_again_follows_the_overlay(wheel, overlay, tmp_path):
    """A second composition adds what was added, removes what was removed, and touches nothing else."""
    source, dev = overlay(OVERLAY), tmp_path / "dev"
    compose.lay(compose.plan(wheel, source), dev, link=True)
    before = {path: path.lstat().st_mtime_ns for path in dev.rglob("*.py")}
    (source / "teleprompt/mipro.py").unlink()
    (source / "teleprompt/later.py").write_text("")
    compose.lay(compose.plan(wheel, source), dev, link=True)
    assert (dev / "dspy/teleprompt/later.py").is_symlink()
    assert not (dev / "dspy/_upstream").exists()
    assert not (dev / "dspy/teleprompt/mipro.py").is_symlink()
    same = [path for path in before if path.exists() and path.name != "mipro.py"]
    assert len(same) > 4
    assert all(path.lstat().st_mtime_ns == before[path] for path in same)


def test_a_folder_that_upstream_gains_is_no_longer_one_link(wheel, overlay, tmp_path):
    """Where a release of upstream brings files into a folder that was ours alone, both sides' files are there."""
    source, dev = overlay({"promptune/a.py": ""}), tmp_path / "dev"
    compose.lay(compose.plan(wheel, source), dev, link=True)
    assert (dev / "dspy/promptune").is_symlink()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("dspy/promptune/theirs.py", "")
    compose.lay(compose.plan(wheel, source), dev, link=True)
    assert sorted(path.name for path in (dev / "dspy/promptune").iterdir()) == ["a.py", "theirs.py"]
    assert not (source / "promptune/theirs.py").exists()


def test_a_link_goes_without_what_it_leads_to(wheel, overlay, tmp_path):
    """Removing linked folders and files from the tree never removes the checkout's own files."""
    source, dev = overlay(OVERLAY), tmp_path / "dev"
    compose.lay(compose.plan(wheel, source), dev, link=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    compose.lay(compose.plan(wheel, empty), dev, link=True)
    assert not (dev / "dspy/promptune").exists()
    assert {str(path.relative_to(source)) for path in source.rglob("*.py")} == set(OVERLAY)

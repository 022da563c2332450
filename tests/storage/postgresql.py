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


class Server(str):
    """The URL of a database, whose server can be stopped and started again."""

    control: tuple[Any, ...]
    options: tuple[Any, ...]

    def start(self) -> None:
        """Returns when it accepts connections."""
        _run(*self.control, *self.options, "-w", "start")

    def stop(self) -> None:
        """As a crash: nobody is waited for."""
        _run(*self.control, "-m", "immediate", "stop")


@contextlib.contextmanager
def running() -> Iterator[Server | None]:
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
        server = Server(f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/postgres")
        server.control = (user, programs / "pg_ctl", "-D", data)
        server.options = ("-o", f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}", "-l", folder / "log")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

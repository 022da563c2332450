"""Runs in a real PostgreSQL server, which the test starts on a port of its own."""

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from dspy.promptune import StorageError, search
from dspy.promptune.engine.storage import open_storage
from tests.durable.test_kill import check, killed

pytestmark = pytest.mark.slow
PASSWORD = "a-word-of-its-own"


def _programs():
    """The folder of the server's programs, or ``None``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).resolve().parent if on_path else None


def _run(user, *command):
    """Run a program of the server, which refuses to be root."""
    prefix = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
    subprocess.run([*prefix, *map(str, command)], check=True, capture_output=True, cwd="/")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of an empty database."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install -y postgresql")
    pytest.importorskip("psycopg", reason="its driver is not installed: pip install psycopg[binary]")
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


def test_a_run_is_written_and_taken_up(server, table):
    """A search in PostgreSQL resumes, and pays for nothing twice."""
    for budget in (40, 80):
        found = search(
            table.space, table, n_examples=12, max_calls=budget, sampler="random", minibatch_size=4, seed=1,
            storage=server, study_name="one", resume=True, n_jobs=3,
        )  # fmt: skip
        assert found.calls == budget
    assert len(table.paid) == len(set(table.paid)) == 80


def test_a_wrong_password_is_said_without_showing_it(server):
    """A wrong password, and a database that is not there, are refused at the start; no password is in the message."""
    with pytest.raises(StorageError, match="Correct user name and password") as error:
        open_storage(server.replace(PASSWORD, "another-word"))
    assert "another-word" not in str(error.value)
    with pytest.raises(StorageError, match="Create the database first") as error:
        open_storage(server.removesuffix("postgres") + "nothing")
    assert PASSWORD not in str(error.value)


def test_a_few_kills(server):
    """A compile that is killed ten times keeps all that was finished in PostgreSQL."""
    studies, records = killed(server, kills=10, kills_each=5)
    assert check(studies, records).deaths >= 8

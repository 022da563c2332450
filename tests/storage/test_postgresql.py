"""Runs in a real PostgreSQL server, which the test starts on a port of its own."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import pytest

from dspy.promptune import StorageError, search
from dspy.promptune.storage import writer
from dspy.promptune.storage.backend import open_storage
from tests.server import Latency, LMServer, TaskRule
from tests.storage.lives import LIMIT, QUESTIONS, on_disk
from tests.storage.postgresql import PASSWORD, running
from tests.storage.test_kill import ROOT, check, killed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    """The URL of an empty database."""
    pytest.importorskip("psycopg", reason="its driver is not installed: pip install psycopg[binary]")
    with running() as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed: apt-get install -y postgresql")
        yield url


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


class Outage:
    """Scores prompts as the table does, and at its 30th example has something done to the server, in a thread."""

    def __init__(self, table, happens):
        self.table, self.count, self.lock = table, 0, threading.Lock()
        self.thread = threading.Thread(target=happens)

    def __call__(self, params, examples):
        with self.lock:
            before, self.count = self.count, self.count + len(examples)
        if before < 30 <= self.count:
            self.thread.start()
        time.sleep(0.01)
        return self.table(params, examples)


def searched(server, evaluate, study_name):
    """A search of 120 calls in PostgreSQL."""
    space = evaluate.table.space
    return search(
        space, evaluate, n_examples=12, max_calls=120, sampler="random", minibatch_size=4, seed=1, storage=server,
        study_name=study_name, resume=True, n_jobs=3,
    )  # fmt: skip


def drop(server):
    """End every connection, four times."""
    import psycopg

    for _ in range(4):
        with psycopg.connect(server, autocommit=True) as connection:
            others = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
            connection.execute(others + " and datname is not null")
        time.sleep(0.1)


def restart(server):
    """A crash, and a start a second later."""
    server.stop()
    time.sleep(1)
    server.start()


@pytest.mark.parametrize("happens", [drop, restart])
def test_a_server_that_comes_back_is_waited_for(server, table, happens):
    """A lost connection costs a search nothing: it ends with its whole budget, all of it on disk, none of it twice."""
    evaluate = Outage(table, lambda: happens(server))
    found = searched(server, evaluate, happens.__name__)
    evaluate.thread.join()
    assert found.calls == 120 and found.ended == "the budget is spent"
    assert len(table.paid) == len(set(table.paid)) == 120
    stored = on_disk(server, happens.__name__)
    assert len({tuple(pair) for pair in stored["pairs"]}) == 120
    assert "RUNNING" not in {trial.state.name for trial in found.study.get_trials(deepcopy=False)}


def test_a_server_that_stays_away_ends_the_run(server, table, monkeypatch):
    """After the time that it is waited for, the run ends with what it has; taken up again it pays for nothing twice."""
    monkeypatch.setattr(writer, "RECONNECT_SECONDS", 0.5)
    evaluate = Outage(table, server.stop)
    found = searched(server, evaluate, "away")
    assert "the connection to the server was lost" in found.ended and found.calls < 120
    server.start()
    assert searched(server, evaluate, "away").calls == 120
    assert len(set(table.paid)) == 120 and len(table.paid) <= 120 + 3 * 4  # what was in flight may be paid again


def test_an_interrupt_ends_the_wait_for_a_server(server, table, python_hears_interrupts):
    """Ctrl-C while a server is away gives the best so far within seconds."""
    pressed = []

    def lost():
        server.stop()
        time.sleep(1)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    found = searched(server, Outage(table, lost), "interrupted")
    assert time.monotonic() - pressed[0] < 10 and found.ended == "interrupted" and found.calls >= 20
    server.start()
    assert searched(server, Outage(table, lambda: None), "interrupted").calls == 120


DRIVE = f"""
    import json, sys
    sys.path.insert(0, {str(ROOT)!r})
    from tests.storage.lives import compiled, found
    url, storage, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    program = compiled(url, storage, study_name="shared", resume=False, share=True, **options)
    run = program.optimization_run
    drivers = {{trial.user_attrs["driver"] for trial in run.trials}}
    said = {{"ended": run.ended, "drivers": len(drivers), "trials": len(program.trial_logs), "spent": run.spent}}
    print(json.dumps({{**found(program), **said}}))
"""


def drive(url, storage, **options):
    """A process that takes part in the study "shared"."""
    command = [sys.executable, "-c", textwrap.dedent(DRIVE), url, storage, json.dumps(options)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=ROOT)


def ended(process):
    """What a driver found, when it has."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def calls_of(records):
    """How often each example of each prompt was asked for."""
    return Counter(record.key for record in records if record.label == "answer")


@pytest.fixture
def database(server):
    """The database without the study "shared"."""
    import optuna

    yield server
    storage = open_storage(server).storage
    if "shared" in [study.study_name for study in storage.get_all_studies()]:
        optuna.delete_study(study_name="shared", storage=storage)


@pytest.mark.parametrize("sampler", ["tpe", "onehot"])
def test_drivers_share_a_study(database, sampler):
    """Two processes on one study ask for nothing twice, steps 1 and 2 included, and return the same program."""
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.05), process=True) as model:
        options = {"sampler": sampler, "num_trials": 20}
        both = [drive(model.url, database, **options) for _ in range(2)]
        one, other = map(ended, both)
        records = model.records()
    counts = Counter(record.key for record in records)
    twice = {record.label for record in records if counts[record.key] > 1}
    assert twice <= {"program_description", "module_description"}  # the same for several proposals of one run
    assert {name: one[name] for name in ("score", "params", "instructions", "calls")} == {
        name: other[name] for name in ("score", "params", "instructions", "calls")
    }
    assert one["drivers"] == 2 and one["trials"] == other["trials"] and "RUNNING" not in one["states"]
    spent = max(sum(step.get("calls", 0) for step in each["spent"].values()) for each in (one, other))
    assert spent <= len(records)


def test_a_driver_that_is_killed_leaves_the_other_right(database):
    """After a SIGKILL in the search the other ends with the whole budget, and repeats only what was in flight."""
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.05), process=True) as model:
        options = {"sampler": "tpe", "num_trials": 40}
        both = [drive(model.url, database, **options) for _ in range(2)]
        while len(calls_of(model.records())) < 150:
            time.sleep(0.05)
        before = on_disk(database, "shared")
        both[0].kill()
        both[0].communicate()
        found = ended(both[1])
        records = model.records()
    after = on_disk(database, "shared")
    assert {tuple(pair) for pair in before["pairs"]} <= {tuple(pair) for pair in after["pairs"]}
    assert found["calls"] <= len(after["pairs"]) <= found["calls"] + LIMIT and "RUNNING" not in found["states"]
    twice = [count - 1 for count in calls_of(records).values() if count > 1]
    assert sum(twice) <= LIMIT and all(count == 1 for count in twice)


def test_the_driver_that_makes_the_candidates_is_killed(database):
    """Another driver takes over where it was: pieces of steps 1 and 2 that were finished are not made again."""
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.1), process=True) as model:
        first = drive(model.url, database, sampler="tpe")
        while not on_disk(database, "shared")["pieces"]:
            time.sleep(0.05)
        second = drive(model.url, database, sampler="tpe")
        time.sleep(0.5)
        before = on_disk(database, "shared")
        first.kill()
        first.communicate()
        found = ended(second)
    after = on_disk(database, "shared")
    assert set(before["pieces"]) <= set(after["pieces"]) and after["step"] == "search"
    assert "RUNNING" not in found["states"] and found["calls"] <= len(after["pairs"]) <= found["calls"] + LIMIT


def test_all_drivers_are_killed(database):
    """A study whose drivers were all killed is continued by the same call."""
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.2), process=True) as model:
        both = [drive(model.url, database, sampler="tpe", num_trials=40) for _ in range(2)]
        while len(calls_of(model.records())) < 60:  # hundreds are left, and some are always in flight
            time.sleep(0.05)
        for each in both:
            each.kill()
        for each in both:
            each.communicate()
        found = ended(drive(model.url, database, sampler="tpe", num_trials=40))
        counts = calls_of(model.records())
    assert sum(count - 1 for count in counts.values()) <= 2 * LIMIT and max(counts.values()) == 2
    assert found["calls"] <= len(on_disk(database, "shared")["pairs"]) <= found["calls"] + LIMIT


def test_a_limit_is_for_all_drivers(database):
    """``max_lm_calls`` holds for two drivers together, but for what was spent since they last heard of each other."""
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.05), process=True) as model:
        options = {"sampler": "tpe", "num_trials": 40, "max_lm_calls": 200}
        both = [drive(model.url, database, **options) for _ in range(2)]
        assert all("max_lm_calls" in ended(each)["ended"] for each in both)
        assert model.requests < 200 * 2

"""Two runs on one study: one of them goes on, the other says why it does not, and nothing is corrupted."""

import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import optuna
import pytest

import dspy.promptune.storage.held_study as held_study
from dspy.promptune import StorageError, search
from dspy.promptune.storage.backend import open_storage
from tests.tables import Table

ROOT = Path(__file__).resolve().parents[2]
BOTH = f"""
    import sys
    sys.path.insert(0, {str(ROOT)!r})
    from dspy.promptune import StorageError, search
    from tests.tables import Table
    table = Table(instructions=4, demos=3, n_examples=12)
    storage, budget = sys.argv[1], int(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        found = search(table.space, table, n_examples=12, max_calls=budget, sampler="random", minibatch_size=4, seed=1,
                       storage=storage, study_name="one", resume=True)
        print("calls", found.calls)
    except StorageError as error:
        print("refused", error)
"""


def rivals(storage, rounds=2):
    """Two processes that start on one study at the same moment, again and again: what each of them said."""
    said = []
    for i in range(rounds):
        command = [sys.executable, "-c", textwrap.dedent(BOTH), str(storage), str(40 * (i + 1))]
        both = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT) for _ in range(2)]
        for each in both:
            assert each.stdout.readline() == "ready\n"
        for each in both:
            each.stdin.write("\n")
            each.stdin.flush()
        said.append([each.communicate(timeout=120)[0] for each in both])
    return said


def sound(storage, table):
    """Every stored score is true, and no trial is left running."""
    study = optuna.load_study(study_name="one", storage=open_storage(storage).storage)
    assert study.trials and {trial.state.name for trial in study.trials} <= {"COMPLETE", "FAIL"}
    for trial in study.trials:
        truth = table.scores[table.space.key(trial.params)]
        assert all(truth[example] == score for example, score in trial.intermediate_values.items())
    return study


def check_rivals(storage, table):
    """One run of two, or one after the other, never both at once."""
    for said in rivals(storage):
        assert sum(text.startswith("calls") for text in said) >= 1, said
        assert all(text.startswith(("calls", "refused Study 'one'")) for text in said)
    sound(storage, table)


@pytest.mark.slow
def test_two_processes_that_start_at_once(place, table):
    """One of two processes that start on one study at the same moment runs it; what is stored is sound."""
    check_rivals(place, table)


SWAPS = f"""
    import json, os, sys
    sys.path.insert(0, {str(ROOT)!r})
    import optuna
    from dspy.promptune.storage.backend import open_storage
    from dspy.promptune.storage.claims import swap
    place, count, rounds = sys.argv[1], 6, 20
    study = optuna.create_study(storage=open_storage(place).storage, study_name="one")._study_id
    pipes = []
    for i in range(count):
        read, write = os.pipe()
        if os.fork() == 0:
            opened = open_storage(place)
            taken = [
                swap(opened.storage, study, "note", allowed=lambda now, n=n: now is None or now["n"] == n - 1,
                     note={{"n": n, "by": i}}, file=opened.file if opened.journal else None)
                for n in range(rounds)
            ]
            os.write(write, json.dumps(taken).encode())
            os._exit(0)
        os.close(write)
        pipes.append(read)
    print(json.dumps([json.load(os.fdopen(pipe)) for pipe in pipes]))
"""


def test_of_several_that_swap_one_succeeds(place):
    """Processes that replace a note at the same moment, each only if it is as it was: one of them does, every time."""
    command = [sys.executable, "-c", textwrap.dedent(SWAPS), place]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    taken = json.loads(done.stdout)
    assert sum(map(sum, taken)) >= 1 and all(sum(each[n] for each in taken) <= 1 for n in range(1, 20))
    study = optuna.load_study(study_name="one", storage=open_storage(place, read_only=True).storage)
    last = study._storage.get_study_system_attrs(study._study_id)["note"]
    assert taken[last["by"]][last["n"]] and not any(each[n] for each in taken for n in range(last["n"] + 1, 20))


def test_a_run_that_was_taken_over_ends_with_what_it_has(tmp_path, table, monkeypatch):
    """``resume="force"`` takes a study from a living run: that one gives its best so far, and the other goes on."""
    monkeypatch.setattr(held_study, "RENEW_SECONDS", 0.0)
    place, others = str(tmp_path / "runs.db"), []

    def evaluate(params, examples):
        if len(table.paid) >= 20 and not others:
            code = textwrap.dedent(BOTH).replace("resume=True", 'resume="force"')
            command = [sys.executable, "-c", code, place, "100"]
            others.append(subprocess.run(command, input="\n", capture_output=True, text=True, cwd=ROOT, timeout=120))
        return table(params, examples)

    evaluate.__qualname__, evaluate.__module__ = Table.__qualname__, Table.__module__
    found = search(
        table.space, evaluate, n_examples=12, max_calls=100, sampler="random", minibatch_size=4, seed=1, storage=place,
        study_name="one",
    )  # fmt: skip
    assert "calls 100" in others[0].stdout, others[0].stderr
    assert 20 <= found.calls < 100 and ("taken over" in found.ended or "already finished" in found.ended)
    sound(place, table)


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
def test_a_clock_that_differs_takes_no_study_away(table, tmp_path, monkeypatch, ahead):
    """A run on a machine whose clock is two hours off keeps its study as long as it renews its lease, no longer."""
    monkeypatch.setattr(held_study, "WATCH_SECONDS", 0.5)
    place = str(tmp_path / "runs.db")
    search(table.space, table, n_examples=12, max_calls=20, sampler="random", storage=place, study_name="one")
    storage = open_storage(place).storage
    study_id = storage.get_study_id_from_name("one")
    over = threading.Event()

    def renew():
        while not over.wait(0.05):
            note = {"token": "theirs", "pid": 1, "host": "elsewhere", "seen": time.time() + ahead}
            storage.set_study_system_attr(study_id, held_study.LEASE, note)

    def again():
        return search(
            table.space, table, n_examples=12, max_calls=30, sampler="random", storage=place, study_name="one",
            resume=True,
        )  # fmt: skip

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        time.sleep(0.2)
        with pytest.raises(StorageError, match="process 1 on elsewhere, whose clock differs"):
            again()
    finally:
        over.set()
        thread.join()
    assert again().calls == 30
    json.dumps(storage.get_study_system_attrs(study_id))

"""The pool of threads."""

import contextvars
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

import dspy
from dspy.promptune.limits.pool import Pool
from dspy.promptune.limits.task import Task, waiting


@pytest.fixture
def pool():
    with Pool(2) as pool:
        yield pool


def test_tasks_run_in_a_copy_of_the_submitters_context(pool):
    """Each task sees the submitter's context, and what it changes there nobody else sees."""
    variable = contextvars.ContextVar("variable", default=0)

    def task(value):
        before = variable.get()
        variable.set(value)
        return before, dspy.settings.adapter

    variable.set(7)
    with dspy.context(adapter="mine"):
        futures = [pool.submit(task, i) for i in range(6)]
    assert {future.result(5) for future in futures} == {(7, "mine")}
    assert variable.get() == 7


def test_every_task_has_a_trace_of_its_own(pool):
    """What one task appends to ``settings.trace`` no other task finds there."""
    traces = pool.map(lambda i: dspy.settings.trace.append(i) or list(dspy.settings.trace), range(5))
    assert traces == [[i] for i in range(5)]


def test_no_more_threads_than_workers():
    """Tasks beyond the number of workers wait, and all run in the end."""
    gate, names = threading.Event(), set()

    def task(_):
        names.add(threading.current_thread().name)
        gate.wait(5)

    with Pool(3) as pool:
        futures = [pool.submit(task, i) for i in range(10)]
        while pool.busy < 3:
            pass
        assert pool.free == -7
        gate.set()
        for future in futures:
            future.result(5)
    assert len(names) == 3


def test_an_error_is_the_futures(pool):
    """What a task raises, of whatever kind, arrives at its future and harms no other task."""

    def task(error):
        raise error

    for error in (ValueError("x"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)):
            pool.submit(task, error).result(5)
    assert pool.submit(int, "3").result(5) == 3


def test_fillers_start_when_nothing_else_waits():
    """Work that fills idle threads comes after all other work, however early it was submitted."""
    done, gate = [], threading.Event()
    with Pool(1) as pool:
        pool.submit(gate.wait, 5)
        filler = pool.submit_limited(None, done.append, "filler", filler=True)
        pool.submit(done.append, "work")
        pool.submit(done.append, "more work")
        gate.set()
        filler.result(5)
    assert done == ["work", "more work", "filler"]


def test_promoted_fillers_wait_in_line():
    """Promoted fillers are taken before work that is submitted later."""
    done, gate = [], threading.Event()
    with Pool(1) as pool:
        pool.submit(gate.wait, 5)
        pool.submit_limited(None, done.append, "filler", filler=True)
        pool.promote()
        last = pool.submit(done.append, "work")
        gate.set()
        last.result(5)
    assert done == ["filler", "work"]


def test_stopping_cancels_what_waits():
    """After a stop nothing starts, waiting tasks are canceled, and new ones are refused."""
    gate, ran = threading.Event(), []
    pool = Pool(1)
    first = pool.submit(gate.wait, 5)
    while not pool.busy:
        pass
    second = pool.submit(ran.append, 1)
    pool.stop()
    gate.set()
    assert first.result(5) and second.cancelled() and not ran
    with pytest.raises(RuntimeError, match="stopped"):
        pool.submit(int)


def test_a_task_that_takes_too_long_is_given_up_and_its_thread_replaced():
    """A task beyond its limit fails with TimeoutError, and the pool has as many threads as before."""
    gate = threading.Event()
    with Pool(1) as pool:
        stuck = pool.submit_limited(0.05, gate.wait, 30)
        with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
            stuck.result(5)
        assert pool.submit(int, "5").result(5) == 5
        gate.set()
        assert pool.submit(int, "6").result(5) == 6
        assert pool.given_up == 1


def test_waiting_is_not_work():
    """Time spent waiting for a place does not count towards a task's limit."""
    gate = threading.Event()

    def task():
        with waiting():
            gate.wait(0.5)
        return "done"

    with Pool(1) as pool:
        assert pool.submit_limited(0.2, task).result(5) == "done"


def test_the_clock_stands_only_while_nobody_can_go_on(monkeypatch):
    """A task that holds something is at work, whoever else of its threads waits."""
    now = [1.0]
    monkeypatch.setattr("dspy.promptune.limits.task.time", SimpleNamespace(monotonic=lambda: now[0]))
    task = Task(Future(), contextvars.copy_context(), int, (), started=1.0)
    seconds = []
    for change in (
        lambda: task.wait(1),
        lambda: task.wait(1),
        lambda: task.hold("call", str),
        lambda: task.wait(-1),
        lambda: task.hold("call", None),
        lambda: task.wait(-1),
    ):
        now[0] += 1
        seconds.append(task.seconds())
        change()
    assert seconds == [1, 1, 1, 2, 3, 3]


def test_a_thread_without_work_says_so(pool):
    """Whoever hands out work hears when a thread finds none."""
    idle = threading.Event()
    pool.on_idle = idle.set
    pool.submit(int).result(5)
    assert idle.wait(5)


def test_256_workers_are_256_threads_at_most():
    """A pool of 256 really runs 256 tasks at once."""
    barrier = threading.Barrier(256, timeout=30)
    with Pool(256) as pool:
        assert len(set(pool.map(lambda _: barrier.wait(), range(256)))) == 256

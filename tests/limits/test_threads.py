"""A program's own threads are part of the run that evaluates it."""

import asyncio
import importlib
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import dspy
from dspy.promptune.limits import threads
from dspy.promptune.limits.threads import contexts_carried
from tests.compile.hazards import compiled, rule_lm

pytestmark = pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")

SHARED = ThreadPoolExecutor(2)  # made long before any run, as in a module of a user's


class Asking(dspy.Module):
    """Asks three times, each in a thread of its own; the last answer counts."""

    def __init__(self, how):
        super().__init__()
        self.answer, self.how = dspy.Predict("question -> answer"), how

    def forward(self, question):
        return getattr(self, f"by_{self.how}")(question)[-1]

    def by_pool(self, question):
        with ThreadPoolExecutor(3) as pool:
            return [each.result() for each in [pool.submit(self.answer, question=question) for _ in range(3)]]

    def by_shared_pool(self, question):
        return [each.result() for each in [SHARED.submit(self.answer, question=question) for _ in range(3)]]

    def by_threads(self, question, number=3):
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(self.answer(question=question))) for _ in range(number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


@pytest.mark.parametrize("how", ["pool", "shared_pool", "threads"])
def test_calls_of_a_programs_own_threads_are_held_and_counted(how):
    """Whatever threads a program calls from, ``max_lm_calls`` and ``max_concurrency`` hold, and every call counts."""
    own = threading.Thread.start, ThreadPoolExecutor.submit
    lm = rule_lm(seconds=0.003)
    found = compiled(lm, Asking(how), max_lm_calls=150, max_concurrency=3)
    spent = found.optimization_run.spent
    assert len(lm.calls) <= 150 and lm.level.most <= 3
    assert spent["search"]["calls"] > 40 and sum(step.get("calls") or 0 for step in spent.values()) == len(lm.calls)
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == own


class Served(dspy.Module):
    """Answers by a thread that it starts when it is first asked, and that serves all copies for ever."""

    asked: queue.Queue = queue.Queue()
    started = threading.Lock()

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        if self.started.acquire(blocking=False):
            threading.Thread(target=self.serve, daemon=True).start()
        back = queue.Queue()
        self.asked.put((self.answer, question, back))
        return back.get(timeout=30)

    @classmethod
    def serve(cls):
        while True:
            predictor, question, back = cls.asked.get()
            try:
                back.put(predictor(question=question))
            except BaseException as error:
                back.put(error)


def test_a_thread_that_outlives_the_run_is_free_of_it():
    """A server that a program started in a run calls the model of today, without the run's budget, when it is over."""
    found = compiled(rule_lm(), Served(), max_lm_calls=60)
    later = rule_lm()
    dspy.configure(lm=later)
    try:
        assert isinstance(found(question="question 3"), dspy.Prediction)
    finally:
        dspy.configure(lm=None)
    assert len(later.calls) == 1


class Whole(Asking):
    """Asks in threads, of every fourth question nine times, and says whether all had their answers."""

    def __init__(self):
        super().__init__("threads")

    def forward(self, question):
        number = 1 if int(question.split()[-1]) % 4 else 9
        answers = self.by_threads(question, number)
        return dspy.Prediction(answer="whole" if len(answers) == number else "torn")


def test_what_a_stopped_thread_leaves_behind_is_not_scored(capsys):
    """Where a budget stops a program's thread, the program's answer without it is no score, and nothing is printed."""
    for most in (120, 140, 160, 180):
        found = compiled(rule_lm(seconds=0.002), Whole(), metric=lambda e, p, t=None: p.answer == "whole",
                         num_threads=4, max_lm_calls=most, minibatch_size=5)  # fmt: skip
        scores = [score for trial in found.optimization_run.trials for score in trial.user_attrs.get("scores", ())]
        assert len(scores) > 20 and set(scores) == {1.0}
    assert "Exception in thread" not in capsys.readouterr().err


class Gathering(Asking):
    """Asks at once, of every fourth question nine times, leaves out what failed, and says whether that was all."""

    def forward(self, question):
        number = 1 if int(question.split()[-1]) % 4 else 9
        answers = getattr(self, self.how)(question, number)
        return dspy.Prediction(answer="whole" if len(answers) == number else "torn")

    def gathered(self, question, number):
        async def ask():
            calls = [dspy.asyncify(self.answer)(question=question) for _ in range(number)]
            return await asyncio.gather(*calls, return_exceptions=True)

        return [each for each in asyncio.run(ask()) if not isinstance(each, BaseException)]

    def pooled(self, question, number):
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(self.answer, question=question) for _ in range(number)]
        return [each.result() for each in calls if each.exception() is None]


@pytest.mark.parametrize("how", ["gathered", "pooled"])
def test_what_a_program_makes_of_stopped_calls_is_not_scored(how):
    """A program that leaves out calls that failed has no score where the budget did not let them through."""
    for most in (120, 140, 160, 180):
        found = compiled(rule_lm(seconds=0.002), Gathering(how), metric=lambda e, p, t=None: p.answer == "whole",
                         num_threads=4, max_lm_calls=most, minibatch_size=5)  # fmt: skip
        scores = [score for trial in found.optimization_run.trials for score in trial.user_attrs.get("scores", ())]
        assert len(scores) > 20 and set(scores) == {1.0}


def test_programs_that_wait_for_dspys_worker_threads_do_not_wait_for_ever():
    """Twelve event loops at once that use ``dspy.asyncify`` all get on, though DSPy lets eight work at a time."""
    asyncify = importlib.import_module("dspy.utils.asyncify")
    limiter = asyncify.get_limiter

    class Asyncified(Asking):
        def forward(self, question):
            return asyncio.run(dspy.asyncify(self.answer)(question=question))

    found = compiled(rule_lm(seconds=0.01), Asyncified("asyncify"), num_threads=3, n_jobs=4, example_timeout=30)
    assert found.optimization_run.failures.errors == 0 and asyncify.get_limiter is limiter


def test_another_librarys_way_of_starting_threads_stays(monkeypatch):
    """Whoever else replaces ``Thread.start``, before a run or within it, is called and is there afterwards."""
    started = []
    monkeypatch.setattr(threads, "_standing_in", False)  # is so again at the end, and so are both classes
    monkeypatch.setattr(ThreadPoolExecutor, "submit", ThreadPoolExecutor.submit)

    def replaced():
        own = threading.Thread.start

        def start(self):
            started.append(self)
            own(self)

        monkeypatch.setattr(threading.Thread, "start", start)
        return start

    before = replaced()
    with contexts_carried():
        threading.Thread(target=len, args=("",)).start()
    assert threading.Thread.start is before and len(started) == 1
    with contexts_carried():
        within = replaced()
    with contexts_carried():
        threading.Thread(target=len, args=("",)).start()
    assert threading.Thread.start is within and len(started) == 3

"""The limit on calls in flight."""

import threading
import time

import pytest

from dspy.promptune.limits.concurrency import ConcurrencyLimit
from tests.threads import at_once


def test_no_more_than_the_limit_at_once():
    """Places beyond the limit are given when others are given back."""
    limiter = ConcurrencyLimit(2)
    first = limiter.acquire()
    limiter.acquire()
    assert limiter.try_acquire() is None
    limiter.release(first)
    assert limiter.try_acquire() is not None
    assert limiter.peak == 2


def test_a_place_is_looked_for_and_taken_in_one_step(monkeypatch):
    """However slowly a place is taken, nobody else who asks in the meantime is given the same one."""
    limiter = ConcurrencyLimit(1)
    acquire = limiter.acquire

    def slowly(**options):
        time.sleep(0.05)
        return acquire(**options)

    monkeypatch.setattr(limiter, "acquire", slowly)
    found = at_once(*[limiter.try_acquire] * 4)
    assert limiter.peak == 1 and found.count(None) == 3


def test_a_refusal_halves_what_is_allowed_once_a_round():
    """All refusals of calls that were in flight together count as one decrease."""
    limiter = ConcurrencyLimit(16)
    rounds = [limiter.acquire() for _ in range(16)]
    for taken in rounds:
        limiter.release(taken, refused=True)
    assert limiter.allowed == 8 and limiter.refused == 16
    limiter.release(limiter.acquire(), refused=True)
    assert limiter.allowed == 1  # one call was in flight, and even that was too much


def test_answers_bring_it_back():
    """About one call more for every round of answers, up to the limit and not beyond it."""
    limiter = ConcurrencyLimit(8)
    rounds = [limiter.acquire() for _ in range(8)]
    for taken in rounds:
        limiter.release(taken, refused=True)
    assert limiter.allowed == 4
    for _ in range(5):
        limiter.release(limiter.acquire())
    assert limiter.allowed == 5
    for _ in range(100):
        limiter.release(limiter.acquire())
    assert limiter.allowed == 8


def test_at_least_one_call_is_always_allowed():
    """However often the provider refuses, one call at a time goes on."""
    limiter = ConcurrencyLimit(4)
    for _ in range(10):
        limiter.release(limiter.acquire(), refused=True)
    assert limiter.allowed == 1


def test_retry_after_holds_everybody_back():
    """After a refusal with Retry-After nobody is let in until that time is over."""
    limiter = ConcurrencyLimit(4)
    limiter.release(limiter.acquire(), refused=True, retry_after=0.05)
    assert limiter.try_acquire() is None
    assert limiter.acquire() is not None


def test_a_stop_lets_waiters_go_with_nothing():
    """Whoever waits when the run stops gets no place."""
    limiter, got = ConcurrencyLimit(1), []
    limiter.acquire()
    waiter = threading.Thread(target=lambda: got.append(limiter.acquire()))
    waiter.start()
    limiter.stop()
    waiter.join(5)
    assert got == [None] and limiter.acquire() is None


@pytest.mark.parametrize("threads", [3, 40])
def test_many_threads_never_exceed_it(threads):
    """Under contention the number of holders stays within the limit, and everybody gets through."""
    limiter, holders, most, lock = ConcurrencyLimit(3), [0], [0], threading.Lock()

    def work():
        for _ in range(20):
            taken = limiter.acquire()
            with lock:
                holders[0] += 1
                most[0] = max(most[0], holders[0])
            with lock:
                holders[0] -= 1
            limiter.release(taken)

    at_once(*[work] * threads)
    assert most[0] <= 3 and limiter.in_flight == 0

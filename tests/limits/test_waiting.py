"""Calls that wait inside a server, servers that load first, and what the log says of refusals and time-outs."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import dspy
from dspy.promptune.limits.concurrency import ConcurrencyLimit
from dspy.promptune.limits.gateway import LMGateway, Stopped
from dspy.promptune.limits.pool import Pool
from dspy.promptune.limits.views import through_gateway

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class QueueingLM(dspy.BaseLM):
    """A server that answers ``slots`` calls at a time in their order, ``seconds`` each, once its model is loaded."""

    def __init__(self, *, slots=1, seconds=0.3, loading=0.0):
        super().__init__("queueing", cache=False, num_retries=0)
        self.server, self.seconds = ThreadPoolExecutor(slots), seconds
        self.loaded_at = time.monotonic() + loading

    def forward(self, prompt=None, messages=None, **kwargs):
        if prompt == "hang":
            time.sleep(8)
        self.server.submit(self.work).result()
        message = SimpleNamespace(content=prompt, tool_calls=None)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage={}, model="queueing")

    def work(self):
        time.sleep(max(0.0, self.loaded_at - time.monotonic()) + self.seconds)


def asked(lm, prompts, limit, *, stagger=0.01):
    """Every prompt's answer or error, asked one after another with a time limit each."""
    gateway = LMGateway(len(prompts))
    with gateway.active(), Pool(len(prompts)) as pool:
        pool.patience = gateway.patience
        futures = []
        for prompt in prompts:
            futures.append(pool.submit_limited(limit, through_gateway(lm), prompt))
            time.sleep(stagger)
        return [future.exception(30) or future.result() for future in futures]


def test_calls_that_wait_inside_the_server_are_not_late():
    """With one call answered at a time, the eighth takes eight times its own limit, and is answered."""
    prompts = [str(i) for i in range(8)]
    assert asked(QueueingLM(), prompts, 0.9) == [[prompt] for prompt in prompts]


def test_a_call_that_hangs_is_late_all_the_same():
    """Once the calls before it are answered, a call that hangs has its limit and no more."""
    *others, hung = asked(QueueingLM(slots=4, seconds=0.05), ["a", "b", "c", "hang"], 0.5)
    assert others == [["a"], ["b"], ["c"]] and isinstance(hung, TimeoutError) and "example_timeout" in str(hung)


def test_a_server_that_loads_its_model_first_fails_nothing():
    """Until the first answer the limit is five times as long, and then the others' time begins."""
    prompts = [str(i) for i in range(6)]
    assert asked(QueueingLM(slots=6, seconds=0.1, loading=1.2), prompts, 0.5) == [[prompt] for prompt in prompts]


def test_a_model_that_is_slower_than_the_limit_is_waited_for():
    """Where answers take longer than the limit, as the first ones show, the limit becomes twice what they take."""
    prompts = [str(i) for i in range(6)]
    lm, gateway = QueueingLM(slots=6, seconds=0.7), LMGateway(2)
    with gateway.active(), Pool(2) as pool:
        pool.patience = gateway.patience
        futures = [pool.submit_limited(0.3, through_gateway(lm), prompt) for prompt in prompts]
        assert [future.result(30) for future in futures] == [[prompt] for prompt in prompts]


def limiting(caplog, **how):
    """What is logged about one call that a provider took so."""
    limit = ConcurrencyLimit(8)
    places = [limit.acquire() for _ in range(8)]
    with caplog.at_level(logging.WARNING, logger="dspy.promptune"):
        limit.release(places[0], **how)
    return limit, caplog.text


def test_a_long_pause_is_logged_as_it_is_kept(caplog):
    """A Retry-After of a day is kept for a minute at a time, which is what the log says."""
    limit, text = limiting(caplog, refused=True, retry_after=86400.0)
    assert "none for 60 s of the 86400 s asked for" in text and "refused" in text and limit.refused == 1


def test_a_call_out_of_time_is_not_called_refused(caplog):
    """Time-outs slow a run down as refusals do, and are named and counted as what they are."""
    limit, text = limiting(caplog, late=True)
    assert "out of time" in text and "refused" not in text and (limit.refused, limit.late) == (0, 1)


def test_a_stop_is_no_refusal(caplog):
    """Calls that are given up because the run ends say nothing about the provider."""
    gateway = LMGateway(8)
    with caplog.at_level(logging.WARNING, logger="dspy.promptune"), gateway.active(), Pool(4) as pool:
        future = pool.submit(through_gateway(QueueingLM(seconds=1.0)), "a")
        while not gateway.limiter.in_flight:
            time.sleep(0.01)
        pool.give_up(Stopped("over"))
        assert isinstance(future.exception(5), Stopped)
    assert not caplog.text and gateway.limiter.refused == gateway.limiter.late == 0 == gateway.limiter.in_flight

"""What stands between programs and their language models."""

import asyncio
import contextlib
import threading
import time
from types import SimpleNamespace

import pytest

import dspy
from dspy.promptune.identity.fingerprint import fingerprint
from dspy.promptune.limits.budgets import BOOTSTRAP, BudgetLimits, BudgetMeter
from dspy.promptune.limits.gateway import LMGateway, Stopped
from dspy.promptune.limits.pool import Pool
from dspy.promptune.limits.views import own_calls_held, through_gateway
from dspy.utils.exceptions import LMRateLimitError, LMServerError, LMTimeoutError
from dspy.utils.parallelizer import ParallelExecutor
from tests.server import Faults, Latency, LMServer, TaskRule, max_in_flight

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class EchoLM(dspy.BaseLM):
    """Answers with the prompt, after ``seconds``; raises what ``errors`` still holds; counts how many do so at once."""

    def __init__(self, seconds=0.0, errors=(), **options):
        super().__init__("echo", **{"cache": False, "num_retries": 0, **options})
        self.seconds, self.errors = seconds, list(errors)
        self.calls = self.now = self.most = 0
        self.lock = threading.Lock()

    def forward(self, prompt=None, messages=None, **kwargs):
        with self.lock:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
            error = self.errors.pop(0) if self.errors else None
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        if error is not None:
            raise error
        message = SimpleNamespace(content=prompt, tool_calls=None)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage={}, model="echo")

    async def aforward(self, prompt=None, messages=None, **kwargs):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        return self.forward(prompt)


@pytest.mark.parametrize("view", [through_gateway, lambda lm: lm])
def test_the_limit_holds_for_every_call(view):
    """With a limit of 3, 20 threads make 3 calls at once, whether the model is a view or not."""
    lm, gateway = EchoLM(0.01), LMGateway(3)
    with gateway.active(), Pool(20) as pool:
        assert pool.map(view(lm), [str(i) for i in range(40)]) == [[str(i)] for i in range(40)]
    assert lm.most == 3 == gateway.limiter.peak and gateway.calls == 40 and gateway.limiter.in_flight == 0


def test_a_model_that_asks_a_model_needs_one_place():
    """A call within a call is not held up by the limit that its caller has used up."""

    class Outer(EchoLM):
        def forward(self, prompt=None, messages=None, **kwargs):
            inner(prompt)
            return super().forward(prompt)

    inner, outer, gateway = EchoLM(), Outer(), LMGateway(1)
    with gateway.active(), Pool(4) as pool:
        pool.map(outer, "abcd")
    assert inner.calls == outer.calls == 4 and gateway.limiter.peak == 1


def test_a_view_shares_the_models_state():
    """What happens through a view is seen at the model: counts, history, later changes."""
    lm = EchoLM()
    view = through_gateway(lm)
    view("hello")
    lm.seconds = 0.5
    assert lm.calls == 1 and len(lm.history) == 1 and view.seconds == 0.5
    assert isinstance(view, EchoLM) and through_gateway(view) is view and type(view).__name__ == "EchoLM"
    copied = view.copy(temperature=1.0)
    assert copied.kwargs["temperature"] == 1.0 and lm.kwargs["temperature"] is None


def test_other_things_are_no_models():
    """Whatever is no language model is left alone."""
    assert through_gateway(None) is None and through_gateway("x") == "x"


def test_a_refused_call_is_made_again_and_slows_the_run_down():
    """A 429 with Retry-After is retried after that time, and halves the calls allowed."""
    lm = EchoLM(errors=[LMRateLimitError("slow down", retry_after=0.05)], num_retries=3)
    gateway, begin = LMGateway(8), time.monotonic()
    with gateway.active():
        assert through_gateway(lm)("hello") == ["hello"]
    assert time.monotonic() - begin >= 0.05
    assert lm.calls == 2 and gateway.retried == 1 and gateway.limiter.refused == 1 and gateway.limiter.allowed < 8


@pytest.mark.parametrize("error", [LMServerError("x", retry_after=0.0), LMTimeoutError("x", retry_after=0.0)])
def test_retries_are_as_many_as_the_model_says(error):
    """``num_retries`` of the model is what a run goes by; the last error is raised."""
    lm, gateway = EchoLM(errors=[error] * 5, num_retries=2), LMGateway(8)
    with gateway.active(), pytest.raises(type(error)):
        through_gateway(lm)("hello")
    assert lm.calls == 3 and gateway.limiter.in_flight == 0


def test_an_error_of_the_program_is_not_retried():
    """What is not the provider's fault is raised at once."""
    lm, gateway = EchoLM(errors=[ValueError("x")], num_retries=3), LMGateway(8)
    with gateway.active(), pytest.raises(ValueError):
        through_gateway(lm)("hello")
    assert lm.calls == 1 and gateway.limiter.allowed == 8


def test_identical_calls_in_flight_are_made_once(monkeypatch):
    """Where the cache keeps the answer, the second of two identical calls waits for the first."""
    monkeypatch.setattr(dspy, "cache", dspy.clients.Cache(False, True, None))
    gateway = LMGateway(8)
    with LMServer(TaskRule({}), latency=Latency(0.1, 0.0)) as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=True)
        with gateway.active(), Pool(8) as pool:
            answers = pool.map(lm, ["same"] * 6 + ["other"])
        assert server.requests == 2
    assert len(answers) == 7 and len({str(answer) for answer in answers[:6]}) == 1 and gateway.shared == 5


def test_of_identical_calls_one_at_a_time_is_made_when_the_first_fails(monkeypatch):
    """An identical call that failed is made again by one of those that waited for it, not by all of them."""
    monkeypatch.setattr(dspy, "cache", dspy.clients.Cache(False, True, None))
    gateway = LMGateway(8)
    faults = Faults(rule=lambda messages, attempt: "500" if attempt == 0 else None)
    with LMServer(TaskRule({}), latency=Latency(0.1, 0.0), faults=faults) as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=True, num_retries=0)
        with gateway.active(), Pool(8) as pool:
            futures = [pool.submit(lm, "same") for _ in range(6)]
            errors = [future.exception() for future in futures]
        assert server.requests == 2
    assert sum(error is not None for error in errors) == 1 and gateway.shared == 5


def test_without_a_cache_every_call_is_made():
    """A model that does not cache is asked as often as it is called."""
    lm, gateway = EchoLM(0.02), LMGateway(8)
    with gateway.active(), Pool(4) as pool:
        pool.map(lm, ["same"] * 4)
    assert lm.calls == 4 and gateway.shared == 0


def test_after_a_stop_no_call_is_made():
    """Calls that come after the stop raise what no ``except Exception`` catches."""
    lm, gateway = EchoLM(), LMGateway(2)
    with gateway.active():
        gateway.stop()
        with pytest.raises(Stopped):
            lm("hello")
    assert lm.calls == 0


def test_calls_in_an_event_loop_keep_to_the_limit_and_do_not_block_it():
    """Asynchronous calls of views wait without holding up their event loop."""
    lm, gateway = EchoLM(0.01), LMGateway(2)
    view = through_gateway(lm)

    async def main():
        return await asyncio.gather(*(view.acall(str(i)) for i in range(8)))

    with gateway.active():
        assert asyncio.run(main()) == [[str(i)] for i in range(8)]
    assert lm.most == 2 and gateway.limiter.in_flight == 0


def test_models_without_a_view_do_not_block_an_event_loop():
    """An asynchronous call that cannot be held up is counted and let through, rather than blocking everybody."""
    lm, gateway = EchoLM(0.01), LMGateway(1)

    async def main():
        return await asyncio.gather(*(lm.acall(str(i)) for i in range(4)))

    with gateway.active():
        assert len(asyncio.run(main())) == 4
    assert gateway.calls == 4 and gateway.limiter.in_flight == 0


def test_outside_a_run_a_view_is_the_model():
    """No guard, no difference: the model's own retries are in force again."""
    view = through_gateway(EchoLM(num_retries=4))
    assert view.num_retries == 4
    with LMGateway(1).active():
        assert view.num_retries == 0
    assert view("hello") == ["hello"]


def in_threads(function, items):
    """As a program does with ``dspy.Parallel``."""
    return ParallelExecutor(num_threads=4, disable_progress_bar=True).execute(function, items)


def test_a_programs_own_threads_keep_to_the_rules():
    """Calls in the threads of ``dspy.Parallel`` keep to the limit, are retried by the run, and count for its step."""
    lm = EchoLM(0.01, errors=[LMRateLimitError("slow down", retry_after=0.01)], num_retries=2)
    gateway = LMGateway(2)
    with gateway.active(), gateway.meter.step(BOOTSTRAP), Pool(2) as pool:
        answers = pool.submit(in_threads, through_gateway(lm), list("abcdef")).result(10)
    assert answers == [[text] for text in "abcdef"] and lm.most <= 2
    assert gateway.retried == 1 and gateway.limiter.refused == 1 and gateway.limiter.in_flight == 0
    assert gateway.meter.spent()[BOOTSTRAP]["calls"] == gateway.calls == 7


def test_waiting_in_a_programs_own_threads_is_not_its_work():
    """An example whose threads all wait for a place is not late, however long others hold it."""
    lm, gateway = EchoLM(), LMGateway(1)
    taken = gateway.limiter.acquire()
    with gateway.active(), Pool(1) as pool:
        future = pool.submit_limited(0.5, in_threads, through_gateway(lm), list("ab"))
        time.sleep(0.8)
        gateway.limiter.release(taken)
        assert future.result(10) == [["a"], ["b"]]


def test_an_example_that_was_given_up_makes_no_more_calls():
    """What it holds is let go at once, and its next call is not made: nobody waits for the answer."""
    gate, over = threading.Event(), threading.Event()
    lm, gateway = EchoLM(), LMGateway(1)

    class Hanging(EchoLM):
        def forward(self, prompt=None, messages=None, **kwargs):
            gate.wait(30)
            return super().forward(prompt)

    def program():
        try:
            in_threads(through_gateway(Hanging()), ["a"])
            through_gateway(lm)("b")
        finally:
            over.set()

    with gateway.active(), Pool(1) as pool:
        future = pool.submit_limited(0.2, program)
        with pytest.raises(TimeoutError):
            future.result(10)
        assert gateway.limiter.in_flight == 0
        gate.set()
        assert over.wait(10) and lm.calls == 0


def test_callbacks_that_a_program_sets_do_not_replace_the_guard():
    """Inside ``dspy.context(callbacks=[])`` a view is held to the limit as before."""
    lm, gateway = EchoLM(0.01), LMGateway(2)

    def program(text):
        with dspy.context(callbacks=[]):
            return through_gateway(lm)(text)

    with gateway.active(), Pool(8) as pool:
        pool.map(program, "abcdefgh")
    assert lm.most == 2 and gateway.calls == 8


def test_identical_calls_in_an_event_loop_are_made_once(monkeypatch):
    """Single flight holds between coroutines as between threads."""
    monkeypatch.setattr(dspy, "cache", dspy.clients.Cache(False, True, None))
    gateway = LMGateway(8)

    async def main(view):
        return await asyncio.gather(*(view.acall(text) for text in ["same"] * 6 + ["other"]))

    with LMServer(TaskRule({}), latency=Latency(0.1, 0.0)) as server, gateway.active():
        view = through_gateway(dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=True))
        answers = asyncio.run(main(view))
        assert server.requests == 2
    assert len({str(answer) for answer in answers[:6]}) == 1 and gateway.shared == 5 and gateway.limiter.in_flight == 0


def test_a_call_within_a_call_needs_no_place_in_an_event_loop_either():
    """A model that awaits another is not held up by the place that it has itself."""

    class Outer(EchoLM):
        async def aforward(self, prompt=None, messages=None, **kwargs):
            await through_gateway(inner).acall(prompt)
            return await super().aforward(prompt)

    inner, outer, gateway = EchoLM(), Outer(), LMGateway(1)

    async def main():
        return await asyncio.wait_for(asyncio.gather(*(through_gateway(outer).acall(text) for text in "abc")), 10)

    with gateway.active():
        assert asyncio.run(main()) == [["a"], ["b"], ["c"]]
    assert inner.calls == 3 and gateway.limiter.peak == 1 and gateway.limiter.in_flight == 0


def test_a_call_that_never_begins_in_an_event_loop_gives_its_place_back():
    """Wrong arguments are the program's error, and cost no place for good."""
    view, gateway = through_gateway(EchoLM()), LMGateway(1)

    async def main():
        with pytest.raises(TypeError):
            await view.acall("a", "b", "c")
        return await asyncio.wait_for(view.acall("d"), 10)

    with gateway.active():
        assert asyncio.run(main()) == ["d"]


def test_the_server_sees_the_limit_shrink_and_grow():
    """Requests at the server are never more than the limit, fewer after 429s, and as many again after answers."""
    refusing = threading.Event()
    faults = Faults(rule=lambda messages, attempt: "429" if refusing.is_set() else None, retry_after=0.01)
    gateway = LMGateway(12)
    with LMServer(TaskRule({}), latency=Latency(0.04, 0.0), faults=faults) as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False, num_retries=0)

        def most(calls):
            server.reset()
            futures = [pool.submit(lm, str(i)) for i in range(calls)]
            assert all(isinstance(f.exception(), LMRateLimitError) == refusing.is_set() for f in futures)
            return max_in_flight(server.records())

        with gateway.active(), Pool(24) as pool:
            assert most(48) <= 12
            refusing.set()
            most(12)
            refusing.clear()
            assert most(6) <= 6 + 1  # half of 12, and at most one more after as many answers
            most(150)
            assert gateway.limiter.allowed == 12 and 6 < most(48) <= 12


class OwnWayLM(EchoLM):
    """Is called in a way of its own, which tells no callbacks."""

    def __call__(self, prompt):
        return self.forward(prompt).choices[0].message.content

    async def acall(self, prompt):
        return (await self.aforward(prompt)).choices[0].message.content


def test_a_model_called_in_its_own_way_outside_of_modules_is_held_and_counted():
    """Twenty threads that call it directly make 3 calls at once and 8 in all, and its class is as before afterwards."""
    lm, own = OwnWayLM(0.01), OwnWayLM.__call__
    gateway = LMGateway(3, BudgetMeter(BudgetLimits(max_lm_calls=8)))
    before = fingerprint(OwnWayLM, "it")
    with own_calls_held(), own_calls_held(), gateway.active(), Pool(20) as pool:
        assert fingerprint(OwnWayLM, "it") == before
        futures = [pool.submit(lm, str(i)) for i in range(20)]
        answered = [future.result() for future in futures if future.exception() is None]
        with pytest.raises(Stopped, match="max_lm_calls=8"):
            asyncio.run(lm.acall("more"))
    assert (lm.calls, lm.most, gateway.calls) == (8, 3, 8) and OwnWayLM.__call__ is own
    assert len(answered) == 8 and lm("free") == "free"


class RoutedLM(EchoLM):
    """Hands every call on to other models, the first of which has an answer."""

    def __init__(self, *models):
        super().__init__()
        self.models = models

    def forward(self, prompt=None, messages=None, **kwargs):
        for lm in self.models:
            with contextlib.suppress(LMServerError):
                return SimpleNamespace(
                    choices=[SimpleNamespace(message=SimpleNamespace(content=lm(prompt)[0], tool_calls=None))],
                    usage={}, model="routed",
                )  # fmt: skip


@pytest.mark.parametrize("kind", [EchoLM, OwnWayLM])
def test_a_model_that_only_hands_calls_on_is_not_counted(kind):
    """The calls of the models that it asks are counted, each once: one that fails, and one that answers."""
    failing, answering = EchoLM(errors=[LMServerError("busy")] * 3), kind()
    meter = BudgetMeter(BudgetLimits())
    with own_calls_held(), LMGateway(4, meter).active():
        assert [through_gateway(RoutedLM(failing, answering))(text)[0][0] for text in "abc"] == ["a", "b", "c"]
    (spent,) = meter.spent().values()
    assert spent["calls"] == failing.calls + answering.calls == 6


class DetourLM(dspy.LM):
    """Goes on to DSPy's way of calling from a way of its own."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def test_a_call_that_goes_on_to_dspys_own_way_is_charged_once():
    """Tokens and dollars of such a call are those of its entry in the history; the caller's tracker hears it once."""
    with LMServer(TaskRule({"question": "answer"})) as server:
        lm = DetourLM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False)
        meter = BudgetMeter(BudgetLimits())
        with LMGateway(1, meter).active(), dspy.track_usage() as tracker:
            through_gateway(lm)("question " * 2000)
    (entry,), (spent,) = lm.history, meter.spent().values()
    assert spent["calls"] == 1 and spent["tokens"] == entry["usage"]["total_tokens"] > 0
    assert spent["cost"] == pytest.approx(entry["cost"], abs=1e-6) and entry["cost"] > 1e-5
    assert [len(usages) for usages in tracker.usage_data.values()] == [1]

"""The language model of the tests is itself tested."""

import contextlib
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import dspy
from dspy.utils.exceptions import LMError
from tests.server import Faults, Latency, LMServer, Prompt, Quality, TaskRule, max_in_flight, mean_in_flight

ANSWERS = {f"question {i}": ["yes", "no"][i % 2] for i in range(400)}


def model(server, **options):
    """The server's model as DSPy sees it, without the cache."""
    return dspy.LM("openai/rules", api_base=server.url, api_key="none", cache=False, **options)


def ask(lm, question):
    """The answer to one question."""
    with dspy.context(lm=lm):
        return dspy.Predict("question -> answer")(question=question).answer


def test_answers_are_right_as_often_as_the_prompt_is_good():
    """A perfect prompt is always right, a worthless one never, and the same request always gets the same answer."""
    for base, share in ((1.0, 1.0), (-1.0, 0.0)):
        with LMServer(TaskRule(ANSWERS, quality=Quality(base))) as server:
            lm = model(server)
            answers = [ask(lm, q) for q in list(ANSWERS)[:10]]
            assert answers == [ask(lm, q) for q in list(ANSWERS)[:10]]
            assert sum(a == ANSWERS[q] for a, q in zip(answers, ANSWERS, strict=False)) == 10 * share
            assert server.requests == 20


def test_256_connections_at_once():
    """256 requests that all wait are in flight together, in a process of its own, and each is recorded."""
    barrier = threading.Barrier(256)

    def post(i):
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        link.connect()
        barrier.wait(30)
        body = json.dumps({"messages": [{"role": "user", "content": str(i)}]})
        link.request("POST", "/v1/chat/completions", body)
        return link.getresponse().status

    server = LMServer(TaskRule(ANSWERS), latency=Latency(0.5, 0.0), process=True)
    with server, ThreadPoolExecutor(256) as pool:
        assert set(pool.map(post, range(256))) == {200}
        records = server.records()
        assert len(records) == 256 and max_in_flight(records) > 128
        assert mean_in_flight(records) <= max_in_flight(records)


def test_faults_come_by_rule_and_go_on_retry():
    """A rule that fails first attempts costs a retrying client one more request for each."""
    faults = Faults(rule=lambda messages, attempt: "429" if attempt == 0 else None, retry_after=0.01)
    with LMServer(TaskRule(ANSWERS, quality=Quality(1.0)), faults=faults) as server:
        assert ask(model(server), "question 3") == "no"
        assert [record.status for record in server.records()] == [429, 200]


@pytest.mark.parametrize("kind", ["500", "malformed", "close"])
def test_a_broken_answer_is_an_error_to_the_client(kind):
    """Without retries, a client meets the fault as an exception."""
    with LMServer(TaskRule(ANSWERS), faults=Faults({kind: 1.0})) as server, pytest.raises(LMError):
        ask(model(server, num_retries=0), "question 1")


def test_a_limit_answers_429_above_it():
    """With room for one call, of two at once one is refused."""
    with LMServer(TaskRule(ANSWERS), latency=Latency(0.3, 0.0), faults=Faults(limit=1, retry_after=0.1)) as server:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda q: ask(model(server), q), ["question 1", "question 2"]))
        assert sorted(record.status for record in server.records())[-1] == 429


def test_a_hanging_request_does_not_keep_the_server():
    """The server stops at once although a request still hangs."""
    with LMServer(TaskRule(ANSWERS), faults=Faults({"hang": 1.0})) as server:

        def hang():
            with contextlib.suppress(Exception):
                ask(model(server, num_retries=0), "question 1")

        threading.Thread(target=hang, daemon=True).start()
        while server.requests == 0:
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 5


def test_prompt_is_read_back():
    """Instruction, demos, inputs and outputs of a ChatAdapter prompt are found again in its messages."""
    signature = dspy.Signature("question, context -> reasoning, answer", "Answer well.")
    demos = [{"question": "q1", "context": "c1", "reasoning": "r", "answer": "a"}]
    messages = dspy.ChatAdapter().format(signature, demos, {"question": "two\nlines", "context": "c"})
    prompt = Prompt.read(messages)
    assert prompt.instruction == "Answer well."
    assert prompt.inputs == {"question": "two\nlines", "context": "c"}
    assert prompt.outputs == ("reasoning", "answer")
    assert len(prompt.demos) == 1

"""What a language model answered is scored, and nothing else is: replies of every shape, errors of every kind."""

import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dspy
from dspy.promptune.allocation.records import Job
from dspy.promptune.distributed.programs import EvaluationRules, ProgramCache, ProgramEvaluator
from dspy.promptune.limits.answers import NoAnswerError, blank, may_repeat, of_call, unanswered, whole
from dspy.promptune.limits.gateway import LMGateway
from dspy.promptune.limits.pool import Pool
from dspy.promptune.limits.views import through_gateway
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMUnexpectedError,
)
from tests.server import Faults, LMServer, Quality, TaskRule
from tests.server.behavior import BODY
from tests.server.replies import NO_ANSWERS, completion, with_content

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(6)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
ALWAYS_RIGHT = TaskRule(ANSWERS, quality=Quality(base=1.0))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def exact(example, prediction, trace=None):
    return example.answer == prediction.answer


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from(["", " \n"])
no_content = st.sampled_from([..., None, "", "  \n", 5, 0.5, {}, {"a": 1}, []])
no_choices = st.sampled_from([..., None, [], {}, {"a": 1}, ["yes"], [None], [{}], [[]], 3])
bad_counts = st.sampled_from([-1, -(10**9), "many", "3", [1], {"a": 1}, 0.5])
bad_usage = st.sampled_from([[1], "x", 3]) | st.fixed_dictionaries(
    {"prompt_tokens": bad_counts, "completion_tokens": bad_counts, "total_tokens": bad_counts}
)
half = json.dumps(completion())[:70]
texts = st.sampled_from(["", "<html>502 Bad Gateway</html>", "data: [DONE]", half, "\x00", "{}"])
replies = st.one_of(
    texts,
    no_content.map(with_content).map(json.dumps),
    no_choices.map(lambda choices: json.dumps(completion(choices=choices))),
    bad_usage.map(lambda usage: json.dumps(completion(choices=[], usage=usage))),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4).map(json.dumps),
    st.sampled_from(sorted(NO_ANSWERS.values())),
    st.sampled_from([{"error": {"message": "overloaded", "type": "server_error"}}, {"detail": "no"}]).map(json.dumps),
)


class Broken:
    """Replies with a text to the first ``times`` requests of a kind."""

    def __init__(self):
        self.text, self.times = "", 0

    def __call__(self, messages, attempt):
        return BODY + self.text if attempt < self.times else None


@pytest.fixture(scope="module")
def served():
    """A server whose model is always right, and what breaks its replies."""
    broken = Broken()
    with LMServer(ALWAYS_RIGHT, faults=Faults(rule=broken)) as server:
        yield server, broken


def evaluated(server, *, retries=1, metric=exact, lm=None, **rules):
    """The outcome of one job over three examples."""
    lm = lm or dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False, num_retries=retries)
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    over, ended = threading.Event(), []

    def done(job, outcome):
        ended.append(outcome)
        over.set()

    rules = EvaluationRules(metric=metric, valset=EXAMPLES[:3], **rules)
    with LMGateway(8, view=through_gateway).active(), Pool(4) as pool:
        work = ProgramEvaluator(ProgramCache(program, ()), rules, pool, 1)
        work.start(Job(0, (), (0, 1, 2), "block"), (0, 1, 2), done)
        assert over.wait(30)
    return ended[0]


@given(reply=replies)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_reply_that_is_no_answer_is_no_score(served, reply):
    """With a model that is always right, a broken reply of any shape before the answer leaves every score at 1."""
    server, broken = served
    server.reset()
    broken.text, broken.times = reply, 1
    assert evaluated(server).scores == {0: 1.0, 1: 1.0, 2: 1.0}


@given(reply=replies)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_model_that_never_answers_fails_the_job(served, reply):
    """Where broken replies are all that comes, the job fails, may be tried again, and has no score."""
    server, broken = served
    server.reset()
    broken.text, broken.times = reply, 10**6
    outcome = evaluated(server, retries=0)
    assert outcome.error is not None and outcome.transient and not outcome.scores and not outcome.errors


def test_usage_that_is_none_costs_nothing(served):
    """A right answer whose usage is nonsense is asked for again, and scored."""
    server, broken = served
    server.reset()
    body = with_content("[[ ## answer ## ]]\nnever right\n\n[[ ## completed ## ]]")
    broken.text, broken.times = json.dumps({**body, "usage": {"prompt_tokens": -5, "total_tokens": "x"}}), 1
    assert set(evaluated(server).scores.values()) == {1.0}


def test_an_answer_that_cannot_be_read_is_a_wrong_answer(served):
    """Prose instead of fields was said by the model: it is scored, at once."""
    server, broken = served
    server.reset()
    broken.text, broken.times = json.dumps(with_content("I would say yes.")), 10**6
    outcome = evaluated(server)
    assert outcome.error is None and set(outcome.scores.values()) == {0.0} and outcome.unreadable == 3


def test_a_blank_reply_in_dspys_cache_is_asked_for_again(monkeypatch, served):
    """The cache keeps replies without an answer, too: the next try goes past it."""
    monkeypatch.setattr(dspy, "cache", dspy.clients.Cache(False, True, None))
    server, broken = served
    server.reset()
    broken.text, broken.times = json.dumps(with_content(None)), 1
    lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=True, num_retries=1)
    assert set(evaluated(server, lm=lm).scores.values()) == {1.0}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([], True), ([None], True), ([""], True), (["", " "], True), ([{"text": None}], True),
        ([{"text": "", "reasoning_content": "hm"}], True), (["0"], False), (["", "a"], False),
        (["\u200b\ufeff"], True), (["\0\0\n"], True),
        ([5], True), ([b"yes"], True), ([[{"type": "text", "text": "yes"}]], True), ([{"a": 1}], True), ([{}], True),
        ([{"text": ["yes"]}], True), ([{"text": 5, "reasoning_content": "hm"}], True), ([object()], False),
        ([{"tool_calls": [1]}], False),
        ([{"text": None, "tool_calls": [1]}], False), ([{"text": "a", "logprobs": 1}], False), ("", False),
    ],
)  # fmt: skip
def test_blank_outputs(outputs, expected):
    """Outputs are blank without text and without a tool call; reasoning, other shapes and types are no answer."""
    assert blank(outputs) is expected


def wrapped(inner):
    """An error of a program that was raised because of another."""
    try:
        raise inner
    except Exception as error:
        try:
            raise KeyError("program") from error
        except KeyError as outer:
            return outer


@pytest.mark.parametrize(
    ("error", "none", "repeat"),
    [
        (LMUnexpectedError("shape"), True, True), (LMProviderError("page"), True, True),
        (LMRateLimitError("429"), True, True), (LMAuthError("key"), True, False),
        (NoAnswerError("blank"), True, True), (ContextWindowExceededError(), False, False),
        (wrapped(LMUnexpectedError("shape")), True, False), (wrapped(ContextWindowExceededError()), False, False),
        (LMInvalidRequestError("no such model", status=404), True, False),
        (LMInvalidRequestError("not now", status=409), True, True),
        (LMInvalidRequestError("too long", status=413), False, False),
        (KeyError("program"), False, False), (wrapped(ValueError("program")), False, False),
    ],
)  # fmt: skip
def test_which_errors_mean_that_there_is_no_answer(error, none, repeat):
    """The provider's failures do, also behind an error of the program; refused prompts and the program's own do not."""
    assert (unanswered(error), may_repeat(error)) == (none, repeat)


def test_whatever_a_call_raises_is_no_answer():
    """A model class of the user's may raise any error; half a character in the prompt is the prompt's fault."""
    error, prompt = KeyError("choices"), ValueError("prompt contains text that is not valid Unicode")
    of_call(error)
    of_call(prompt)
    assert unanswered(error) and not unanswered(prompt)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\ud83d", "a\ufffd"), ("\ud83d\ude00", "😀"), ("\udc00\ud800", "\ufffd\ufffd"), ("é 😀", "é 😀")],
)
def test_halves_of_characters(text, expected):
    """Two halves side by side are a character; one alone is replaced, and nothing else is changed."""
    assert whole(text) == expected

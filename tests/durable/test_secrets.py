"""No key, header or value of the environment is ever written."""

import pytest

import dspy
from dspy.promptune.engine.scrub import MASK, Scrubber, secrets_of
from tests.durable.lives import QUESTIONS
from tests.server import LMServer, TaskRule

KEY = "planted-key-0123456789"
HEADER = "planted-header-value"
ENVIRONMENT = "planted-environment-value"
TOKEN = "sk-proj-plantedplantedplanted00"


def test_nothing_planted_is_in_the_file(tmp_path, monkeypatch):
    """Secrets in the model's settings, in the environment and in error messages are in no file that a run writes."""
    monkeypatch.setenv("PLANTED", ENVIRONMENT)
    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in list(QUESTIONS.items())[:16]]
    calls = []

    def metric(example, prediction, trace=None):
        calls.append(example)
        if len(calls) % 5 == 0:
            raise ValueError(f"Refused: {KEY}, {HEADER}, {ENVIRONMENT}, {TOKEN}, https://me:{KEY}@host/")
        return example.answer == prediction.answer

    for name in ("runs.db", "runs.log"):
        with LMServer(TaskRule(QUESTIONS)) as server:
            lm = dspy.LM(
                "openai/gpt-4o-mini", api_base=server.url, api_key=KEY, cache=False, temperature=0.5,
                extra_headers={"Authorization": f"Bearer {HEADER}"},
            )  # fmt: skip
            with dspy.context(lm=lm):
                given = {"auto": None, "num_candidates": 2, "num_threads": 2, "seed": 1, "max_errors": 2}
                dspy.MIPROv2(metric=metric, **given).compile(
                    dspy.Predict("question -> answer"), trainset=data[:6], valset=data[6:], num_trials=4,
                    minibatch_size=5, sampler="random", n_jobs=2, storage=str(tmp_path / name),
                )  # fmt: skip
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Refused" in written and MASK.encode() in written and b'"temperature": 0.5' in written
    for secret in (KEY, HEADER, ENVIRONMENT, TOKEN):
        assert secret.encode() not in written


@pytest.mark.parametrize(
    "text",
    [
        "sk-abcdefghijklmnopqrstuvwx",
        "Authorization: Bearer abcdefghijkl",
        "https://me:hidden-word@host",
        "AKIAABCDEFGHIJKLMNOP",
        "https://host/v1?api_key=hidden-word&x=1",
        "https://host/v1?x=1&key=hidden-word",
    ],
)
def test_what_looks_like_a_secret_is_one(text):
    """Keys and headers are recognised by their form, wherever they come from."""
    assert MASK in Scrubber().text(f"It failed with {text}, sorry.")


def test_ordinary_texts_stay_as_they_are(monkeypatch):
    """Prompts are not changed: words, paths, numbers and short values of the environment are no secrets."""
    monkeypatch.setenv("STAGE", "production")
    monkeypatch.setenv("FOLDER", "/home/somebody/work")
    text = "In production, task-based basic answers: see /home/somebody/work and https://host:80/x, risk-averse 5."
    assert Scrubber(["short"]).text(text) == text


def test_the_secrets_of_a_model():
    """Keys, tokens and all that is in headers are secrets; sizes in tokens and temperatures are not."""
    lm = dspy.LM("openai/m", api_key=KEY, extra_headers={"x-any": HEADER}, max_tokens=100000, temperature=0.25)
    lm.kwargs["extra_query"] = {"code": "planted-query-value"}
    found = secrets_of(lm)
    assert {"planted-query-value", KEY, HEADER} <= found and not any("100000" in text for text in found)


def test_a_closure_and_the_environment_at_another_start(tmp_path, monkeypatch, at_once):
    """A key that only a metric's closure holds is in no file, and a program that speaks of a secret can be resumed."""
    monkeypatch.setenv("PLANTED", ENVIRONMENT)
    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in list(QUESTIONS.items())[:12]]

    def judge(key):
        return lambda example, prediction, trace=None: bool(key) and example.answer == prediction.answer

    program = dspy.Predict(dspy.Signature("question -> answer", f"Answer for {ENVIRONMENT}."))
    with LMServer(TaskRule(QUESTIONS)) as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key=KEY, cache=False)
        for trials in (2, 4):
            with dspy.context(lm=lm):
                dspy.MIPROv2(metric=judge("plantedinaclosure"), auto=None, num_candidates=2, seed=1).compile(
                    program, trainset=data[:4], valset=data[4:], num_trials=trials, minibatch_size=4, sampler="random",
                    n_jobs=2, storage=str(tmp_path / "runs.log"), resume=True,
                )  # fmt: skip
    written = (tmp_path / "runs.log").read_bytes()
    assert b"Answer for [removed]" in written and b"plantedinaclosure" not in written
    assert ENVIRONMENT.encode() not in written

"""No key, header or value of the environment is ever written."""

import base64
import logging
import random
import traceback

import pytest

import dspy
from dspy.promptune import PromptSpace
from dspy.promptune.features import embed_parts
from dspy.promptune.secrets import MASK, SecretMasker, know, said, secrets_of
from dspy.utils.callback import BaseCallback
from tests.server import LMServer, RuleLM, TaskRule
from tests.storage.lives import QUESTIONS

KEY = "planted-key-0123456789"
HEADER = "planted-header-value"
ENVIRONMENT = "planted-environment-value"
TOKEN = "sk-proj-plantedplantedplanted00"


def test_nothing_planted_is_in_the_file(tmp_path, monkeypatch):
    """Secrets in the model's settings, in the environment and in error messages are in no file that a run writes."""
    monkeypatch.setenv("PLANTED_TOKEN", ENVIRONMENT)
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


SECRETS = (KEY, HEADER, ENVIRONMENT, TOKEN)
LEAK = f"401 for key {KEY}, Authorization: Bearer {HEADER}, {ENVIRONMENT}, {TOKEN}\nand {KEY[:9]}"


def leaky(fault, metric, **options):
    """A compile on a language model and with a metric that may raise all secrets; what it returned or raised."""
    lm = RuleLM(TaskRule(QUESTIONS), fault=fault)
    lm.kwargs |= {"api_key": KEY, "extra_headers": {"Authorization": f"Bearer {HEADER}"}}
    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in list(QUESTIONS.items())[:12]]
    with dspy.context(lm=lm, callbacks=[Leaking()]):
        try:
            return dspy.MIPROv2(metric=metric, auto=None, num_candidates=3, num_threads=1, seed=1, **options).compile(
                dspy.Predict("question -> answer"), trainset=data[:6], valset=data[6:], num_trials=4,
                minibatch_size=3, sampler="random", n_jobs=2,
            )  # fmt: skip
        except dspy.promptune.PromptuneError as error:
            return error


class Leaking(BaseCallback):
    """Fails at every evaluation, and tells all it knows."""

    def on_evaluate_start(self, *args, **options):
        raise ValueError(LEAK)

    on_evaluate_end = on_evaluate_start


def test_nothing_planted_is_logged_shown_or_raised(monkeypatch, caplog, capfd):
    """What a provider, a metric or a callback says is masked in log lines of all levels, in records and in errors."""
    monkeypatch.setenv("PLANTED_TOKEN", ENVIRONMENT)
    caplog.set_level("DEBUG", logger=dspy.promptune.__name__)
    handler = logging.StreamHandler()
    logging.getLogger(dspy.promptune.__name__).addHandler(handler)
    calls = []

    def refused(call):
        raise ConnectionRefusedError(LEAK)

    def proposing(call):
        if call.label != "answer":
            raise ValueError(LEAK)

    def describing(call):
        if call.label not in ("answer", "proposed_instruction") or len(calls) > 20:
            raise ValueError(LEAK)

    def metric(example, prediction, trace=None):
        calls.append(example)
        if trace is None and len(calls) % 3 == 0:
            raise ValueError(LEAK)
        return True

    try:
        program = leaky(describing, metric, max_errors=2)
        broken = lambda *args: len(args) > 2 or refused(0)  # noqa: E731
        found = [leaky(refused, metric), leaky(proposing, metric), leaky(lambda call: None, broken)]
    finally:
        logging.getLogger(dspy.promptune.__name__).removeHandler(handler)
    run = program.optimization_run
    views = [str(run), str([trial.user_attrs for trial in run.trials]), str(program.trial_logs), run._repr_html_()]
    raised = ["".join(traceback.format_exception(error)) for error in found]
    streams = "".join(capfd.readouterr())
    for text in (caplog.text, streams, views[1], views[2], *raised):
        assert MASK in text
    for text in (caplog.text, streams, *views, run.to_dataframe().to_csv(), *raised):
        assert not [secret for secret in SECRETS if secret in text]


def test_an_error_is_masked_before_it_is_cut():
    """No half of a key is left where a long message is cut off."""
    know([KEY])
    assert KEY[:6] not in said(ValueError("x" * 495 + KEY))


def test_an_embedders_key_is_masked(capsys):
    """What a hosted embedder says when it fails is shown without its key."""

    class Hosted(dspy.Embedder):
        def __call__(self, *args, **options):
            raise ConnectionError(LEAK)

    with pytest.raises(dspy.promptune.EmbeddingError) as error:
        embed_parts(PromptSpace({0: ["Answer."]}), Hosted("openai/small", api_key=KEY))
    assert MASK in str(error.value) and KEY not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    "text",
    [
        "sk-abcdefghijklmnopqrstuvwx",
        "Authorization: Bearer abcdefghijkl",
        "https://me:hidden-word@host",
        "AKIAABCDEFGHIJKLMNOP",
        "https://host/v1?api_key=hidden-word&x=1",
        "https://host/v1?x=1&key=hidden-word",
        "https://host/v1?x=1&sig=hidden-word",
        "https://hooks.slack.com/services/T00/B00/abcdefgh",
        "key=sk-abcdefghijklmnopqrstuvwx",
        "hf_abcdefghijklmnopqrstuvwxyz012345",
        "bearer 0123456789abcdefghij",
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl",
    ],
)
def test_what_looks_like_a_secret_is_one(text):
    """Keys and headers are recognized by their form, wherever they come from."""
    assert MASK in SecretMasker().text(f"It failed with {text}, sorry.")


def test_ordinary_texts_stay_as_they_are(monkeypatch):
    """Prompts are not changed: words, paths, numbers and short values of the environment are no secrets."""
    monkeypatch.setenv("STAGE", "production")
    monkeypatch.setenv("FOLDER", "/home/somebody/work")
    text = "In production, task-based basic answers: see /home/somebody/work and https://host:80/x, risk-averse 5."
    assert SecretMasker(["short"]).text(text) == text


@pytest.mark.parametrize("name", ["APP_NAME", "LANGUAGE_CODE", "PROMPT", "MONKEY", "TOKENIZERS_PARALLELISM"])
def test_a_setting_of_the_environment_is_no_secret(monkeypatch, name):
    """Only variables with the name of a credential hold secrets: an application's name may be in its prompts."""
    monkeypatch.setenv(name, "Contoso Bank of 1999")
    assert SecretMasker().text("Agent of Contoso Bank of 1999.") == "Agent of Contoso Bank of 1999."


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY", "DB_PASSWORD", "github_token", "AWS_SECRET_ACCESS_KEY", "KEY_2", "PGPASSWORD", "MYSQL_PWD",
        "SSH_PASSPHRASE", "API_KEYS", "OPENAIAPIKEY", "SERVICE_JWT", "DB_CREDS",
    ],
)  # fmt: skip
def test_a_credential_of_the_environment_is_a_secret(monkeypatch, name):
    """Under the name of a credential any value is one, unless it is a path, a phrase or a plain word."""
    monkeypatch.setenv(name, "planted-7-value")
    assert SecretMasker().text("It is planted-7-value.") == f"It is {MASK}."
    for harmless in ("production", "/etc/keys/one", "set me later", "12345678"):
        monkeypatch.setenv(name, harmless)
        assert SecretMasker().text(f"It is {harmless}.") == f"It is {harmless}."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY_HEADER", "x-contoso-name"), ("AUTH_TOKEN_HEADER", "X-Contoso-Token"), ("API_KEY_NAME", "contoso-2"),
        ("TOKEN_PREFIX", "contoso-2"), ("PASSWORD_FILE", "run.secrets.2"), ("TOKEN_URL", "contoso.example-2"),
        ("KEY_COUNT", "12 of 2000"), ("TOKEN_TTL", "3600-seconds"), ("MAX_TOKENS", "4096-or-so"),
        ("KEY_LENGTH", "2048-bits"), ("EOS_TOKEN", "<|end-of-2|>"), ("SORT_KEY", "created_at_2"),
        ("PARTITION_KEY", "tenant/region-2"), ("API_KEY_ID", "contoso-key-2"), ("COOKIE_NAME", "contoso-session-2"),
    ],
)  # fmt: skip
def test_what_a_setting_tells_of_a_credential_is_no_secret(monkeypatch, name, value):
    """Headers, names, files, counts and numbers of keys, and keys and tokens of other sorts, are words of any text."""
    monkeypatch.setenv(name, value)
    assert SecretMasker().text(f"Look for {value}.") == f"Look for {value}."
    assert secrets_of({name: value}) == set()


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIA0BCDEFGHIJKLMNO1", "AKIA0BCDEFGHIJKLMNO1"),
        ("API_KEY_ID", "0123456789abcdef01", "0123456789abcdef01"),
        ("AUTH_HEADER", "Bearer planted-7-value", "planted-7-value"),
        ("AUTHORIZATION", "Bearer planted-7-value", "planted-7-value"),
        ("COOKIE_HEADER", "session=planted-7", "session=planted-7"),
        ("VAULT_SECRET_ID", "planted-7-value", "planted-7-value"),
        ("API_KEY_VALUE", "planted-7-value", "planted-7-value"),
    ],
)
def test_a_credential_is_one_under_such_a_name_too(monkeypatch, name, value, secret):
    """What looks like a credential is masked, with its scheme and alone."""
    monkeypatch.setenv(name, value)
    assert secret not in SecretMasker().text(f"401 for {secret}, sorry.")
    monkeypatch.delenv(name)
    assert secret in secrets_of({name: value})


def test_the_password_of_an_address_in_the_environment_is_a_secret(monkeypatch):
    """Also where an error tells it alone."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:planted-pass-1@host/base")
    assert SecretMasker().text("wrong password planted-pass-1") == f"wrong password {MASK}"


def test_each_of_several_keys_in_one_setting_is_a_secret(monkeypatch):
    """Keys that are listed with commas are masked one by one."""
    monkeypatch.setenv("API_KEYS", "planted-1-value,planted-2-value")
    assert SecretMasker().text("planted-1-value or planted-2-value") == f"{MASK} or {MASK}"


def test_harmless_headers_are_no_secrets():
    """What a provider asks for in headers may be words of the prompts; credentials in headers of any name are found."""
    headers = {
        "X-Title": "question answering choose letter", "HTTP-Referer": "https://example.org/about",
        "x-any": "careful", "X-Custom": "Bearer 0123456789abcdefghij",
        "Authorization": f"Basic {HEADER}", "x-model": "gpt-4o-mini-2024-07-18",
    }  # fmt: skip
    found = secrets_of(dspy.LM("openai/m", api_key="EMPTY", extra_headers=headers))
    assert {"0123456789abcdefghij", HEADER} <= found
    words = ("question", "example", "careful", "EMPTY", "gpt")
    assert not [text for text in found if any(word in text for word in words)]


def test_words_and_data_stay_as_they_are():
    """Prose, placeholders, base64 and images are never changed, whatever they happen to hold."""
    rng = random.Random(0)
    image = base64.b64encode(rng.randbytes(1 << 20)).decode()
    know(["AbCd12EfGh", image[5000:5020]])
    texts = [
        "Basic arithmetic and basic understanding of bearer securities.", "Authorization: required before use.",
        "sk is a key of music, pk-one too; AKIA is short.", f"data:image/png;base64,{image}", image,
        f'{{"url": "data:image/png;base64,{image[:4000]}", "note": "xAbCd12EfGhx"}}',
    ]  # fmt: skip
    for text in texts:
        assert SecretMasker().text(text) == text
    assert SecretMasker().text(f"AbCd12EfGh: data:image/png;base64,{image}") == f"{MASK}: data:image/png;base64,{image}"


def test_the_secrets_of_a_model():
    """Keys, tokens and headers that carry them are secrets; sizes in tokens and temperatures are not."""
    lm = dspy.LM("openai/m", api_key=KEY, extra_headers={"x-api-key": HEADER}, max_tokens=100000, temperature=0.25)
    lm.kwargs["extra_query"] = {"code": "planted-query-value"}
    found = secrets_of(lm)
    assert {"planted-query-value", KEY, HEADER} <= found and not any("100000" in text for text in found)


def test_a_closure_and_the_environment_at_another_start(tmp_path, monkeypatch):
    """A key that only a metric's closure holds is in no file, and a program that speaks of a secret can be resumed."""
    monkeypatch.setenv("PLANTED_TOKEN", ENVIRONMENT)
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

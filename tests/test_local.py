"""The embedded language model: a real one, on the processor."""

from __future__ import annotations

import copy
import html
import pickle
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

import dspy
from dspy.promptune import LocalLM, LocalModelError, OptionError
from examples import demo

pytest.importorskip("xllamacpp")


class Subject(dspy.Signature):
    """What is the text about: food, weather?"""

    text: str = dspy.InputField()
    subject: Literal["food", "weather"] = dspy.OutputField()


@pytest.fixture(scope="module")
def lm() -> Iterator[LocalLM]:
    """One model for the module: short answers, nothing cached."""
    with LocalLM(n_parallel=2, context=1024, max_tokens=12, cache=False, num_retries=0) as model:
        yield model


def test_it_is_an_lm_that_answers(lm: LocalLM) -> None:
    """`lm("...")` returns one text, from a server on the loopback interface only."""
    (answer,) = lm("Say hello.")
    assert isinstance(lm, dspy.LM)
    assert answer.strip()
    assert lm.server.address.startswith("http://127.0.0.1:")


def test_the_same_request_has_the_same_answer(lm: LocalLM) -> None:
    """At the default temperature of zero, nothing is drawn."""
    assert lm("Name a color.") == lm("Name a color.")


def test_copies_share_the_server(lm: LocalLM) -> None:
    """`deepcopy` and `copy(...)` talk to the server that runs, with their own settings."""
    deep, warm = copy.deepcopy(lm), lm.copy(rollout_id=1, temperature=1.0)
    assert deep.server is warm.server is lm.server
    assert warm.kwargs["temperature"] == 1.0
    assert lm.kwargs["temperature"] == 0.0
    assert deep("Say hello.") == lm("Say hello.")


def test_equal_options_share_the_server(lm: LocalLM) -> None:
    """A second LocalLM starts nothing; closing it leaves the first one running."""
    second = LocalLM(n_parallel=2, context=1024)
    assert second.server is lm.server
    second.close()
    assert lm("Say hello.")


def test_predict_reads_its_answers_with_demos(lm: LocalLM) -> None:
    """With demos shown, a signature's label comes back as one of its values."""
    program = dspy.Predict(Subject)
    program.demos = [
        dspy.Example(text="We ate soup.", subject="food"),
        dspy.Example(text="It snowed.", subject="weather"),
    ]
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        assert program(text="The bread is fresh.").subject in ("food", "weather")


def test_json_is_constrained_to_the_signature(lm: LocalLM) -> None:
    """Without any demo, JSONAdapter's answer parses: the server holds the model to the schema."""
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        assert dspy.Predict(Subject)(text="It rained all day.").subject in ("food", "weather")


def test_two_threads_are_answered_at_once(lm: LocalLM) -> None:
    """Two requests at a time get the answers that one at a time gets."""
    prompts = [f"Count to {n}." for n in range(3, 7)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lm, prompts))
    assert [len(answers) for answers in together] == [1] * 4
    assert all(answers[0].strip() for answers in together)


def test_closing_stops_the_server_for_all_copies() -> None:
    """After the block nothing listens, and a copy says that it is closed. Closing twice is harmless."""
    with LocalLM(n_parallel=1, context=512, cache=False, num_retries=0) as own:
        address, other = own.server.address, own.copy()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/health", timeout=5)
    with pytest.raises(LocalModelError, match="closed"):
        other("Say hello.")
    own.close()


def test_closing_waits_for_the_calls_in_flight() -> None:
    """A call that is being answered when the model is closed gets its answer."""
    own = LocalLM(n_parallel=1, context=512, max_tokens=20, cache=False, num_retries=0)
    server = own.server
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(own, "Tell me about dogs.")
        while not server.calls and not answer.done():
            pass
        own.close()
        assert answer.result()[0].strip()
    assert not server.running


def test_pickling_is_refused(lm: LocalLM) -> None:
    """The error says that the model belongs to its process."""
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(lm)


def test_saved_state_has_no_address_and_loads(lm: LocalLM) -> None:
    """State of a program names the options; loading it leases an equal server."""
    state = lm.dump_state()
    assert not {"api_base", "api_key", "model"} & state.keys()
    loaded = dspy.BaseLM.load_state(state, allow_custom_lm_class=True)
    assert loaded.server is lm.server
    loaded.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_parallel": 0}, "n_parallel is 0, and must be at least 1"),
        ({"n_threads": 0}, "n_threads is 0, and must be at least 1"),
        ({"context": 10}, "context is 10, and must be at least 256"),
        ({"api_base": "http://example.org"}, "LocalLM takes no api_base"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    """The error has the value and the rule, before anything starts."""
    with pytest.raises(OptionError, match=message):
        LocalLM(**options)  # type: ignore[arg-type]


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    """llama.cpp's refusal comes back as LocalModelError with the name of the file."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model at all")
    with pytest.raises(LocalModelError, match=r"broken\.gguf"):
        LocalLM(model_file=broken)


def test_a_process_that_does_not_close_ends_well_and_quietly() -> None:
    """Leaving a server running at the end of the program costs neither an error nor a word on stderr."""
    code = "from dspy.promptune import LocalLM; print(LocalLM(n_parallel=1, context=512, cache=False)('Say hi.'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "llama" not in done.stderr


@pytest.mark.slow
def test_a_search_with_it_as_writer_ends_and_says_what_became_of_its_texts(tmp_path: Path) -> None:
    """Whatever it writes: each request is a candidate with a lineage, or refused for a reason that the report has."""
    none = {"max_bootstrapped_demos": 0, "max_labeled_demos": 0}
    aware = dict.fromkeys(("program_aware_proposer", "data_aware_proposer", "fewshot_aware_proposer"), False)
    with (
        LocalLM(n_parallel=4, context=4096, max_tokens=32, cache=False, num_retries=0) as model,
        dspy.context(lm=model),
    ):
        optimizer = dspy.MIPROv2(metric=demo.exact, auto=None, num_candidates=2, num_threads=2, seed=1, **none)
        best = optimizer.compile(
            demo.Sorter(), trainset=demo.letters("train", 8), valset=demo.letters("validation", 8), num_trials=5,
            sampler="qei", embedder="ngram", reflect=True, n_jobs=2, **none, **aware,
        )  # fmt: skip
    run = best.optimization_run
    texts = [trial.user_attrs for trial in run.trials if trial.user_attrs.get("kind") == "write"]
    written = [noted for noted in texts if noted.get("origin") != "proposed"]
    used = [noted["text"] for noted in written if "text" in noted]
    assert run.ended in ("the budget is spent", "nothing is left to evaluate")
    assert written and run.spent["reflect"]["calls"] >= len(written)
    assert used == [run.space.parts[0].candidates[each["index"]] for each in run.lineage]
    page = html.unescape(run.report(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert all(noted["refused"] in page for noted in written if "text" not in noted)
    assert not used or "Written instructions" in page

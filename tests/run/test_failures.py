"""Examples that raised and answers that could not be read: counted, each with a sample, never hidden."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

import dspy
from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.cli import main
from dspy.promptune.naming import prompt_name
from dspy.promptune.run.failures import ExampleFailures, FailureLog
from dspy.promptune.space import PromptSpace
from tests.compile.hazards import ANSWERS, compiled, rule_lm, served
from tests.server import LMServer, Quality, TaskRule


class Shaky(dspy.Module):
    """A program whose tool is down for two of the 24 validation questions."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        if question in ("question 14", "question 15"):
            raise ConnectionError("tool server down, key sk-wertyuiopsdfghjklxcvbnm")
        return self.answer(question=question)


@pytest.fixture
def logged(caplog):
    """Messages of DSPy's loggers, which do not propagate by themselves."""
    logger = logging.getLogger("dspy")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def run_shaky(path, lm=None, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        return compiled(lm or rule_lm(), Shaky(), storage="runs.db", **options)


def test_examples_that_raise_are_told_everywhere(tmp_path, logged, capsys):
    """Result, log and ``show`` count the examples that raised, with one error, without its secret."""
    run = run_shaky(tmp_path, sampler="onehot").optimization_run
    failures = run.failures
    assert failures.scored == run.calls and 0 < failures.errors < run.calls / 4 and failures.unreadable == 0
    assert failures.error_sample.startswith("example ") and "ConnectionError: tool server down" in failures.error_sample
    told = [record.message for record in logged.records if record.message.startswith("Validation example ")]
    assert len(told) == 1 and "tool server down" in told[0] and "counts as wrong" in told[0]
    main(["show", str(tmp_path / "runs.db")])
    shown = capsys.readouterr().out
    assert f"{failures.errors} of {run.calls} scored examples" in shown and "tool server down" in shown
    assert "wertyuiop" not in shown + told[0] + str(failures)


def test_a_traceback_is_logged_where_it_is_asked_for(tmp_path, logged):
    """``provide_traceback=True`` logs where in the program the first error of a kind was raised."""
    run_shaky(tmp_path, sampler="random", provide_traceback=True)
    assert sum("in forward" in record.message for record in logged.records) == 1


def test_workers_tell_as_much(tmp_path):
    """What raised on an executor's worker is counted and quoted as in threads."""
    with ThreadPoolExecutor(2) as executor, LMServer(TaskRule(ANSWERS, quality=Quality(0.5))) as server:
        run = run_shaky(tmp_path, served(server, cache=False), sampler="random", executor=executor).optimization_run
    failures = run.failures
    assert failures.errors > 0 and "ConnectionError: tool server down" in failures.error_sample


def test_answers_that_cannot_be_read_are_quoted(tmp_path):
    """An unreadable answer is counted apart from errors, and its first parse error is kept."""
    lm = rule_lm()
    rule = lm.rule
    lm.rule = lambda messages: "mumble" if "question 20" in messages[-1]["content"] else rule(messages)
    failures = compiled(lm, sampler="random").optimization_run.failures
    assert failures.unreadable > 0 and failures.errors == 0
    assert "AdapterParseError" in failures.unreadable_sample


def test_a_fifth_is_many():
    """Shares are of the scored examples; from 20 percent on a run says its failures first."""
    few, many = ExampleFailures(scored=100, errors=19), ExampleFailures(scored=100, errors=15, unreadable=5)
    assert (few.many, many.many, bool(ExampleFailures(scored=9))) == (False, True, False)
    assert many.lines()[0] == "15 of 100 scored examples (15 %) raised an error and counted as wrong."


def test_kinds_of_errors_are_logged_once_and_not_without_end(caplog):
    """The same error is logged once; after eight different ones only the counts go on."""
    log = FailureLog()
    with caplog.at_level(logging.WARNING, "dspy.promptune.run.failures"):
        logger = logging.getLogger("dspy")
        logger.addHandler(caplog.handler)
        for i in range(20):
            log.note(Outcome(errors=2, raised={0: ValueError(f"kind {i}"), 1: ValueError(f"kind {i}")}), "a prompt")
        logger.removeHandler(caplog.handler)
    assert log.errors == 40 and len({record.message for record in caplog.records}) == 9


@pytest.mark.parametrize(
    ("predictors", "key", "name"),
    [
        (1, (0, 0), "the original prompt"),
        (1, (3, 1), "instruction 3 with demo set 1"),
        (2, (3, 0, 0, 2), "instructions 3/0 with demo sets 0/2"),
    ],
)
def test_prompts_are_named_in_words(predictors, key, name):
    """A prompt is called by the numbers of its candidates, the original by that word."""
    texts, demos = ["a", "b", "c", "d"], [[], [{"q": "1"}], [{"q": "2"}]]
    space = PromptSpace(dict.fromkeys(range(predictors), texts), dict.fromkeys(range(predictors), demos))
    assert prompt_name(space, key) == name

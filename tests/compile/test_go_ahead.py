"""What is held back until steps 1 and 2 are known to work."""

import threading
from concurrent.futures import Future

import pytest

import dspy
from dspy.promptune.compile.go_ahead import GoAhead
from dspy.promptune.limits.budgets import BOOTSTRAP, PROPOSE
from tests.server import RuleLM
from tests.server.rules import chat_text


def answering(text):
    return RuleLM(lambda messages: text)


def test_what_is_held_back_is_called_once_after_the_last_step():
    """Functions are called in their order when both steps work, and later ones at once."""
    go_ahead, called = GoAhead(BOOTSTRAP, PROPOSE), []
    go_ahead.then(lambda: called.append(1))
    go_ahead.then(lambda: called.append(2))
    go_ahead.give(PROPOSE)
    assert called == [] and not go_ahead.given.is_set()
    go_ahead.give(BOOTSTRAP)
    go_ahead.give(BOOTSTRAP)
    go_ahead.then(lambda: called.append(3))
    assert called == [1, 2, 3] and go_ahead.given.is_set()


def test_what_is_dropped_is_never_called():
    """A go-ahead that comes too late begins nothing."""
    go_ahead, called = GoAhead(PROPOSE), []
    go_ahead.then(lambda: called.append(1))
    go_ahead.drop()
    go_ahead.give(PROPOSE)
    assert called == []


def test_it_is_called_in_the_context_of_its_caller():
    """Another thread's go-ahead leaves DSPy's settings what they were when the function was handed in."""
    go_ahead, seen = GoAhead(PROPOSE), []
    with dspy.context(temperature=0.25):
        go_ahead.then(lambda: seen.append(dspy.settings.temperature))
    thread = threading.Thread(target=go_ahead.give, args=(PROPOSE,))
    thread.start()
    thread.join()
    assert seen == [0.25]


@pytest.mark.parametrize(("text", "given"), [(chat_text({"answer": "yes"}), True), ("", False), ("\n", False)])
def test_only_an_answer_gives_the_go_ahead(text, given):
    """An empty reply does not say that a model can be used, and calls that are not awaited say nothing."""
    go_ahead, lm = GoAhead(PROPOSE), answering(text)
    lm("Is anybody there?")
    assert not go_ahead.given.is_set()
    with go_ahead.awaited():
        lm("Is anybody there?")
    assert go_ahead.given.is_set() is given


def test_a_chosen_temperature_is_found_out_before_anything_begins():
    """Where proposals have a temperature of their own, an answer to another call does not say that it will do."""
    go_ahead, lm = GoAhead(PROPOSE), answering("yes")
    made = Future()
    made.set_result("a summary")
    with go_ahead.awaited(1.7):
        lm("Is anybody there?")
        go_ahead.made(made)
        assert not go_ahead.given.is_set()
        lm.copy(temperature=1.7)("Is anybody there?")
    assert go_ahead.given.is_set()


def test_an_error_gives_no_go_ahead():
    """A call that fails says that the model cannot be used yet."""
    go_ahead = GoAhead(PROPOSE)
    with go_ahead.awaited(), pytest.raises(ZeroDivisionError):
        RuleLM(lambda messages: str(1 / 0))("Is anybody there?")
    assert not go_ahead.given.is_set()


@pytest.mark.parametrize(("result", "given"), [("a summary", True), (None, False), (ValueError("no key"), False)])
def test_what_was_made_of_answers_is_a_go_ahead(result, given):
    """A future that brought something counts; one that failed, or went without, does not."""
    go_ahead, future = GoAhead(PROPOSE), Future()
    future.add_done_callback(go_ahead.made)
    if isinstance(result, ValueError):
        future.set_exception(result)
    else:
        future.set_result(result)
    assert go_ahead.given.is_set() is given

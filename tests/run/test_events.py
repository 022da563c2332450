"""What callbacks are told of a search: proposals, trials, the best so far, the end."""

import logging
import threading

import pytest

from dspy.promptune import OptionError, SearchCallback
from tests.compile.hazards import compiled, rule_lm
from tests.report.conftest import Table


class Notes(SearchCallback):
    """Keeps everything, in its order and with its thread."""

    def __init__(self):
        self.told, self.threads = [], set()

    def _keep(self, kind, event):
        self.told.append((kind, event))
        self.threads.add(threading.get_ident())

    def on_proposal(self, proposal):
        self._keep("proposal", proposal)

    def on_trial(self, trial):
        self._keep("trial", trial)

    def on_best(self, best):
        self._keep("best", best)

    def on_end(self, run):
        self._keep("end", run)

    def of(self, kind):
        return [event for name, event in self.told if name == kind]


def test_a_compile_tells_what_happens():
    """Each trial ends once, all but the original's are proposed, the last best is the winner; all in one thread."""
    notes = Notes()
    run = compiled(rule_lm(), sampler="random", callbacks=[notes]).optimization_run
    numbers = sorted(trial.number for trial in run.trials)
    assert sorted(event.trial for event in notes.of("trial")) == numbers
    assert sorted(event.trial for event in notes.of("proposal")) == numbers[1:]
    assert next(event.prompt for event in notes.of("trial") if event.trial == numbers[0]) == "the original prompt"
    assert notes.of("best")[-1].params == run.best_params and notes.told[-1] == ("end", run)
    assert notes.of("best")[-1].score == pytest.approx(run.best_score)
    assert max(event.scored for event in notes.of("trial")) == run.calls
    assert notes.threads == {threading.get_ident()}
    for trial in run.trials:
        (told,) = [event for event in notes.of("trial") if event.trial == trial.number]
        assert told.score == pytest.approx(trial.values[0]) and told.params == trial.params
        assert told.prompt == "the original prompt" or told.prompt.startswith("instruction ")


def test_a_proposal_comes_before_its_result():
    """In the order of events each trial is proposed before it ends."""
    notes = Notes()
    Table().search(callbacks=[notes], n_jobs=2)
    order = [(kind, event.trial) for kind, event in notes.told if kind in ("proposal", "trial")]
    assert all(order.index(("proposal", number)) < order.index(("trial", number)) for _, number in order)


def test_a_failed_trial_has_its_error_and_no_score():
    """What could not be scored is told with its error, without secrets."""
    notes = Notes()
    Table(broken=(1,), error="refused for sk-wertyuiopsdfghjklxcvbnm").search(full_eval_steps=0, callbacks=[notes])
    failed = [event for event in notes.of("trial") if event.error]
    assert failed and all(event.score is None for event in failed)
    assert failed[0].error == "ValueError: refused for [removed]"


def test_what_a_callback_raises_is_logged_and_the_search_goes_on(caplog):
    """A broken callback costs nothing but a warning, and the others are told all the same."""

    class Broken(SearchCallback):
        def on_trial(self, trial):
            raise RuntimeError("no disk")

    notes = Notes()
    logger = logging.getLogger("dspy")
    logger.addHandler(caplog.handler)
    run = Table().search(callbacks=[Broken(), notes])
    logger.removeHandler(caplog.handler)
    assert len(notes.of("trial")) == len(run.trials)
    assert "Callback Broken failed: RuntimeError: no disk" in caplog.messages


@pytest.mark.parametrize("callbacks", [Notes(), [object()], "notes"])
def test_what_is_no_callback_is_refused(callbacks):
    """A single object, another kind of object and text are refused before anything is evaluated."""
    with pytest.raises(OptionError, match="list of dspy"):
        Table().search(callbacks=callbacks)
    lm = rule_lm()
    with pytest.raises(OptionError, match="list of dspy"):
        compiled(lm, callbacks=callbacks)
    assert not lm.calls

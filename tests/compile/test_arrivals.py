"""Instructions that are proposed while the search goes on already."""

import threading

import pytest

import dspy
from benchmarks.warehouse import SortAndPlace, Warehouse, metric
from dspy.promptune import EvaluationError, SearchCallback

pytestmark = [pytest.mark.filterwarnings("ignore:dspy.LM")]
PROPOSES = "[[ ## proposed_instruction ## ]]"


class Gate(threading.Event):
    """What all copies of a model wait for, and how many did."""

    passed = 0

    def __deepcopy__(self, memo):
        return self


class Slow(Warehouse):
    """A warehouse whose proposals wait at a gate; those that fail do so for good."""

    def __init__(self, *args, fails=False, seconds=10, **options):
        super().__init__(*args, **options)
        self.gate, self.fails, self.seconds = Gate(), fails, seconds

    def forward(self, prompt=None, messages=None, **kwargs):
        if PROPOSES in str(messages):
            assert self.gate.wait(self.seconds), "nothing was searched meanwhile"
            self.gate.passed += 1
            if self.fails:
                raise ValueError("the model is broken")
        return super().forward(prompt, messages, **kwargs)


class After(SearchCallback):
    """Opens a gate once a trial has ended and so many examples are scored."""

    def __init__(self, gate, scored=0):
        self.gate, self.scored = gate, scored

    def on_trial(self, trial):
        if trial.scored >= self.scored:
            self.gate.set()


def compiled(world, **options):
    options = {"n_jobs": 4, "num_trials": 8, "callbacks": [After(world.gate)], "embedder": "ngram", **options}
    with dspy.context(lm=world):
        optimizer = dspy.MIPROv2(metric=metric, auto=None, num_candidates=4, num_threads=2, seed=1)
        return optimizer.compile(
            SortAndPlace(1), trainset=world.examples(0, 40), valset=world.examples(200, 240),
            sampler="qei", reflect=True, disable_progress_bar=True, **options,
        )  # fmt: skip


def instructions(run):
    return run.space.parts[0].candidates


def test_the_search_goes_on_while_instructions_are_proposed():
    """Trials end before the first proposal is answered, and every instruction of step 2 is a candidate in the end."""
    world = Slow(0)
    run = compiled(world).optimization_run
    late = [trial.user_attrs for trial in run.trials if trial.user_attrs.get("origin") == "proposed"]
    assert world.gate.passed == 3 and len(late) == 3
    assert {noted["text"] for noted in late} <= set(instructions(run))
    assert all(noted["at"] <= 0.2 * run.calls for noted in late)
    assert not {noted["text"] for noted in late} & {instructions(run)[text["index"]] for text in run.lineage}


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_has_the_same_candidates(tmp_path):
    """What came during the search stands at the same indices, and nothing is proposed again."""
    file = str(tmp_path / "runs.db")
    first = compiled(Slow(0), storage=file).optimization_run
    again = Slow(0)
    again.gate.set()
    second = compiled(again, storage=file, resume=True).optimization_run
    assert instructions(second)[: len(instructions(first))] == instructions(first)
    assert again.gate.passed == 0


def test_where_nothing_can_be_proposed_the_search_ends_with_the_reason():
    """It ends soon, and the error is that of a compile which waits."""
    world = Slow(0, fails=True)
    with pytest.raises(EvaluationError, match=r"Not one of 3 instructions could be proposed.*the model is broken"):
        compiled(world, num_trials=100)
    assert world.calls["task"] < 300


def test_with_batches_the_search_waits():
    """The same seed gives the same trials, so that candidates keep the order of step 2."""
    world = Slow(0)
    world.gate.set()
    run = compiled(world, schedule="batch", num_trials=5).optimization_run
    assert world.gate.passed == 3
    assert not any(trial.user_attrs.get("origin") for trial in run.trials)


class Hanging(Slow):
    """A warehouse whose last proposal is not answered before the gate opens."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.lock, self.asked = threading.Lock(), Gate()

    def __deepcopy__(self, memo):
        return self

    def forward(self, prompt=None, messages=None, **kwargs):
        if PROPOSES in str(messages):
            with self.lock:
                self.asked.passed += 1
                last = self.asked.passed == 3
            if not last:
                return Warehouse.forward(self, prompt, messages, **kwargs)
        return super().forward(prompt, messages, **kwargs)


@pytest.mark.parametrize(("scored", "proposed"), [pytest.param(100, 3, marks=pytest.mark.slow), (10_000, 2)])
def test_a_proposal_that_hangs_does_not_hold_the_search(scored, proposed):
    """The search goes on beyond its first tenth with the others, and ends whether the last one comes or not."""
    world = Hanging(0)
    run = compiled(world, callbacks=[After(world.gate, scored)]).optimization_run
    late = [trial.user_attrs["at"] for trial in run.trials if trial.user_attrs.get("origin") == "proposed"]
    assert run.ended == "the budget is spent" and run.calls >= 200
    assert len(late) == proposed and world.gate.is_set() == (proposed == 3)
    assert proposed == 2 or late[-1] >= scored
    world.gate.set()


@pytest.mark.slow
def test_a_limit_of_time_holds_while_proposals_are_waited_for():
    """The run says that its time was up, and not that nothing was left to do."""
    world = Slow(0, seconds=60)
    run = compiled(world, callbacks=[], num_trials=40, timeout=8).optimization_run
    world.gate.set()
    assert run.ended.startswith("timeout=8")


class Straggling(Hanging):
    """One that answers one of the last notes, too, only when the gate opens."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.late, self.kept = Gate(), Gate()

    def forward(self, prompt=None, messages=None, **kwargs):
        if PROPOSES not in str(messages) and self._keeps():
            self.gate.wait(self.seconds)
        return super().forward(prompt, messages, **kwargs)

    def _keeps(self):
        with self.lock:
            keeps = self.late.is_set() and not self.kept.is_set()
            if keeps:
                self.kept.set()
            return keeps


def test_a_run_that_waits_for_no_straggler_waits_for_no_proposal():
    """Its last evaluation is cut short, and it ends though an instruction is still being proposed."""
    world, found = Straggling(0, seconds=60), []
    search = threading.Thread(
        target=lambda: found.append(compiled(world, callbacks=[After(world.late, 200)]).optimization_run), daemon=True
    )
    search.start()
    search.join(30)
    world.gate.set()
    assert world.kept.is_set() and found and found[0].ended == "the budget is spent"


class Held(Warehouse):
    """A warehouse that answers about one training note only before a validation note came with a demo set."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gate, self.held, self.lock = Gate(), Gate(), threading.Lock()
        self.notes = {example.note for example in self.examples(200, 240)}

    def forward(self, prompt=None, messages=None, **kwargs):
        asked = str(messages[-1]["content"])
        if "[[ ## note ## ]]" in asked and PROPOSES not in str(messages):
            if any(note in asked for note in self.notes):
                if len(messages) > 2:
                    self.gate.set()
            elif not self._first() and not self.gate.wait(10):
                self.held.set()
        return super().forward(prompt, messages, **kwargs)

    def _first(self):
        with self.lock:
            self.held.passed += 1
            return self.held.passed == 1


@pytest.mark.slow
def test_demo_sets_are_tried_while_others_are_bootstrapped():
    """The set of labels is evaluated before the second training example is answered."""
    world = Held(0)
    run = compiled(world, n_jobs=8, callbacks=[]).optimization_run
    assert world.gate.is_set() and not world.held.is_set()
    assert run.ended == "the budget is spent"

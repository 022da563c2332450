"""Instructions written during a compile's search, in a world whose model writes better ones from failures."""

import json
import logging
import signal

import numpy as np
import pytest

import dspy
from benchmarks.warehouse import SortAndPlace, Warehouse, metric
from dspy.promptune import OptionError
from dspy.promptune.allocation.requests import WriteRequest
from dspy.promptune.reflection.attempts import Attempts
from dspy.promptune.reflection.reflection import Reflector, _clipped, unfenced
from dspy.utils.exceptions import LMServerError
from tests.server import Faults, LMServer, RuleLM, TaskRule

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore:dspy.LM")]


class Recorded(Warehouse):
    """A warehouse that keeps what it was asked to write."""

    def __init__(self, *args, fails=False, **options):
        super().__init__(*args, **options)
        self.requests, self.fails = [], fails

    def forward(self, prompt=None, messages=None, **kwargs):
        asked = str(messages[-1]["content"]) if messages else str(prompt)
        if "[[ ## current_instruction ## ]]" in asked:
            self.requests.append(asked)
            if self.fails:
                raise ValueError("the model is broken")
        return super().forward(prompt, messages, **kwargs)


def compiled(world, steps=1, **options):
    options = {"sampler": "qei", "n_jobs": 4, "reflect": True, "disable_progress_bar": True, **options}
    options = {"embedder": "ngram", "num_trials": 12, "schedule": "batch", **options}
    with dspy.context(lm=world):
        optimizer = dspy.MIPROv2(metric=metric, auto=None, num_candidates=4, num_threads=4, seed=1)
        return optimizer.compile(
            SortAndPlace(steps), trainset=world.examples(0, 40), valset=world.examples(200, 240), **options
        )


def gain(seed, steps):
    """A result's exact score less that of the best combination without written texts, and who was written for."""
    world = Warehouse(seed, insight=0.7)
    program = compiled(world, steps, num_trials=8)
    space, lineage = program.optimization_run.space, program.optimization_run.lineage
    written = {(text["part"], text["index"]) for text in lineage}
    given = [key for key in space.keys() if written.isdisjoint(zip(space.names, key, strict=True))]
    best = max(world.true_score(space.build(SortAndPlace(steps), key)) for key in given)
    return world.true_score(program) - best, {text["predictor"] for text in lineage}


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "seeds", "least"), [(1, (1, 3, 4), 0.06), (2, (3, 7), 0.04)])
def test_texts_written_from_failures_win(steps, seeds, least):
    """With 40 calls a trial for 8 trials the result is far better than any closed search could return."""
    gains, written_for = zip(*(gain(seed, steps) for seed in seeds), strict=True)
    assert sum(gains) / len(gains) > least
    assert all(found == set(range(steps)) for found in written_for)


@pytest.mark.slow
def test_no_validation_example_is_shown_to_the_writer():
    """What is written from are training examples, with their expected fields, and nothing else."""
    world = Recorded(0)
    compiled(world)
    notes = [example.note for example in world.examples(200, 240)]
    assert world.requests
    assert not any(note in request for note in notes for request in world.requests)
    assert all("Expected in the end, shelf: " in request for request in world.requests)


def test_writing_is_counted_and_has_its_own_account():
    """Calls for writing and evidence are under "reflect", and within the limit on all calls."""
    world = Recorded(0)
    run = compiled(world, max_lm_calls=300, num_trials=100).optimization_run
    assert sum(world.calls.values()) <= 300
    assert run.spent["reflect"]["calls"] >= len(world.requests) > 0
    assert run.spent["reflect"]["calls"] == pytest.approx(sum(text["cost"] for text in run.lineage), abs=10)


def test_a_writer_that_is_broken_costs_nothing_but_its_calls(caplog):
    """The compile ends with a winner among the candidates of steps 1 and 2."""
    caplog.set_level(logging.WARNING, logger="dspy")
    run = compiled(Recorded(0, fails=True)).optimization_run
    assert run.lineage == []
    assert run.calls > 0
    assert "Writing an instruction failed" in caplog.text


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_pays_for_no_text_twice(tmp_path):
    """The second start has the first's texts, at the same indices."""
    file = str(tmp_path / "runs.db")
    first = compiled(Recorded(0), storage=file, num_trials=5).optimization_run
    again = Recorded(0)
    second = compiled(again, storage=file, num_trials=5, resume=True).optimization_run
    assert first.lineage
    assert second.lineage[: len(first.lineage)] == first.lineage
    assert not again.requests


def small(world, **options):
    """A compile with two prompts and ten examples: soon all is measured, and only texts are left to wait for."""
    with dspy.context(lm=world):
        optimizer = dspy.MIPROv2(
            metric=metric, auto=None, num_candidates=2, num_threads=2, seed=1, max_bootstrapped_demos=0,
            max_labeled_demos=0,
        )  # fmt: skip
        return optimizer.compile(
            SortAndPlace(1), trainset=world.examples(0, 20), valset=world.examples(200, 210), num_trials=10,
            sampler="qei", embedder="ngram", n_jobs=2, reflect=True, disable_progress_bar=True, **options,
        ).optimization_run  # fmt: skip


@pytest.mark.parametrize("schedule", [None, "batch"])
def test_a_reflection_model_that_hangs_or_is_busy_holds_nothing_up(schedule):
    """A request without an answer is given up, counts, and is followed by others; a rate limit is waited for."""
    asked = []

    def fault(messages, attempt):
        key = str(messages)
        if "current_instruction" not in key:
            return None
        asked.append(key)
        return "hang" if key == asked[0] else "429" if attempt == 0 else None

    with LMServer(TaskRule({}), faults=Faults(rule=fault)) as server:
        lm = dspy.LM("openai/rules", api_base=server.url, api_key="none", cache=False, num_retries=3)
        run = small(Warehouse(0), reflection_lm=lm, example_timeout=0.5, schedule=schedule)
    refused = [trial.user_attrs["refused"] for trial in run.trials if "refused" in trial.user_attrs]
    assert len(refused) == 1 and "example_timeout" in refused[0]
    assert run.lineage
    assert len(asked) - len(set(asked)) >= len(run.lineage)


@pytest.mark.parametrize("schedule", [None, "batch"])
def test_a_limit_while_a_text_is_written_ends_the_search_with_its_best(schedule):
    """Where the writer does not answer the time limit holds all the same, and what was scored is returned."""
    faults = Faults(rule=lambda messages, attempt: "hang" if "current_instruction" in str(messages) else None)
    with LMServer(TaskRule({}), faults=faults) as server:
        lm = dspy.LM("openai/rules", api_base=server.url, api_key="none", cache=False)
        run = small(Warehouse(0), reflection_lm=lm, timeout=6.0, schedule=schedule)
    assert "timeout=6" in run.ended and run.calls > 10 and run.best_score >= 0


def test_what_was_being_written_at_an_interrupt_is_not_paid_for_again(tmp_path, python_hears_interrupts):
    """Its text is written down though the run ends, and the next start has it."""

    class Interrupting(Recorded):
        def forward(self, prompt=None, messages=None, **kwargs):
            found = super().forward(prompt, messages, **kwargs)
            if len(self.requests) == 1 and "current_instruction" in str(messages):
                signal.raise_signal(signal.SIGINT)
            return found

    file = str(tmp_path / "runs.db")
    first = small(Interrupting(0), storage=file)
    assert first.ended == "interrupted"
    assert len(first.lineage) == 1
    second = small(Recorded(0), storage=file, resume=True)
    assert second.lineage[0] == first.lineage[0]
    evidence = [trial.user_attrs["evidence"] for trial in second.trials if "evidence" in trial.user_attrs]
    assert all(evidence)
    assert len({(str(one["of"]), one["example"]) for each in evidence for one in each}) == sum(map(len, evidence))
    assert len(second.lineage) > 1


@pytest.mark.slow
def test_each_predictor_is_shown_what_it_read_and_wrote():
    """Of a program of two steps, the second step's request has the kind as its input."""
    world = Recorded(0)
    compiled(world, 2)
    sort, place = ([r for r in world.requests if f"{fields} ->" in r] for fields in ("note", "note, kind"))
    assert sort and place
    assert all("Output kind: " in request for request in sort)
    assert all("Input kind: " in request for request in place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "tpe"}, "sampler='qei'"),
        ({"minibatch_size": 10}, "minibatch_size"),
        ({"minibatch": False}, "minibatch=False"),
        ({"reflect": False, "reflection_lm": "lm"}, "reflect=True only"),
        ({"reflect": "yes"}, "True or False"),
    ],
)
def test_where_it_cannot_act_it_is_refused(options, message):
    """By name, and before anything is called."""
    world = Recorded(0)
    if options.get("sampler") == "tpe":
        options["embedder"] = None
    with pytest.raises(OptionError, match=message):
        compiled(world, **options)
    assert sum(world.calls.values()) == 0


def request_for(program, number=0):
    return WriteRequest(
        part="0_predictor_instruction", predictor=0, parent={"0_predictor_instruction": 0},
        candidates={"0_predictor_instruction": program.predictors()[0].signature.instructions}, scores={},
        belief=(0.5, 0.1), known=(), number=number,
    )  # fmt: skip


def test_what_was_run_before_an_error_counts_and_is_kept():
    """A model that fails at the third example of evidence has cost two, which are written down and shown later."""

    class Failing(Recorded):
        answers = 0

        def forward(self, prompt=None, messages=None, **kwargs):
            self.answers += 1
            if self.answers == 3:
                raise LMServerError("down")
            return super().forward(prompt, messages, **kwargs)

    world, program = Failing(0), SortAndPlace(1)
    attempts = Attempts(world.examples(0, 12), metric)
    reflector = Reflector(attempts, lambda params: program, world, seed=0)
    with dspy.context(lm=world):
        written = reflector(request_for(program, 0))
        assert isinstance(written.error, LMServerError) and written.calls == 2 == len(written.evidence)
        assert len(attempts.of((0,))) == 2 and reflector(request_for(program, 1)).calls == 4


def test_the_parent_is_run_on_a_few_examples_it_has_not_tried():
    """Without attempts of step 1, each text takes three examples and one call, and no example twice."""
    world, program = Recorded(0), SortAndPlace(1)
    attempts = Attempts(world.examples(0, 12), metric)
    reflector = Reflector(attempts, lambda params: program, world, seed=0)
    with dspy.context(lm=world):
        costs = [reflector(request_for(program, i)).calls for i in range(5)]
    assert costs == [4, 4, 4, 4, 1]
    assert world.calls == {"task": 12, "write": 5, "other": 0}


def test_what_a_text_was_written_from_outlasts_a_kill():
    """A later start shows the attempts of the first again, in the same words, and pays for none of them."""
    world, program = Recorded(0), SortAndPlace(1)
    first, second = (
        Reflector(Attempts(world.examples(0, 12), metric), lambda params: program, world, seed=0) for _ in range(2)
    )
    with dspy.context(lm=world):
        told = [first(request_for(program, i)).evidence for i in range(3)]
        second.remember(json.loads(json.dumps([attempt for each in told for attempt in each])))
        written = second(request_for(program, 3))
    assert written.calls == 4
    tried = {attempt["example"] for each in told for attempt in each}
    assert len(tried) == 9 and tried.isdisjoint(attempt["example"] for attempt in written.evidence)
    assert all(attempt["told"] in world.requests[-1] for each in told for attempt in each)


def test_a_writer_that_fails_has_its_evidence_counted():
    """Three examples and the call."""
    world, program = Recorded(0, fails=True), SortAndPlace(1)
    with dspy.context(lm=world):
        reflector = Reflector(Attempts(world.examples(0, 12), metric), lambda params: program, world, seed=0)
        written = reflector(request_for(program))
    assert (written.calls, len(written.evidence), str(written.error)) == (4, 3, "the model is broken")


def test_fences_around_a_text_are_taken_off():
    """A text in a fenced block, with or without a language, is the text; fences within one stay."""
    assert unfenced("```\nDo it.\n```") == "Do it."
    assert unfenced("```text\nDo it.\nWell.\n```") == "Do it.\nWell."
    assert unfenced("Use\n```\ncode\n```\nhere") == "Use\n```\ncode\n```\nhere"


def test_attempts_of_step_one_have_the_scores_of_the_search():
    """A metric that is a bool where there is a trace, and up to 100 without, has right answers above wrong ones."""

    def graded(example, prediction, trace=None):
        value = 100.0 if prediction.answer == example.answer else 10.0
        return value > 50 if trace is not None else value

    trainset = [dspy.Example(question=str(i), answer="yes").with_inputs("question") for i in range(5)]
    attempts = Attempts(trainset, graded)
    for i, example in enumerate(trainset):
        answer = dspy.Prediction(answer="yes" if i < 2 else "no")
        attempts.found(example, answer, [], graded(example, answer, []), dspy.Predict("question -> answer"))
    assert [one.score for one in attempts.free(0)] == [10, 10, 10, 100, 100]


def test_validation_examples_among_the_training_examples_are_not_shown(caplog):
    """Equal examples count as the same; where there are no others they are used, and a warning says so."""
    trainset, valset = (
        [dspy.Example(question=str(i)).with_inputs("question") for i in some] for some in ("123", "234")
    )
    assert [example.question for example in Attempts(trainset, metric, valset).trainset] == ["1"]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(Attempts(trainset[1:], metric, valset).trainset) == 2
    assert "All training examples are validation examples" in caplog.text


def test_failures_are_told_from_the_best_of_scores_below_zero():
    """Of scores that are none above 0, those below the best are failures, or all where all have nothing."""
    for scores, failures in (([-1, -1, -9, -9, -9], 3), ([0, 0, -1, -1, -1], 3), ([0, 0, 0], 3), ([-1, -1, -1], 0)):
        trainset = [dspy.Example(score=float(score)).with_inputs() for score in scores]
        attempts = Attempts(trainset, lambda example, prediction: example.score)
        for example in trainset:
            attempts.found(example, dspy.Prediction(), [], 0.0, dspy.Predict("question -> answer"))
        assert sum(map(attempts._failing(), attempts._free)) == failures


def test_an_answer_that_cannot_be_read_is_shown_to_its_own_predictor():
    """What the second of two steps writes and nobody can read is told of that step, with what it read."""

    class Two(dspy.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = dspy.Predict("question -> hint"), dspy.Predict("question, hint -> answer")

        def forward(self, question):
            return self.second(question=question, hint=self.first(question=question).hint)

    hint = "[[ ## hint ## ]]\nh\n\n[[ ## completed ## ]]"
    lm = RuleLM(lambda messages: "?" if "field `[[ ## answer" in str(messages[-1]) else hint)
    trainset = [dspy.Example(question="q", answer="a").with_inputs("question")]
    reflector = Reflector(Attempts(trainset, metric), lambda params: Two(), lm, seed=0)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        attempt = reflector._tried(Two(), 0)
    assert not attempt.tells(0) and attempt.steps == {1: ({"question": "q", "hint": "h"}, {})}
    assert attempt.said == "An answer could not be read: ?"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Here is the new instruction:\n```text\nCount.\n```", "Count."),
        ("```\nCount.\n```", "Count."),
        ("Rules:\nCount ```legs```.", "Rules:\nCount ```legs```."),
    ],
)
def test_a_fence_around_an_instruction_is_taken_off(text, told):
    """With one line before it that announces it or without; fences within a text stay."""
    assert unfenced(text) == told


def test_a_judge_that_fails_is_not_told_as_the_programs_failure():
    """The program answered, and that is what the writer sees; that it could not be judged is said."""

    def mumbling(example, prediction, trace=None):
        raise ValueError("the judge mumbles")

    lm = RuleLM(lambda messages: "[[ ## answer ## ]]\na\n\n[[ ## completed ## ]]")
    program = dspy.Predict("question -> answer")
    reflector = Reflector(
        Attempts([dspy.Example(question="q", answer="a").with_inputs("question")], mumbling), lambda params: program,
        lm, seed=0,
    )  # fmt: skip
    with dspy.context(lm=lm):
        attempt = reflector._tried(program, 0)
    assert attempt.said == "It could not be judged: the judge mumbles" and dict(attempt.steps[0][1]) == {"answer": "a"}


def test_answers_that_hold_arrays_can_be_learned_from():
    """Several attempts at one example, with equal scores, are told apart without comparing what they hold."""
    trainset = [dspy.Example(question=str(i)).with_inputs("question") for i in range(3)]
    attempts = Attempts(trainset, lambda example, prediction: 0.0)
    for example in [*trainset, *trainset]:
        attempts.found(example, dspy.Prediction(answer=np.zeros(3)), [], 0.0, dspy.Predict("question -> answer"))
    assert [len(attempts.free(0)) for _ in range(3)] == [3, 3, 0]


def test_no_half_of_an_image_is_shown():
    """A large one is named by what it is, and its text does not run into the next."""
    small, large = dspy.Image(url="https://example.org/a.png"), dspy.Image(url=f"data:image/png;base64,{'A' * 4000}")
    assert _clipped(small) == str(small)
    for value in (large, [large, small], {"picture": large}):
        told = _clipped(value)
        assert "CUSTOM-TYPE" not in told and "AAAA" not in told and "IMAGE_BASE_64" in told


@pytest.mark.parametrize("returns", ["text", None])
def test_programs_that_return_no_prediction_are_compiled(returns):
    """Text, or sometimes nothing, as in DSPy: the writer sees their attempts, and the report what they answered."""

    class Bare(SortAndPlace):
        def forward(self, **inputs):
            found = super().forward(**inputs)
            return found.shelf if returns or found.shelf in ("gate", "east") else None

    def right(example, prediction, trace=None):
        return prediction == example.shelf

    world = Recorded(0)
    with dspy.context(lm=world):
        optimizer = dspy.MIPROv2(metric=right, auto=None, num_candidates=2, num_threads=2, seed=1)
        run = optimizer.compile(
            Bare(1), trainset=world.examples(0, 20), valset=world.examples(200, 210), num_trials=10, sampler="qei",
            embedder="ngram", n_jobs=2, reflect=True, disable_progress_bar=True,
        ).optimization_run  # fmt: skip
    assert run.calls > 0 and run.cases and world.requests
    assert all("Output shelf: " in request and "Score: " in request for request in world.requests)


class Twice(dspy.Module):
    """Runs copies of its predictors, and never one of them."""

    def __init__(self):
        super().__init__()
        inner = SortAndPlace(1)
        self.best = dspy.BestOfN(inner, N=2, reward_fn=lambda args, prediction: 1.0, threshold=0.5)
        self.never = dspy.Predict("text, tone -> headline")

    def forward(self, **inputs):
        return self.best(**inputs)


def test_each_predictor_is_shown_its_own_steps():
    """A predictor of which copies run is shown what they wrote; nothing is written for one that is never called."""
    world = Recorded(1, insight=0.7)
    with dspy.context(lm=world):
        optimizer = dspy.MIPROv2(metric=metric, auto=None, num_candidates=3, num_threads=4, seed=1)
        found = optimizer.compile(
            Twice(), trainset=world.examples(0, 20), valset=world.examples(200, 230), sampler="qei", n_jobs=4,
            reflect=True, embedder="ngram", num_trials=10, schedule="batch", disable_progress_bar=True,
        )  # fmt: skip
    run = found.optimization_run
    assert world.requests and all("\nOutput " in asked and "headline" not in asked for asked in world.requests)
    assert {text["predictor"] for text in run.lineage} == {0}
    assert found.candidate_programs


def test_without_a_full_evaluation_the_winner_is_the_candidate_program():
    """``candidate_programs`` names the winner first, as upstream's, even where nothing was evaluated in full."""
    world = Recorded(1, insight=0.7)
    found = compiled(world, num_trials=3)
    assert found.candidate_programs[0]["score"] >= found.score or found.candidate_programs[0]["program"] is found

"""Every search ends, within its budget, whatever fails; and a good prompt among failing ones wins."""

import random
import threading

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy.promptune import EvaluationError, PromptSpace, search
from dspy.promptune.allocation.ledger import CallLedger
from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import ScoreTable
from dspy.promptune.run.loop import SearchLoop
from dspy.promptune.run.schedule import Limits, Schedule
from dspy.promptune.run.search import Run
from dspy.promptune.run.streak import FailureStreak, Silence
from tests.errors import UnreadableError

MODES = {"race": {}, "minibatches": {"minibatch_size": 3, "full_eval_steps": 2}, "full": {"full_eval_steps": 0}}


class Failing:
    """Scores 1 for the ``good`` prompts and 0 for the others, of which some fail: always, or on some examples.

    All prompts fail on the ``broken`` examples.
    """

    def __init__(self, space, good, bad, pairs, error, broken=()):
        self.space, self.good, self.bad, self.pairs, self.error = space, good, bad, pairs, error
        self.broken = set(broken)
        self.tried, self.failed = [], []
        self._lock = threading.Lock()

    def __call__(self, params, examples):
        key = self.space.key(params)
        with self._lock:
            self.tried.extend((key, example) for example in examples)
            if key in self.bad or self.broken & {*examples} or any((key, each) in self.pairs for each in examples):
                self.failed.append(key)
                raise self.error("no score")
        return [float(key in self.good)] * len(examples)


@st.composite
def searches(draw):
    """A small search: its space, which prompts and pairs fail and how, and how it is run."""
    space = PromptSpace(
        {0: [f"instruction {i}" for i in range(draw(st.integers(1, 7)))]},
        {0: [f"demos {i}" for i in range(draw(st.integers(1, 3)))]},
    )
    keys, n = list(space.keys()), draw(st.integers(1, 12))
    bad = draw(st.sets(st.sampled_from(keys)))
    good = keys[draw(st.integers(0, len(keys) - 1))]
    others = [(key, example) for key in keys if key != good for example in range(n)]
    pairs = draw(st.sets(st.sampled_from(others), max_size=6)) if others else set()
    broken = draw(st.sets(st.integers(0, n - 1), max_size=(n - 1) // 3))
    mode = draw(st.sampled_from(sorted(MODES)))
    sampler = draw(st.sampled_from(["onehot", "tpe", "random"]))
    options = {**MODES[mode], "sampler": sampler, "seed": draw(st.integers(0, 3))}
    if mode == "full":
        options["minibatch_size"] = n
    elif mode == "minibatches":
        options["minibatch_size"] = min(3, n)
    if draw(st.booleans()):
        options["n_jobs"] = 3
    if draw(st.booleans()):
        options.update(schedule="batch", batch_size=2)
    return {
        "evaluate": Failing(space, {good}, bad, pairs, draw(st.sampled_from([ValueError, TimeoutError])), broken),
        "n_examples": n, "max_calls": draw(st.integers(1, 80)), "retries": draw(st.integers(0, 1)), **options,
    }  # fmt: skip


def outcome_of(given):
    """The run, or ``None`` where every evaluation failed."""
    with optuna_quiet():
        try:
            return search(given["evaluate"].space, **given)
        except EvaluationError:
            return None


class optuna_quiet:  # noqa: N801 - a context manager
    """Optuna's warnings are not what is tested."""

    def __enter__(self):
        self.before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    def __exit__(self, *error):
        optuna.logging.set_verbosity(self.before)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(searches())
def test_every_search_ends_within_its_budget(given):
    """Whatever fails, no more is evaluated than the budget and the retries; failures of a prompt are few."""
    run = outcome_of(given)
    evaluate, most = given["evaluate"], given["max_calls"] * (1 + given["retries"])
    assert len(evaluate.tried) <= most
    if run is None:
        assert evaluate.failed and len(evaluate.failed) <= len(evaluate.tried)
        return
    assert run.calls <= given["max_calls"]
    assert run.ended
    if evaluate.error is ValueError:
        jobs = given.get("n_jobs", 1) + 1 + given.get("batch_size", 1)  # what may be running or ready beside the second
        assert all(evaluate.failed.count(key) <= (1 + given["retries"]) * (1 + jobs) for key in evaluate.bad)


def test_what_a_first_attempt_tried_counts_where_another_job_tries_the_rest():
    """Three jobs of one prompt that always fails share its two examples on second attempts: six are tried at most."""
    evaluate = Failing(PromptSpace({0: ["only"]}, {0: [[]]}), set(), {(0, 0)}, set(), ValueError)
    options = {"minibatch_size": 2, "full_eval_steps": 0, "retries": 1, "n_jobs": 3, "sampler": "onehot", "seed": 0}
    assert outcome_of({"evaluate": evaluate, "n_examples": 2, "max_calls": 3, **options}) is None
    assert len(evaluate.tried) <= 3 * 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(searches())
def test_a_good_prompt_among_failing_ones_wins(given):
    """With calls for all prompts, twice for those that fail, the one that scores 1 is returned.

    And one example may fail with all of them: of a few prompts, each may fail on others first where there are more.
    """
    evaluate = given["evaluate"]
    evaluate.broken = {*sorted(evaluate.broken)[:1]}
    evaluate.bad -= evaluate.good
    evaluate.error = ValueError
    given["max_calls"] = 6 * evaluate.space.size * given["n_examples"] * (1 + given["retries"])
    run = outcome_of(given)
    assert run is not None and evaluate.space.key(run.best_params) in evaluate.good
    assert run.ended == "nothing is left to evaluate"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(searches(), st.data())
def test_one_good_prompt_wins_whatever_else_fails(given, data):
    """All prompts but one fail, and every prompt on up to half of the examples: with calls enough the one is found."""
    evaluate, n = given["evaluate"], given["n_examples"]
    evaluate.bad = {*evaluate.space.keys()} - evaluate.good
    evaluate.broken = data.draw(st.sets(st.integers(0, n - 1), max_size=n // 2))
    evaluate.pairs, evaluate.error = set(), ValueError
    given["max_calls"] = 40 * evaluate.space.size * n
    run = outcome_of(given)
    assert run is not None and evaluate.space.key(run.best_params) in evaluate.good


@pytest.mark.parametrize(
    ("mode", "sampler", "seed", "good", "broken"),
    [
        ("race", "onehot", 44, 1, (0, 1, 2, 3, 4, 6)),
        ("minibatches", "onehot", 0, 0, (2, 3, 4)),
        ("minibatches", "random", 12, 5, (0, 1, 3)),
        ("full", "tpe", 12, 5, (0, 1, 3)),
    ],
)
def test_a_good_prompt_that_meets_broken_examples_first_has_another_chance(mode, sampler, seed, good, broken):
    """It fails three times, as the prompts that always fail do, and wins none the less."""
    space, n = PromptSpace({0: list("abcdefgh")}), 2 * len(broken)
    evaluate = Failing(space, {(good,)}, {*space.keys()} - {(good,)}, set(), ValueError, broken)
    options = {**MODES[mode], **({} if mode == "race" else {"minibatch_size": 3 if mode == "minibatches" else n})}
    run = search(space, evaluate, n_examples=n, max_calls=1000, sampler=sampler, seed=seed, **options)
    assert run.best_params == {"0_predictor_instruction": good} and run.best_score == 1.0


@pytest.mark.parametrize("n_jobs", [1, 8])
@pytest.mark.parametrize(("mode", "sampler"), [("race", "onehot"), ("minibatches", "random"), ("full", "tpe")])
def test_one_good_prompt_of_a_hundred_is_found_in_a_fifth_of_the_budget(mode, sampler, n_jobs):
    """Prompts that fail cost three or four calls each but for the first ones, and the run goes on to the others."""
    space = PromptSpace({0: [f"instruction {i}" for i in range(100)]})
    evaluate = Failing(space, {(71,)}, {*space.keys()} - {(71,)}, set(), ValueError)
    options = {**MODES[mode], **({} if mode == "race" else {"minibatch_size": 3 if mode == "minibatches" else 20})}
    given = {"n_examples": 20, "max_calls": 5000, "sampler": sampler, "seed": 0, "n_jobs": n_jobs, **options}
    run = outcome_of({"evaluate": evaluate, **given})
    assert run is not None and run.best_params == {"0_predictor_instruction": 71} and run.calls == 20
    found = max(i for i, (key, _) in enumerate(evaluate.tried) if key == (71,))
    assert found < 4 * 100 + 60 * n_jobs
    if (mode, n_jobs) != ("full", 8):  # there the threads decide how many whole evaluations begin after it
        assert len(evaluate.tried) <= 4 * 100 + 60


@pytest.mark.parametrize("schedule", ["async", "batch"])
@pytest.mark.parametrize("sampler", ["onehot", "tpe", "random"])
@pytest.mark.parametrize(("n", "max_calls", "size"), [(40, 440, None), (40, 440, 40), (10, 220, 10), (10, 220, None)])
def test_no_run_gives_up_before_it_has_tried_the_prompts_that_it_can_pay_for(n, max_calls, size, sampler, schedule):
    """Four jobs lose a fifth of the budget at once to three prompts of ten; the one that works wins none the less."""
    for seed in range(4):
        space = PromptSpace({0: [f"instruction {i}" for i in range(10)]})
        good = (random.Random(seed).randrange(10),)
        evaluate = Failing(space, {good}, {*space.keys()} - {good}, set(), ValueError)
        given = {"n_examples": n, "max_calls": max_calls, "minibatch_size": size, "sampler": sampler, "seed": seed}
        run = outcome_of({"evaluate": evaluate, "n_jobs": 4, "schedule": schedule, **given})
        assert run is not None and space.key(run.best_params) == good


def streak(size, max_calls, scored=()):
    """The failures of a run over so many prompts, some of which have a score, with one job."""
    ledger = CallLedger(ScoreTable(), max_calls)
    for i in scored:
        ledger.table.add((i,), 0, 1.0)
    found = FailureStreak(None, 1, ledger, PromptSpace({0: [f"instruction {i}" for i in range(size)]}))
    for i in scored:
        found.scored((i,))
    return found, ledger


def failures(found, ledger, keys, lost):
    """Let prompts fail one after another until that is too many: how often they could, and the words."""
    for number, i in enumerate(keys, 1):
        ledger.lost += lost
        if (words := found.failed((i,), lost, blamed=True)) is not None:
            return number, words
    return None


def test_a_run_counts_the_different_prompts_that_fail():
    """Ten failures of two prompts are no reason to give up on the others, be there calls left for these or not."""
    assert failures(*streak(10, 100), [0, 1] * 5, 3) is None
    assert failures(*streak(1000, 100), [0, 1] * 5, 3) is None
    assert failures(*streak(1000, 100), range(1000), 3) == (7, "7 evaluations failed in a row, 21 calls lost")
    assert failures(*streak(1000, 100), range(1000), 5) == (5, "5 evaluations failed in a row, 25 calls lost")


def test_a_run_goes_on_while_the_calls_left_pay_for_the_prompts_that_were_not_tried():
    """What a failure has cost on average is what another try will cost; with all tried, failures are counted."""
    assert failures(*streak(10, 100), range(10), 9) == (10, "10 evaluations failed in a row, 90 calls lost")
    assert failures(*streak(10, 100), range(10), 11) == (5, "5 evaluations failed in a row, 55 calls lost")
    assert failures(*streak(3, 100), [0, 1, 2] * 5, 5) == (5, "5 evaluations failed in a row, 25 calls lost")
    assert failures(*streak(10, 100), [0] * 50, 2) is None


def test_a_prompt_that_has_a_score_was_tried():
    """Once something was scored a run puts up with four times as many failures, of prompts that it has not tried."""
    assert failures(*streak(4, 100, scored=[0]), [1, 2, 3] * 9, 3) == (
        20,
        "20 evaluations failed in a row, 60 calls lost",
    )
    assert failures(*streak(1000, 500, scored=[0, 1]), range(2, 1000), 10) == (
        20, "20 evaluations failed in a row, 200 calls lost",
    )  # fmt: skip


@pytest.mark.parametrize(("mode", "sampler"), [("race", "onehot"), ("minibatches", "random"), ("full", "tpe")])
def test_where_every_prompt_fails_a_fifth_of_the_budget_is_lost(mode, sampler):
    """A program that is broken does not take all that it may, where that would not pay for all prompts anyway."""
    space = PromptSpace({0: [f"instruction {i}" for i in range(1000)]})
    evaluate = Failing(space, set(), {*space.keys()}, set(), ValueError)
    options = {**MODES[mode], **({} if mode == "race" else {"minibatch_size": 3 if mode == "minibatches" else 20})}
    with optuna_quiet(), pytest.raises(EvaluationError, match="no score"):
        search(space, evaluate, n_examples=20, max_calls=500, sampler=sampler, seed=0, **options)
    assert 100 < len(evaluate.tried) <= 100 + 20


@pytest.mark.parametrize(
    ("mode", "sampler", "seed"),
    [("race", "onehot", seed) for seed in (0, 1, 6, 8)] + [("minibatches", "random", seed) for seed in (0, 16, 22)],
)
def test_the_best_prompt_is_found_where_every_prompt_fails_on_half_of_the_examples(mode, sampler, seed):
    """Two of four prompts fail everywhere; neither of the others is put out of the running for what fails with all."""
    space = PromptSpace({0: list("abcd")})
    broken = random.Random(seed).sample(range(12), 6)
    evaluate = Failing(space, {(2,)}, {(0,), (3,)}, set(), ValueError, set(broken))
    options = {**MODES[mode], **({"minibatch_size": 3} if mode == "minibatches" else {})}
    run = search(space, evaluate, n_examples=12, max_calls=600, sampler=sampler, seed=seed, **options)
    assert run.best_params == {"0_predictor_instruction": 2} and run.ended == "nothing is left to evaluate"


@pytest.mark.parametrize("n_jobs", [1, 4])
@pytest.mark.parametrize("sampler", ["onehot", "tpe", "random"])
def test_one_prompt_of_four_that_always_fails_is_evaluated_twice(sampler, n_jobs):
    """The others have all their scores, and the run says that nothing is left."""
    space = PromptSpace({0: list("abcd")})
    evaluate = Failing(space, {(1,)}, {(3,)}, set(), ValueError)
    run = search(
        space, evaluate, n_examples=10, max_calls=100, minibatch_size=10, sampler=sampler, n_jobs=n_jobs, seed=0
    )
    assert run.calls == 30 and run.ended == "nothing is left to evaluate"
    assert run.best_params == {"0_predictor_instruction": 1}
    assert 2 <= len(evaluate.failed) <= 1 + n_jobs + 1


def test_the_end_of_the_budget_is_another_end():
    """A run that spends all its calls says that, and calls of failed evaluations are among them."""
    space = PromptSpace({0: [f"instruction {i}" for i in range(12)]})
    evaluate = Failing(space, {(1,)}, {(2,), (3,), (4,)}, set(), ValueError)
    run = search(space, evaluate, n_examples=10, max_calls=60, minibatch_size=10, sampler="random", seed=1)
    assert run.ended == "the budget is spent"
    assert len(evaluate.tried) == 60 == run.calls + sum(t.user_attrs.get("lost", 0) for t in run.trials)


@pytest.mark.parametrize("mode", ["race", "minibatches"])
@pytest.mark.parametrize(("resume", "failures"), [(True, 2), ("force", 4)])
def test_a_prompt_that_failed_twice_is_left_alone_by_later_starts(tmp_path, mode, resume, failures):
    """What is taken up again knows it from the study, and only by force there are two chances more."""
    space = PromptSpace({0: list("abcd")})
    given = {"n_examples": 6, "sampler": "onehot", "seed": 0, "storage": str(tmp_path / "a.db"), **MODES[mode]}
    evaluate = Failing(space, {(1,)}, {(3,)}, set(), ValueError)
    search(space, evaluate, max_calls=100, resume=True, **given)
    assert len(evaluate.failed) == 2
    run = search(space, evaluate, max_calls=100, resume=resume, **given)
    assert len(evaluate.failed) == failures and run.calls == 18 and run.best_params == {"0_predictor_instruction": 1}
    assert run.ended == "nothing is left to evaluate"


@pytest.mark.parametrize("error", [ValueError, TimeoutError])
def test_over_all_starts_a_run_makes_no_more_than_its_budget(tmp_path, error):
    """Calls of evaluations that failed in earlier starts are spent; where nothing else was, the run says so."""
    space = PromptSpace({0: [f"instruction {i}" for i in range(40)]})
    evaluate = Failing(space, set(), set(space.keys()), set(), error)
    given = {"n_examples": 10, "minibatch_size": 5, "sampler": "random", "seed": 0, "storage": str(tmp_path / "a.db")}
    for _ in range(8):
        with pytest.raises(EvaluationError):
            search(space, evaluate, max_calls=40, resume=True, **given)
    assert len(evaluate.tried) == 40
    with pytest.raises(EvaluationError, match="of the earlier starts failed"):
        search(space, evaluate, max_calls=40, resume=True, **given)


def test_a_run_without_answers_gives_up():
    """Where no answer comes for anything, whoever is asked, the run ends after a few evaluations in a row."""
    space = PromptSpace({0: list("ab")})
    calls = []

    def evaluate(params, examples):
        calls.append(params)
        if len(calls) > 3:
            raise ConnectionError("nobody is there")
        return [1.0] * len(examples)

    run = search(space, evaluate, n_examples=50, max_calls=1000, minibatch_size=5, sampler="random", seed=0)
    assert len(calls) == 8 and "5 evaluations got no answer in a row" in run.ended


class Repeating:
    """Ends each job at once: those of one prompt fail, the others bring the scores they lack."""

    def __init__(self, bad):
        self.bad, self.failed = bad, 0

    def room(self, running):
        return running == 0

    def start(self, job, missing, done):
        if job.key == self.bad:
            self.failed += 1
            done(job, Outcome(error=ValueError("too long"), tried=1))
        else:
            done(job, Outcome(scores=dict.fromkeys(missing, 1.0)))

    def tend(self, *, ending):
        """Nothing to look after."""

    def stop(self):
        """Nothing is under way."""


def test_what_an_evaluation_tried_is_what_it_costs():
    """An evaluation that gives up after its first example loses one call, not all that it was to make."""
    space = PromptSpace({0: list("ab")})
    budget = {"n_examples": 6, "max_calls": 40, "minibatch_size": 6, "full_every": 0}
    run = Run(space, "random", budget, seed=0, options={})
    work = Repeating((0,))
    ended = SearchLoop(run.jobs, work, Schedule(), limits=Limits()).run()
    assert ended == "nothing is left to evaluate"
    assert (work.failed, run.jobs.ledger.lost, run.table.calls) == (2, 2, 6)


class Silent(Repeating):
    """One prompt gets no answer, of ``examples`` or of any; others do, but while the model is ``down``."""

    def __init__(self, bad, examples=None, down=()):
        super().__init__(bad)
        self.examples, self.down, self.starts, self.keys = examples, down, 0, set()

    def start(self, job, missing, done):
        self.starts += 1
        gone = [e for e in missing if job.key == self.bad and (self.examples is None or e in self.examples)]
        if self.starts in self.down:
            gone = missing
        self.failed += bool(gone)
        self.keys |= {job.key} if gone else set()
        error = TimeoutError("nothing") if gone else None
        answered = [example for example in missing if example not in gone]
        done(job, Outcome(scores=dict.fromkeys(answered, 1.0), error=error, transient=bool(gone), tried=len(missing)))


@pytest.mark.parametrize("sampler", ["random", "tpe", "onehot"])
@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("examples", [None, {0, 1, 2, 3}])
def test_a_prompt_that_gets_no_answer_is_left_alone_while_others_do(sampler, mode, examples):
    """One silent prompt does not end a run, which has scored all the others by then, and leaves no trial running."""
    if sampler != "onehot" and mode == "race":
        mode = "full"
    space = PromptSpace({0: list("abcdef")})
    options = {"minibatch_size": None if mode == "race" else 6, **MODES[mode]}
    full_every = options.pop("full_eval_steps", 0)
    budget = {"n_examples": 6, "max_calls": 200, "full_every": full_every, **options}
    run = Run(space, sampler, budget, seed=0, options={"embedder": "onehot"} if sampler == "onehot" else {})
    work = Silent((2,), examples)
    ended = SearchLoop(run.jobs, work, Schedule(), limits=Limits(streak=5)).run()
    assert ended == "nothing is left to evaluate" and run.table.calls >= 30
    assert work.failed <= 12 and run.jobs.ledger.lost <= 60
    assert "RUNNING" not in {trial.state.name for trial in run.study.trials}


def test_a_model_that_is_down_for_a_moment_puts_no_prompt_out():
    """Failures of all prompts in a row are the model's: when it answers again, every prompt is scored."""
    space = PromptSpace({0: list("abcdef")})
    budget = {"n_examples": 6, "max_calls": 200, "minibatch_size": 6, "full_every": 0}
    run = Run(space, "random", budget, seed=0, options={})
    work = Silent(None, down=range(2, 6))
    SearchLoop(run.jobs, work, Schedule(), limits=Limits(streak=5)).run()
    assert run.table.calls >= 30 and not [t for t in run.study.trials if t.user_attrs.get("blamed")]


def test_who_is_to_blame_for_silence():
    """The first prompt without an answer while others have some; never where nothing was answered, nor the second."""
    silence = Silence()
    assert not silence.blames((0,))
    silence.scored((1,))
    assert silence.blames((0,)) and silence.blames((0,)) and not silence.blames((2,))
    silence.scored((2,))
    assert not silence.blames((1,)) and not silence.blames((1,)) and silence.blames((1,))
    silence.scored((1,))
    assert not silence.blames((1,))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_error_that_cannot_say_its_text_fails_its_prompt_alone(n_jobs):
    """Such an error in ``evaluate`` is a failure like any other, and the other prompts are scored."""
    space = PromptSpace({0: list("abc")})
    failing = Failing(space, good={(0,)}, bad={(1,)}, pairs=(), error=lambda text: UnreadableError())
    found = search(space, failing, n_examples=6, max_calls=18, sampler="onehot", n_jobs=n_jobs, seed=0)
    assert found.best_score == 1
    assert any("UnreadableError" in trial.user_attrs.get("error", "") for trial in found.trials)

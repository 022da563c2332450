"""The search without programs: budgets, schedules, failures."""

import copy
import math
import pickle
import threading

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from dspy.promptune import BudgetError, EvaluationError, OptionError, PromptSpace, make_sampler, search
from dspy.promptune.errors import MetricError


def run(table, evaluate=None, **options):
    options = {"max_calls": 120, "sampler": "random", "seed": 0, **options}
    return search(table.space, evaluate or table, n_examples=table.n_examples, **options)


@pytest.mark.parametrize("sampler", ["onehot", "tpe", "random"])
@pytest.mark.parametrize("n_jobs", [1, 4])
@pytest.mark.parametrize("schedule", ["async", "batch"])
def test_a_search_spends_its_budget_and_never_more(table, sampler, n_jobs, schedule):
    """The budget is spent to the last call, and no pair is evaluated twice."""
    found = run(table, sampler=sampler, n_jobs=n_jobs, schedule=schedule, max_calls=133)
    assert found.calls == 133 == len(table.paid) == len(set(table.paid))
    assert found.history[-1] == (133, found.best_params)
    assert [calls for calls, _ in found.history] == sorted(calls for calls, _ in found.history)
    assert table.space.key(found.best_params) in table.space


@pytest.mark.parametrize("sampler", ["onehot", "tpe", "random"])
@pytest.mark.parametrize("minibatch_size", [None, 4])
def test_equal_prompts_are_paid_for_once(sampler, minibatch_size, tmp_path):
    """No pair of a prompt's text and an example is evaluated twice, in either mode, whether resumed or not."""
    demos = [[{"x": "1"}], [], [{"x": "1"}], []]
    space, paid = PromptSpace({0: ["a", "b", "a", "b", "a"]}, {0: demos}), []

    def evaluate(params, examples):
        prompt = [space.texts(part)[params[name]] for part, name in enumerate(space.names)]
        paid.extend((*prompt, example) for example in examples)
        return [float(example % 3 == 0) for example in examples]

    options = {"sampler": sampler, "minibatch_size": minibatch_size, "seed": 0, "n_jobs": 3}
    for budget in 15, 100:
        found = search(
            space, evaluate, n_examples=6, max_calls=budget, storage=tmp_path / "run.db", resume=True, **options
        )
    assert found.calls == 24 == len(paid) == len(set(paid))


def test_a_budget_beyond_the_space_ends_when_all_is_known(table):
    """A pool that is exhausted before the budget ends the run well, with the truly best combination."""
    found = run(table, max_calls=10**6, n_jobs=3)
    assert found.calls == len(table.space) * table.n_examples == len(set(table.paid))
    means = {key: sum(row) for key, row in table.scores.items()}
    assert means[table.space.key(found.best_params)] == max(means.values())


def test_the_same_seed_gives_the_same_trials_in_batches_whatever_the_threads_do(table):
    """With ``schedule="batch"`` the trials depend on the seed, not on which evaluation ends first."""

    def jittery(params, examples):
        threading.Event().wait(0.002 * (hash(tuple(examples)) % 5))
        return table(params, examples)

    def trials(evaluate):
        found = run(table, evaluate, sampler="onehot", n_jobs=4, schedule="batch")
        return [(t.params, t.user_attrs["examples"], t.value) for t in found.trials], found.best_params

    assert trials(jittery) == trials(table)


def test_another_seed_gives_other_trials(table):
    """Seed 0 is a seed like any other."""
    trials = [[t.params for t in run(table, seed=seed).trials] for seed in (0, 0, 9)]
    assert trials[0] == trials[1] != trials[2]


def test_every_trial_says_what_it_was(table):
    """A finished trial holds its scores, their examples, its kind and its time."""
    for trial in run(table, sampler="tpe").trials:
        attrs = trial.user_attrs
        assert trial.value == pytest.approx(sum(attrs["scores"]) / len(attrs["scores"]))
        assert len(attrs["examples"]) == len(attrs["scores"])
        assert attrs["kind"] in ("block", "minibatch", "full")
        assert attrs["seconds"] >= 0


def test_an_evaluation_that_raises_is_a_failed_trial_and_the_run_goes_on(table):
    """The trial is FAILED with its error, and what fails does not win, however good it would be."""

    def evaluate(params, examples):
        if params["0_predictor_instruction"] in (0, 1):
            raise ZeroDivisionError("no such thing")
        return table(params, examples)

    found = run(table, evaluate, max_calls=300, n_jobs=2)
    failed = [trial for trial in found.trials if trial.state == TrialState.FAIL]
    assert failed and all("ZeroDivisionError" in trial.user_attrs["error"] for trial in failed)
    assert found.best_params["0_predictor_instruction"] not in (0, 1)
    assert found.calls + sum(trial.user_attrs["lost"] for trial in failed) == 300


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5", b"1", [1.0], object()])
def test_what_is_no_number_is_no_score(table, value):
    """A value that is no finite number fails the run with a message that names it."""
    with pytest.raises(EvaluationError, match=r"must return|a list|an object|a object"):
        run(table, lambda params, examples: [value] * len(examples))


@pytest.mark.parametrize("value", [True, 0, -3, 17.5, np.float32(0.5), np.bool_(True), np.int64(2)])
def test_numbers_of_all_kinds_are_scores(table, value):
    """Booleans, negative numbers, those beyond 1 and numpy's are taken as they are."""
    found = run(table, lambda params, examples: [value] * len(examples))
    assert found.best_score == pytest.approx(float(value))


def test_a_wrong_number_of_scores_is_refused(table):
    """One score an example: fewer are an error that says both numbers."""
    with pytest.raises(EvaluationError, match=r"1 score for 35 examples"):
        run(table, lambda params, examples: [1.0], max_calls=1000)


def test_when_everything_fails_the_run_gives_up_early(table):
    """A broken evaluation ends the run after a few tries, with its error as the cause."""
    tries = []

    def broken(params, examples):
        tries.append(params)
        raise ConnectionError("unplugged")

    with pytest.raises(EvaluationError, match="unplugged") as caught:
        run(table, broken, max_calls=10**5)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert len(tries) == 5


def test_failures_after_a_success_end_the_run_with_the_best_so_far(table):
    """Where something was scored before all began to fail, it is returned, and ``ended`` says why."""
    calls = []

    def dies(params, examples):
        calls.append(params)
        if len(calls) > 2:
            raise ConnectionError("unplugged")
        return table(params, examples)

    found = run(table, dies, max_calls=10**5)
    assert found.calls == 70 and "unplugged" in found.ended


def test_a_failed_evaluation_is_tried_again_when_asked_for(table):
    """With ``retries=1`` an evaluation that fails once counts as if it had not."""
    seen = set()

    def flaky(params, examples):
        if (name := str((params, examples))) not in seen:
            seen.add(name)
            raise ConnectionError("once")
        return table(params, examples)

    found = run(table, flaky, retries=1, n_jobs=2)
    assert found.calls == 120 and all(trial.state == TrialState.COMPLETE for trial in found.trials)


def test_n_jobs_evaluations_run_at_once(table):
    """With ``n_jobs=3`` three evaluations are under way together, and never more."""
    barrier, busy, most = threading.Barrier(3, timeout=10), [], []

    def evaluate(params, examples):
        busy.append(1)
        most.append(len(busy))
        if len(most) <= 3:
            barrier.wait()
        scores = table(params, examples)
        busy.pop()
        return scores

    run(table, evaluate, n_jobs=3, minibatch_size=5)
    assert max(most) == 3


def test_one_job_evaluates_in_the_callers_thread(table):
    """With ``n_jobs=1`` no thread is started: what is bound to the caller's thread may be used."""
    threads = set()

    def evaluate(params, examples):
        threads.add(threading.current_thread())
        return table(params, examples)

    run(table, evaluate)
    assert threads == {threading.current_thread()}


def test_context_variables_are_carried_into_threads(table):
    """``evaluate`` sees the caller's context in every thread."""
    import contextvars

    variable = contextvars.ContextVar("variable", default="lost")
    seen = set()

    def evaluate(params, examples):
        seen.add(variable.get())
        return table(params, examples)

    variable.set("carried")
    run(table, evaluate, n_jobs=4)
    assert seen == {"carried"}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned None: return a list of one score an example"),
        (0.5, "returned a float: return a list"),
        ("0.5", "returned a str: return a list"),
        ({0: 1.0}, r"returned a dict: .* such as \[scores\[example\] for example in examples\]"),
        ({1.0}, "returned a set: return a list"),
    ],
)
def test_an_evaluation_that_returns_no_list_ends_the_search_at_once(table, returned, said):
    """A function that forgets its ``return``, or returns scores without an order, is called once and told so."""
    calls = []

    def evaluate(params, examples):
        calls.append(examples)
        return returned

    with pytest.raises(MetricError, match=said):
        search(table.space, evaluate, n_examples=40, max_calls=80, sampler="random")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_jobs": 0}, "n_jobs=0: it must be an integer of at least 1"),
        ({"n_jobs": True}, "n_jobs=True"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"schedule": "later"}, "schedule='later': it must be one of async, batch"),
        ({"sampler": "best"}, "sampler='best' is unknown"),
        ({"seed": "one"}, "seed='one': it must be an integer"),
        ({"sampler": "tpe", "max_space_size": 10}, "max_space_size"),
        ({"sampler": "tpe", "batch_size": 4, "n_jobs": 2}, "batch_size=4: 'tpe' is asked for one trial at a time"),
        ({"sampler": optuna.samplers.RandomSampler(), "batch_size": 4, "schedule": "async"}, "batch_size=4: a sampler"),
        ({"evaluate": 5}, "evaluate=5: it must be a function"),
        ({"propose": 3}, "propose=3: it must be a function"),
        ({"retries": -1}, "retries=-1: it must be an integer of at least 0"),
        *(({"max_calls": each}, f"max_calls={each!r}: it must be an integer") for each in (None, "5", 1.5, True)),
        *(({"minibatch_size": each}, f"minibatch_size={each!r}: it must be an integer") for each in ("5", 1.5, True)),
        *(({"full_eval_steps": each}, f"full_eval_steps={each!r}: it must be an int") for each in ("a", 1.5, True, -1)),
    ],
)
def test_options_are_checked_before_anything_is_evaluated(table, options, message):
    """A wrong option is refused by its name and value."""
    with pytest.raises(OptionError, match=message):
        run(table, **options)
    assert not table.paid


@pytest.mark.parametrize("n_examples", [None, "5", 1.5, True])
def test_a_number_of_examples_that_is_none_is_refused(table, n_examples):
    """The size of the validation set is checked like the other numbers."""
    with pytest.raises(OptionError, match=f"n_examples={n_examples!r}: it must be an integer of at least 1"):
        search(table.space, table, n_examples=n_examples, max_calls=10, sampler="random")


def test_what_is_no_space_is_refused():
    """The candidates as a dictionary are not a space yet, and the message shows how to make one."""
    with pytest.raises(OptionError, match=r"space=\{0: \['a', 'b'\]\}: it must be a PromptSpace, as PromptSpace\("):
        search({0: ["a", "b"]}, lambda params, examples: [1.0], n_examples=1, max_calls=1)


def test_an_evaluation_may_use_up_its_examples(table):
    """The list that an evaluation is given is its own."""

    def evaluate(params, examples):
        return [table(params, [examples.pop(0)])[0] for _ in range(len(examples))]

    assert run(table, evaluate, n_jobs=1).calls == len(table.paid)


def test_numpys_integers_can_be_stored(table, tmp_path):
    """Sizes and budgets of numpy's types are written down as others, and taken up again with Python's."""
    place, five = tmp_path / "runs.db", np.int64(5)
    options = {"minibatch_size": five, "batch_size": five, "n_jobs": np.int64(2), "schedule": "batch"}
    run(table, storage=place, max_calls=np.int64(60), **options)
    again = run(table, storage=place, max_calls=80, resume=True, minibatch_size=5, n_jobs=2, schedule="batch")
    assert again.calls == 80 == len(table.paid)


def sampler_of(space):
    """What a user's callable builds."""
    return make_sampler("onehot", space=space, seed=0)


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("sampler", ["onehot", "botorch", sampler_of])
def test_a_race_has_no_steps_between_full_evaluations(table, sampler, steps):
    """There ``full_eval_steps`` is refused by its name and value; with ``minibatch_size`` it acts."""
    with pytest.raises(OptionError, match=f"full_eval_steps={steps}: prompts are raced .* or give minibatch_size"):
        run(table, sampler=sampler, full_eval_steps=steps)
    assert not table.paid
    found = run(table, sampler="onehot", full_eval_steps=steps, minibatch_size=5)
    assert ("full" in {trial.user_attrs["kind"] for trial in found.trials}) == (steps > 0)


def test_full_evaluations_are_five_minibatches_apart_by_default(table):
    """``full_eval_steps=None`` is 5, and numpy's integers are integers."""
    given = [{}, {"full_eval_steps": None}, {"full_eval_steps": 5}, {"full_eval_steps": np.int64(5)}]
    found = [run(table, minibatch_size=np.int64(5), **options).trials for options in given]
    kinds = [[trial.user_attrs["kind"] for trial in trials] for trials in found]
    assert "full" in kinds[0] and kinds == kinds[:1] * 4


@pytest.mark.parametrize("budget", [{"max_calls": 0}, {"minibatch_size": 41}, {"minibatch_size": 0}])
def test_a_budget_that_allows_nothing_is_refused(table, budget):
    """The smallest budget is one call, the largest minibatch the validation set."""
    with pytest.raises(BudgetError):
        run(table, **budget)


def test_one_combination_only(table):
    """A space of one combination is searched like any other."""
    space = PromptSpace({0: ["the only one"]})
    found = search(space, lambda params, examples: [1.0] * len(examples), n_examples=7, max_calls=100, sampler="random")
    assert found.calls == 7 and found.best_params == {"0_predictor_instruction": 0}


def test_more_jobs_than_combinations(table):
    """Jobs beyond the number of combinations are not started."""
    space = PromptSpace({0: ["one", "other"]})
    found = search(
        space, lambda params, ex: [float(params["0_predictor_instruction"])] * len(ex), n_examples=9, max_calls=100,
        sampler="onehot", n_jobs=16,
    )  # fmt: skip
    assert found.calls == 18 and found.best_params == {"0_predictor_instruction": 1}


def test_the_order_is_recorded(table):
    """Every trial is asked for once and ends once, and the order says which came first."""
    found = run(table, n_jobs=4)
    asked = [number for what, number in found.order if what == "ask"]
    ended = [number for what, number in found.order if what != "ask"]
    assert sorted(asked) == sorted(ended) == [trial.number for trial in found.trials]
    assert all(found.order.index(("ask", n)) < found.order.index(("tell", n)) for n in ended)


def test_a_run_travels_without_its_study(table):
    """A pickled run keeps its trials; a deep copy is the run itself."""
    found = run(table)
    copied = pickle.loads(pickle.dumps(found))
    assert copied.best_params == found.best_params and len(copied.trials) == len(found.trials)
    assert copied.study is None and isinstance(found.study, optuna.Study)
    assert copy.deepcopy(found) is found


def test_optunas_verbosity_is_left_alone(table):
    """The log level of Optuna is the same after a search as before it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        run(table)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)

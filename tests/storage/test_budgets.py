"""Calls, tokens, dollars and seconds: no new work beyond the limit, and the best so far comes back, complete."""

import math
import pickle
import re
import threading
import time
from types import SimpleNamespace

import pytest

import dspy
import dspy.promptune.limits.estimate as estimate_module
from dspy.promptune import BudgetError, OptionError
from dspy.promptune.limits.budgets import BudgetLimits, BudgetMeter
from tests.server import Faults, Latency, LMServer, TaskRule
from tests.storage.lives import LIMIT, QUESTIONS, compiled

EXAMPLES = len(QUESTIONS) - 20


@pytest.fixture(scope="module")
def server():
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.005)) as running:
        yield running


@pytest.fixture(scope="module")
def whole(server):
    """The run without a limit: requests, and what it spent."""
    server.reset()
    program = compiled(server.url, None, resume=False, num_trials=20)
    spent = program.optimization_run.spent
    return {name: sum(step.get(name, 0) for step in spent.values()) for name in ("calls", "tokens", "cost")} | {
        "requests": server.requests
    }


def test_what_is_counted_is_what_the_server_saw(whole):
    """Calls of all three steps are counted, each once, with their tokens and their price."""
    assert whole["calls"] == whole["requests"] > 200
    assert whole["tokens"] > 0 and whole["cost"] > 0


@pytest.mark.parametrize(
    ("cap", "kind"), [("max_lm_calls", "calls"), ("max_tokens_spent", "tokens"), ("max_cost", "cost")]
)
def test_a_limit_is_kept_and_the_winner_is_complete(server, whole, cap, kind):
    """About half of what the whole run takes is allowed: it ends there, and the winner has been evaluated in full."""
    limit = whole[kind] * 0.55 if kind == "cost" else int(whole[kind] * 0.55)
    server.reset()
    program = compiled(server.url, None, resume=False, num_trials=20, **{cap: limit})
    run = program.optimization_run
    spent = sum(step.get(kind, 0) for step in run.spent.values())
    slack = LIMIT * spent / server.requests if kind != "calls" else 0
    assert 0.6 * limit < spent <= limit + slack
    assert cap in run.ended
    best = [trial for trial in run.trials if trial.params == run.best_params and trial.value is not None]
    scored = {example for trial in best for example in trial.user_attrs["examples"]}
    assert len(scored) == EXAMPLES
    if kind == "calls":
        assert server.requests <= limit


def test_the_time_limit_ends_a_run(server):
    """A run whose time is over starts nothing more, and gives what it has."""
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.3)) as slow:  # 384 calls, eight at once: 14 s
        began = time.monotonic()
        program = compiled(slow.url, None, resume=False, num_trials=2000, timeout=4)
        assert "timeout" in program.optimization_run.ended
        assert time.monotonic() - began < 60 and program.optimization_run.calls >= EXAMPLES


def test_a_budget_is_counted_over_all_starts(server, tmp_path):
    """What the first start spent is spent: the second continues the rest of it."""
    place = str(tmp_path / "runs.db")
    server.reset()
    compiled(server.url, place, num_trials=20, max_lm_calls=120)
    first = server.requests
    compiled(server.url, place, num_trials=20, max_lm_calls=200)
    assert first <= 120 < server.requests <= 200


def test_a_budget_that_allows_nothing_is_refused(server):
    """Fewer calls than steps 1 and 2 and a first evaluation take: refused before the first call, with the number."""
    server.reset()
    with pytest.raises(BudgetError, match=r"max_lm_calls=5: .* at least"):
        compiled(server.url, None, resume=False, max_lm_calls=5)
    assert server.requests == 0


def test_a_budget_that_allows_nothing_is_refused_for_a_new_study(server, tmp_path):
    """The same where the run could be resumed, and is not there yet."""
    server.reset()
    with pytest.raises(BudgetError, match="at least"):
        compiled(server.url, str(tmp_path / "runs.db"), max_lm_calls=5)
    assert server.requests == 0


@pytest.mark.parametrize("n_jobs", [1, 8])
@pytest.mark.parametrize("limit", [60, 61, 83, 100])
def test_no_call_is_made_beyond_the_limit(server, limit, n_jobs):
    """From barely enough on, the server counts at most the calls allowed, and the winner is evaluated in full."""
    server.reset()
    run = compiled(server.url, None, resume=False, n_jobs=n_jobs, num_trials=12, max_lm_calls=limit).optimization_run
    assert server.requests <= limit and run.ended.startswith(f"max_lm_calls={limit}")
    scored = {e for t in run.trials if t.params == run.best_params and t.value is not None
              for e in t.user_attrs["examples"]}  # fmt: skip
    assert len(scored) == EXAMPLES


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_reserve_is_for_the_best_average(server, sampler):
    """The full evaluation that is kept back goes to the best average, not to a prompt that had one."""
    options = {"sampler": sampler, "num_trials": 12, "minibatch_full_eval_steps": 5, "max_lm_calls": 85}
    run = compiled(server.url, None, resume=False, **options).optimization_run
    trials = [trial for trial in run.trials if trial.value is not None]
    full = [trial.params for trial in trials if trial.user_attrs["kind"] == "full"]
    means = {}
    for trial in trials:
        if trial.user_attrs["kind"] == "minibatch":
            means.setdefault(tuple(trial.params.items()), []).append(trial.value)
    rest = {key: sum(each) / len(each) for key, each in means.items() if dict(key) not in full[:-1]}
    assert run.ended.startswith("max_lm_calls") and full[-1] == dict(max(rest, key=rest.get))


@pytest.mark.parametrize("cap", [{"max_tokens_spent": 1}, {"max_cost": 1e-9}, {"timeout": 0.01}])
def test_the_least_budget_is_refused(server, cap):
    """Tokens, dollars and seconds that do not pay for the first evaluation are refused before the first call."""
    server.reset()
    with pytest.raises(BudgetError, match=f"{next(iter(cap))}=.* give at least"):
        compiled(server.url, None, resume=False, **cap)
    assert server.requests == 0


def test_the_least_time_gives_the_program_back(server, caplog, monkeypatch):
    """A limit that is reached in step 1 starts nothing more than is in flight: the program comes back as it was."""
    server.reset()
    monkeypatch.setattr(estimate_module, "LEAST_SECONDS", 0.0)
    program = compiled(server.url, None, resume=False, timeout=0.01)
    assert server.requests <= LIMIT and "Nothing was searched" in caplog.text
    assert program.signature.instructions == dspy.Predict("question -> answer").signature.instructions
    check_unsearched(program, "timeout")
    spent = program.optimization_run.spent
    assert sum(step.get("calls", 0) for step in spent.values()) == server.requests


def check_unsearched(program, why, scored=False):
    """A run that ended in step 1 or 2 has a record: why it ended, what was spent, no trials, and every view of it."""
    run = program.optimization_run
    assert why in run.ended and run.trials == [] and program.trial_logs == {} and math.isnan(program.score) != scored
    assert "bootstrap" in run.spent and run.facts["metric"].endswith("metric")
    assert why in run._repr_html_() and "0_predictor_instruction" in run.best_params
    table = run.to_dataframe()
    assert len(table) == 0 and {"number", "score", "0_predictor_instruction"} <= set(table.columns)
    assert pickle.loads(pickle.dumps(run)).ended == run.ended


@pytest.mark.slow
def test_time_that_is_over_before_the_first_score_gives_the_program_back(tmp_path):
    """The model answers in steps 1 and 2, and about no validation example in time: nothing is said to have failed."""
    asked = list(QUESTIONS)[20:]
    faults = Faults(rule=lambda messages, attempt: "hang" if any(each in str(messages[-1]) for each in asked) else None)
    with LMServer(TaskRule(QUESTIONS), faults=faults) as slow:
        program = compiled(slow.url, str(tmp_path / "runs.db"), resume=False, timeout=6.0)
    check_unsearched(program, "timeout=6 seconds are over")


def test_a_run_that_ends_in_step_2_has_a_record(server, tmp_path):
    """The budget ends while instructions are proposed: the record says so, its report can be written, and read back."""
    place = str(tmp_path / "runs.db")
    program = compiled(server.url, place, max_tokens_spent=7000, view_data_batch_size=1)
    check_unsearched(program, "max_tokens_spent=7000 is spent", scored=True)  # the first evaluation comes first
    assert {"bootstrap", "propose"} <= set(program.optimization_run.spent)
    page = program.optimization_run.report(tmp_path / "report.html").read_text()
    assert "max_tokens_spent=7000 is spent" in page and "Nothing was scored" not in program.optimization_run.ended
    program.save(tmp_path / "program.json")


def test_a_resumed_run_whose_time_is_over_at_once_gives_its_best(server, tmp_path):
    """The best of the earlier starts is returned, though this start had no time for its search."""
    place = str(tmp_path / "runs.db")
    first = compiled(server.url, place, num_trials=4)
    server.reset()
    again = compiled(server.url, place, num_trials=20, timeout=1e-6)
    assert again.optimization_run.best_params == first.optimization_run.best_params
    assert again.score == first.score and "timeout" in again.optimization_run.ended and server.requests == 0


def test_the_scarcest_of_several_limits_is_named(server):
    """With all limits given, the run says which one ended it."""
    caps = {"max_lm_calls": 150, "max_tokens_spent": 20000, "max_cost": 1.0, "timeout": 600}
    run = compiled(server.url, None, resume=False, num_trials=12, **caps).optimization_run
    assert run.ended.startswith("max_tokens_spent=20000")


def test_the_time_limit_waits_for_no_call_of_step_1():
    """A language model that does not answer cannot keep a run from ending in time."""
    faults = Faults(rates={"hang": 1.0})
    with LMServer(TaskRule(QUESTIONS), faults=faults) as silent:
        began = time.monotonic()
        compiled(silent.url, None, resume=False, timeout=1.0)
        assert time.monotonic() - began < 30  # a call would give up after ten minutes


def test_what_is_loaded_first_is_time_of_the_run():
    """What a run loads before its first call counts as loading, and against ``timeout``."""
    meter = BudgetMeter(BudgetLimits(timeout=60.0))
    meter.began(time.monotonic() - 20)
    assert 20 <= meter.spent()["load"]["seconds"] < 30 and 30 < meter.seconds_left() <= 40


def test_the_estimate_comes_first(server, caplog):
    """Before the first call the log says about how many calls, tokens and dollars the run will take."""
    caplog.set_level("INFO", logger="dspy")
    server.reset()
    compiled(server.url, None, resume=False)
    lines = [record.getMessage() for record in caplog.records]
    at = next(i for i, line in enumerate(lines) if line.startswith("Estimate:"))
    assert not any("Trial" in line or "Step" in line for line in lines[:at])
    calls, tokens = re.search(r"about ([\d,]+) calls .* ([\d,]+) tokens, \$", lines[at]).groups()
    assert server.requests / 2 < int(calls.replace(",", "")) < server.requests * 2
    assert int(tokens.replace(",", "")) > int(calls.replace(",", "")) * 20


def test_an_unknown_price_is_said_once(caplog):
    """A model without a price is named once, when dollars are limited."""
    meter = BudgetMeter(BudgetLimits(max_cost=1.0))
    for _ in range(3):
        meter.add({"model": "mine", "usage": {"total_tokens": 5}, "cost": None, "response": None})
    assert caplog.text.count("The price of mine is not known") == 1
    assert meter.spent()["search"]["tokens"] == 15


def test_answers_from_the_cache_are_free():
    """Neither calls nor tokens are counted for what the cache answered."""
    meter = BudgetMeter()
    assert meter.admit()
    response = SimpleNamespace(cache_hit=True)
    meter.add({"model": "m", "usage": {"total_tokens": 5}, "cost": 0.1, "response": response})
    meter.ended(reached=False)
    assert not {"calls", "tokens", "cost"} & set(meter.spent()["search"])


@pytest.mark.parametrize(
    "given", [{"max_lm_calls": 0}, {"max_lm_calls": 1.5}, {"max_cost": -1}, {"timeout": True}, {"max_tokens_spent": ""}]
)
def test_limits_out_of_range_are_refused(given):
    """A limit is a number above 0, and the message names it."""
    with pytest.raises(OptionError, match=next(iter(given))):
        BudgetLimits(**given)


def test_the_program_saves_and_loads(server, tmp_path):
    """The optimized program is saved and loaded as upstream's."""
    program = compiled(server.url, str(tmp_path / "runs.db"))
    program.save(tmp_path / "program.json")
    other = dspy.Predict("question -> answer")
    other.load(tmp_path / "program.json")
    assert other.signature.instructions == program.signature.instructions
    assert [dict(demo) for demo in other.demos] == [dict(demo) for demo in program.demos]


def test_the_run_as_a_table(server):
    """``to_dataframe`` has a row for each trial, with its parameters, its score and what it took."""
    run = compiled(server.url, None, resume=False).optimization_run
    frame = run.to_dataframe()
    assert list(frame["number"]) == [trial.number for trial in run.trials]
    assert {"0_predictor_instruction", "score", "seconds", "tokens", "examples"} <= set(frame.columns)
    assert frame["paid"].sum() == run.calls
    assert set(run.spent) == {"bootstrap", "propose", "load", "search"} and run.ended


@pytest.mark.parametrize("name", ["max_lm_calls", "max_tokens_spent", "max_cost", "timeout"])
@pytest.mark.parametrize("value", [0, -1, True, math.nan, math.inf, "5", 1j])
def test_what_is_no_limit_is_refused(name, value):
    """A limit is a finite number above 0; no limit is ``None``."""
    with pytest.raises(OptionError, match=f"{name}="):
        BudgetLimits(**{name: value})


def test_a_time_limit_of_ages_is_one():
    """What is left of a time limit can be waited for, however long it is."""
    left = BudgetMeter(BudgetLimits(timeout=1e300)).seconds_left()
    assert not threading.Event().wait(0.0) and left == threading.TIMEOUT_MAX
    assert BudgetMeter().seconds_left() == math.inf

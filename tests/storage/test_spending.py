"""Budgets hold over any number of starts, and one that cannot pay for the first result is refused in words."""

import math

import pytest

import dspy
from dspy.promptune import BudgetError
from dspy.promptune.limits.allowance import WorkerAllowances
from dspy.promptune.limits.budgets import PROPOSE, BudgetLimits, BudgetMeter
from dspy.promptune.limits.estimate import Estimate
from dspy.promptune.storage.backend import open_storage
from dspy.promptune.storage.study_store import open_study_store
from tests.server import Latency, LMServer, TaskRule
from tests.storage.lives import QUESTIONS, compiled
from tests.storage.test_kill import check, killed
from tests.threads import at_once

EXAMPLES = len(QUESTIONS) - 20
BUDGET = 120


@pytest.mark.slow
@pytest.mark.parametrize("file", ["runs.log", "runs.db"])
def test_the_calls_served_over_all_kills_are_within_the_limit(tmp_path, file):
    """A compile that is killed and then finished has every score it ever had, and made no call more than allowed."""
    options = {"max_lm_calls": BUDGET, "num_trials": 30, "resume": True}
    studies, records = killed(str(tmp_path / file), kills=3, seconds=0.4, options=options)
    assert check(studies, records).deaths >= 3
    for study in studies:
        served = sum(study["began"] <= record.start <= study["ended"] for record in records)
        assert EXAMPLES < served <= BUDGET


def stored(path, caps, **options):
    """A study, and a meter whose spending is written to it, as of one start."""
    store = open_study_store(path, "one", True, "one", **options)
    store.begin({"format": 1})
    meter = BudgetMeter(caps)
    store.count(meter)
    return store, meter


def kill(store):
    """What is left of a start that ends without a word: what it has written."""
    store._writer.close()
    store._lease.release()


@pytest.mark.parametrize("name", ["runs.db", "runs.log"])
@pytest.mark.parametrize(("limit", "each"), [("max_lm_calls", 1), ("max_tokens_spent", 50), ("max_cost", 0.5)])
def test_every_kind_of_limit_holds_over_kills(tmp_path, name, limit, each):
    """However often a start is killed between two calls, what was spent in truth is at most the limit."""
    caps, true, starts = BudgetLimits(**{limit: 100 * each}), 0, 0
    while starts < 100:
        starts += 1
        store, meter = stored(tmp_path / name, caps)
        made = 0
        while made < 7 and meter.admit():
            meter.ended()
            meter.took("one", 50, 0.5)
            true, made = true + each, made + 1
        if made < 7:
            break
        kill(store)
    assert 0.4 * 100 * each < true <= 100 * each and starts > 5
    assert meter.left(limit) <= each


def test_a_start_that_ends_well_leaves_nothing_reserved(tmp_path):
    """What was written ahead and not spent is free again when a start closes its study."""
    for _ in range(3):
        store, meter = stored(tmp_path / "runs.db", BudgetLimits(max_lm_calls=100))
        for _ in range(3):
            assert meter.admit()
            meter.ended()
        store.close()
    assert stored(tmp_path / "runs.db", BudgetLimits(max_lm_calls=100))[1].left("max_lm_calls") == 91


@pytest.mark.parametrize("limit", [6, 12])
def test_drivers_that_reserve_at_the_same_moment_do_not_overrun(tmp_path, limit):
    """One that looks before and writes after another has reserved makes no call that the other may make as well."""
    first, mine = stored(tmp_path / "runs.db", BudgetLimits(max_lm_calls=limit), share=True)
    first.search_begins()
    second, other = stored(tmp_path / "runs.db", BudgetLimits(max_lm_calls=limit), share=True)
    write, admitted = first.drivers.announce, []

    def between(**facts):
        if not admitted:
            admitted.append(None)
            admitted[0] = other.admit()
        write(**facts)

    first.drivers.announce = between
    for meter in [mine, other] * limit:
        admitted.append(meter.admit())
    assert admitted[0] and sum(admitted) == limit
    first.close()
    second.close()


def test_what_is_let_through_is_on_disk_first(tmp_path):
    """From any thread: at every moment the calls that were let through are at most what another process reads."""
    store, meter = stored(tmp_path / "runs.db", BudgetLimits())
    other = open_storage(tmp_path / "runs.db").storage
    study = store.study._study_id
    ahead = []

    def call():
        for _ in range(20):
            assert meter.admit()
            admitted = meter._calls() + meter._open.total()
            notes = other.get_study_system_attrs(study)
            (note,) = [note for name, note in notes.items() if name.startswith("promptune:driver:")]
            read = sum(row.get("calls", 0) for part in ("spent", "reserved") for row in note.get(part, {}).values())
            ahead.append(read - admitted)
            meter.ended()

    at_once(*[call] * 4)
    store.close()
    assert len(ahead) == 80 and min(ahead) >= -3  # of calls that other threads were let through meanwhile


def test_what_workers_may_spend_is_on_disk_first(tmp_path):
    """An allowance that is out when the start is killed counts as spent at the next one."""
    store, meter = stored(tmp_path / "runs.db", BudgetLimits(max_lm_calls=100))
    allowances = WorkerAllowances(meter, 1.0)
    first, second = allowances.take(10, 2), allowances.take(10, 2)
    allowances.settle(first, {"calls": 4})
    kill(store)
    left = stored(tmp_path / "runs.db", BudgetLimits(max_lm_calls=100))[1].left("max_lm_calls")
    assert 100 - first.max_lm_calls - second.max_lm_calls - 8 <= left <= 100 - 4 - second.max_lm_calls


def test_calls_in_flight_are_reckoned_with():
    """Tokens and dollars of calls under way count as what a call is likely to take: many at once do not overrun."""
    meter = BudgetMeter(BudgetLimits(max_cost=1.0))
    meter.expect({"search": {"tokens": 100, "cost": 0.3}})
    assert [meter.admit() for _ in range(6)] == [True, True, True, True, False, False]
    for _ in range(4):
        meter.ended()
        meter.took("one", 10, 0.01)
    assert meter.admit()


def test_an_answer_without_usage_is_estimated(caplog):
    """A provider that does not say what a call took is named once, and each call counts as one of its step."""
    meter = BudgetMeter(BudgetLimits(max_tokens_spent=1000))
    meter.expect({"search": {"tokens": 120, "cost": 0.001}, PROPOSE: {"tokens": 700, "cost": 0.01}})
    meter.untold("mine")
    meter.untold("mine")
    with meter.step(PROPOSE):
        meter.untold("mine")
    spent = meter.spent()
    assert spent["search"]["tokens"] == 240 and spent[PROPOSE]["tokens"] == 700 and meter.reached() is None
    assert caplog.text.count("mine does not say what a call takes") == 1


@pytest.mark.parametrize(
    "cap", [{"max_lm_calls": 20}, {"max_tokens_spent": 500}, {"max_cost": 1e-5}, {"timeout": 0.05}]
)
def test_a_budget_that_cannot_pay_for_the_first_result_is_refused(cap):
    """Of every kind, before the first call, with a number that is enough."""
    expected = Estimate(bootstrap=8, propose=20, search=200, tokens=70000, cost=0.02, per_call=200)
    with pytest.raises(BudgetError, match=rf"^{next(iter(cap))}=.* give at least ([\d.e-]+)") as error:
        expected.check(BudgetLimits(**cap), 24, 1)
    enough = float(str(error.value).partition("at least ")[2].partition(",")[0])
    kind = type(next(iter(cap.values())))
    expected.check(BudgetLimits(**{next(iter(cap)): kind(enough)}), 24, 1)
    assert expected.tight(BudgetLimits(**{next(iter(cap)): kind(enough)}), 24, 1)
    assert not expected.tight(BudgetLimits(), 24, 1)


@pytest.fixture(scope="module")
def server():
    with LMServer(TaskRule(QUESTIONS)) as running:
        yield running


@pytest.mark.parametrize("sampler", ["tpe", "onehot"])
@pytest.mark.parametrize("more", [0, 6, 20])
def test_a_budget_that_is_enough_gives_a_result(server, sampler, more):
    """From the number that the refusal names on, a compile ends with a program whose score is known."""
    with pytest.raises(BudgetError) as error:
        compiled(server.url, None, resume=False, max_lm_calls=2)
    limit = int(str(error.value).partition("at least ")[2].partition(",")[0]) + more
    given = {} if sampler == "tpe" else {"minibatch_size": ...}
    server.reset()
    program = compiled(server.url, None, resume=False, max_lm_calls=limit, sampler=sampler, n_jobs=8, **given)
    assert server.requests <= limit and 0 <= program.score <= 100
    assert program.optimization_run.best_score * 100 == pytest.approx(program.score, abs=0.01)
    assert not math.isnan(program.score) and isinstance(program, dspy.Predict)


@pytest.mark.slow
def test_all_drivers_tell_what_all_have_spent(tmp_path):
    """When drivers have agreed on the end, the record of each has every call that was made."""
    file = str(tmp_path / "runs.db")

    def one():
        return compiled(server.url, file, study_name="shared", resume=False, share=True, num_trials=4).optimization_run

    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.01)) as server:
        runs = at_once(one, one)
        made = server.requests
    assert [sum(step.get("calls", 0) for step in run.spent.values()) for run in runs] == [made, made]


def test_calls_under_way_at_the_end_are_counted_with_their_step():
    """They were made: with what such calls usually take, and to be written down until they have ended."""
    meter = BudgetMeter(BudgetLimits(max_lm_calls=100))
    for _ in range(6):
        assert meter.admit()
        meter.ended()
        meter.took("m", 10, 0.0000004)
    with meter.step("reflect"):
        assert meter.admit() and meter.admit()
    assert "calls" not in meter.spent().get("reflect", {})
    assert meter.spent(at_end=True)["reflect"] == {"calls": 2, "tokens": 0.0, "cost": 0.0, "seconds": 0.0}
    assert meter.spent()["search"]["cost"] == 0.0000024
    assert meter.admit() and meter.spent(at_end=True)["search"]["tokens"] == 70
    _, reserved, _ = meter.reserve(ahead=False)
    assert (reserved["reflect"]["calls"], reserved["search"]["calls"]) == (2, 1)

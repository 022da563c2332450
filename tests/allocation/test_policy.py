"""How calls are spent: minibatches and blocks, played through without threads."""

import logging
import random

import optuna
import pytest
from optuna.storages import InMemoryStorage

from dspy.promptune import BudgetError, PromptSpace, make_sampler
from dspy.promptune.allocation.policy import Budget, MinibatchPolicy
from dspy.promptune.allocation.racing import FINAL, RacingPolicy
from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.gp import data
from dspy.promptune.gp.model import PromptGP
from dspy.promptune.gp.posterior import PoolPosterior
from dspy.promptune.run.search import Run
from dspy.promptune.samplers.trials import measured


def by_length(n, demos=None, allowed=None):
    """Instructions of 1 to n letters."""
    return PromptSpace({0: ["x" * (i + 1) for i in range(n)]}, demos, allowed)


def letters(texts):
    """One direction a length of text."""
    return [[1.0, len(text) / 10] for text in texts]


class Play:
    """A run: asks for jobs, ``n_jobs`` at once, scores them, tells them in the order they were asked."""

    def __init__(self, space, sampler="qei", score=None, seed=0, **budget):
        options = {"embedder": letters} if sampler == "qei" else {}
        budget = {"n_examples": 40, "max_calls": 400, **budget}
        run = Run(space, sampler, budget, seed=seed, options=options)
        self.study, self.table, self.policy, self.desk = run.study, run.table, run.policy, run.jobs
        self.score = score or (lambda key, example: float(random.Random(f"{key}{example}").random() < key[0] / 20))
        self.jobs = []

    def run(self, n_jobs=4, fails=lambda job: False, most=2000):
        running = []
        while len(self.jobs) < most:
            while len(running) < n_jobs and (job := self.desk.next()) is not None:
                running.append(job)
            if not running:
                break
            job = running.pop(0)
            self.jobs.append(job)
            if fails(job):
                self.desk.fail(job, RuntimeError("too long"), blamed=True)
                continue
            for example in job.examples:
                self.table.add(job.key, example, self.score(job.key, example))
            row = self.table.row(job.key)
            self.desk.tell(job, [row[example] for example in job.examples])
        return self


@pytest.mark.parametrize("size", [None, 20])
def test_a_prompt_that_is_level_with_the_original_does_not_take_its_place(size):
    """Where every prompt is right on the same examples, and all are scored, the original is returned."""
    for seed in range(5):
        play = Play(by_length(6), score=lambda key, example: float(example % 3 == 0), seed=seed, minibatch_size=size)
        play.run()
        assert play.table.count((0,)) == 40
        assert play.policy.best() == (0,)


@pytest.mark.parametrize("size", [None, 10])
def test_a_prompt_with_a_terrible_score_does_not_replace_the_original(size):
    """A prompt that is best but for one example in forty, which costs a million, does not win."""

    def score(key, example):
        return -1e6 if key == (5,) and example == 7 else float(example % 10 < 2 + key[0] or key == (5,))

    for seed in range(3):
        play = Play(by_length(6), score=score, seed=seed, minibatch_size=size, max_calls=240).run()
        assert play.table.mean(play.policy.best()) >= 0.2


def test_a_block_that_the_budget_cuts_short_makes_no_winner():
    """One right answer does not win over half of twelve, as one left of a cut block; two may."""
    space, best = by_length(8), []
    for seen in (1, 2):
        table = ScoreTable()
        for key, count in {(0,): 12, (1,): seen, (2,): 6}.items():
            for example in range(count):
                table.add(key, example, float(key == (1,) or example % 2))
        sampler = make_sampler("qei", space=space, seed=0, embedder=letters)
        budget = Budget(n_examples=40, max_calls=20)
        best.append(RacingPolicy(sampler, space, table, budget, rng=random.Random(0)).best())
    assert best[0] != (1,) and best[1] == (1,)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"n_examples": 0}, "n_examples=0"),
        ({"max_calls": 0}, "max_calls=0"),
        ({"minibatch_size": 41}, "minibatch_size=41: it must be from 1 to the 40"),
        ({"full_every": -1}, "full_every=-1"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(budget, message):
    """The value, the rule, the remedy."""
    with pytest.raises(BudgetError, match=message):
        Budget(**{"n_examples": 40, "max_calls": 400, **budget})


@pytest.mark.parametrize(
    ("sampler", "size", "kind"),
    [
        ("qei", None, RacingPolicy),
        ("qei", 10, MinibatchPolicy),
        ("tpe", None, MinibatchPolicy),
        ("random", 10, MinibatchPolicy),
    ],
)
def test_our_sampler_races_unless_a_minibatch_is_asked_for(sampler, size, kind):
    """An explicit minibatch_size is obeyed; other samplers always have minibatches."""
    assert isinstance(Play(by_length(5), sampler, minibatch_size=size).policy, kind)


@pytest.mark.parametrize("sampler", ["qei", "tpe"])
@pytest.mark.parametrize("n_jobs", [1, 7])
def test_no_more_calls_are_spent_than_allowed_and_hardly_any_is_left(sampler, n_jobs):
    """With running jobs counted as spent, the budget is never exceeded, and used up to the last call."""
    play = Play(by_length(30), sampler, max_calls=333).run(n_jobs)
    assert play.table.calls == 333


def test_the_best_average_is_evaluated_in_full_every_five_minibatches():
    """Upstream's schedule: five minibatches, one full evaluation of a prompt that had none."""
    play = Play(by_length(30), "random", minibatch_size=10).run(n_jobs=1)
    kinds = [job.kind for job in play.jobs]
    assert kinds[:12] == (["minibatch"] * 5 + ["full"]) * 2
    full = [job.key for job in play.jobs if job.kind == "full"]
    assert len(set(full)) == len(full)
    assert all(len(job.examples) == (10 if job.kind == "minibatch" else 40) for job in play.jobs[:-1])


def test_a_full_evaluation_decides_over_lucky_minibatches():
    """Once there are full evaluations, the highest of them wins."""
    play = Play(by_length(30), "random", minibatch_size=10).run(n_jobs=1)
    means = {j.key: sum(play.table.row(j.key).values()) / 40 for j in play.jobs if j.kind == "full"}
    assert play.policy.best() == max(means, key=means.get)


@pytest.mark.parametrize("believed", [None, (2,)])
@pytest.mark.parametrize("full", [True, False])
def test_a_minibatch_that_the_budget_cut_short_makes_no_winner(believed, full):
    """One lucky example at the end of the budget does not win over prompts that were looked at, even if believed in."""
    table, space = ScoreTable(), by_length(3)
    budget = Budget(n_examples=10, max_calls=40, minibatch_size=5, full_every=5 if full else 0)
    policy = MinibatchPolicy(
        lambda: (0,), space, table, budget, rng=random.Random(0), believed=lambda: believed
    )  # fmt: skip
    jobs = [Job(0, (0,), tuple(range(10)), "full"), Job(1, (1,), tuple(range(5)), "minibatch")]
    for job, score in [*zip(jobs, (0.7, 0.5), strict=True), (Job(2, (2,), (3,), "minibatch"), 1.0)]:
        policy.started(job)
        for example in job.examples:
            table.add(job.key, example, score)
        policy.told(job, [score] * len(job.examples))
    assert policy.best() == (0,)


def test_without_full_evaluations_the_best_average_wins():
    """full_every=0 leaves minibatches alone, averaged by prompt."""
    play = Play(by_length(3), "random", minibatch_size=10, max_calls=60, full_every=0).run(n_jobs=1)
    assert {job.kind for job in play.jobs} == {"minibatch"}
    means = {}
    for trial in play.study.get_trials():
        means.setdefault(tuple(trial.params.values()), []).append(trial.value)
    averages = {key: sum(values) / len(values) for key, values in means.items()}
    assert averages[play.policy.best()] == max(averages.values())


@pytest.mark.parametrize("sampler", ["qei", "tpe"])
def test_a_space_that_is_used_up_ends_the_run_well(sampler):
    """Two prompts of 40 examples are known after 80 calls, whatever is left of 400."""
    play = Play(by_length(2), sampler, score=lambda key, example: float(key[0])).run()
    assert play.table.calls == 80
    assert play.policy.best() == (1,)


def test_one_prompt_only_is_evaluated_and_returned():
    """Nothing to compare, nothing raised."""
    play = Play(by_length(1)).run()
    assert play.policy.best() == (0,)
    assert play.table.calls == 40


def test_before_any_result_the_first_combination_would_be_returned():
    """An interrupted start still has an answer."""
    assert Play(by_length(4)).policy.best() == (0,)
    assert Play(by_length(4), "tpe").policy.best() == (0,)


def test_a_sampler_that_does_not_know_the_allowed_gets_the_nearest():
    """TPE proposes freely; what is not allowed fails without a call, and a neighbor takes its place."""
    demos = {0: [f"q: {i}" for i in range(6)]}
    space = by_length(6, demos, allowed=[(i, i) for i in range(6)])
    play = Play(space, "tpe", minibatch_size=10).run(n_jobs=1)
    assert play.table.calls == 240
    assert all(key in space for key in play.table.keys())
    failed = [t for t in play.study.get_trials() if t.state == optuna.trial.TrialState.FAIL]
    assert failed
    assert "not allowed" in failed[0].user_attrs["overruled"]


def test_trials_carry_their_scores():
    """Per-example scores, which examples, and the kind of job are in the study."""
    play = Play(by_length(5), max_calls=60).run()
    for job in play.jobs:
        trial = play.study.get_trials()[job.number]
        assert trial.user_attrs["examples"] == list(job.examples)
        assert trial.user_attrs["kind"] == job.kind
        assert trial.value == pytest.approx(sum(trial.user_attrs["scores"]) / len(job.examples))


@pytest.mark.parametrize(("n_examples", "block"), [(20, 3), (50, 3), (51, 5)])
def test_blocks_are_small_where_there_are_few_examples(n_examples, block):
    """Of at most 50 validation examples a block has three, of more five."""
    play = Play(by_length(30), n_examples=n_examples, max_calls=300).run()
    assert max(len(job.examples) for job in play.jobs if job.kind == "block") == block


def test_blocks_are_the_same_examples_in_the_same_order_for_every_prompt():
    """So that any two prompts were compared on common examples as far as both went."""
    play = Play(by_length(20), max_calls=300).run(n_jobs=1)
    seen = {}
    for job in play.jobs:
        seen.setdefault(job.key, []).extend(job.examples)
    longest = max(seen.values(), key=len)
    assert all(examples == longest[: len(examples)] for examples in seen.values())
    assert all(len(set(examples)) == len(examples) for examples in seen.values())


def test_blocks_go_to_the_leaders():
    """The better half of the prompts gets most of the calls, and one of the best is returned."""
    play = Play(by_length(20), max_calls=400, n_examples=200).run()
    calls = {key: play.table.count(key) for key in play.table.keys()}
    assert sum(n for key, n in calls.items() if key[0] >= 10) > 0.7 * 400
    assert play.policy.best()[0] >= 16


@pytest.mark.parametrize("seed", range(4))
def test_the_last_calls_decide_between_the_leaders(seed):
    """Nobody new is looked at, some ten prompts share them, and the one returned is among those measured most."""
    score = lambda key, example: float(random.Random(f"{key}{example}").random() < key[0] / 60)  # noqa: E731
    play = Play(by_length(60), score=score, max_calls=1000, n_examples=200, seed=seed).run()
    spent, late, early = 0, set(), set()
    for job in play.jobs:
        (late if spent > (1 - FINAL) * 1000 + 40 else early).add(job.key)
        spent += len(job.examples)
    assert late <= early and len(late) <= 12
    counts = sorted((play.table.count(key) for key in play.table.keys()), reverse=True)
    assert play.table.count(play.policy.best()) >= counts[5]


def test_a_prompt_that_fails_again_and_again_is_left_alone():
    """Failures are no numbers: their trials are FAILED, and the search ends with the others."""
    play = Play(by_length(8), max_calls=200).run(fails=lambda job: job.key[0] == 7)
    assert sum(job.key == (7,) for job in play.jobs) <= 3  # two failures, and one that was already running
    assert play.policy.best() != (7,)
    states = {play.study.get_trials()[job.number].state.name for job in play.jobs if job.key == (7,)}
    assert states <= {"FAIL"}


def test_scores_of_running_jobs_are_not_counted_twice():
    """Scores arrive one by one; those of a job that is not over yet do not make its prompt the best."""
    play = Play(by_length(20), max_calls=200)
    for _ in range(6):
        play.run(n_jobs=1, most=len(play.jobs) + 1)
    job = play.desk.next()
    for example in job.examples[:2]:
        play.table.add(job.key, example, 1.0)
    assert all(one.key != job.key or not set(one.examples) & set(job.examples) for one in play.policy._observations())


def test_graded_scores_race_as_well():
    """Scores between 0 and 1 have their own variance; the best of twenty is found."""
    play = Play(by_length(20), score=lambda key, e: key[0] / 20 + random.Random(f"{key}{e}").gauss(0, 0.05)).run()
    assert play.policy.best()[0] >= 17


def test_beliefs_that_fail_leave_averages_and_chance(monkeypatch, caplog):
    """The run goes to its end, and says what happened."""

    def broken(self, data):
        raise RuntimeError("not positive definite")

    monkeypatch.setattr(PromptGP, "noise", broken)
    with caplog.at_level(logging.WARNING):
        play = Play(by_length(10), max_calls=120).run()
    assert play.table.calls == 120
    assert "averages and chance" in caplog.text


def test_a_space_far_larger_than_the_pool_is_raced():
    """34 million combinations: a pool around the leaders, no complaint, and better than chance."""
    texts = ["x" * (i + 1) for i in range(18)]
    space = PromptSpace(dict.fromkeys(range(3), texts), dict.fromkeys(range(3), texts))
    play = Play(space, max_calls=400, score=lambda key, e: float(random.Random(f"{key}{e}").random() < sum(key) / 102))
    play.run()
    assert sum(play.policy.best()) > 65  # of 102; a random combination has 51, with deviation 12.7


def test_the_same_seed_spends_in_the_same_way():
    """Jobs told in the same order are the same jobs."""
    runs = [Play(by_length(20), max_calls=200, seed=0).run().jobs for _ in range(2)]
    assert runs[0] == runs[1]


def test_what_the_sampler_is_given_is_what_the_study_says():
    """The view that is kept up to date trial by trial is the one that reading the study gives, failures included."""
    space = by_length(12)
    play = Play(space, minibatch_size=10).run(n_jobs=5, fails=lambda job: job.number % 7 == 3)
    seen = play.desk._proposals.seen
    assert seen.observations == measured(play.study, space)
    assert seen.count == len(seen.observations) and not seen.running


def graded_by_place(key, example):
    return sum(key) / 40 + random.Random(f"{key}{example}").gauss(0, 0.05)


@pytest.mark.parametrize("size", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_a_crowd_of_jobs_finds_what_few_find(size):
    """With 80 jobs at once, 600 calls end among the best of 400 combinations, and none is paid for twice."""
    space = by_length(20, {0: [[{"x": "d" * i}] for i in range(20)]})
    sampler = make_sampler("qei", space=space, seed=0, embedder=letters, batch_size=80)
    play = Play(space, sampler, graded_by_place, max_calls=600, minibatch_size=size, full_every=0).run(n_jobs=80)
    assert play.table.calls == 600
    assert sum(play.policy.best()) >= 30


@pytest.mark.parametrize("size", [4, None])
def test_a_result_costs_no_more_for_those_before_it(monkeypatch, size):
    """Whatever the number of trials: none is read again, and no model has more rows than it can bear."""
    monkeypatch.setattr(data, "MANY", 30)
    monkeypatch.setattr(data, "KEPT", 15)
    read, believe = InMemoryStorage.get_all_trials, PoolPosterior.__init__
    trials, rows = [], []
    monkeypatch.setattr(
        InMemoryStorage, "get_all_trials", lambda *args, **options: trials.append(1) or read(*args, **options)
    )
    monkeypatch.setattr(
        PoolPosterior, "__init__", lambda *args: rows.append(len(args[-1])) or believe(*args)
    )  # fmt: skip
    play = Play(by_length(60), minibatch_size=size, full_every=0, max_calls=240).run(n_jobs=8)
    assert len(play.jobs) > 40
    assert len(trials) == (3 if size else 0) and max(rows) <= 30

"""The contract of allocation policies: tell results, get jobs; no study, clock or thread is needed."""

import itertools
import random

import pytest

from dspy.promptune import PromptSpace
from dspy.promptune.allocation.ledger import CallLedger
from dspy.promptune.allocation.policy import Budget, MinibatchPolicy
from dspy.promptune.allocation.racing import RacingPolicy
from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.samplers.qei import QEISampler

SPACE = PromptSpace({0: [f"instruction {i}" for i in range(6)]})
KEYS = list(SPACE.keys())


def racing(table, budget):
    return RacingPolicy(QEISampler(SPACE, seed=0, embedder="onehot"), SPACE, table, budget, rng=random.Random(0))


def minibatches(table, budget):
    return MinibatchPolicy(itertools.cycle(KEYS).__next__, SPACE, table, budget, rng=random.Random(0))


def drive(policy, table, max_calls, score):
    """Tell results, get jobs."""
    jobs = []
    while (one := policy.next_job(max_calls - table.calls)) is not None:
        job = Job(len(jobs), one.key, one.examples, one.kind)
        policy.started(job)
        for example in job.examples:
            table.add(job.key, example, score(job.key, example))
        policy.told(job, [table.row(job.key)[example] for example in job.examples])
        jobs.append(job)
    return jobs


@pytest.mark.parametrize("make", [racing, minibatches])
def test_a_policy_needs_results_and_nothing_else(make):
    """Ten lines drive it to the end of its budget, and it names a prompt that scores best."""
    table = ScoreTable()
    policy = make(table, Budget(n_examples=20, max_calls=100, minibatch_size=5))
    jobs = drive(policy, table, 100, lambda key, example: float(example % 6 < key[0]))
    assert table.calls == 100 and policy.best() == (5,)
    assert {job.kind for job in jobs} <= {"block", "minibatch", "full"}


@pytest.mark.parametrize("make", [racing, minibatches])
def test_jobs_of_others_arrive_in_the_same_way(make):
    """What another driver evaluates is not asked for again, and what it scored decides here."""
    table = ScoreTable()
    policy = make(table, Budget(n_examples=4, max_calls=100, minibatch_size=4))
    theirs = Job(7, (3,), (0, 1, 2, 3), "full")
    policy.started(theirs)
    for example in theirs.examples:
        table.add(theirs.key, example, 1.0)
    policy.told(theirs, [1.0] * 4)
    assert policy.best() == (3,)
    jobs = drive(policy, table, 24, lambda key, example: 0.0)
    assert policy.best() == (3,) and table.calls == 24
    assert all(set(job.examples) <= {0, 1, 2, 3} for job in jobs)


@pytest.mark.parametrize("make", [racing, minibatches])
def test_the_last_evaluation_of_a_limited_search_is_the_best_in_full(make):
    """Where the calls left pay for it; nothing where they do not, or where all its scores are there."""
    table = ScoreTable()
    policy = make(table, Budget(n_examples=20, max_calls=20, minibatch_size=5, full_every=0))
    drive(policy, table, 20, lambda key, example: float(key == (2,)))
    missing = table.missing(policy.best(), range(20))
    assert policy.confirm(len(missing) - 1) is None
    last = policy.confirm(len(missing))
    assert (last.key, last.kind, len(last.examples)) == (policy.best(), "full", 20)
    for example in missing:
        table.add(last.key, example, 1.0)
    assert policy.confirm(100) is None


def test_a_race_that_another_limit_ends_early_looks_at_new_prompts_all_the_same():
    """With a fifth of the budget's calls to spend, a race sees as many prompts as one whose budget is that fifth."""
    seen = {}
    for max_calls in (60, 300):
        table = ScoreTable()
        policy = racing(table, Budget(n_examples=20, max_calls=max_calls))
        drive(policy, table, 60, lambda key, example: float(example % 6 < key[0]))
        seen[max_calls] = len(table)
    assert seen[300] == seen[60] > 2


def test_a_ledger_counts_what_is_claimed():
    """Two jobs that want the same example claim it both, and what is scored claims nothing."""
    table = ScoreTable()
    ledger = CallLedger(table, 10)
    first, second = Job(0, (0,), (0, 1, 2), "block"), Job(1, (0,), (2, 3), "minibatch")
    ledger.open(first)
    ledger.open(second)
    assert (ledger.claimed(), ledger.left(), ledger.left(6)) == (5, 5, 1)
    for example in first.examples:
        table.add((0,), example, 1.0)
    ledger.close(first)
    assert (ledger.claimed(), ledger.left(), ledger.under_way) == (1, 6, 2)

"""Steps 1 and 2, concurrent, against upstream's, one call at a time."""

import contextlib
import io
import random
import threading

import numpy as np
import pytest

import dspy
from dspy.promptune.candidates.bootstrapping import BootstrapOptions, bootstrap_demo_sets
from dspy.promptune.candidates.proposing import ProposeOptions, propose_instructions, start_summary
from dspy.promptune.candidates.step_report import StepReport
from dspy.promptune.errors import EvaluationError
from dspy.promptune.limits.gateway import LMGateway, Stopped
from dspy.promptune.limits.pool import Pool
from dspy.propose import GroundedProposer
from dspy.teleprompt.utils import create_n_fewshot_demo_sets
from dspy.utils.exceptions import LMTransportError
from tests.server import Latency, LMServer, Quality, RuleLM, TaskRule

pytestmark = pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(60)}
TRAINSET = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in list(ANSWERS.items())[:24]]


class Chain(dspy.Module):
    """A program of one or three predictors."""

    def __init__(self, predictors):
        super().__init__()
        self.first = dspy.Predict("question -> plan") if predictors == 3 else None
        self.second = dspy.Predict("question, plan -> draft") if predictors == 3 else None
        self.last = dspy.Predict("question, draft -> answer" if predictors == 3 else "question -> answer")

    def forward(self, question):
        if self.first is None:
            return self.last(question=question)
        plan = self.first(question=question).plan
        return self.last(question=question, draft=self.second(question=question, plan=plan).draft)


def metric(example, prediction, trace=None):
    """Whether the answer is the expected one."""
    return example.answer == prediction.answer


def model(**options):
    """A model that knows the answers, and is right about half the time."""
    return RuleLM(TaskRule(ANSWERS, quality=Quality(0.5)), **options)


def options_of(shots, **changes):
    """What MIPROv2 passes to step 1, few-shot or zero-shot."""
    bootstrapped, labeled = (4, 4) if shots else (3, 0)
    return {"metric": metric, "max_bootstrapped_demos": bootstrapped, "max_labeled_demos": labeled, **changes}


def upstream_sets(program, lm, rng, shots, **changes):
    """Step 1 as upstream does it."""
    with dspy.context(lm=lm), contextlib.redirect_stdout(io.StringIO()):
        given = {"teacher_settings": {}, **options_of(shots, **changes)}
        return create_n_fewshot_demo_sets(student=program, num_candidate_sets=6, trainset=TRAINSET, rng=rng, **given)


def our_sets(program, lm, rng, shots, *, workers=16, report=None, trainset=TRAINSET, **changes):
    """Step 1 as this package does it."""
    with dspy.context(lm=lm), Pool(workers) as pool:
        given = BootstrapOptions(num_sets=6, **options_of(shots, **changes))
        return bootstrap_demo_sets(program, trainset, options=given, rng=rng, pool=pool, report=report)


def upstream_instructions(program, lm, rng, demos, n):
    """Step 2 as upstream does it."""
    with dspy.context(lm=lm):
        proposer = GroundedProposer(
            prompt_model=lm,
            program=program,
            trainset=TRAINSET,
            rng=rng,
            use_instruct_history=False,
            set_history_randomly=False,
        )
        found = proposer.propose_instructions_for_program(
            trainset=TRAINSET, program=program, demo_candidates=demos, trial_logs={}, N=n
        )
    return {i: [predictor.signature.instructions, *found[i][1:]] for i, predictor in enumerate(program.predictors())}


def our_instructions(program, lm, rng, demos, n, *, report=None, **changes):
    """Step 2 as this package does it."""
    with dspy.context(lm=lm), Pool(16) as pool:
        given = ProposeOptions(prompt_model=lm, num_candidates=n, **changes)
        return propose_instructions(program, TRAINSET, demos, options=given, rng=rng, pool=pool, report=report)


def plain(demos):
    """Demo sets as lists of dictionaries."""
    return {i: [[dict(demo) for demo in demo_set] for demo_set in sets] for i, sets in demos.items()}


@pytest.mark.parametrize("seed", [0, 1, 9])
@pytest.mark.parametrize("shots", [True, False])
@pytest.mark.parametrize("predictors", [1, 3])
def test_both_steps_give_upstreams_candidates(predictors, shots, seed):
    """Demo sets, instructions and the state of the generator equal upstream's, with no more calls."""
    theirs, ours = model(), model()
    rng, own = random.Random(seed), random.Random(seed)
    program = Chain(predictors)
    demos = upstream_sets(program, theirs, rng, shots)
    found = our_sets(program, ours, own, shots)
    assert plain(found) == plain(demos)
    assert own.getstate() == rng.getstate()
    assert len(ours.calls) == len(theirs.calls)
    n = 4 if shots else 6
    wanted = upstream_instructions(program, theirs, rng, demos, n)
    assert our_instructions(program, ours, own, found, n) == wanted
    assert own.getstate() == rng.getstate()
    assert len(ours.calls) == len(theirs.calls) - 3 * predictors


def test_examples_may_hold_arrays():
    """A teacher is shown the other examples of its set and not the one it answers, also where these hold arrays."""
    examples = [dspy.Example(question=np.arange(i, i + 3), answer="yes").with_inputs("question") for i in range(6)]
    lm = RuleLM(lambda messages: "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]")
    found = our_sets(Chain(1), lm, random.Random(0), True, trainset=examples)
    assert [len(each) for each in found[0][:3]] == [0, 4, 4] and any(demo.get("augmented") for demo in found[0][2])
    for call in lm.calls:
        asked = [m["content"].partition("Respond")[0].strip() for m in call.messages if m["role"] == "user"]
        assert len(asked) > 1 and asked[-1] not in asked[:-1]


def test_the_calls_are_upstreams():
    """Every call is one that upstream makes, rollout and temperature included."""
    theirs, ours = model(), model()
    program = Chain(1)
    rng, own = random.Random(3), random.Random(3)
    upstream_instructions(program, theirs, rng, upstream_sets(program, theirs, rng, True), 4)
    our_instructions(program, ours, own, our_sets(program, ours, own, True), 4)
    asked = [repr(call) for call in theirs.calls]
    assert not [call.label for call in ours.calls if repr(call) not in asked]


def test_a_call_that_fails_once_changes_nothing_but_the_rollout():
    """A lost bootstrap call is made again, and a lost proposal is asked for in another rollout: none is missing."""
    lost = set()

    def lose(call):
        if call.label == "answer" and "question 0\n" in call.messages[-1]["content"] and call.rollout is None:
            raise LMTransportError("lost")
        if call.label == "proposed_instruction" and not lost:
            lost.add(call.rollout)
            raise LMTransportError("lost")

    report, lm, sound = StepReport(), model(fault=lose), model()
    rng, own = random.Random(1), random.Random(1)
    demos = our_sets(Chain(1), lm, rng, True, report=report)
    assert plain(demos) == plain(our_sets(Chain(1), sound, own, True))
    assert not report.failures
    found = our_instructions(Chain(1), lm, rng, demos, 4, report=report)[0]
    wanted = our_instructions(Chain(1), sound, own, demos, 4)[0]
    assert len(found) == len(set(found)) == 4
    assert sum(a != b for a, b in zip(found, wanted, strict=True)) == 1
    assert not report.failures


def test_a_proposal_that_never_comes_is_missing_and_reported():
    """One proposal that fails in every rollout leaves fewer candidates, no filler, and one line in the report."""
    demos = our_sets(Chain(1), model(), random.Random(0), True)
    wanted = our_instructions(Chain(1), model(), random.Random(0), demos, 4)[0]
    tip = "Keep the instruction clear"

    def refuse(call):
        if call.label == "proposed_instruction" and tip in call.messages[-1]["content"]:
            raise ValueError("no")

    for seed in range(20):
        report, lm = StepReport(), model(fault=refuse)
        found = our_instructions(Chain(1), lm, random.Random(seed), demos, 4, report=report)[0]
        if report.failures:
            break
    assert 1 <= len(found) == 4 - len(report.failures)
    assert {failure.step for failure in report.failures} == {"proposal"}
    assert wanted[0] == found[0] == Chain(1).last.signature.instructions


def test_without_a_summary_the_proposals_go_on():
    """Where the trainset cannot be described, every instruction is proposed from what else there is."""

    def refuse(call):
        if call.label == "observations":
            raise LMTransportError("lost")

    report = StepReport()
    found = our_instructions(Chain(1), model(fault=refuse), random.Random(0), None, 4, report=report)[0]
    assert len(set(found)) == 4
    assert [failure.step for failure in report.failures] == ["summary"]


def test_a_summary_begun_before_is_not_made_again():
    """``start_summary`` ahead of time gives the same instructions for the same number of calls."""
    plain_lm, early_lm = model(), model()
    wanted = our_instructions(Chain(1), plain_lm, random.Random(0), None, 4)
    with dspy.context(lm=early_lm), Pool(4) as pool:
        summary = start_summary(TRAINSET, pool=pool, prompt_model=early_lm)
        given = ProposeOptions(prompt_model=early_lm, num_candidates=4)
        found = propose_instructions(
            Chain(1), TRAINSET, None, options=given, rng=random.Random(0), pool=pool, summary=summary
        )
    assert found == wanted
    assert len(early_lm.calls) == len(plain_lm.calls)


def test_a_set_with_too_many_errors_keeps_what_it_has():
    """An example that cannot be scored ends the sets that meet it (``max_errors=1``), and no other."""

    def strict(example, prediction, trace=None):
        if example.question == "question 3":
            raise KeyError("question 3")
        return metric(example, prediction)

    report = StepReport()
    demos = our_sets(Chain(1), model(), random.Random(0), True, report=report, metric=strict, max_errors=1, workers=1)
    assert len(demos[0]) == 6
    assert {failure.what.partition(" of ")[0] for failure in report.failures} <= {
        f"example {i}" for i in range(len(TRAINSET))
    }
    assert 1 <= len(report.failures) < 4
    assert any(demo.get("augmented") for demo_set in demos[0] for demo in demo_set)


def test_sets_are_offered_in_their_order_while_others_are_made():
    """What is offered grows, and is the beginning of what is returned; the sets that need no call come at once."""
    offered, first = [], threading.Event()
    lm = model(fault=lambda call: first.wait(30))

    def take(demos):
        offered.append((len(lm.calls), plain(demos)))
        first.set()

    found = plain(our_sets(Chain(3), lm, random.Random(1), True, workers=1, ready=take))
    sizes = [len(demos[2]) for _, demos in offered]
    assert sizes == sorted(set(sizes)) and sizes[0] >= 2 and 3 <= sizes[-1] < len(found[0])
    assert offered[0][0] <= 1 < offered[1][0] < len(lm.calls)
    assert all(
        demos == {i: sets[:n] for i, sets in found.items()} for n, (_, demos) in zip(sizes, offered, strict=True)
    )


def test_a_set_with_an_error_is_not_offered_before_the_end():
    """When the run is taken up again, the example that failed may succeed and the set be another one."""

    def fail(call):
        if call.label == "answer" and "question 0\n" in call.messages[-1]["content"]:
            raise ValueError("not this one")

    offered = []
    found = our_sets(Chain(1), model(fault=fail), random.Random(1), True, ready=offered.append)
    assert [len(demos[0]) for demos in offered] == [2] and len(found[0]) == 6


def test_a_metric_that_always_raises_ends_the_run_early():
    """Where nothing works, the error that says so comes after few calls, and names the cause."""

    def broken(example, prediction, trace=None):
        raise TypeError("metric takes no prediction")

    lm = model()
    with pytest.raises(EvaluationError, match="metric takes no prediction") as caught:
        our_sets(Chain(1), lm, random.Random(0), True, metric=broken, max_errors=10, workers=4)
    assert isinstance(caught.value.__cause__, TypeError)
    assert len(lm.calls) <= 10 + 4 * 4


def test_one_thread_is_enough():
    """With a single worker, nothing waits forever, and one call is in flight at a time."""
    lm = model()
    demos = our_sets(Chain(3), lm, random.Random(0), True, workers=1)
    with dspy.context(lm=lm), Pool(1) as pool:
        given = ProposeOptions(prompt_model=lm, num_candidates=4)
        found = propose_instructions(Chain(3), TRAINSET, demos, options=given, rng=random.Random(0), pool=pool)
    assert [len(found[i]) for i in range(3)] == [4, 4, 4]
    assert lm.level.most == 1


def test_sets_and_proposals_really_overlap(capfd):
    """With room, many calls are in flight at once, and nothing is printed meanwhile."""
    lm = model(seconds=0.02)
    demos = our_sets(Chain(1), lm, random.Random(0), True)
    assert lm.level.most > 4
    lm.level.most = 0
    our_instructions(Chain(3), lm, random.Random(0), dict.fromkeys(range(3), demos[0]), 4)
    assert lm.level.most > 4
    assert capfd.readouterr().out == ""


def test_an_interrupt_cancels_what_has_not_begun():
    """What stops a run leaves the step at once; tasks not yet begun are never made."""

    def interrupt(example, prediction, trace=None):
        raise Stopped("interrupted")

    lm = model(seconds=0.1)
    with pytest.raises(Stopped):
        our_sets(Chain(1), lm, random.Random(0), True, metric=interrupt, workers=1)
    assert len(lm.calls) <= 2


def test_no_demos_to_bootstrap_gives_labeled_sets():
    """``max_bootstrapped_demos=0`` with labels, which ends upstream's draw with an error, gives labels and no calls."""
    lm = model()
    demos = our_sets(Chain(1), lm, random.Random(0), True, max_bootstrapped_demos=0)
    assert [len(demo_set) for demo_set in demos[0]] == [0, 4, 4, 4, 4, 4]
    assert not lm.calls


def test_sets_that_share_prompts_pay_once_with_the_cache_on(monkeypatch):
    """Without demos all sets ask the same of an example: cached, it is asked once, as upstream does one by one."""
    monkeypatch.setattr(dspy, "cache", dspy.cache)
    requests = {}
    for name, sets in (("upstream", upstream_sets), ("ours", our_sets)):
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
        with LMServer(TaskRule(ANSWERS, quality=Quality(0.5)), latency=Latency(0.02)) as server:
            lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none")
            with LMGateway(16).active():
                requests[name] = plain(sets(Chain(1), lm, random.Random(2), False)), server.requests
    assert requests["ours"] == requests["upstream"]

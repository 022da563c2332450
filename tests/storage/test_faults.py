"""A provider that fails in every way: the run ends, and no failed call becomes a score."""

import optuna
import pytest

import dspy
from dspy.utils.exceptions import LMAuthError, LMProviderError
from tests.server import Faults, Latency, LMServer, Quality, RuleLM, TaskRule
from tests.storage.lives import QUESTIONS, compiled, metric

RATES = {"429": 0.10, "500": 0.03, "503": 0.02, "hang": 0.02, "malformed": 0.02, "close": 0.01}
VALSET = list(QUESTIONS.items())[20:]


def run(rates, seed):
    """A compile on a server with these faults, and the scores of all its trials."""
    faults = Faults(rates=rates, retry_after=0.02, seed=seed)
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.01), faults=faults) as server:
        program = compiled(
            server.url, None, resume=False, sampler="tpe", num_trials=30, minibatch_size=12, example_timeout=2
        )
        return program, server.records()


def true_scores(program, url):
    """What the program's answers are worth on the validation set when nothing fails."""
    lm = dspy.LM("openai/gpt-4o-mini", api_base=url, api_key="none", cache=False)
    with dspy.context(lm=lm):
        return [float(metric(dspy.Example(answer=a), program(question=q))) for q, a in VALSET]


def test_a_reply_that_is_no_reply_is_no_score():
    """Half a reply, or a key that is refused for a moment, is asked for again: every prompt keeps its true score."""
    seen = set()

    def fault(call):
        if str(call.messages) not in seen:
            seen.add(str(call.messages))
            raise (LMProviderError("the reply is not JSON") if len(seen) % 2 else LMAuthError("no such key"))

    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in list(QUESTIONS.items())[:14]]
    with dspy.context(lm=RuleLM(TaskRule(QUESTIONS, quality=Quality(base=1.0)), fault=fault)):
        program = dspy.MIPROv2(metric=metric, auto=None, num_candidates=3, num_threads=2, seed=1).compile(
            dspy.Predict("question -> answer"), trainset=data[:6], valset=data[6:], num_trials=4, minibatch_size=4,
            sampler="random", n_jobs=2,
        )  # fmt: skip
    trials = program.optimization_run.trials
    assert len(trials) > 3 and {score for trial in trials for score in trial.user_attrs["scores"]} == {1.0}
    assert all(len(demos) for demos in program.optimization_run.space.parts[1].candidates[1:])


class Breaking(optuna.storages.InMemoryStorage):
    """A storage that fails for good once ten trials have ended."""

    def set_trial_state_values(self, *args, **options):
        super().set_trial_state_values(*args, **options)
        self.ended = getattr(self, "ended", 0) + 1
        if self.ended == 10:
            self.get_all_trials = self.create_new_trial = self.get_trial = self._fail

    def _fail(self, *args, **options):
        raise OSError("the disk is gone")


@pytest.mark.parametrize("caps", [{}, {"max_lm_calls": 10_000}])
def test_a_run_whose_storage_fails_has_its_trials_in_its_record(caps):
    """With a budget or without: the trials that ended here are what the run can still tell of."""
    with LMServer(TaskRule(QUESTIONS), latency=Latency(0.0)) as server:
        run = compiled(server.url, Breaking(), num_trials=30, **caps).optimization_run
    assert "the disk is gone" in run.ended and len(run.trials) >= 10
    assert {trial.state.name for trial in run.trials} == {"COMPLETE"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_failed_call_becomes_a_score(seed):
    """With one call in five failing, all scores are those that the same prompts have without a failure."""
    program, records = run(RATES, seed)
    calm, _ = run({}, seed)
    assert sum(record.status != 200 for record in records) > 10
    trials = program.optimization_run.trials
    assert all(trial.value is None for trial in trials if trial.state.name != "COMPLETE")
    programs = {log["full_eval_program" if "full_eval_program" in log else "mb_program"] for log in
                program.trial_logs.values() if "error" not in log}  # fmt: skip
    shapes = {_shape(each): each for each in programs}
    with LMServer(TaskRule(QUESTIONS)) as server:
        truth = {shape: true_scores(each, server.url) for shape, each in shapes.items()}
        best, calm_best = true_scores(program, server.url), true_scores(calm, server.url)
    complete = {_shape(entry["program"]): entry["score"] for entry in program.candidate_programs}
    assert complete and all(
        score == pytest.approx(100 * sum(truth[shape]) / len(VALSET), abs=0.01) for shape, score in complete.items()
    )
    spread = (0.25 / len(VALSET)) ** 0.5
    assert sum(best) / len(VALSET) >= sum(calm_best) / len(VALSET) - 3 * spread


def _shape(program):
    return tuple((each.signature.instructions, str(each.demos)) for each in program.predictors())

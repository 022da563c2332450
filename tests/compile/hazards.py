"""What the tests of the hazards share: a task, a small compile of ours, and the naive form beside it."""

import contextvars
from concurrent.futures import ThreadPoolExecutor

import dspy
from dspy.teleprompt.utils import eval_candidate_program
from tests.server import Quality, RuleLM, TaskRule

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(60)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
TRAINSET, VALSET = EXAMPLES[:12], EXAMPLES[12:36]


def metric(example, prediction, trace=None):
    """Whether the answer is the expected one."""
    return example.answer == prediction.answer


def rule_lm(**options):
    """A deterministic model, right about half the time."""
    return RuleLM(TaskRule(ANSWERS, quality=Quality(0.5)), **options)


def compiled(lm, program=None, *, num_threads=4, metric=metric, **options):
    """A small compile by this package, its language model known to the calling context only."""
    options = {"sampler": "random", "n_jobs": 4, "minibatch_size": 8, "disable_progress_bar": True, **options}
    with dspy.context(lm=lm):
        optimizer = dspy.MIPROv2(
            metric=metric, auto=None, num_candidates=3, num_threads=num_threads, max_bootstrapped_demos=2, seed=1
        )
        program = program or dspy.Predict("question -> answer")
        return optimizer.compile(program, trainset=TRAINSET, valset=VALSET, num_trials=6, **options)


def naive_pool(program, *, threads=4, carry=True, max_errors=10, copies=4, metric=metric):
    """``eval_candidate_program`` on copies of a program in a plain pool (``carry``: with its context); the scores."""

    def evaluate(candidate):
        evaluator = dspy.Evaluate(
            devset=VALSET, metric=metric, num_threads=threads, display_progress=False, max_errors=max_errors
        )
        return eval_candidate_program(len(VALSET), VALSET, candidate, evaluator).score

    with ThreadPoolExecutor(copies) as pool:
        candidates = [program.deepcopy() for _ in range(copies)]
        runs = [contextvars.copy_context().run if carry else (lambda f, x: f(x)) for _ in candidates]
        return [f.result() for f in [pool.submit(r, evaluate, c) for r, c in zip(runs, candidates, strict=True)]]


def served(server, **options):
    """The server as a model of DSPy."""
    return dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", **options)


def check_raised_counts_as_wrong(run, log):
    """Of a run whose metric raises for wrong answers: no prompt fails once it was given a score, and none is lost."""
    scored, wrong = set(), 0
    for trial in run.trials:
        key = tuple(trial.params.values())
        if trial.state.name == "FAIL":
            assert key not in scored
        elif sum(trial.user_attrs["scores"]):
            scored.add(key)
        else:
            wrong += trial.user_attrs["errors"]
    assert scored and wrong and "is left out" not in log

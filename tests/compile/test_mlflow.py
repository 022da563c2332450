"""MLflow's autologging of a compile, against a real MLflow with a SQLite store."""

import pytest

import dspy
from dspy.promptune.allocation.outcome import Outcome
from dspy.promptune.allocation.records import Job
from dspy.promptune.compile.callbacks import EvaluationCallbacks
from dspy.promptune.distributed.programs import EvaluationRules
from tests.compile.hazards import TRAINSET, VALSET, compiled, metric, rule_lm

mlflow = pytest.importorskip("mlflow")


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Autologging into a new SQLite store; afterwards neither MLflow nor DSPy remembers it."""
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    client.create_experiment("optimize", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("optimize")
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces=False)
    yield client
    mlflow.dspy.autolog(disable=True)
    dspy.settings.configure(track_usage=False)


def runs(client):
    """The parents, and the children of each by its id."""
    found = client.search_runs([client.get_experiment_by_name("optimize").experiment_id], max_results=500)
    children = {}
    for run in found:
        if parent := run.data.tags.get("mlflow.parentRunId"):
            children.setdefault(parent, []).append(run)
    return [run for run in found if "mlflow.parentRunId" not in run.data.tags], children


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"sampler": "tpe", "n_jobs": 1}, marks=pytest.mark.slow),
        pytest.param({"sampler": "onehot", "schedule": "batch"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_compile_is_one_run_with_a_child_for_each_evaluation(tracked, options):
    """One parent with the compile's parameters, curves and best program; all children FINISHED, none left behind."""
    program = compiled(rule_lm(), **{"storage": None, **options})
    parents, children = runs(tracked)
    assert len(parents) == 1 and mlflow.active_run() is None
    below = children[parents[0].info.run_id]
    assert {run.info.status for run in [*parents, *below]} == {"FINISHED"}
    assert parents[0].data.params["num_trials"] == "6"
    curves = {name for name in parents[0].data.metrics if name.startswith("eval_")}
    assert "eval_full" in curves
    assert sum(len(tracked.get_metric_history(parents[0].info.run_id, name)) for name in curves) == len(below)
    saved = {each.path for each in tracked.list_artifacts(parents[0].info.run_id)}
    assert {"best_model.json", "trainset.json", "valset.json"} <= saved
    if options.get("sampler") != "tpe":
        assert len(below) <= len(program.optimization_run.trials)


def test_a_failed_evaluation_is_a_failed_child(tracked):
    """An evaluation that could not be scored is FAILED in MLflow, and no run stays open."""
    callbacks = EvaluationCallbacks(EvaluationRules(metric=metric, valset=VALSET), num_threads=1)
    with dspy.context(callbacks=dspy.settings.callbacks), mlflow.start_run():
        for callback in dspy.settings.callbacks:
            callback.optimizer_stack_level = 1
        job, program = Job(3, (0, 0), (0, 1), "block"), dspy.Predict("question -> answer")
        callbacks.told(job, Outcome(error=ValueError("no luck")), program)
        callbacks.told(job, Outcome(scores={0: 1.0, 1: 0.0}), program)
        for callback in dspy.settings.callbacks:
            callback.optimizer_stack_level = 0
    parents, children = runs(tracked)
    ended = {run.info.run_name: run.info.status for run in children[parents[0].info.run_id]}
    assert ended == {"eval_minibatch_0": "FAILED", "eval_minibatch_1": "FINISHED"}
    assert parents[0].data.metrics == {"eval_minibatch": 50.0}


def test_upstreams_own_path_is_one_run_as_well(tracked):
    """With none of the new options upstream's code runs, and is one parent run too."""
    with dspy.context(lm=rule_lm()):
        optimizer = dspy.MIPROv2(metric=metric, auto=None, num_candidates=3, num_threads=1, seed=1, verbose=False)
        program = dspy.Predict("question -> answer")
        optimizer.compile(program, trainset=TRAINSET, valset=VALSET, num_trials=2, minibatch=False)
    parents, children = runs(tracked)
    assert len(parents) == 1 and len(children[parents[0].info.run_id]) == 3

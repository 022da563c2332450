"""Executors with processes of their own, and one language model that all of them call."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

import dspy
from tests.server import Latency, LMServer, Quality, TaskRule

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(60)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]


def exact(example, prediction, trace=None):
    return example.answer == prediction.answer


@pytest.fixture(scope="session")
def server():
    with LMServer(TaskRule(ANSWERS, quality=Quality(0.5)), latency=Latency(0.02), process=True) as server:
        yield server


@pytest.fixture(scope="session")
def processes():
    """Two processes."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="session")
def cluster():
    """A real Dask cluster of two processes on loopback."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options, host="127.0.0.1", worker_dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def compiled(server):
    """A compile on the server; what it asked is in the server's records."""

    def run(executor, *, metric=exact, program=None, lm=None, **options):
        server.reset()
        given = {
            "sampler": "random", "n_jobs": 4, "num_trials": 4, "minibatch_size": 8, "disable_progress_bar": True,
            **options,
        }  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        lm = lm or dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="sk-a-key-of-its-own-1234", cache=False)
        with dspy.context(lm=lm):
            optimizer = dspy.MIPROv2(
                metric=metric, auto=None, num_candidates=3, num_threads=2, max_bootstrapped_demos=1, seed=1
            )
            return optimizer.compile(
                program or dspy.Predict("question -> answer"),
                trainset=EXAMPLES[:12], valset=EXAMPLES[12:44], executor=executor, **given,
            )  # fmt: skip

    return run

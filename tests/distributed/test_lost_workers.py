"""A cluster whose workers are killed in the midst of a run."""

import os
import signal
import threading
import time

import pytest
from optuna.trial import TrialState

from tests.server import max_in_flight

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
BLOCK = 8  # examples of a block at most: num_threads of the tests times the rounds of a block


def kill_some(client, kills, over):
    """Kill a worker every second, by the number of its process."""
    for _ in range(kills):
        if over.wait(1.0):
            return
        pids = list(client.run(os.getpid).values())
        os.kill(pids[0], signal.SIGKILL)


def test_killed_workers_lose_no_result_and_hold_nothing_up(compiled, server):
    """With a worker killed every second the run ends, every trial is finished, and little is paid for twice."""
    import dask
    import distributed

    options = {"n_workers": 3, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(**options, host="127.0.0.1", worker_dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        over = threading.Event()
        killer = threading.Thread(target=kill_some, args=(client, 3, over))
        killer.start()
        try:
            began = time.monotonic()
            found = compiled(client.get_executor(), num_trials=40, n_jobs=3)
        finally:
            over.set()
            killer.join()
        assert time.monotonic() - began < 120
    run = found.optimization_run
    assert all(trial.state in (TrialState.COMPLETE, TrialState.FAIL) for trial in run.trials)
    complete = [trial for trial in run.trials if trial.state == TrialState.COMPLETE]
    assert len(complete) >= 10
    assert all(len(trial.user_attrs["scores"]) == len(trial.user_attrs["examples"]) for trial in complete)
    asked = server.requests - sum(run.spent[step]["calls"] for step in ("bootstrap", "propose"))
    assert run.calls <= asked <= run.calls + 3 * 2 * BLOCK  # a worker holds a block, and perhaps the last one's record
    assert max_in_flight(server.records()) <= 3 * 2 + 3 * 2  # what a killed worker asked may still be being answered

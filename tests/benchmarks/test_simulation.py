"""Thousands of workers, simulated."""

import pytest

from benchmarks.simulation import simulate


@pytest.mark.slow
def test_workers_that_are_waited_for_are_busy_all_the_time(tmp_path):
    """A driver that chooses at random keeps five workers busy, and writes down all that they bring."""
    found = simulate(5, 40, sampler="random", storage=str(tmp_path / "runs.db"), minibatch=2)
    assert found["told"] == 40
    assert 0.9 < found["utilization"] <= 1.0

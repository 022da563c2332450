"""The regret benchmark from end to end, on a table of a few prompts."""

import json

import pytest

from benchmarks import regret
from benchmarks.methods import METHODS, trace
from benchmarks.tables import load_table


@pytest.fixture
def data(tmp_path):
    """A folder with one table of twelve prompts, one of them far better than the rest."""
    prompts = [{"instruction": f"prompt {i}"} for i in range(12)]
    table = {"name": "small", "n_examples": 60, "prompts": prompts, "scores": [0.2] * 11 + [0.9], "matrix": None}
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "small.json").write_text(json.dumps(table))
    return folder


def test_a_trace_ends_within_its_budget_and_is_reproducible(data):
    """The baseline spends exactly its calls, and the same seed gives the same trace."""
    table = load_table(data / "small.json")
    first = trace(table, METHODS["tpe-10-q8"], seed=0, max_calls=205)
    assert first == trace(table, METHODS["tpe-10-q8"], seed=0, max_calls=205)
    assert first[-1][0] <= 205
    assert {accuracy for _, accuracy in first} <= {0.2, 0.9}


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(data, tmp_path, capsys):
    """What is in the store is not run again, and more seeds extend it."""
    common = ["--data", str(data), "--methods", "tpe-35", "random-35", "--calls", "70", "--all-calls"]
    common += ["--results", str(tmp_path / "results"), "--plots", str(tmp_path / "plots")]
    regret.main([*common, "--seeds", "2"])
    assert "2/2 small random-35" in capsys.readouterr().err
    regret.main([*common, "--seeds", "2"])
    assert "/2 small" not in capsys.readouterr().err
    regret.main([*common, "--seeds", "3"])
    out, err = capsys.readouterr()
    assert "2/2 small" in err
    stored = json.loads((tmp_path / "results" / "small" / "tpe-35@70.json").read_text())
    assert sorted(stored) == ["0", "1", "2"]
    assert "| TPE, minibatch 35, q=1 |" in out


def test_the_budget_of_a_small_pool_is_four_times_its_size(data):
    """Twelve prompts are given 48 calls unless the whole budget is asked for."""
    table = load_table(data / "small.json")
    assert regret.Budget(2240, four=True).of(table) == 48
    assert regret.Budget(2240, four=False).of(table) == 2240

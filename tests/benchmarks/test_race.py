"""The benchmark of the race alone."""

import pytest

from benchmarks import race

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tables", [[], ["--products"]])
def test_a_short_race_is_reported(tmp_path, monkeypatch, capsys, tables):
    """A line for the method that was asked for and one for TPE are printed, for tables and for pairs of them."""
    monkeypatch.setattr(race, "RESULTS", tmp_path / "race.json")
    monkeypatch.setattr(race, "budget_of", lambda table: 180)
    race.main([*tables, "--methods", "qei", "--seeds", "1"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    shown = {line[1].strip(): line for line in lines if len(line) == 10}
    assert float(shown["TPE, minibatch 35"][3]) == 1 and float(shown["`qei`"][3]) > 0

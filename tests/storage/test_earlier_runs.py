"""Runs written by version 0.1.0 are read and resumed by this one."""

import gzip
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.storage import earlier_runs

FILES = Path(__file__).parent / "earlier"


@pytest.fixture(params=["runs.db", "runs.log"])
def storage(request, tmp_path):
    """A copy of a file that version 0.1.0 wrote."""
    path = tmp_path / request.param
    path.write_bytes(gzip.decompress((FILES / f"{request.param}.gz").read_bytes()))
    return str(path)


def _calls(storage):
    """LM calls by step, as the stored compile has them."""
    url = f"sqlite:///{storage}" if storage.endswith(".db") else JournalStorage(JournalFileBackend(storage))
    spent = optuna.load_study(study_name="compile", storage=url).user_attrs["spent"]
    return {step: amounts["calls"] for step, amounts in spent.items()}


def test_an_earlier_search_goes_on_where_it_ended(storage):
    """A search of version 0.1.0 is resumed: its 40 scores are kept, and only the 20 new ones are evaluated."""
    earlier_runs.EVALUATED.clear()
    run = earlier_runs.searched(storage, 60)
    assert run.calls == 60
    assert len(earlier_runs.EVALUATED) == 20
    assert len(set(earlier_runs.EVALUATED)) == 20


def test_an_earlier_compile_goes_on_where_it_ended(storage):
    """A compile of version 0.1.0 is resumed: demos, proposals and scores are kept, and the calls add up."""
    before = _calls(storage)
    assert set(before) == {"bootstrap", "propose", "search"}
    lm = earlier_runs.Rules()
    run = earlier_runs.compiled(storage, lm).optimization_run
    after = {step: amounts["calls"] for step, amounts in run.spent.items() if "calls" in amounts}
    assert len(lm.served) > 0
    assert after == {**before, "search": before["search"] + len(lm.served)}
    assert run.calls == after["search"]


def test_an_earlier_run_is_shown(storage, capsys):
    """The command lists both runs of a file that version 0.1.0 wrote."""
    from dspy.promptune.cli import main

    assert main(["runs", storage]) == 0
    shown = capsys.readouterr().out
    assert "search" in shown
    assert "compile" in shown

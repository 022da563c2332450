"""Recorded searches and what they may be written to."""

import pytest

import dspy
from tests.tables import Table


@pytest.fixture
def table():
    return Table(instructions=4, demos=3, n_examples=12)


@pytest.fixture(params=["runs.db", "runs.log"])
def place(request, tmp_path):
    """A storage that is not there yet."""
    return str(tmp_path / request.param)


@pytest.fixture
def caught(caplog):
    """Messages of the package."""
    caplog.set_level("INFO", logger=dspy.promptune.__name__)
    return caplog

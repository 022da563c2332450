"""Before DSPy is imported: its cache is the tests' own, so that no answer of an earlier run stands in for a call.

``SWITCH_INTERVAL=1e-5`` makes threads take turns 500 times as often as usual: what only works by luck fails.
"""

import logging
import os
import signal
import sys
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many processes as cores
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-cache-")
if interval := os.environ.get("SWITCH_INTERVAL"):
    sys.setswitchinterval(float(interval))

import pytest

from tests.tables import Table


@pytest.fixture
def python_hears_interrupts():
    """A background job of a shell ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.fixture(autouse=True)
def levels_of_logging():
    """What a test (a page of the docs, an example) says about DSPy's log holds for that test alone."""
    logger = logging.getLogger("dspy")
    level, handlers, below = logger.level, list(logger.handlers), logging.root.manager.disable
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
    logging.disable(below)


@pytest.fixture(scope="session", autouse=True)
def revisions_read_once():
    """Optuna's revisions of its tables are read once in a process, and not, by alembic, with each database opened."""
    from alembic.script import ScriptDirectory

    read, known = ScriptDirectory.from_config, {}

    def from_config(config):
        place = config.get_main_option("script_location")
        if place not in known:
            known[place] = read(config)
        return known[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture
def table():
    """A small recorded search."""
    return Table()

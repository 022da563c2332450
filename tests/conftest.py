"""Before DSPy is imported: its cache is the tests' own, so that no answer of an earlier run stands in for a call.

``SWITCH_INTERVAL=1e-5`` makes threads take turns 500 times as often as usual: what only works by luck fails.
"""

import logging
import os
import sys
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many processes as cores
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-cache-")
if interval := os.environ.get("SWITCH_INTERVAL"):
    sys.setswitchinterval(float(interval))

import pytest

from tests.tables import Table


@pytest.fixture(autouse=True)
def levels_of_logging():
    """What a test (a page of the docs, an example) says about DSPy's log holds for that test alone."""
    logger = logging.getLogger("dspy")
    level, handlers, below = logger.level, list(logger.handlers), logging.root.manager.disable
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
    logging.disable(below)


@pytest.fixture
def table():
    """A small recorded search."""
    return Table()

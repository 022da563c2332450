"""Before DSPy is imported: its cache is the tests' own, so that no answer of an earlier run stands in for a call."""

import os
import tempfile

os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-cache-")

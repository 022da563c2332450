"""Benchmarks; each module prints what it measures. One thread per process, so that figures do not depend on luck."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

"""Every sampler under one door."""

from dspy.promptune.samplers.factory import make_sampler
from dspy.promptune.samplers.qei import QEISampler

__all__ = ["QEISampler", "make_sampler"]

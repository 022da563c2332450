"""A language model on 127.0.0.1 that answers by rules: for the tests and for the benchmarks.

``LMServer`` speaks OpenAI's chat completions. What it answers, how late, and how it fails are decided by the text of
the request alone, so that two runs that send the same requests meet the same model.
"""

from tests.server.behavior import Faults, Latency
from tests.server.lm import LMServer
from tests.server.records import Record, max_in_flight, mean_in_flight, profile
from tests.server.rule_lm import Call, RuleLM
from tests.server.rules import Prompt, Quality, TableRule, TaskRule

__all__ = [
    "Call",
    "Faults",
    "LMServer",
    "Latency",
    "Prompt",
    "Quality",
    "Record",
    "RuleLM",
    "TableRule",
    "TaskRule",
    "max_in_flight",
    "mean_in_flight",
    "profile",
]

"""Steps 1 and 2 of a compile, concurrent: the demo sets, and the instructions that are proposed from them.

With the same ``random.Random`` and a deterministic language model, both give what upstream gives one call at a time
(``create_n_fewshot_demo_sets`` and ``GroundedProposer``): every random draw is made first, in upstream's order, by
the thread that coordinates; what is left are chains of language-model calls that do not depend on one another.
No chain makes a call that upstream would not make, except to retry one that failed.
"""

from dspy.promptune.compile.bootstrapping import BootstrapOptions, bootstrap_demo_sets
from dspy.promptune.compile.proposing import ProposeOptions, propose_instructions, start_summary
from dspy.promptune.compile.step_report import StepFailure, StepReport

__all__ = [
    "BootstrapOptions",
    "ProposeOptions",
    "StepFailure",
    "StepReport",
    "bootstrap_demo_sets",
    "propose_instructions",
    "start_summary",
]

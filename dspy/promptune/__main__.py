"""``python -m dspy.promptune``: look at stored runs."""

import sys

from dspy.promptune.runs import main

sys.exit(main())

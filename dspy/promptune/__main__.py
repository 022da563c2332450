"""``python -m dspy.promptune``: look at stored runs."""

import sys

from dspy.promptune.cli import main

sys.exit(main())

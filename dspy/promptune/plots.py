"""The figures of a run, for notebooks: each takes ``program.optimization_run`` (or a stored study), returns a figure.

::

    from dspy.promptune import plots
    plots.best_so_far(program.optimization_run).show()

They need plotly: ``pip install "dspy[report]"``, or plotly alone.
"""

from dspy.promptune.report.figures import best_so_far, effects, prompt_map, spending, timeline

__all__ = ["best_so_far", "effects", "prompt_map", "spending", "timeline"]

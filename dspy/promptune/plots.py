"""Figures of a run: each function takes a run and returns plotly's figure, for notebooks and papers.

A run is ``program.optimization_run``, what :func:`dspy.promptune.search` returns, or the Optuna study of a stored run.
Scores are in percent where all are from 0 to 1, otherwise in the metric's units. In all figures ``I3 D1`` is the prompt
of instruction 3 and demo set 1; 0 is the program's own.

Every function raises :class:`~dspy.promptune.OptionError` where plotly is not installed, or what it is given is no run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["best_so_far", "effects", "estimates", "spending", "timeline"]


def best_so_far(run: Any, against: str = "calls") -> Figure:
    """What the run would have returned, against what it had cost by then.

    The bold line is each such prompt's mean score over all its examples, the dotted one what was known of it at that
    moment: where that is far above, the prompt had been lucky.

    Args:
        run: The run.
        against: ``"calls"`` (examples scored) or ``"seconds"`` (of the search).
    """
    from dspy.promptune.findings.record import record_of
    from dspy.promptune.report.curves import draw_best_so_far

    return draw_best_so_far(record_of(run), against)


def timeline(run: Any) -> Figure:
    """What ran when: a lane for each worker, with its waits and failures, and one for the proposals."""
    from dspy.promptune.findings.record import record_of
    from dspy.promptune.report.timeline import draw_timeline

    return draw_timeline(record_of(run))


def estimates(run: Any) -> Figure:
    """What every prompt is expected to score on new data: the posterior means of the model of the prompts.

    With two parts to choose, such as instruction and demo set, a matrix of all combinations, each cell with the number
    of examples it was scored on; otherwise a list of the 30 best that were tried, with intervals. Where the run's own
    embedder cannot be had (of a stored run, one that was a callable), hashed n-grams stand in for it.
    """
    from dspy.promptune.findings.record import record_of
    from dspy.promptune.report.prompts import draw_estimates

    return draw_estimates(record_of(run))


def effects(run: Any) -> Figure:
    """What each instruction and each demo set brings by itself, the best ones first.

    An effect is the mean of the posterior means over everything it can be combined with; its bar is their spread.
    """
    from dspy.promptune.findings.record import record_of
    from dspy.promptune.report.prompts import draw_effects

    return draw_effects(record_of(run))


def spending(run: Any) -> Figure:
    """How many examples each prompt was scored on, evaluation by evaluation: the 25 with the most, and the others."""
    from dspy.promptune.findings.record import record_of
    from dspy.promptune.report.racing import draw_spending

    return draw_spending(record_of(run))

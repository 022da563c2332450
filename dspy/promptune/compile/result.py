"""What a compile returns, for type checkers and editors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy.primitives.module import Module

if TYPE_CHECKING:
    from dspy.promptune.run.search import SearchRun

__all__ = ["OptimizedModule"]


class OptimizedModule(Module):
    """A program as ``MIPROv2.compile`` returns it: an object of the student's own class with these attributes.

    The class serves annotations only: no object is an instance of it. Use ``typing.cast`` where the student's class is
    wanted.

    Attributes:
        optimization_run: The search; only where it was this fork's, not upstream's own loop.
        score: Mean score of the program, in percent.
        trial_logs: Upstream's record of each trial, by number from 1.
        candidate_programs: Programs that were evaluated in full: ``score``, ``program``, ``full_eval``; best first.
        mb_candidate_programs: The same for those evaluated on minibatches.
        total_calls: Upstream's count of calls, which it never raises.
        prompt_model_total_calls: The same for the prompt model.
    """

    optimization_run: SearchRun
    score: float
    trial_logs: dict[int, dict[str, Any]]
    candidate_programs: list[dict[str, Any]]
    mb_candidate_programs: list[dict[str, Any]]
    total_calls: int
    prompt_model_total_calls: int

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

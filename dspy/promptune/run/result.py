"""What a search found, and how it came to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy.promptune.errors import OptionError
from dspy.promptune.run.failures import ExampleFailures, failures_of
from dspy.promptune.space import PromptSpace

if TYPE_CHECKING:
    import pandas
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from dspy.primitives.example import Example
    from dspy.primitives.module import Module

__all__ = ["Compared", "SearchRun"]


@dataclass(frozen=True)
class Compared:
    """Two programs and how they are scored: ``metric(example, prediction)``, ``num_threads`` examples at once."""

    original: Module
    winner: Module
    metric: Callable[..., Any]
    num_threads: int


@dataclass(frozen=True)
class SearchRun:
    """What a search found, and how it came to it.

    Attributes:
        best_params: The parameters of the winner; ``space.build(program, space.key(best_params))`` is its program.
        calls: Examples scored, over all combinations; never more than ``max_calls``.
        history: ``(calls, params)``: what the run would have returned after so many calls, in the order of time.
        best_score: Mean of the winner's scores so far.
        expected_score: Expected score of the winner on new examples, in the metric's units: what was lucky in
            ``best_score`` is taken off. ``None`` for samplers without a model.
        interval: 90 % interval of that score, ``(low, high)``, or ``None``.
        posterior_mean: Mean of the model's belief about the winner, by which it won; ``None`` without a model.
        trials: Frozen trials of the study in the order of their numbers; user attributes hold ``scores``,
            ``examples``, ``kind`` and ``seconds``, or the ``error`` of a failed one.
        order: ``("ask" | "tell" | "fail", trial number)`` as it happened: the same order gives the same run.
        ended: Why the run ended, in words.
        study: The Optuna study. It does not travel with pickles of the run.
        spent: By step ("bootstrap", "propose", "load", "search", "reflect"): calls, tokens, dollars (``cost``) and
            seconds, over all starts of the run. Loading takes time and no calls.
        space: The combinations searched.
        facts: How the run was made: metric, settings, options, versions and the like, as a stored run has them;
            ``missing``, if there is any, is what steps 1 and 2 could not make.
        lineage: The instructions written during the search, in their order: ``part`` and ``index`` (the candidate),
            ``predictor``, ``parent`` (parameters of the prompt it was written from), ``cost`` (calls that writing
            took, examples run for evidence included), and ``at`` (calls that were spent when it came).
        cases: Validation examples that the original program and the winner were both scored on, with what they
            answered: ``example``, ``inputs``, ``expected``, ``answer_before``, ``answer_after``. Up to 200.
        programs: Of a compile: the original program and the winner. They do not travel with pickles of the run.
    """

    best_params: dict[str, int]
    calls: int
    history: list[tuple[int, dict[str, int]]] = field(repr=False)
    best_score: float
    trials: list[FrozenTrial] = field(repr=False)
    order: list[tuple[str, int]] = field(repr=False)
    ended: str
    study: Study | None = field(repr=False)
    spent: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    space: PromptSpace | None = field(default=None, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    expected_score: float | None = None
    interval: tuple[float, float] | None = None
    posterior_mean: float | None = None
    lineage: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    cases: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    programs: Compared | None = field(default=None, repr=False)

    @property
    def failures(self) -> ExampleFailures:
        """Examples on which program or metric raised, and answers that could not be read: they count as wrong."""
        return failures_of(self.trials)

    def report(self, path: str | Path, *, testset: Sequence[Example] | None = None) -> Path:
        """Write the report, one page of HTML that needs nothing else, and return its path.

        Args:
            path: The file.
            testset: Examples that had no part in the search. The original program and the winner are evaluated on
                them now, which takes language-model calls, and the page shows what came of it.

        Raises:
            OptionError: The folder is not there, plotly is not installed, or a ``testset`` is given for a run whose
                programs are not at hand.
        """
        from dspy.promptune.report.page import write

        return write(self, path, testset)

    def verdict(self) -> list[str]:
        """What was found, line by line: before, after, the gain with its interval, what is expected on new data, what
        it took, and what failed."""
        from dspy.promptune.report.page import verdict_lines

        return verdict_lines(self)

    def _repr_html_(self) -> str:
        from dspy.promptune.report.page import summary

        return summary(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """The trials as a table: one row each, with its parameters, mean score, examples, seconds and what it took.

        Raises:
            OptionError: pandas is not installed.
        """
        from dspy.promptune.run.tables import columns, trial_rows

        try:
            import pandas
        except ImportError:
            raise OptionError("to_dataframe() needs pandas: pip install pandas, or read .trials.") from None
        rows = trial_rows(self.trials)
        return pandas.DataFrame(rows, columns=None if rows else columns(self.best_params))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "study": None, "programs": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> SearchRun:
        return self

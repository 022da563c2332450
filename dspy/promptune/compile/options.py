"""The options of a compile beyond upstream's, checked in one place before a language model is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dspy.promptune.distributed.payload import check_executor
from dspy.promptune.errors import OptionError
from dspy.promptune.limits.budgets import BudgetLimits
from dspy.promptune.options import (
    SAMPLER_OPTIONS,
    ExecutorKeys,
    ResumeMode,
    ScheduleName,
    check_integer,
    check_jobs,
    check_sampler,
    embedder_of,
    with_batch_size,
)
from dspy.promptune.run.events import check_callbacks
from dspy.promptune.run.schedule import Schedule

__all__ = ["CompileOptions", "upstream_budget"]

TIMEOUT = 120.0  # seconds for one example, upstream's time until it starts a straggler again


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What ``compile`` takes beyond upstream's options; ``None`` is "not given"."""

    # search
    sampler: Any = None
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    minibatch_size: int | None = None
    # candidates of the user's, by predictor or for the only one
    instructions: Any = None
    demo_sets: Any = None
    # instructions written during the search
    reflect: bool = False
    reflection_lm: Any = None
    # parallelism
    n_jobs: int = 1
    schedule: ScheduleName | None = None
    max_concurrency: int | None = None
    executor: Any = None
    executor_keys: ExecutorKeys | None = None
    example_timeout: float | None = TIMEOUT
    # storage
    storage: Any = None
    study_name: str | None = None
    resume: ResumeMode = False
    share: bool = False
    # budgets
    max_lm_calls: int | None = None
    max_tokens_spent: int | None = None
    max_cost: float | None = None
    timeout: float | None = None
    # display
    disable_progress_bar: bool = False
    callbacks: Any = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> CompileOptions:
        """Options from the keywords of ``compile``, checked together.

        Raises:
            OptionError: One that cannot be, or that the sampler does not take.
        """
        options = {name: value for name, value in given.items() if name not in SAMPLER_OPTIONS}
        of_sampler = {name: given[name] for name in SAMPLER_OPTIONS if name in given}
        check_jobs(options.get("n_jobs", 1), options.get("batch_size"), options.get("schedule"))
        sampler = options.get("sampler")
        check_sampler(sampler, of_sampler)
        jobs, size, batched = options.get("n_jobs", 1), options.get("batch_size"), options.get("schedule") == "batch"
        of_sampler = with_batch_size(sampler, of_sampler, n_jobs=jobs, given=size, batched=batched)
        return cls(sampler_options=of_sampler, **options)

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "minibatch_size"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        limit = self.example_timeout
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
            raise OptionError(f"example_timeout={limit!r}: it must be a number of seconds above 0, or None.")
        check_executor(self.executor, self.executor_keys)
        check_callbacks(self.callbacks)
        self._check_reflect()

    def _check_reflect(self) -> None:
        if self.reflect not in (False, True):
            raise OptionError(f"reflect={self.reflect!r}: it must be True or False.")
        if self.reflection_lm is not None and not self.reflect:
            raise OptionError(f"reflection_lm={self.reflection_lm!r} acts with reflect=True only.")
        if self.reflect and (embedder_of(self.sampler, self.sampler_options) is None or self.minibatch_size):
            raise OptionError(
                f"reflect=True needs a model of the prompts: use sampler='qei' without minibatch_size, not "
                f"sampler={self.sampler!r} with minibatch_size={self.minibatch_size!r}."
            )

    def caps(self) -> BudgetLimits:
        """What the run may spend beside its evaluations."""
        return BudgetLimits(
            max_lm_calls=self.max_lm_calls,
            max_tokens_spent=self.max_tokens_spent,
            max_cost=self.max_cost,
            timeout=self.timeout,
        )

    def plan(self, workers: int) -> Schedule:
        """The schedule that these options ask for."""
        if self.schedule == "batch":
            return Schedule(n_jobs=self.n_jobs, batch=self.batch_size or self.n_jobs)
        return Schedule(n_jobs=self.n_jobs, ahead=1 if workers > 1 else 0)


def upstream_budget(n_examples: int, num_trials: int, minibatch_size: int | None, full_eval_steps: int) -> int:
    """Evaluations that upstream makes: the default in full, the trials, and full evaluations between them.

    ``minibatch_size=None`` is a run without minibatches.
    """
    if minibatch_size is None:
        return (num_trials + 1) * n_examples
    full = 1 + num_trials // full_eval_steps + bool(num_trials % full_eval_steps)
    return num_trials * minibatch_size + full * n_examples

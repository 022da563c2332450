"""Options checked at the door, before a language model is called and without loading what the samplers need."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

from dspy.promptune.errors import OptionError

__all__ = [
    "ACQUISITIONS",
    "OF_OPTUNA",
    "OURS",
    "SAMPLER_OPTIONS",
    "SCHEDULES",
    "AcquisitionName",
    "EmbedderName",
    "ExecutorKeys",
    "ResumeMode",
    "SamplerName",
    "ScheduleName",
    "check_integer",
    "check_jobs",
    "check_sampler",
    "check_search",
    "check_steps",
    "checked_seed",
    "embedder_of",
    "plain",
    "with_batch_size",
]

OurSamplerName: TypeAlias = Literal["qei", "qlogei", "qlognei", "thompson", "onehot", "botorch"]
OptunaSamplerName: TypeAlias = Literal["tpe", "gp", "random"]
SamplerName: TypeAlias = OurSamplerName | OptunaSamplerName
AcquisitionName: TypeAlias = Literal["qei", "qlogei", "qlognei", "thompson"]
EmbedderName: TypeAlias = Literal["minilm", "ngram", "onehot"]
ScheduleName: TypeAlias = Literal["async", "batch"]
ResumeMode: TypeAlias = bool | Literal["force"]
ExecutorKeys: TypeAlias = Literal["environment"]

OURS: tuple[str, ...] = get_args(OurSamplerName)
OF_OPTUNA: tuple[str, ...] = get_args(OptunaSamplerName)
ACQUISITIONS: tuple[str, ...] = get_args(AcquisitionName)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
SAMPLER_OPTIONS = ("embedder", "acquisition", "max_space_size", "n_batches", "min_cold_start")
LEAST = {"max_space_size": 2, "n_batches": 0, "min_cold_start": 1, "batch_size": 1}


def check_jobs(n_jobs: Any, batch_size: Any = None, schedule: Any = None) -> None:
    """Refuse numbers of jobs that cannot be.

    Raises:
        OptionError: ``n_jobs`` or ``batch_size`` is no integer above 0, or the schedule is unknown.
    """
    check_integer("n_jobs", n_jobs, 1)
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1)
    if schedule is not None and schedule not in SCHEDULES:
        raise OptionError(f"schedule={schedule!r}: it must be one of {', '.join(SCHEDULES)}, or None.")


def check_integer(name: str, value: Any, least: int) -> None:
    """Refuse what is not an integer of at least ``least``, Python's or numpy's."""
    if not _integer(value) or value < least:
        raise OptionError(f"{name}={value!r}: it must be an integer of at least {least}.")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy's numbers as Python's."""
    if isinstance(value, (int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_sampler(sampler: Any, options: Mapping[str, Any]) -> None:
    """Refuse an unknown name, options that the sampler does not take, and numbers out of their range.

    Raises:
        OptionError: One of these, by name.
    """
    if isinstance(sampler, str) and sampler not in (*OURS, *OF_OPTUNA):
        known = ", ".join((*OF_OPTUNA, *OURS))
        raise OptionError(f"sampler={sampler!r} is unknown: it must be one of {known}, a sampler or a callable.")
    if not (sampler is None or isinstance(sampler, str) or callable(sampler) or hasattr(sampler, "sample_relative")):
        raise OptionError(f"sampler={sampler!r}: it must be a name, an optuna.samplers.BaseSampler or a callable.")
    if any(kind.__name__ == "GridSampler" for kind in type(sampler).__mro__):
        raise OptionError(
            f"sampler={sampler!r:.80}: a GridSampler counts the trials that it proposed, and a search has others; take "
            "BruteForceSampler, or sampler='random'."
        )
    if sampler not in OURS and options:
        name, value = next(iter(options.items()))
        what = repr(sampler or "tpe") if sampler is None or isinstance(sampler, str) else "a sampler that is given"
        raise OptionError(f"Option {name}={value!r}: {what} does not take it; leave it out, or choose sampler='qei'.")
    for name, least in LEAST.items():
        if name in options:
            check_integer(name, options[name], least)
    _check_acquisition(sampler, options.get("acquisition"), options.get("n_batches", 0))


def check_search(
    space: Any, evaluate: Any, n_examples: Any, max_calls: Any, minibatch_size: Any, *, retries: Any, propose: Any
) -> None:
    """Refuse what is no space, no number of examples, calls or retries, and what cannot be called.

    Raises:
        OptionError: One of these, by name. An integer that allows nothing is left to the budget.
    """
    if not hasattr(space, "distributions"):
        raise OptionError(f"space={space!r:.80}: it must be a PromptSpace, as PromptSpace({{0: [text, ...]}}).")
    if not callable(evaluate):
        raise OptionError(f"evaluate={evaluate!r:.80}: it must be a function, (params, examples) -> scores.")
    size = {} if minibatch_size is None else {"minibatch_size": minibatch_size}
    for name, value in {"n_examples": n_examples, "max_calls": max_calls, **size}.items():
        if not _integer(value):
            check_integer(name, value, 1)
    check_integer("retries", retries, 0)
    if propose is not None and not callable(propose):
        raise OptionError(
            f"propose={propose!r}: it must be a function, (request) -> texts; leave it out to search what there is."
        )


def check_steps(full_eval_steps: Any, minibatch_size: Any, sampler: Any, options: Mapping[str, Any]) -> None:
    """Refuse steps between full evaluations that are no number, or where prompts are raced and there are no steps."""
    if full_eval_steps is None:
        return
    check_integer("full_eval_steps", full_eval_steps, 0)
    if minibatch_size is None and embedder_of(sampler, options) is not None:
        raise OptionError(
            f"full_eval_steps={full_eval_steps!r}: prompts are raced on small blocks, without full evaluations between "
            "them; leave it out, or give minibatch_size."
        )


def checked_seed(seed: Any) -> int | None:
    """A seed as Python's own integer, as it is written down; ``None`` stays.

    Raises:
        OptionError: It is neither an integer, Python's or numpy's, nor ``None``.
    """
    if seed is not None and not _integer(seed):
        raise OptionError(f"seed={seed!r}: it must be an integer, 0 included, or None.")
    return None if seed is None else int(seed)


def _check_acquisition(sampler: Any, acquisition: Any, n_batches: int = 0) -> None:
    drawn = "thompson" in (acquisition, sampler)
    if drawn and (n_batches or sampler == "botorch"):
        raise OptionError(
            f"n_batches={n_batches} and acquisition='thompson': joint draws give batches no value to choose by; leave "
            "n_batches out, or take qei, qlogei or qlognei."
        )
    if acquisition is None:
        return
    if acquisition not in ACQUISITIONS:
        raise OptionError(f"acquisition={acquisition!r}: it must be one of {', '.join(ACQUISITIONS)}.")
    if sampler in ACQUISITIONS and sampler != acquisition:
        raise OptionError(f"acquisition={acquisition!r} contradicts sampler={sampler!r}: give sampler={acquisition!r}.")


def embedder_of(sampler: Any, options: Mapping[str, Any]) -> Any:
    """What a sampler reads prompts with; ``None`` for one that does not read them, or is not built yet."""
    if isinstance(sampler, str) or sampler is None:
        default = "onehot" if sampler == "onehot" else "minilm"
        return options.get("embedder", default) if sampler in OURS else None
    return getattr(sampler, "embedder", None)


def with_batch_size(
    sampler: Any, options: Mapping[str, Any], *, n_jobs: int, given: int | None, batched: bool
) -> dict[str, Any]:
    """The sampler's options, with the batch size where a sampler of that name takes one; by default ``n_jobs``.

    Raises:
        OptionError: A batch size is ``given``, the sampler takes none, and trials are not proposed in batches either.
    """
    if isinstance(sampler, str) and sampler in OURS:
        return {"batch_size": given or n_jobs, **options}
    if given is not None and not batched:
        what = repr(sampler or "tpe") if sampler is None or isinstance(sampler, str) else "a sampler that is given"
        raise OptionError(
            f"batch_size={given!r}: {what} is asked for one trial at a time unless schedule='batch'; give that, or "
            "leave batch_size out."
        )
    return dict(options)

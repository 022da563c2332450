"""One function and one table: a sampler by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from dspy.promptune.errors import OptionError
from dspy.promptune.options import check_sampler
from dspy.promptune.samplers.options import folded
from dspy.promptune.samplers.qei import QEISampler
from dspy.promptune.space import PromptSpace

Builder = Callable[..., BaseSampler]


def _ours(**fixed: Any) -> Builder:
    def build(space: PromptSpace, seed: int | None, options: Mapping[str, Any]) -> BaseSampler:
        for name in fixed:
            if options.get(name, fixed[name]) != fixed[name]:
                raise OptionError(f"{name}={options[name]!r}: this sampler's name stands for {name}={fixed[name]!r}.")
        return QEISampler(space, seed=seed, **{**fixed, **options})

    return build


def _optuna(kind: Callable[..., BaseSampler], **fixed: Any) -> Builder:
    def build(space: PromptSpace, seed: int | None, options: Mapping[str, Any]) -> BaseSampler:
        known = [name for name in inspect.signature(kind).parameters if name != "seed"]
        for name in options:
            if name not in known:
                takes = ", ".join(known)
                raise OptionError(f"Option {name}={options[name]!r} is unknown to this sampler: it takes {takes}.")
        return kind(seed=seed, **{**fixed, **options})

    return build


SAMPLERS: dict[str, Builder] = {
    "tpe": _optuna(TPESampler, multivariate=True),
    "qei": _ours(acquisition="qei"),
    "qlogei": _ours(acquisition="qlogei"),
    "qlognei": _ours(acquisition="qlognei"),
    "thompson": _ours(acquisition="thompson"),
    "gp": _optuna(GPSampler, deterministic_objective=False),
    "random": _optuna(RandomSampler),
    "onehot": _ours(embedder="onehot"),
    "botorch": _ours(greedy=False, n_batches=100),
}
"""Name to builder: ``(space, seed, options) -> sampler``."""


def make_sampler(
    name: str | BaseSampler | Callable[[PromptSpace], BaseSampler] | None = "qei",
    *,
    space: PromptSpace,
    seed: int | None = None,
    **options: Any,
) -> BaseSampler:
    """A sampler for ``space``, by name.

    Args:
        name: ``"qei"``, ``"qlogei"``, ``"qlognei"`` or ``"thompson"`` (ours, :class:`QEISampler`), ``"tpe"`` (also
            ``None``), ``"gp"`` or ``"random"`` (Optuna's), ``"onehot"`` (ours, blind to meaning) or ``"botorch"``
            (ours, random batches scored by BoTorch); a sampler, which is returned as it is (a
            :class:`QEISampler` without a space is bound to this one); or a callable that
            builds one from the space.
        space: The prompts.
        seed: Any integer, 0 included.
        options: What the chosen sampler takes; anything else is refused by name.

    Raises:
        OptionError: An unknown name, an option that the sampler does not take, or a value out of its range.
    """
    if isinstance(name, BaseSampler):
        _refuse(options, "a sampler that is already built takes no options: set them where it is built")
        check_sampler(name, {})
        return name.bind(space) if isinstance(name, QEISampler) else name
    if name is not None and not isinstance(name, str):
        _refuse(options, "a callable that builds a sampler takes only the space")
        return _built(name, space)
    builder = SAMPLERS.get("tpe" if name is None else name)
    if builder is None:
        known = ", ".join(SAMPLERS)
        raise OptionError(f"sampler={name!r} is unknown: it must be one of {known}, a sampler or a callable.")
    return builder(space, folded(seed), options)


def _built(build: Callable[[PromptSpace], BaseSampler], space: PromptSpace) -> BaseSampler:
    if not callable(build):
        raise OptionError(f"sampler={build!r}: it must be a name ({', '.join(SAMPLERS)}), a sampler or a callable.")
    sampler = build(space)
    if not isinstance(sampler, BaseSampler):
        raise OptionError(f"The sampler's builder returned {sampler!r}: it must return an optuna.samplers.BaseSampler.")
    return sampler.bind(space) if isinstance(sampler, QEISampler) else sampler


def _refuse(options: Mapping[str, Any], why: str) -> None:
    if options:
        name, value = next(iter(options.items()))
        raise OptionError(f"Option {name}={value!r}: {why}.")

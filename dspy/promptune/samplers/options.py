"""The options of our sampler, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dspy.promptune.errors import OptionError
from dspy.promptune.options import ACQUISITIONS, LEAST, check_integer


@dataclass(frozen=True, kw_only=True)
class QEIOptions:
    """How :class:`~dspy.promptune.samplers.QEISampler` proposes.

    Attributes:
        acquisition: ``"qei"`` or ``"qlogei"`` (improvement on the best posterior mean; the second by logarithms),
            ``"qlognei"`` (improvement on the uncertain best so far), ``"thompson"`` (maxima of joint draws).
        batch_size: Prompts, or blocks of a race, that are chosen together (q), running ones included.
        max_space_size: Combinations looked at in one proposal. Smaller spaces are looked at whole.
        n_batches: Random q-batches, half of them of promising prompts, that BoTorch's acquisition function scores
            jointly beside the greedy batch; the best is proposed. 0 leaves them out.
        min_cold_start: Results to wait for, proposing at random, before the model is asked.
        greedy: Whether a greedy batch is built; without it the best of ``n_batches`` random ones is proposed.
    """

    acquisition: str = "qei"
    batch_size: int = 8
    max_space_size: int = 1000
    n_batches: int = 0
    min_cold_start: int = 3
    greedy: bool = True

    def __post_init__(self) -> None:
        if self.acquisition not in ACQUISITIONS:
            raise OptionError(f"acquisition={self.acquisition!r}: it must be one of {', '.join(ACQUISITIONS)}.")
        for name, low in LEAST.items():
            check_integer(name, getattr(self, name), low)
        if self.acquisition == "thompson" and self.n_batches:
            raise OptionError(
                f"n_batches={self.n_batches} with acquisition='thompson': joint draws give batches no value to choose "
                "by; leave n_batches out, or take the acquisition qei, qlogei or qlognei."
            )
        if not self.greedy and not self.n_batches:
            raise OptionError("n_batches=0 with greedy=False leaves nothing to propose: give n_batches, such as 100.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> QEIOptions:
        """Options from keywords; unknown names are refused, with those that are known."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                takes = ", ".join(["embedder", *known])
                raise OptionError(f"Option {name}={options[name]!r} is unknown to this sampler: it takes {takes}.")
        return cls(**options)


def folded(seed: int | None) -> int | None:
    """A seed of any size as one of those that NumPy's generators know."""
    return None if seed is None else int(seed) % 2**32

"""How late the server answers, and how it fails: pure functions of the request's digest."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Messages = Sequence[Mapping[str, Any]]

BODY = "body:"  # a kind that begins so is the reply itself, with status 200
KINDS = ("429", "500", "503", "hang", "malformed", "close")


def digest(*parts: str) -> str:
    """Sixteen hex digits that stand for the parts, the same in every process."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


def unit(*parts: str) -> float:
    """A number in [0, 1) that the parts decide."""
    return int(digest(*parts), 16) / 2**64


@dataclass(frozen=True)
class Latency:
    """Log-normal seconds from a request to its answer: ``median * exp(sigma * z)``, z standard normal.

    The draw depends on ``seed`` and the request only; ``median=0`` answers at once.
    """

    median: float = 0.0
    sigma: float = 0.8
    seed: int = 0

    def seconds(self, key: str) -> float:
        """The latency of the request with this digest."""
        if self.median <= 0:
            return 0.0
        return random.Random(f"{self.seed}/{key}").lognormvariate(math.log(self.median), self.sigma)


@dataclass(frozen=True)
class Faults:
    """Which requests go wrong.

    Args:
        rates: Share of requests for each kind of ``KINDS``; the sum is at most 1. A repeated request is drawn again.
        rule: ``(messages, attempt) -> kind or None`` where ``attempt`` counts equal requests from 0; it goes first.
            Beside ``KINDS`` it may return ``BODY`` followed by what the server replies instead of an answer.
        retry_after: Seconds in the ``Retry-After`` header of a 429 and a 503.
        limit: Requests in flight above which the answer is 429; ``None`` for no limit.
        seed: Source of the draws.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    rule: Callable[[Messages, int], str | None] | None = None
    retry_after: float = 0.05
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rates) - set(KINDS))
        if unknown or sum(self.rates.values()) > 1:
            raise ValueError(f"Fault rates {dict(self.rates)}: kinds are {', '.join(KINDS)}, the sum at most 1.")

    def kind(self, messages: Messages, key: str, attempt: int) -> str | None:
        """How this request fails, or ``None`` where it is answered."""
        if self.rule is not None and (kind := self.rule(messages, attempt)) is not None:
            return kind
        if not self.rates:
            return None
        left = unit("fault", str(self.seed), key, str(attempt))
        for kind, rate in self.rates.items():
            if left < rate:
                return kind
            left -= rate
        return None

"""promptune: searching prompts by meaning, and many at a time.

The public names load on first use: importing this package costs nothing, and torch loads with the first sampler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy.promptune.allocation.requests import WriteRequest, Written
    from dspy.promptune.compile.result import OptimizedModule
    from dspy.promptune.errors import (
        BudgetError,
        EmbeddingError,
        EvaluationError,
        LocalModelError,
        OptionError,
        PromptuneError,
        SpaceError,
        StorageError,
    )
    from dspy.promptune.local import LocalLM
    from dspy.promptune.run.events import SearchCallback
    from dspy.promptune.run.search import SearchRun, search
    from dspy.promptune.samplers import QEISampler, make_sampler
    from dspy.promptune.space import Key, PromptSpace

_HOMES = {
    "BudgetError": "errors",
    "EmbeddingError": "errors",
    "EvaluationError": "errors",
    "Key": "space",
    "LocalLM": "local",
    "LocalModelError": "errors",
    "OptimizedModule": "compile.result",
    "OptionError": "errors",
    "PromptSpace": "space",
    "PromptuneError": "errors",
    "QEISampler": "samplers",
    "SearchCallback": "run.events",
    "SearchRun": "run.search",
    "SpaceError": "errors",
    "StorageError": "errors",
    "WriteRequest": "allocation.requests",
    "Written": "allocation.requests",
    "make_sampler": "samplers",
    "search": "run.search",
}

__all__ = [
    "BudgetError",
    "EmbeddingError",
    "EvaluationError",
    "Key",
    "LocalLM",
    "LocalModelError",
    "OptimizedModule",
    "OptionError",
    "PromptSpace",
    "PromptuneError",
    "QEISampler",
    "SearchCallback",
    "SearchRun",
    "SpaceError",
    "StorageError",
    "WriteRequest",
    "Written",
    "make_sampler",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Every error that promptune raises on purpose. Each message says the value, the rule and the remedy."""

__all__ = [
    "BudgetError",
    "EmbeddingError",
    "EvaluationError",
    "LocalModelError",
    "MetricError",
    "OptionError",
    "PromptuneError",
    "SpaceError",
    "StorageError",
]


class PromptuneError(Exception):
    """Base of all errors of promptune: ``except PromptuneError`` catches what this package refuses or gives up on."""


class SpaceError(PromptuneError, ValueError):
    """A prompt space that cannot be searched: no candidates, unknown indices, a key of the wrong length."""


class OptionError(PromptuneError, ValueError):
    """An option with an unknown name, a value out of its range, or one that the chosen sampler does not take."""


class EmbeddingError(PromptuneError, ValueError):
    """An embedder that raised, or returned something that is not one finite vector per text."""


class EvaluationError(PromptuneError, RuntimeError):
    """The run cannot go on: every evaluation fails, or more of them than ``max_errors`` allows."""


class MetricError(EvaluationError):
    """A metric that returned what is no number: fix it before any of its scores can be trusted."""


class BudgetError(PromptuneError, ValueError):
    """A budget that allows no evaluation at all."""


class StorageError(PromptuneError, RuntimeError):
    """A storage that cannot be opened or written, or a stored run that does not match the one asked for."""


class LocalModelError(PromptuneError, RuntimeError):
    """The embedded language model, or a package it needs, cannot be had on this machine."""

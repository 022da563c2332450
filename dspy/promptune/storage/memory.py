"""What steps 1 and 2 have produced, remembered piece by piece: a run that is taken up again makes no call for it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dspy.promptune.errors import StorageError
from dspy.promptune.identity.encoding import decode, encode, restorable

if TYPE_CHECKING:
    from dspy.promptune.storage.study_store import StudyStore

__all__ = ["Memory", "NoMemory", "StoredMemory", "candidates"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Memory(Protocol):
    """Finished pieces of work, by name."""

    def once(self, name: str, produce: Callable[[], T]) -> T:
        """What was produced under this name before, or else ``produce()``. From any thread; errors are not kept."""


class NoMemory:
    """Everything is produced again."""

    def once(self, name: str, produce: Callable[[], T]) -> T:
        """Produce it."""
        return produce()


class StoredMemory:
    """Pieces of work in a study."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store

    def once(self, name: str, produce: Callable[[], T]) -> T:
        """From the study, or produced and written there before anything depends on it.

        What JSON has no form for is not written: it is produced again when the run is taken up again.
        """
        kept = self._store.recall(f"piece:{name}")
        if kept is not None:
            found: T = decode(kept["value"])
            return found
        value = produce()
        if restorable(value):
            self._store.remember(f"piece:{name}", {"value": encode(value)})
        return value


def candidates(
    store: StudyStore | None, name: str, rng: random.Random, produce: Callable[[], Mapping[int, Sequence[Any]]]
) -> dict[int, list[Any]]:
    """All candidates of one kind, from the study or produced now; ``rng`` is left in the same state by both.

    Args:
        store: ``None`` always produces.
        name: ``"demos"`` or ``"instructions"``.
        rng: Source of randomness of ``produce``.
        produce: Makes the candidates of every predictor.

    Raises:
        StorageError: Another driver made them, and they are not in the study.
    """
    kept = None if store is None else store.recall(name)
    if kept is not None:
        version, state, following = kept["random"]
        rng.setstate((version, tuple(state), following))
        return {int(i): decode(each) for i, each in kept["candidates"].items()}
    if store is not None and not store.leads:
        raise StorageError(
            f"The {name} of study {store.name!r} hold values that JSON has no form for, so they are not in "
            f"{store.place}: the study cannot be shared. Leave out share=True."
        )
    found = {i: list(each) for i, each in produce().items()}
    if store is None:
        return found
    if all(map(restorable, found.values())):
        encoded = {str(i): encode(each) for i, each in found.items()}
        store.remember(name, {"candidates": encoded, "random": rng.getstate()})
    else:
        logger.warning(
            "Some %s hold values that JSON has no form for: resuming will produce them again, and go on only if they "
            "come out the same.", name,
        )  # fmt: skip
    return found

"""What a compile keeps books of: its study, and what it spends."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.records import Job
from dspy.promptune.errors import StorageError
from dspy.promptune.identity.encoding import as_json
from dspy.promptune.identity.manifest import candidates_of
from dspy.promptune.identity.plain import plain
from dspy.promptune.limits.budgets import BudgetLimits, BudgetMeter
from dspy.promptune.secrets import know, said, secrets_of
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.memory import Memory, NoMemory, StoredMemory, candidates
from dspy.promptune.storage.study_store import StudyStore, open_study_store
from dspy.utils.saving import get_dependency_versions

if TYPE_CHECKING:
    from dspy.primitives.module import Module

logger = logging.getLogger(__name__)

__all__ = ["RunStore", "open_run_store"]


def open_run_store(
    caps: BudgetLimits,
    storage: Any,
    study_name: str | None,
    resume: Any,
    *,
    name: str,
    lms: Iterable[Any],
    share: bool = False,
) -> RunStore:
    """Books in the storage that the user named, or in memory.

    Args:
        caps: What may be spent.
        storage: See :func:`dspy.promptune.storage.backend.open_storage`; ``None`` keeps everything in memory.
        study_name: Name of the study; ``None`` takes ``name``.
        resume: Whether to continue a study that is there.
        name: The default name.
        lms: The language models of the run, whose keys must not be written.
        share: Whether other drivers may work on the study at the same time.

    Raises:
        OptionError: Options that do not go together.
        StorageError: The storage cannot be opened.
    """
    know(set().union(*(secrets_of(lm) for lm in lms if lm is not None)))
    return RunStore(open_study_store(storage, study_name, resume, name, share), BudgetMeter(caps))


class RunStore:
    """One compile's study (``store``, ``None`` for in memory), its ``meter``, and the ``facts`` of how it is made."""

    def __init__(self, store: StudyStore | None, meter: BudgetMeter) -> None:
        self.store = store
        self.meter = meter
        self.memory: Memory = NoMemory() if store is None else StoredMemory(store)
        self.facts: Mapping[str, Any] = {}
        self._early: dict[Key, dict[int, float]] = {}

    def begin(self, manifest: Callable[[], Mapping[str, Any]]) -> None:
        """Note what the run is, and open its study where there is one.

        Raises:
            StorageError: It is another run's, or somebody is running it.
        """
        self.facts = manifest()
        if self.store is None:
            return
        self.store.begin(self.facts, self.meter.seconds_left)
        self.store.count(self.meter)

    @property
    def leads(self) -> bool:
        """Whether the candidates are made here, and not by another driver."""
        return self.store is None or self.store.leads

    def has(self, name: str) -> bool:
        """Whether the candidates of a kind are in the study."""
        return self.store is not None and self.store.recall(name) is not None

    def keep(self, job: Job, scores: Mapping[int, float]) -> None:
        """Scores of a job's examples, as they finish."""
        if self.store is not None:
            self.store.keep_scores(job, scores)
        if job.number < 0:
            self._early.setdefault(job.key, {}).update(scores)
        self.meter.scored(len(scores))

    def early(self, key: Key) -> dict[int, float]:
        """Scores of a combination that are known before there is a trial, by example."""
        stored = {} if self.store is None or not self.facts else self.store.early_scores().get(key, {})
        return {**stored, **self._early.get(key, {})}

    def unknown(self, key: Key, examples: Sequence[int]) -> list[int]:
        """Those of the examples that no earlier start has scored."""
        known = self.store.known(key) if self.store is not None else set()
        return [example for example in examples if example not in known]

    def candidates(
        self, name: str, step: str, rng: random.Random, produce: Callable[[], Mapping[int, Sequence[Any]]]
    ) -> dict[int, list[Any]]:
        """The candidates of step 1 or 2, from the study or produced now, at that step's account."""
        with self.meter.step(step):
            return candidates(self.store, name, rng, produce)

    def settle(self, space: PromptSpace) -> None:
        """Write down the candidates; those of a run that is taken up again must be the same.

        Raises:
            StorageError: They are not.
        """
        self.meter.search_begins()
        if self.store is None:
            return
        new, old = candidates_of(space), self.store.study.user_attrs.get("candidates")
        if old is not None:
            written = self.store.clean(new)
            if {name: len(each) for name, each in old.items()} != {name: len(each) for name, each in new.items()}:
                raise StorageError(
                    f"Study {self.store.name!r} in {self.store.place} has other candidates than this run, and another "
                    "number of them: they cannot be searched together. If it was begun with reflect=True, or without, "
                    "go on like that, or use another study_name."
                )
            changed = [name for name in new if as_json(old[name]) != as_json(written[name])]
            self.store.refuse([f"the candidates of {name} have changed" for name in changed])
        self.store.show("candidates", new)

    def end(self, program: Module, ended: str, **shown: Any) -> None:
        """The run has come to its end with this program, which is written as upstream's ``save`` would write it."""
        if self.store is None:
            return
        try:
            state = plain(program.dump_state(json_mode=True))
        except Exception as error:
            why = f"it has no form in JSON: {said(error)}"
            logger.warning("The best program is not in the study: %s. save() the program that is returned.", why)
            shown["no_best_program"] = why
        else:
            shown["best_program"] = {**state, "metadata": {"dependency_versions": get_dependency_versions()}}
            if as_json(self.store.clean(state)) != as_json(state):
                logger.warning("The best program holds a credential, which is not in the study: save() the program.")
        self.close(ended, **shown)

    def close(self, ended: str | None = None, **shown: Any) -> None:
        """The run is over."""
        if self.store is not None:
            self.store.close(ended, **shown)

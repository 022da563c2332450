"""Writing as a job among others: asked for when it is worth it, stored before it is used, appended to the space."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from optuna.trial import TrialState, create_trial

from dspy.promptune.allocation.writing import Text, WriteDecision, WritingPolicy, WritingState
from dspy.promptune.errors import EmbeddingError, OptionError, StorageError
from dspy.promptune.run.naming import prompt_name
from dspy.promptune.secrets import said
from dspy.promptune.space import PromptSpace

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from dspy.promptune.allocation.ledger import CallLedger
    from dspy.promptune.allocation.racing import RacingPolicy
    from dspy.promptune.samplers.qei import QEISampler

__all__ = ["Propose", "WriteRequest", "Writing", "Written", "check_distributions", "is_text", "lineage_of", "restored"]

logger = logging.getLogger(__name__)

KIND = "write"  # user attribute ``kind`` of a trial that stands for a text
NEAR = 0.9995  # cosine of two texts' vectors from which on one is a copy of the other
LONGEST = 20_000  # characters of a text
FAILURES = 3  # in a row, after which nothing more is asked for


@dataclass(frozen=True)
class WriteRequest:
    """What a new text is asked for.

    Attributes:
        part: Name of the part it is for, such as ``"0_predictor_instruction"``.
        predictor: Number of the predictor.
        parent: The prompt to improve, as study parameters.
        candidates: Its candidates, by the name of the part.
        scores: Its scores so far, by validation example; there may be none.
        belief: Posterior mean and standard deviation of its true score.
        known: All texts of the part; one that is there already is not used.
        number: How many texts were asked for before: another number should give another text.
    """

    part: str
    predictor: int
    parent: Mapping[str, int]
    candidates: Mapping[str, Any] = field(repr=False)
    scores: Mapping[int, float] = field(repr=False)
    belief: tuple[float, float]
    known: tuple[str, ...] = field(repr=False)
    number: int

    @property
    def text(self) -> str:
        """The text to improve."""
        return str(self.candidates[self.part])


@dataclass(frozen=True)
class Written:
    """What a proposer returns that knows what it took: texts, and calls (examples run for evidence included)."""

    texts: Sequence[str]
    calls: float = 1.0


Propose = Callable[[WriteRequest], "Sequence[str] | Written"]
"""Writes: any number of texts for the part that is asked for, or a :class:`Written`."""

Submit = Callable[..., "Future[Any]"]


class TextStore(Protocol):
    """Where texts are read from when several drivers write."""

    def look(self) -> bool:
        """Read what is new."""


@dataclass(frozen=True)
class _Arrived:
    decision: WriteDecision
    written: Written | None
    error: BaseException | None
    seconds: float


class Writing:
    """Asks for texts and takes them in. All but the proposer's own work happens in the loop's thread.

    A text is a trial of its own (state PRUNED, no parameters, user attribute ``kind="write"``) before it is a
    candidate: the order of the trials is the order of the indices, for later starts of the run and for other drivers.

    Args:
        study: Where texts are written.
        space: Open.
        sampler: Ours; it is told when the space has grown.
        policy: Its beliefs decide; it is told when the space has grown.
        ledger: Counts the calls that writing takes.
        propose: Writes.
        rng: Draws.
        submit: Starts a function in another thread; ``None`` writes in the loop's thread.
        places: Texts written at once.
        past: Texts of earlier starts, which are in the space.
    """

    def __init__(
        self,
        study: Study,
        space: PromptSpace,
        sampler: QEISampler,
        policy: RacingPolicy,
        ledger: CallLedger,
        propose: Propose,
        *,
        rng: random.Random,
        submit: Submit | None = None,
        places: int = 1,
        past: Sequence[Text] = (),
    ) -> None:
        self._study, self._space, self._sampler, self._racing = study, space, sampler, policy
        self._ledger, self._propose, self._submit, self._places = ledger, propose, submit, places
        self.policy = WritingPolicy(space, rng)
        self._arrived: SimpleQueue[_Arrived] = SimpleQueue()
        self.in_flight = 0
        self._asked = len(past)
        self._failed = 0
        self.wake: Callable[[], None] = lambda: None
        self.shared: TextStore | None = None
        for text in past:
            self._took(text)

    @property
    def texts(self) -> list[Text]:
        """The texts in the space that were written during the search, in their order."""
        return self.policy.texts

    def lineage(self) -> list[dict[str, Any]]:
        """Who was written from whom, see :class:`dspy.promptune.run.search.SearchRun`."""
        return lineage_of(self._space, self.texts)

    def look(self, left: float, *, blocked: bool = False) -> bool:
        """Take in what has been written, and ask for more where it is worth it; whether something has changed.

        Args:
            left: Calls that nobody has claimed.
            blocked: Whether nothing can be measured until there is another text.
        """
        changed = self._take_in()
        while (decision := self._decide(left, blocked)) is not None:
            self._start(decision)
            changed = self._take_in() or changed
            if self._submit is None:
                break
        return changed

    def _decide(self, left: float, blocked: bool) -> WriteDecision | None:
        if self._failed >= FAILURES or (found := self._racing.beliefs()) is None:
            return None
        spent = int(self._ledger.spent)
        state = WritingState(
            max_calls=spent + self._ledger.claimed() + int(max(0, left)),
            left=left,
            spent=spent,
            written=self._ledger.beside,
            in_flight=self.in_flight,
            places=self._places,
            expected=self._expected(),
            blocked=blocked,
        )
        return self.policy.next(state, *found)

    def _expected(self) -> float:
        """Calls of the next text: as many as one of the latest took."""
        last = self.texts[-8:]
        return sum(text.calls for text in last) / len(last) if last else 1.0

    def _start(self, decision: WriteDecision) -> None:
        request = self._request(decision)
        self._asked += 1
        self.in_flight += 1
        if self._submit is None:
            self._work(decision, request)
            return
        try:
            future = self._submit(self._work, decision, request)
        except RuntimeError:  # the pool was stopped
            self.in_flight -= 1
            return
        future.add_done_callback(lambda ended: self._lost(decision, ended))

    def _work(self, decision: WriteDecision, request: WriteRequest) -> None:
        began = time.monotonic()
        written, error = None, None
        try:
            answer = self._propose(request)
            written = answer if isinstance(answer, Written) else Written(list(answer))
        except Exception as raised:
            error = raised
        self._arrived.put(_Arrived(decision, written, error, time.monotonic() - began))
        self.wake()

    def _lost(self, decision: WriteDecision, future: Future[Any]) -> None:
        """The task ended before the proposer did: the run is being stopped."""
        if future.cancelled() or future.exception() is not None:
            self._arrived.put(_Arrived(decision, Written((), 0.0), None, 0.0))
            self.wake()

    def _request(self, decision: WriteDecision) -> WriteRequest:
        part = self._space.parts[self._space.names.index(decision.part)]
        key = decision.parent
        return WriteRequest(
            part=decision.part,
            predictor=part.predictor,
            parent=self._space.params(key),
            candidates={one.name: one.candidates[i] for one, i in zip(self._space.parts, key, strict=True)},
            scores=self._ledger.table.row(key),
            belief=self._racing.belief(key),
            known=tuple(part.candidates),
            number=self._asked,
        )

    # ------------------------------------------------------------------ what has been written

    def _take_in(self) -> bool:
        changed = False
        while True:
            try:
                one = self._arrived.get_nowait()
            except Empty:
                return changed
            self.in_flight -= 1
            changed = True
            self._took_in(one)

    def _took_in(self, one: _Arrived) -> None:
        if one.error is not None:
            self._failed += 1
            self._ledger.beside += 1
            again = "" if self._failed < FAILURES else f" After {FAILURES} in a row no more are asked for."
            logger.warning("Writing an instruction failed: %s.%s", said(one.error), again)
            return
        assert one.written is not None
        self._failed = 0
        texts = [str(text).strip() for text in one.written.texts]
        self._ledger.beside += one.written.calls
        good = [text for text in dict.fromkeys(texts) if self._usable(one.decision.part, text)]
        for text in good:
            self._store(one, text, one.written.calls / len(good))

    def _usable(self, part: str, text: str) -> bool:
        """Whether a text is one: not empty, not endless, and no copy of one that is there."""
        known = self._space.parts[self._space.names.index(part)].candidates
        if not text or len(text) > LONGEST or text in known:
            logger.info("A text of %d characters was not used: it is empty, too long, or there already.", len(text))
            return False
        if self._near(text, [str(one) for one in known]):
            logger.info("A text was not used: it nearly copies one that is there.")
            return False
        return True

    def _near(self, text: str, known: Sequence[str]) -> bool:
        from dspy.promptune.features import embed_parts

        if self._sampler.embedder == "onehot":
            return False
        try:
            vectors = embed_parts(PromptSpace({0: [*known, text]}), self._sampler.embedder)[0]
        except EmbeddingError as error:
            logger.warning("A text could not be embedded and is not used: %s", said(error))
            return True
        rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return bool((rows[:-1] @ rows[-1] > NEAR).any())

    def _store(self, one: _Arrived, text: str, calls: float) -> None:
        """Write a text down, and then use it; where that fails the run ends, and it is not used."""
        noted = {
            "kind": KIND,
            "part": one.decision.part,
            "text": text,
            "parent": list(one.decision.parent),
            "calls": round(calls, 3),
            "at": self._ledger.table.calls + int(self._ledger.beside),
            "seconds": round(one.seconds, 3),
        }
        try:
            self._study._storage.create_new_trial(self._study._study_id, template_trial=_template(noted))
        except StorageError:
            return
        if self.shared is not None:
            self.shared.look()
        else:
            self.arrived(noted)

    def arrived(self, noted: Mapping[str, Any]) -> None:
        """A text is in the study, written here or by another driver: from now on it is a candidate."""
        if (text := appended(self._space, noted)) is None:
            return
        self._sampler.grow()
        self._racing.grown()
        self._took(text)
        parent = prompt_name(self._space, text.parent)
        logger.info("Wrote candidate %d of %s from %s.", text.index, text.part, parent)

    def _took(self, text: Text) -> None:
        self.policy.wrote(text)


def lineage_of(space: PromptSpace, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """Who was written from whom, see :class:`dspy.promptune.run.search.SearchRun`."""
    return [
        {
            "part": text.part,
            "index": text.index,
            "predictor": space.parts[space.names.index(text.part)].predictor,
            "parent": space.params(text.parent),
            "cost": text.calls,
            "at": text.at,
        }
        for text in texts
    ]


def is_text(trial: FrozenTrial) -> bool:
    """Whether a trial stands for a text."""
    return trial.user_attrs.get("kind") == KIND


def appended(space: PromptSpace, noted: Mapping[str, Any]) -> Text | None:
    """The text of a trial, in the space; ``None`` where it is there already or not of this space."""
    part, parent = noted.get("part"), space.find(tuple(noted.get("parent", ())))
    if part not in space.names or parent is None:
        return None
    known = len(space.parts[space.names.index(part)])
    index = space.append(part, noted["text"])
    return None if index < known else Text(part, index, parent, noted["calls"], noted["at"], noted["text"])


def restored(space: PromptSpace, trials: Sequence[FrozenTrial]) -> list[Text]:
    """Append the texts that trials stand for, in the order of their numbers."""
    ordered = sorted((trial for trial in trials if is_text(trial)), key=lambda trial: trial.number)
    found = [appended(space, trial.user_attrs) for trial in ordered]
    return [text for text in found if text is not None]


def check_distributions(space: PromptSpace, trials: Sequence[FrozenTrial], place: str) -> None:
    """Refuse to continue an open space where a study has a closed one, or the other way round.

    Raises:
        StorageError: The study was begun the other way.
    """
    from optuna.distributions import CategoricalDistribution

    for trial in trials:
        if name := next((name for name in space.names if name in trial.distributions), None):
            closed = isinstance(trial.distributions[name], CategoricalDistribution)
            if closed == space.is_open:
                how = "without" if closed else "with"
                raise StorageError(
                    f"The study in {place} was begun {how} instructions written during the search, and its trials "
                    f"cannot be mixed with others: go on {how} them (reflect=, propose=), or use another study_name."
                )
            return


def check_sampler(sampler: Any, policy: Any) -> None:
    """Refuse what cannot decide about writing.

    Raises:
        OptionError: The sampler is not ours, or a minibatch size was given.
    """
    from dspy.promptune.allocation.racing import RacingPolicy

    if not isinstance(policy, RacingPolicy):
        raise OptionError(
            f"Writing instructions during the search needs beliefs about prompts: use sampler='qei' without "
            f"minibatch_size, not {type(sampler).__name__}."
        )


def _template(noted: Mapping[str, Any]) -> FrozenTrial:
    return create_trial(state=TrialState.PRUNED, user_attrs=dict(noted))

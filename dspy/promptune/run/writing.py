"""Writing as a job among others: asked for when it is worth it, stored before it is used, appended to the space."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from dspy.promptune.allocation.requests import LONGEST, Propose, WriteRequest, Written
from dspy.promptune.allocation.writing import FAILURES, Text, WriteDecision, WritingPolicy, WritingState
from dspy.promptune.errors import EmbeddingError, StorageError
from dspy.promptune.limits.answers import is_empty
from dspy.promptune.naming import prompt_name
from dspy.promptune.run.texts import PROPOSED, appended, lineage_of, noted_text
from dspy.promptune.secrets import said
from dspy.promptune.space import Key, PromptSpace

if TYPE_CHECKING:
    from optuna.study import Study

    from dspy.promptune.allocation.ledger import CallLedger
    from dspy.promptune.allocation.racing import RacingPolicy
    from dspy.promptune.samplers.qei import QEISampler

__all__ = ["Writer", "Writing"]

logger = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds that a text is waited for where there is nothing else to do
POLL_SECONDS = 0.02  # how often whoever waits for a text looks whether the run ends
NEAR = 0.9995  # cosine of two texts' vectors from which on one is a copy of the other

Submit = Callable[..., "Future[Any]"]

Arrivals = Callable[[], "tuple[Sequence[tuple[str, str]], bool, bool]"]
"""New (part, text) pairs since the last call, whether there will be no more, and whether the rest is too late."""


@dataclass(frozen=True)
class Writer:
    """Who writes instructions during a search.

    Attributes:
        propose: Writes.
        submit: Starts a function in another thread; ``None`` writes in the loop's thread.
        places: Texts written at once.
        waits: Whether each is waited for, so that the same seed gives the same texts.
        arrivals: Candidates that are still being made.
    """

    propose: Propose
    submit: Submit | None = None
    places: int = 1
    waits: bool = False
    arrivals: Arrivals | None = None


@dataclass(frozen=True)
class _Arrived:
    number: int
    decision: WriteDecision
    written: Written | None
    seconds: float = 0.0


class Writing:
    """Asks for texts and takes them in. All but the proposer's own work happens in the loop's thread.

    What comes of a request is a trial of its own (state PRUNED, no parameters, user attribute ``kind="write"``) before
    it counts: the order of the trials is the order of the indices, for later starts of the run and for other drivers.

    Args:
        study: Where texts are written.
        space: Open.
        sampler: Ours.
        policy: Its beliefs decide; it is told when the space has grown.
        ledger: Counts the calls that writing takes.
        writer: Who writes.
        rng: Draws.
        past: What came of the requests of earlier starts; their texts are in the space.
    """

    def __init__(
        self,
        study: Study,
        space: PromptSpace,
        sampler: QEISampler,
        policy: RacingPolicy,
        ledger: CallLedger,
        writer: Writer,
        *,
        rng: random.Random,
        past: Sequence[Text] = (),
    ) -> None:
        self._study, self._space, self._sampler, self._racing = study, space, sampler, policy
        self._ledger, self._writer = ledger, writer
        self.policy = WritingPolicy(space, rng)
        self._arrived: SimpleQueue[_Arrived] = SimpleQueue()
        self._in_flight: set[int] = set()  # numbers of requests
        self._since = math.inf  # when the last one of them was begun
        self._given_up = False
        self.awaited = writer.arrivals  # until all have come
        self.holds = self.awaited is not None  # whether the search waits for them
        self.wake: Callable[[], None] = lambda: None
        self.tick: Callable[[], None] = lambda: None  # now and then while a text is waited for
        self.stopped = False  # the run ends: nothing is waited for
        self.read_shared: Callable[[], object] | None = None  # where several drivers write
        for text in past:
            ledger.beside += text.calls
            if not text.failed:  # its cause may be gone
                self.policy.wrote(text)
        self._asked = len(past)

    @property
    def in_flight(self) -> int:
        """Texts that are being written."""
        return len(self._in_flight)

    def hopeful(self) -> bool:
        """Whether a text is being written, or candidates are being made, and it is not too long since it was begun."""
        if self._in_flight and time.monotonic() - self._since > PATIENCE:
            logger.warning("Nothing is left to do, and propose has not answered for %.0f seconds: given up.", PATIENCE)
            self._in_flight.clear()
            self._given_up = True
        return bool(self._in_flight or self.awaited)

    def lineage(self) -> list[dict[str, Any]]:
        """Who was written from whom, see :class:`dspy.promptune.run.search.SearchRun`."""
        return lineage_of(self._space, self.policy.texts)

    def look(self, left: float, *, blocked: bool = False) -> bool:
        """Take in what has been written, and ask for more where it is worth it; whether something has changed.

        Args:
            left: Calls that nobody has claimed.
            blocked: Whether nothing can be measured until there is another text.
        """
        changed = self.take_in()
        while (decision := self._decide(left, blocked)) is not None:
            self._start(decision)
            changed = self.take_in() or changed
            if self._writer.submit is None or self._writer.waits:
                break
        return changed

    def _decide(self, left: float, blocked: bool) -> WriteDecision | None:
        if self._given_up or (found := self._racing.beliefs()) is None:
            return None
        spent = int(self._ledger.spent)
        state = WritingState(
            max_calls=spent + self._ledger.claimed() + int(max(0, left)),
            left=left,
            spent=spent,
            written=self._ledger.beside,
            in_flight=self.in_flight,
            places=self._writer.places,
            blocked=blocked,
        )
        return self.policy.next(state, *found)

    def _start(self, decision: WriteDecision) -> None:
        request = self._request(decision)
        self._asked += 1
        self._in_flight.add(request.number)
        self._since = time.monotonic()
        if self._writer.submit is None:
            self._work(decision, request)
            return
        try:
            future = self._writer.submit(self._work, decision, request)
        except RuntimeError:  # the pool was stopped
            self._in_flight.discard(request.number)
            return
        future.add_done_callback(lambda ended: self._lost(request.number, decision, ended))
        while self._writer.waits and self._arrived.empty() and not self.stopped:
            time.sleep(POLL_SECONDS)
            self.tick()

    def _work(self, decision: WriteDecision, request: WriteRequest) -> None:
        began = time.monotonic()
        try:
            answer = self._writer.propose(request)
            written = answer if isinstance(answer, Written) else Written(answer)
        except (Exception, SystemExit) as error:
            written = Written((), error=error)
        self._arrived.put(_Arrived(request.number, decision, written, time.monotonic() - began))
        self.wake()

    def _lost(self, number: int, decision: WriteDecision, future: Future[Any]) -> None:
        """The task ended before the proposer did: the run is being stopped, or it took too long."""
        if future.cancelled() or future.exception() is not None:
            written = None if future.cancelled() else Written((), error=future.exception())
            self._arrived.put(_Arrived(number, decision, written))
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

    def take_in(self) -> bool:
        """Take in what has been written; whether something has changed. What comes after its time is not used."""
        changed = self._enter()
        while True:
            try:
                one = self._arrived.get_nowait()
            except Empty:
                return changed
            if one.number in self._in_flight:
                self._in_flight.discard(one.number)
                changed = True
                self._took_in(one)

    def _enter(self) -> bool:
        """Make candidates of what was proposed meanwhile; whether there was anything."""
        if self.awaited is None:
            return False
        offered, over, late = self.awaited()
        self.holds = not (over or late)
        if over:
            self.awaited = None
        for part, text in offered:
            if not self._unfit(part, text):
                self._store(part, (0,) * len(self._space.names), 0.0, text=text, origin=PROPOSED)
        return bool(offered)

    def _took_in(self, one: _Arrived) -> None:
        if (written := one.written) is None:
            return
        part, parent, seconds = one.decision.part, one.decision.parent, round(one.seconds, 3)
        good, why = self._sifted(part, written.texts)
        if written.error is not None:
            why = said(written.error)
            logger.warning("Writing an instruction failed: %s.", why)
        refused: dict[str, Any] = {"refused": why, **written.noted}
        brought = [{"text": text} for text in good] or [refused]
        for i, each in enumerate(brought):
            more = {"sibling": True} if i else {"evidence": list(written.evidence)} if written.evidence else {}
            self._store(part, parent, written.calls / len(brought), **each, **more, seconds=seconds)

    def _sifted(self, part: str, texts: Sequence[str]) -> tuple[list[str], str]:
        """The texts that can be used, and why the last of the others cannot: empty, endless, or copies."""
        good: list[str] = []
        why = "nothing was written"
        for text in dict.fromkeys(text.strip() for text in texts):
            if unfit := self._unfit(part, text):
                why = unfit
            elif self._near(text, [*self._known(part), *good]):
                why = "the text nearly copied one that was there"
            else:
                good.append(text)
                continue
            logger.info("Not used: %s.", why)
        return good, why

    def _unfit(self, part: str, text: str) -> str:
        """Why a text cannot be a candidate; empty for one that can."""
        if is_empty(text):
            return "the text was empty"
        if len(text) > LONGEST:
            return f"the text had more than {LONGEST:,} characters"
        return "the text was there already" if text in self._known(part) else ""

    def _known(self, part: str) -> Sequence[str]:
        """The texts of a part."""
        return self._space.parts[self._space.names.index(part)].candidates

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

    def _store(self, part: str, parent: Key, calls: float, **more: Any) -> None:
        """Write down what came of a request, and then use it; where that fails the run ends, and it is not used."""
        at = int(self._ledger.spent + calls)
        noted = {"part": part, "parent": list(parent), "calls": round(calls, 3), "at": at, **more}
        try:
            self._study._storage.create_new_trial(self._study._study_id, template_trial=noted_text(noted))
        except StorageError:
            return
        if self.read_shared is not None:
            self.read_shared()
        else:
            self.arrived(noted)

    def arrived(self, noted: Mapping[str, Any]) -> None:
        """What came of a request is in the study, here or of another driver: a text is a candidate from now on."""
        self._ledger.beside += noted["calls"]
        if (text := appended(self._space, noted)) is None:
            return
        self.policy.wrote(text)
        if text.refused:
            if self.policy.fruitless == FAILURES:
                logger.warning("%d requests for a text in a row brought nothing: no more are made.", FAILURES)
            return
        child = None if text.proposed else self.policy.child(text)
        self._racing.grown(child, sibling=noted.get("sibling", False))
        if text.proposed:
            logger.info("Candidate %d of %s was proposed.", text.index, text.part)
        else:
            parent = prompt_name(self._space, text.parent)
            logger.info("Wrote candidate %d of %s from %s.", text.index, text.part, parent)

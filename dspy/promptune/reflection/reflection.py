"""The writer: a new instruction for one predictor, from what went wrong on training examples."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from dspy.promptune.allocation.requests import UncalledError, WriteRequest, Written
from dspy.promptune.distributed.metrics import feedback_of
from dspy.promptune.errors import EvaluationError
from dspy.promptune.limits.answers import unanswered
from dspy.promptune.reflection.attempts import Attempt, Attempts, steps_of
from dspy.promptune.reflection.replies import asking
from dspy.promptune.secrets import readable
from dspy.promptune.space import Key
from dspy.utils.exceptions import AdapterParseError

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["Reflector"]

PAID = 3  # training examples that the parent is run on for one text, at most
CLIP = 1_500  # characters shown of one field
STORED = 30_000  # characters of evidence that are written down with one text
ANNOUNCED = re.compile(r"[^\n`]{1,200}:\s*```[^\n`]*\n(.*?)\n?```", re.DOTALL)
FENCE = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)


class ReviseInstruction(dspy.Signature):  # type: ignore[metaclass]
    __doc__ = """You maintain the instruction of one step in a program that calls language models.

    You get the instruction in use, and attempts that the step made with it: its inputs, its outputs, what was
    expected in the end, and how the result was judged. Find out what the failures have in common, and what somebody
    would have to know in order to get them right; keep what works. Write the instruction that should be used instead.
    State what you have learned as rules for inputs of that kind, with the facts of the task that are needed, and not
    as answers to single inputs. Reply with the complete new instruction and nothing else.
    """  # assigned, because python -OO has no docstrings

    step: str = dspy.InputField(desc="the fields that the step reads and writes")
    current_instruction: str = dspy.InputField()
    attempts: str = dspy.InputField()
    new_instruction: str = dspy.OutputField()


class Reflector:
    """Writes instructions: ``propose`` of a compile's search.

    A text is written from attempts at training examples, never at validation examples: those of step 1 first, then of
    the parent, which is run on a few more and counted. Each predictor is shown what it read and wrote itself.

    Args:
        attempts: What is known of training examples.
        program: The program of a prompt.
        lm: Writes.
        seed: Of the examples drawn and of the rollouts.
        failure_score: The score of an example whose answer cannot be read.
    """

    def __init__(
        self,
        attempts: Attempts,
        program: Callable[[Mapping[str, int]], Module],
        lm: Any,
        *,
        seed: int | None,
        failure_score: float = 0.0,
    ) -> None:
        self._attempts, self._program, self._lm = attempts, program, lm
        self._seed, self._failure_score = seed, failure_score

    def __call__(self, request: WriteRequest) -> Written:
        """One text, the calls that it took, and what it was written from; or why there is none."""
        program = self._program(request.parent)
        name = program.named_predictors()[request.predictor][0]
        shown, key = self._attempts.free(request.predictor), None
        new, text, failed = shown, "", None
        try:
            if not shown:
                key, new = tuple(request.parent.values()), []
                shown = self._of_parent(request, program, new)
            if not shown:
                raise UncalledError(f"no training example that was tried called {name}, so there is nothing to learn")
            text = self._revised(request, program, shown)
        except Exception as error:  # what the evidence took counts all the same
            failed = error
        evidence: list[dict[str, Any]] = []
        with contextlib.suppress(Exception):  # a metric that does not say what it thinks of one
            evidence = self._evidence(new, key, name, request.predictor)
        calls = max(1, (len(new) if key else 0) + bool(shown))
        return Written([text] if text else [], calls=calls, evidence=evidence, error=failed)

    def remember(self, evidence: Iterable[Mapping[str, Any]]) -> None:
        """Attempts that earlier starts of the run have written down with their texts."""
        for noted in evidence:
            self._attempts.remember(noted)

    def _evidence(self, new: Sequence[Attempt], key: Key | None, name: str, predictor: int) -> list[dict[str, Any]]:
        """Attempts as they are written down: ``of`` says whose they are, ``None`` step 1's."""
        found, room = [], STORED
        for one in (each for each in new if each.tells(predictor)):
            told = self._told(one, name, predictor)
            if (room := room - len(told)) >= 0:
                whose = {"of": None if key is None else list(key), "predictor": predictor}
                found.append({"example": one.example, "score": one.score, **whose, "told": told})
        return found

    def _of_parent(self, request: WriteRequest, program: Module, new: list[Attempt]) -> list[Attempt]:
        """Attempts to show; those that are new, of the parent at examples that it had not tried yet, go to ``new``."""
        key, rng = tuple(request.parent.values()), random.Random(f"{self._seed}/{request.number}")
        known = self._attempts.of(key)
        fresh = [i for i in range(len(self._attempts.trainset)) if i not in known]
        for i in rng.sample(fresh, min(PAID, len(fresh))):
            new.append(self._tried(program, i))
            self._attempts.add(key, new[-1])
        return self._attempts.chosen(key, request.predictor, rng)

    def _tried(self, program: Module, i: int) -> Attempt:
        example = self._attempts.trainset[i]
        with dspy.context(trace=[]):
            failed = functools.partial(Attempt, i, self._failure_score, dspy.Prediction())
            try:
                prediction = program(**example.inputs())
            except AdapterParseError as error:
                steps = _unread(error, example, dspy.settings.trace or (), program)
                return failed(steps, None, f"An answer could not be read: {_clipped(error.lm_response)}")
            except Exception as error:
                if unanswered(error):
                    raise
                steps = steps_of(dspy.settings.trace or (), program)
                return failed(steps, None, f"The program raised: {readable(error)}")
            trace = list(dspy.settings.trace)
            steps = steps_of(trace, program)
            try:
                score, told = self._attempts.verdict(example, prediction)
            except Exception as error:
                if unanswered(error):
                    raise
                return failed(steps, None, f"It could not be judged: {readable(error)}")
        return Attempt(i, score, prediction, steps, trace, told)

    def _revised(self, request: WriteRequest, program: Module, shown: Sequence[Attempt]) -> str:
        name, predictor = program.named_predictors()[request.predictor]
        lm = self._rollout(request)
        texts = [self._told(one, name, request.predictor) for one in shown]
        fields = {
            "step": f"{', '.join(predictor.signature.input_fields)} -> {', '.join(predictor.signature.output_fields)}",
            "current_instruction": request.text,
            "attempts": "\n\n".join(f"Attempt {i}\n{text}" for i, text in enumerate(texts, start=1)),
        }
        with asking(lm) as cut_off, dspy.context(trace=[]):
            try:
                text = str(dspy.Predict(ReviseInstruction)(**fields).new_instruction or "")
            except AdapterParseError as error:
                if (found := FENCE.search(str(error.lm_response))) is None:
                    raise
                text = found[1]
        if cut_off():
            raise EvaluationError("the new instruction was cut off (a larger max_tokens of reflection_lm allows more)")
        return "" if text.strip() == "None" else unfenced(text)

    def _told(self, attempt: Attempt, name: str, predictor: int) -> str:
        """One attempt in words; a metric that speaks of predictors is asked for its feedback on each once."""
        if predictor not in attempt.told:
            attempt.told[predictor] = self._in_words(attempt, name, predictor)
        return attempt.told[predictor]

    def _in_words(self, attempt: Attempt, name: str, predictor: int) -> str:
        example = self._attempts.trainset[attempt.example]
        inputs, outputs = attempt.steps.get(predictor, (dict(example.inputs()), {}))
        labels = {field: value for field, value in example.items() if field not in example.inputs()}
        said = attempt.said
        if said is None:
            own = [step for step in attempt.trace or () if _same(step, inputs)]
            said = feedback_of(self._attempts.metric, example, attempt.prediction, attempt.trace, (name, own))
        lines = [
            *(f"Input {field}: {_clipped(value)}" for field, value in inputs.items()),
            *(f"Output {field}: {_clipped(value)}" for field, value in outputs.items()),
            *(f"Expected in the end, {field}: {_clipped(value)}" for field, value in labels.items()),
            f"Score: {attempt.score:g}",
            *([f"Feedback: {_clipped(said)}"] if said else []),
        ]
        return "\n".join(lines)

    def _rollout(self, request: WriteRequest) -> Any:
        """A view of the language model that answers again."""
        lm = self._lm or dspy.settings.lm
        told = f"{self._seed}/{request.number}/{request.text}"
        return lm.copy(rollout_id=int(hashlib.sha256(told.encode()).hexdigest()[:8], 16), temperature=1.0)


def unfenced(text: str) -> str:
    """A text without the fence around it, if it is nothing but a fenced block, or one line before it that ends in a
    colon."""
    whole = FENCE.fullmatch(text.strip()) or ANNOUNCED.fullmatch(text.strip())
    return (whole[1] if whole else text).strip()


def _unread(
    error: AdapterParseError, example: Any, trace: Any, program: Module
) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What the predictor read whose answer could not be read, as far as that is known: no trace has its call.

    All steps there were, where it is not clear which one it is.
    """
    signature: Any = error.signature
    same = [i for i, each in enumerate(program.predictors()) if each.signature.equals(signature)]
    if len(same) != 1:
        return steps_of(trace, program)
    known = {**example.inputs(), **{name: value for _, _, outputs in trace for name, value in outputs.items()}}
    return {same[0]: ({name: known[name] for name in signature.input_fields if name in known}, {})}


def _same(step: Any, inputs: Mapping[str, Any]) -> bool:
    return step[1] is inputs


def _clipped(value: Any) -> str:
    """A value in words, or the beginning of it. An image, or another value that a request shows as such, is whole, or
    named by what it is: half of it would be none."""
    text = str(value)
    if len(text) > CLIP and CUSTOM_TYPE_START_IDENTIFIER in text:
        text = repr(value).replace(CUSTOM_TYPE_START_IDENTIFIER, "").replace(CUSTOM_TYPE_END_IDENTIFIER, "")
    return text if len(text) <= CLIP else f"{text[:CLIP]} [...]"

"""The writer: a new instruction for one predictor, from what went wrong on training examples."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from dspy.promptune.allocation.requests import UncalledError, WriteRequest, Written
from dspy.promptune.distributed.metrics import feedback_of, takes_predictor, verdict_of
from dspy.promptune.errors import EvaluationError
from dspy.promptune.limits.answers import unanswered
from dspy.promptune.reflection.replies import asking
from dspy.promptune.secrets import readable
from dspy.promptune.space import Key
from dspy.utils.exceptions import AdapterParseError

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["Attempt", "Attempts", "Reflector"]

SHOWN = 14  # attempts that a text is written from, at most
FAILED = 3  # of them failures, so that nothing more has to be run
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


@dataclass(frozen=True, eq=False)
class Attempt:
    """One run of a program on a training example.

    Attributes:
        example: Its number in the training set.
        score: By the metric.
        prediction: Of the whole program; empty where its answer could not be read.
        steps: What each predictor read and wrote, by its number; the last time, where it was called several times.
        trace: ``(predictor, inputs, outputs)`` of each call.
        said: What went wrong, where that is known without the metric, or what the metric said with the score; ``None``
            where it is to be asked.
        told: The attempt in words, by the number of the predictor, once it was shown.
        earlier: Whether it is of an earlier start: then ``told`` is all that is known.
    """

    example: int
    score: float
    prediction: Any
    steps: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]]
    trace: Any = field(default=None, repr=False)
    said: str | None = None
    told: dict[int, str] = field(default_factory=dict, repr=False)
    earlier: bool = False

    def tells(self, predictor: int) -> bool:
        """Whether there is something to show for a predictor: it was called, as far as a trace says who was."""
        return predictor in self.told if self.earlier else not self.steps or predictor in self.steps


class Attempts:
    """Attempts at training examples: those of step 1, which cost nothing more, and those of parents. Thread-safe.

    Args:
        trainset: The training examples.
        metric: The user's.
    """

    def __init__(self, trainset: Sequence[Any], metric: Callable[..., Any]) -> None:
        self.trainset, self.metric = list(trainset), metric
        self._asks_for_each = takes_predictor(metric)
        self._numbers = {id(example): i for i, example in enumerate(self.trainset)}
        self._free: list[Attempt] = []
        self._of: dict[Key, dict[int, Attempt]] = {}
        self._shown: set[tuple[int, int]] = set()  # free attempts that a text was written from, and for which predictor
        self._lock = threading.Lock()

    def found(self, example: Any, prediction: Any, trace: Any, score: float, program: Module) -> None:
        """Step 1 has run a program on an example."""
        i = self._numbers.get(id(example))
        if i is None or trace is None:
            return
        try:
            value, said = self.verdict(example, prediction)
        except Exception:  # a judge that gives no answer now gave one in step 1
            value, said = score, None
        with self._lock:
            self._free.append(Attempt(i, value, prediction, _steps(trace, program), trace, said))

    def verdict(self, example: Any, prediction: Any) -> tuple[float, str | None]:
        """The score as a search has it, without a trace: with one, many metrics return another; and what they say.

        What a metric says about a predictor is to be asked for each, ``None``.
        """
        value, said = verdict_of(self.metric, example, prediction)
        return value, None if self._asks_for_each else said

    def remember(self, noted: Mapping[str, Any]) -> None:
        """An attempt of an earlier start, as :class:`Reflector` wrote it down."""
        predictor, key = noted["predictor"], noted["of"]
        attempt = Attempt(noted["example"], noted["score"], None, {}, told={predictor: noted["told"]}, earlier=True)
        if key is not None:
            self.add(tuple(key), attempt)
            return
        with self._lock:
            self._shown.add((len(self._free), predictor))
            self._free.append(attempt)

    def add(self, key: Key, attempt: Attempt) -> None:
        """A parent was run on an example."""
        with self._lock:
            self._of.setdefault(key, {})[attempt.example] = attempt

    def free(self, predictor: int) -> list[Attempt]:
        """Attempts of step 1 from which nothing was written for a predictor, failures first; now they count as used.

        None where there are too few failures among them.
        """
        with self._lock:
            free = [(j, one) for j, one in enumerate(self._free) if one.tells(predictor)]
            new = [one for j, one in free if (j, predictor) not in self._shown]
            is_failure = self._failing()
            by_example = {one.example: one for one in new}
            chosen = sorted(by_example.values(), key=lambda one: not is_failure(one))[:SHOWN]
            if sum(map(is_failure, chosen)) < FAILED:
                return []
            self._shown.update((j, predictor) for j, one in enumerate(self._free) if one in chosen)
            return chosen

    def of(self, key: Key) -> dict[int, Attempt]:
        """Attempts of one prompt, by example."""
        with self._lock:
            return dict(self._of.get(key, {}))

    def _failing(self) -> Callable[[Attempt], bool]:
        """Tells failures: attempts with less than the best score there was, of scores that may be below 0."""
        known = itertools.chain(self._free, *(row.values() for row in self._of.values()))
        scores = [one.score for one in known] or [0.0]
        best = max(scores) if max(scores) or min(scores) else 1e-9  # where all have nothing, all have failed
        return lambda attempt: attempt.score < best

    def chosen(self, key: Key, predictor: int, rng: random.Random) -> list[Attempt]:
        """At most ``SHOWN`` attempts, one an example, drawn at random: a parent's failures first, then others'.

        What other prompts failed on shows what the task asks for, and costs nothing more.
        """
        with self._lock:
            own = {i: one for i, one in self._of.get(key, {}).items() if one.tells(predictor)}
            rows = [row for other, row in self._of.items() if other != key]
            tried = [*self._free, *(one for row in rows for one in row.values())]
            others = [one for one in tried if one.example not in own and one.tells(predictor)]
            shown = rng.sample(list(own.values()), len(own)) + rng.sample(others, len(others))
            is_failure = self._failing()
            groups = (is_failure, lambda one: not is_failure(one) and one.example in own)
            ordered = [one for group in groups for one in shown if group(one)]
            return list({one.example: one for one in reversed(ordered)}.values())[::-1][:SHOWN]


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
        """One text, the calls that it took, and what it was written from.

        Raises:
            Exception: The language model could not be reached for the evidence.
        """
        program = self._program(request.parent)
        name = program.named_predictors()[request.predictor][0]
        shown, key = self._attempts.free(request.predictor), None
        new = shown
        if not shown:
            key = tuple(request.parent.values())
            shown, new = self._of_parent(request, program)
        text, failed = "", None
        try:
            if not shown:
                raise UncalledError(f"no training example that was tried called {name}, so there is nothing to learn")
            text = self._revised(request, program, shown)
        except Exception as error:  # what the evidence took counts all the same
            failed = error
        evidence = self._evidence(new, key, name, request.predictor)
        calls = (len(new) if key else 0) + bool(shown)
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

    def _of_parent(self, request: WriteRequest, program: Module) -> tuple[list[Attempt], list[Attempt]]:
        """Attempts to show, and which of them are new: of the parent, at examples that it had not tried yet."""
        key, rng = tuple(request.parent.values()), random.Random(f"{self._seed}/{request.number}")
        known = self._attempts.of(key)
        fresh = [i for i in range(len(self._attempts.trainset)) if i not in known]
        new = rng.sample(fresh, min(PAID, len(fresh)))
        tried = [self._tried(program, i) for i in new]
        for attempt in tried:
            self._attempts.add(key, attempt)
        return self._attempts.chosen(key, request.predictor, rng), tried

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
                steps = _steps(dspy.settings.trace or (), program)
                return failed(steps, None, f"The program raised: {readable(error)}")
            trace = list(dspy.settings.trace)
            steps = _steps(trace, program)
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


def _steps(trace: Any, program: Module) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What each predictor of a program read and wrote.

    A copy of a predictor, such as ``dspy.BestOfN`` runs, stands for the only one that has its signature.
    """
    predictors = program.predictors()
    numbers = {id(each): i for i, each in enumerate(predictors)}
    steps: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for called, inputs, outputs in trace:
        if id(called) in numbers:
            same = [numbers[id(called)]]
        else:
            same = [i for i, each in enumerate(predictors) if each.signature.equals(called.signature)]
        if len(same) == 1:
            steps[same[0]] = (inputs, dict(outputs.items()))
    return steps


def _unread(
    error: AdapterParseError, example: Any, trace: Any, program: Module
) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What the predictor read whose answer could not be read, as far as that is known: no trace has its call.

    All steps there were, where it is not clear which one it is.
    """
    signature: Any = error.signature
    same = [i for i, each in enumerate(program.predictors()) if each.signature.equals(signature)]
    if len(same) != 1:
        return _steps(trace, program)
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

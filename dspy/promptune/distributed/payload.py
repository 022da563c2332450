"""What travels between a run and the workers of an executor: blocks of examples there, plain records back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cloudpickle

import dspy
from dspy.clients.base_lm import BaseLM
from dspy.promptune.distributed.programs import EvaluationRules
from dspy.promptune.errors import OptionError
from dspy.promptune.limits.budgets import STEP, BudgetLimits
from dspy.promptune.limits.gateway import GATEWAY
from dspy.promptune.limits.task import TASK
from dspy.promptune.limits.views import without_gateway
from dspy.promptune.secrets import cause, is_secret, said, secrets_of

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["ENVIRONMENT", "KEYS", "Frame", "JobPayload", "PayloadBuilder", "Record", "check_executor"]

ENVIRONMENT = "environment"
KEYS = (None, ENVIRONMENT)
STAYS = (  # settings of DSPy that mean something in the process of the run only
    "branch_idx", "caller_modules", "caller_predict", "callbacks", "num_threads", "send_stream", "stream_listeners",
    "trace", "usage_tracker", GATEWAY, STEP, TASK,
)  # fmt: skip
DEPTH = 8  # how deep an object is searched for what cannot be pickled


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What all blocks of a run have in common: how programs are scored, and DSPy's settings."""

    metric: Callable[..., Any]
    settings: Mapping[str, Any]
    max_errors: int
    failure_score: float
    retries: int
    timeout: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class JobPayload:
    """One block: a program and the examples to run it on, pickled, for one worker.

    Its ``repr`` shows no content: executors write their tasks' arguments into their logs.

    Attributes:
        ticket: A name that no other block has.
        frame: A :class:`Frame`.
        program: The candidate.
        examples: The validation examples of the block.
        threads: Examples at once, and language-model calls in flight, at most.
        allowance: What the block may spend.
        silent: Positions of examples to which replies were empty, while others have been answered since.
        stop: A file; once it is there, the run was stopped.
    """

    ticket: str
    frame: bytes
    program: bytes
    examples: bytes
    threads: int
    allowance: BudgetLimits = field(default_factory=BudgetLimits)
    silent: Sequence[int] = ()
    stop: str = ""

    def __repr__(self) -> str:
        return f"JobPayload({self.ticket})"


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a block ended. Examples are named by their position in it.

    Attributes:
        scores: Scores of the examples that were scored.
        raised: Examples on which program or metric raised, which have no score here, and what they raised.
        refused: Whether a language model gave no answer to one of these.
        unreadable: Number of answers that could not be read; they are scored.
        unread: Why, by example, for some of them.
        silent: Examples to which every reply was empty, here or, as the payload says, before.
        error: Why the block ended early, in words.
        transient: Whether trying again may help.
        broken: Whether it was the metric that returned no number.
        short: Whether it was the allowance that ended it.
        seconds: From its start to its end, on the worker.
        spent: Calls that reached a language model, tokens, and dollars (``cost``).
        counts: Calls made, shared, retried and refused, and examples given up.
        retry_after: Seconds for which a language model asked to be left alone.
        unpriced: Language models whose price would be needed and is not known.
        worker: Machine and process.
    """

    scores: Mapping[int, float] = field(default_factory=dict)
    raised: Mapping[int, str] = field(default_factory=dict)
    refused: bool = False
    unreadable: int = 0
    unread: Mapping[int, str] = field(default_factory=dict)
    silent: Sequence[int] = ()
    error: str | None = None
    transient: bool = False
    short: bool = False
    broken: bool = False
    seconds: float = 0.0
    spent: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    retry_after: float | None = None
    unpriced: Sequence[str] = ()
    worker: str = ""


def check_executor(executor: Any, keys: Any) -> None:
    """Refuse what is no executor, and an unknown place of the keys.

    Raises:
        OptionError: One of these.
    """
    if executor is not None and not isinstance(executor, Executor):
        raise OptionError(
            f"executor={executor!r}: it must be a concurrent.futures.Executor, such as ProcessPoolExecutor(8) or "
            "dask.distributed.Client(...).get_executor(), or None for threads."
        )
    if keys not in KEYS:
        raise OptionError(f'executor_keys={keys!r}: it must be None (keys travel) or "environment" (of the worker).')
    if keys is not None and executor is None:
        raise OptionError(f"executor_keys={keys!r} needs executor=: threads have the keys of this process.")


class PayloadBuilder:
    """Pickles what a worker needs. The settings of DSPy are those of the context that calls it first.

    Args:
        rules: How programs are scored.
        keys: ``"environment"`` takes keys, tokens and headers out of the language models' settings.
    """

    def __init__(self, rules: EvaluationRules, keys: str | None = None) -> None:
        self._rules, self._keyless = rules, keys == ENVIRONMENT
        self._frame: bytes | None = None
        self._secrets: set[str] = set()

    def check(self, program: Module, executor: Executor) -> None:
        """Refuse, before anything is paid for, what cannot travel, and an executor whose workers do not start.

        Raises:
            OptionError: Program, metric, setting or example that cannot be pickled, with the name of the attribute; or
                a pool that is shut down, or whose processes end.
        """
        if isinstance(executor, (ProcessPoolExecutor, ThreadPoolExecutor)):  # others may have to wait for a cluster
            try:
                executor.submit(int).result()
            except Exception as error:
                raise OptionError(
                    f"executor={type(executor).__name__}: its workers do not start ({said(error)}). Give one that is "
                    'not shut down; a script that starts processes does so under `if __name__ == "__main__":`.'
                ) from error
        self.frame()
        self.program(program)
        self.examples(range(len(self._rules.valset)))

    def frame(self) -> bytes:
        """What all blocks have in common."""
        if self._frame is None:
            rules = self._rules
            settings = {name: value for name, value in dspy.settings.copy().items() if name not in STAYS}
            for name, value in settings.items():
                settings[name] = self._lm(value) if isinstance(value, BaseLM) else value
            frame = Frame(
                metric=rules.metric,
                settings=settings,
                max_errors=rules.max_errors,
                failure_score=rules.failure_score,
                retries=rules.retries,
                timeout=rules.timeout,
            )
            parts = {"metric": rules.metric, **{f"dspy.settings.{name}": each for name, each in settings.items()}}
            self._frame = self._pickled(frame, parts)
        return self._frame

    def program(self, program: Module) -> bytes:
        """A candidate, with its predictors' language models, without histories."""
        copied = program.deepcopy()
        for predictor in copied.predictors():
            if isinstance(getattr(predictor, "lm", None), BaseLM):
                predictor.lm = self._lm(predictor.lm)
        return self._pickled(copied, {"program": copied})

    def examples(self, indices: Iterable[int]) -> bytes:
        """Some of the validation examples."""
        examples = [self._rules.valset[index] for index in indices]
        return self._pickled(examples, {"valset": examples})

    def _lm(self, view: Any) -> Any:
        """A language model as it travels: the model itself, without its history, and if asked without its keys."""
        lm = without_gateway(view).copy()
        if self._keyless:
            self._secrets |= secrets_of(lm)
            lm.kwargs = {name: value for name, value in lm.kwargs.items() if not is_secret(name)}
            for name, value in vars(lm).items():
                if is_secret(name) and isinstance(value, (str, dict)):
                    setattr(lm, name, type(value)() if isinstance(value, dict) else None)
        return lm

    def _pickled(self, value: Any, parts: Mapping[str, Any]) -> bytes:
        try:
            pickled: bytes = cloudpickle.dumps(value)
        except Exception as error:
            raise OptionError(_reason(parts, error)) from cause(error)
        if any(secret.encode() in pickled for secret in self._secrets):
            raise OptionError(
                f'executor_keys="environment": {" or ".join(parts)} holds a key of a language model: let it read the '
                "key from the environment, or leave executor_keys out."
            )
        return pickled


def _reason(parts: Mapping[str, Any], error: Exception) -> str:
    """Which attribute cannot be pickled, and what to do about it."""
    for name, value in parts.items():
        if not _travels(value):
            path, culprit = _culprit(name, value, DEPTH)
            return (
                f"executor=: {path} ({type(culprit).__name__}) cannot be pickled, so it cannot travel to a worker: "
                "make it where it is used, or leave it out in the object's __getstate__."
            )
    return f"executor=: {' or '.join(parts)} cannot be pickled: {said(error)}. Leave executor out, or fix that."


def _culprit(path: str, value: Any, depth: int) -> tuple[str, Any]:
    """The innermost thing that cannot be pickled, and the way to it."""
    for name, each in _inside(value) if depth else ():
        if not _travels(each):
            return _culprit(f"{path}{name}", each, depth - 1)
    return path, value


def _inside(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{name!r}]", each) for name, each in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [(f"[{i}]", each) for i, each in enumerate(value)]
    found = [(f".{name}", each) for name, each in getattr(value, "__dict__", {}).items()]
    closure = getattr(value, "__closure__", None) or ()
    names = value.__code__.co_freevars if closure else ()
    found.extend((f" with its variable {name}", each.cell_contents) for name, each in zip(names, closure, strict=True))
    return found


def _travels(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True

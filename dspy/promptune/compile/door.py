"""What a compile is given, looked at before anything is called."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dspy
from dspy.promptune.counted import counted
from dspy.promptune.distributed.metrics import check_metric
from dspy.promptune.errors import OptionError, SpaceError
from dspy.promptune.options import check_integer

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["check_lms", "check_program", "checked_options", "lms_of", "split_size"]

logger = logging.getLogger(__name__)

DEPTH = 5  # containers within containers that are looked into for predictors
RESULTS = {"trial_logs", "candidate_programs", "mb_candidate_programs", "optimization_run"}  # of an earlier compile


def checked_options(given: Mapping[str, Any], metric: Any) -> dict[str, Any]:
    """Upstream's options of ``compile``, the data sets as lists.

    Raises:
        OptionError: A metric that cannot score, examples without inputs, ``minibatch_full_eval_steps`` below 1.
    """
    check_metric(metric)
    if given["minibatch"]:
        check_integer("minibatch_full_eval_steps", given["minibatch_full_eval_steps"], 1)
    sets = {name: checked_examples(name, given[name]) for name in ("trainset", "valset")}
    return {**given, **sets}


def checked_examples(name: str, examples: Any) -> Any:
    """A data set as a list; generators are read, ``None`` is left to upstream.

    Raises:
        OptionError: It is no list, or something in it is no example or has no inputs.
    """
    if examples is None:
        return None
    if not isinstance(examples, Iterable) or isinstance(examples, (str, bytes, Mapping)):
        raise OptionError(f"{name}={examples!r:.80}: give a list of dspy.Example.")
    found = examples if isinstance(examples, list) else list(examples)
    for number, example in enumerate(found):
        if not hasattr(example, "inputs"):
            raise OptionError(f"Example {number} of {name} is a {type(example).__name__}: give a list of dspy.Example.")
        if getattr(example, "_input_keys", ()) is None:
            raise OptionError(
                f"Example {number} of {name} does not say which of its fields are inputs: make it with "
                f"dspy.Example(...).with_inputs({', '.join(map(repr, list(example.keys())[:1]))})."
            )
    return found


def check_program(student: Module) -> None:
    """Refuse a program that cannot be optimized, and say where it can be in part only.

    Raises:
        SpaceError: It has no predictors, or a copy of it has others.
    """
    name, predictors = type(student).__name__, student.predictors()
    if not hasattr(student, "forward"):
        remedy = "give dspy.syncify(program)" if hasattr(student, "aforward") else "define one"
        raise SpaceError(f"{name} has no forward(), by which it would be evaluated: {remedy}.")
    hidden = _hidden(student, {id(each) for each in predictors})
    if not predictors:
        where = f"; those in {', '.join(hidden)} are not seen by DSPy" if hidden else ""
        frozen = [path for path, module in student.named_sub_modules() if getattr(module, "_compiled", False)][:3]
        where += f"; compiled modules are frozen ({', '.join(frozen)}): set _compiled = False" if frozen else ""
        raise SpaceError(
            f"{name} has no predictors: nothing can be optimized{where}. Give a program with at least one dspy.Predict."
        )
    if hidden:
        logger.warning(
            "%s is optimized in part only: DSPy does not see predictors in containers within containers, such as %s. "
            "Keep them in attributes, or in lists and dictionaries that are attributes.", name, ", ".join(hidden[:3]),
        )  # fmt: skip
    copies = student.deepcopy().predictors()
    if len(copies) != len(predictors):
        raise SpaceError(
            f"A copy of {name} has {counted(len(copies), 'predictor')} instead of {len(predictors)}: something in it "
            "cannot be copied (a lock, a client, an open file), so predictors that it shares would be several. Leave "
            "it out of the program, or copy it in __deepcopy__."
        )
    if shared := {id(each) for each in copies} & {id(each) for each in predictors}:
        raise SpaceError(
            f"A copy of {name} shares {counted(len(shared), 'predictor')} with it, so all prompts would be one: what "
            "holds the predictor cannot be copied, as a dictionary with a lock, a client or an open file beside it. "
            "Keep the predictor in an attribute of its own."
        )


def _hidden(student: Module, known: set[int]) -> list[str]:
    """Where predictors are that DSPy does not find."""
    found: dict[int, str] = {}
    for path, module in student.named_sub_modules(skip_compiled=True):
        for name in () if getattr(module, "_compiled", False) else vars(module).keys() - RESULTS:
            for where, each in _predictors(f"{path}.{name}", getattr(module, name), DEPTH):
                if id(each) not in known:
                    found.setdefault(id(each), where.removeprefix("self."))
    return list(found.values())


def _predictors(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dspy.Predict):
        yield path, value
    elif isinstance(value, dspy.Module) and not getattr(value, "_compiled", False):
        for name, each in value.named_predictors():
            yield f"{path}.{name}", each
    elif depth and isinstance(value, Mapping):
        for name, each in value.items():
            yield from _predictors(f"{path}[{name!r}]", each, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for number, each in enumerate(value):
            yield from _predictors(f"{path}[{number}]", each, depth - 1)


def check_lms(**lms: Any) -> None:
    """Refuse what is no language model, such as its name."""
    for name, lm in lms.items():
        if isinstance(lm, str):
            raise OptionError(f"{name}={lm!r} is a text: give the language model, dspy.LM({lm!r}).")
        if lm is not None and not isinstance(lm, dspy.BaseLM):
            raise OptionError(
                f"{name}={lm!r:.80} is a {type(lm).__name__}: give a language model, such as dspy.LM(...)."
            )


def lms_of(program: Any) -> list[Any]:
    """The language models that predictors have of their own."""
    return [lm for lm in (getattr(each, "lm", None) for each in program.predictors()) if lm is not None]


def split_size(trainset: list[Any]) -> int:
    """Size of the validation set that upstream splits off."""
    return min(1000, max(1, int(len(trainset) * 0.80)))

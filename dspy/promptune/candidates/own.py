"""Candidates that users have already: put beside those of steps 1 and 2."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy.promptune.demos import demo_set_text, equal_candidates, is_demo_set
from dspy.promptune.errors import OptionError
from dspy.promptune.limits.answers import is_empty, whole

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["extended", "own_candidates"]


def own_candidates(name: str, given: Any, program: Module) -> dict[int, list[Any]]:
    """The user's candidates, by the number of their predictor.

    Args:
        name: ``"instructions"`` or ``"demo_sets"``: the option.
        given: A list of candidates, for a program of one predictor; or such a list for each predictor that gets some,
            by its name in ``program.named_predictors()`` or its number. ``None`` is no candidate.
        program: Whose predictors they are for.

    Raises:
        OptionError: A list for several predictors, a predictor that is unknown or there twice, an instruction that
            is not text or is empty, or a demo set that is not a list of examples of the predictor's fields.
    """
    named = program.named_predictors()
    names = [each for each, _ in named]
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise OptionError(
                f"{name}: the program has {len(names)} predictors, so say which it is for: "
                f"{name}={{{names[0]!r}: [...]}}. They are {', '.join(names)}."
            )
        given = {0: given}
    found: dict[int, list[Any]] = {}
    for predictor, candidates in given.items():
        if (number := _number(name, predictor, names)) in found:
            raise OptionError(
                f"{name}: predictor {predictor!r} is there twice, as {names[number]!r} and as {number}: "
                "give all of its candidates in one list."
            )
        found[number] = _checked(name, candidates, list(named[number][1].signature.fields))
    return found


def extended(candidates: Mapping[int, Sequence[Any]], own: Mapping[int, Sequence[Any]]) -> dict[int, list[Any]]:
    """The candidates of each predictor, with the user's behind them; what is there already is not repeated."""
    found = {i: list(each) for i, each in candidates.items()}
    for i, each in found.items():
        for one in own.get(i, ()):
            if not any(_alike(one, known) for known in each):
                each.append(one)
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two candidates make the same prompt: DSPy takes off the spaces around an instruction, and indentation."""
    if isinstance(one, str) and isinstance(other, str):
        return _shown(one) == _shown(other)
    return demo_set_text(one) == demo_set_text(other) and equal_candidates(one, other)


def _shown(instruction: str) -> list[str]:
    return inspect.cleandoc("\n".join(instruction.strip().splitlines())).splitlines()


def _number(name: str, predictor: Any, names: list[str]) -> int:
    if predictor in names:
        return names.index(predictor)
    if isinstance(predictor, int) and not isinstance(predictor, bool) and 0 <= predictor < len(names):
        return predictor
    known = f"{', '.join(names)}, or 0 to {len(names) - 1}"
    raise OptionError(f"{name}: predictor {predictor!r} is unknown; there are {known}.")


def _checked(name: str, candidates: Any, fields: list[str]) -> list[Any]:
    if isinstance(candidates, (str, bytes)):
        raise OptionError(f"{name}={candidates!r}: give a list of candidates, such as [{candidates!r}].")
    if not isinstance(candidates, Sequence):
        raise OptionError(f"{name}={candidates!r}: give a list of candidates, such as list(...) makes.")
    for one in candidates:
        if name == "instructions":
            if not isinstance(one, str) or is_empty(one):
                raise OptionError(f"{name}: {one!r} is no instruction: give texts that are not empty.")
        elif not is_demo_set(one):
            raise OptionError(f"{name}: {one!r} is no demo set: give lists of dspy.Example or of mappings.")
        else:
            for demo in one:
                if not any(field in fields for field, _ in demo.items()):
                    raise OptionError(f"{name}: {demo!r} has no field of its predictor: give {', '.join(fields)}.")
        if (text := demo_set_text(one)) != whole(text):
            raise OptionError(f"{name}: {one!r} holds half a character (a lone surrogate), which no model can be sent.")
    return list(candidates)

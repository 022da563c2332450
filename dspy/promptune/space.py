"""The prompt space: which prompts there are, and how a combination of candidates becomes a program."""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dspy.promptune.counted import counted
from dspy.promptune.demos import demo_set_text, first_equal, is_demo_set
from dspy.promptune.errors import SpaceError

if TYPE_CHECKING:
    import random

    from optuna.distributions import CategoricalDistribution, IntDistribution

    from dspy.primitives.module import Module

__all__ = ["Key", "Part", "PromptSpace"]

Key = tuple[int, ...]
"""A combination: one index a part, in the order instruction, demos of predictor 0, then of predictor 1, ..."""


@dataclass(frozen=True)
class Part:
    """One choice of a prompt: the instruction of a predictor, or its set of demos.

    Attributes:
        name: The parameter's name in a study, and the same as upstream's (``0_predictor_instruction``).
        predictor: Number of the predictor.
        kind: ``"instruction"`` or ``"demos"``.
        candidates: The choices, in the order of their indices; the same one may occur several times.
        parents: For each candidate that was written from another one of the part, the index of that one.
        written: For each candidate that a stored search appended, where that is stored.
    """

    name: str
    predictor: int
    kind: str
    candidates: tuple[Any, ...]
    parents: Mapping[int, int] = field(default_factory=dict, compare=False, repr=False)
    written: Mapping[int, str] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.candidates)

    def given(self, place: str | None = None) -> list[Any]:
        """The candidates without those that a stored search appended, that at ``place`` or, without it, any."""
        left_out = {i for i, where in self.written.items() if place in (None, where)}
        return [each for i, each in enumerate(self.candidates) if i not in left_out]

    @cached_property
    def first(self) -> tuple[int, ...]:
        """For each index, the index of the first candidate that is equal."""
        return first_equal(self.candidates)

    @cached_property
    def bare(self) -> tuple[bool, ...]:
        """Whether each candidate is a demo set without a demo; no instruction is."""
        if self.kind != "demos":
            return (False,) * len(self)
        return tuple(not (each.strip() if isinstance(each, str) else len(each)) for each in self.candidates)

    @cached_property
    def distinct(self) -> tuple[int, ...]:
        """The indices of candidates that no earlier one equals, in order."""
        return tuple(i for i, j in enumerate(self.first) if i == j)


class PromptSpace:
    """All combinations of candidate instructions and demo sets of a program's predictors.

    Equal candidates of a part (the same text, or the same demos in the same order) are one candidate: every index of
    it stands for the first one. Indices and study parameters keep the range of the lists that were given, while keys
    hold first indices only, so that equal prompts share their scores.

    Args:
        instructions: For each predictor ``0 .. V-1``, its candidate instructions (texts), at least one.
        demos: For the same predictors, their candidate demo sets; each is a list of ``dspy.Example`` or mappings,
            or a text. ``None`` for a zero-shot space: then a key holds the instructions' indices only.
        allowed: The keys that may be used, when not all combinations may. ``None`` allows all.

    Attributes:
        is_open: Whether candidates may be appended, see :meth:`open`.
        place: Where the search is stored that appends candidates now, if it is.

    Raises:
        SpaceError: No predictor, a predictor without candidates, an instruction that is not text, predictors of
            ``instructions`` and ``demos`` that differ, or a key in ``allowed`` that does not fit.
    """

    is_open = False
    place: str | None = None

    def __init__(
        self,
        instructions: Mapping[int, Sequence[str]],
        demos: Mapping[int, Sequence[Any]] | None = None,
        allowed: Iterable[Sequence[int]] | None = None,
    ) -> None:
        self.parts = _parts(instructions, demos)
        self.names: tuple[str, ...] = tuple(part.name for part in self.parts)
        self.sizes: tuple[int, ...] = tuple(len(part) for part in self.parts)
        self.allowed: tuple[Key, ...] | None = None
        if allowed is not None:
            keys = allowed if isinstance(allowed, Iterable) else [allowed]
            self.allowed = tuple(sorted({self._checked(key) for key in keys}))
            if not self.allowed:
                raise SpaceError("allowed is empty: a space needs at least one combination; pass None to allow all.")
        self._members = None if self.allowed is None else frozenset(self.allowed)

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.sizes))
        return f"PromptSpace({sizes} candidates, {counted(self.size, 'combination')})"

    @property
    def size(self) -> int:
        """How many different combinations there are; ``len`` is the same, but ends at ``sys.maxsize``."""
        if self.allowed is not None:
            return len(self.allowed)
        return math.prod(len(part.distinct) for part in self.parts)

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: object) -> bool:
        if self._members is not None:
            return key in self._members
        return isinstance(key, tuple) and self._fits(key) and key == self._firsts(key)

    def keys(self) -> Iterator[Key]:
        """All different combinations in lexicographic order; there are ``size`` of them, so mind large spaces."""
        if self.allowed is not None:
            return iter(self.allowed)
        return itertools.product(*(part.distinct for part in self.parts))

    def find(self, indices: Sequence[Any]) -> Key | None:
        """The key of the prompt that these indices of candidates stand for, one a part; ``None`` if there is none."""
        key = self._firsts(indices) if self._fits(indices) else None
        return key if key is not None and key in self else None

    def key(self, params: Mapping[str, int]) -> Key:
        """The key of a study's parameters.

        Raises:
            SpaceError: A parameter of the space is missing, or the combination is not in the space.
        """
        missing = [name for name in self.names if name not in params]
        if missing:
            raise SpaceError(f"Parameters without {missing[0]!r}: this space needs {', '.join(self.names)}.")
        key = self._checked([params[name] for name in self.names])
        if key not in self:
            raise SpaceError(f"Combination {key} is not among the {self.size:,} that this space allows.")
        return key

    def params(self, key: Key) -> dict[str, int]:
        """The study parameters of a key: ``{"0_predictor_instruction": 3, "0_predictor_demos": 1, ...}``."""
        return dict(zip(self.names, map(int, self._checked(key)), strict=True))

    def distributions(self) -> dict[str, CategoricalDistribution] | dict[str, IntDistribution]:
        """The search space in Optuna's terms: ``study.ask(space.distributions())``.

        Categories are fixed once a study has a trial, the ends of integer ranges are not: a closed space has the
        first, an open one the second.
        """
        from optuna.distributions import CategoricalDistribution, IntDistribution

        if self.is_open:
            return {part.name: IntDistribution(0, len(part) - 1) for part in self.parts}
        return {part.name: CategoricalDistribution(range(len(part))) for part in self.parts}

    def open(self) -> PromptSpace:
        """A space of the same candidates to which more can be appended.

        Raises:
            SpaceError: Only some combinations are allowed: nothing says which of a new candidate's would be.
        """
        if self.allowed is not None:
            raise SpaceError("A space with allowed= cannot be opened: nothing says which new combinations it allows.")
        opened = copy.copy(self)
        opened.is_open = True
        return opened

    def append(self, name: str, candidate: Any, parent: int | None = None) -> int:
        """Add a candidate to an open space; keys and indices of the others stay.

        Args:
            name: The part, such as ``"0_predictor_instruction"``.
            candidate: A text, or a demo set.
            parent: Index of the candidate that it was written from, if any: it is believed to be about as good.

        Returns:
            The candidate's index, or that of the candidate which it equals.

        Raises:
            SpaceError: The space is not open, there is no such part or parent, or an instruction is not text.
        """
        if not self.is_open:
            raise SpaceError("Candidates cannot be appended to this space: open() gives one that grows.")
        if name not in self.names:
            raise SpaceError(f"Part {name!r} is unknown: this space has {', '.join(self.names)}.")
        i = self.names.index(name)
        part = self.parts[i]
        if part.kind == "instruction" and not isinstance(candidate, str):
            raise SpaceError(f"Instruction {candidate!r} is {type(candidate).__name__}: it must be text.")
        if parent is not None and not 0 <= parent < len(part):
            raise SpaceError(f"Parent {parent} of {name}: there are {len(part)} candidates, so 0 to {len(part) - 1}.")
        parents = part.parents if parent is None else {**part.parents, len(part): part.first[parent]}
        written = part.written if self.place is None else {**part.written, len(part): self.place}
        grown = replace(part, candidates=(*part.candidates, candidate), parents=parents, written=written)
        if grown.first[-1] < len(part):
            return grown.first[-1]
        self.parts = (*self.parts[:i], grown, *self.parts[i + 1 :])
        self.sizes = tuple(map(len, self.parts))
        return len(part)

    def texts(self, part: int) -> list[str]:
        """The candidates of a part as texts, in their order; a demo set is written out field by field."""
        return [demo_set_text(candidate) for candidate in self.parts[part].candidates]

    def pool(self, max_size: int, rng: random.Random, leaders: Iterable[Key] = ()) -> list[Key]:
        """The combinations worth looking at now: at most about ``max_size`` distinct keys.

        A space of no more than ``max_size`` combinations is listed whole. Otherwise half of the pool is the
        ``leaders`` and their one-swap neighbors (one part changed), taken leader by leader, and the rest is random.

        Args:
            max_size: Length of the pool, at least 1.
            rng: Source of randomness; the same state gives the same pool.
            leaders: Keys that must be in the pool, best first. They are kept even where they alone exceed the size.
        """
        if max_size < 1:
            raise SpaceError(f"max_size={max_size}: a pool needs at least 1 combination.")
        if self.size <= max_size:
            return list(self.keys())
        chosen = dict.fromkeys(leaders)
        near = max(len(chosen), max_size // 2)
        for neighbor in itertools.chain.from_iterable(map(self._neighbors, list(chosen))):
            if len(chosen) >= near:
                break
            chosen.setdefault(neighbor)
        self._fill(chosen, max_size, rng)
        return list(chosen)

    def build(self, program: Module, key: Key) -> Module:
        """A copy of ``program`` whose predictors carry the instructions and demos of ``key``.

        Raises:
            SpaceError: The program has another number of predictors than the space.
        """
        candidate: Module = program.deepcopy()
        predictors = candidate.predictors()
        expected = 1 + max(part.predictor for part in self.parts)
        if len(predictors) != expected:
            has = counted(len(predictors), "predictor")
            raise SpaceError(f"The program has {has}, the space {expected}: build the space from it.")
        for part, index in zip(self.parts, self._checked(key), strict=True):
            predictor = predictors[part.predictor]
            if part.kind == "instruction":
                predictor.signature = predictor.signature.with_instructions(part.candidates[index])
            else:
                predictor.demos = list(part.candidates[index])
        return candidate

    def _neighbors(self, key: Key) -> Iterator[Key]:
        if self.allowed is not None:
            beside = (self._beside.get((i, key[:i] + key[i + 1 :]), ()) for i in range(len(key)))
            return iter(sorted({other for keys in beside for other in keys} - {key}))
        return ((*key[:i], j, *key[i + 1 :]) for i, part in enumerate(self.parts) for j in part.distinct if j != key[i])

    @cached_property
    def _beside(self) -> Mapping[tuple[int, Key], Sequence[Key]]:
        """The allowed keys by a part and what they have in all the others."""
        found: defaultdict[tuple[int, Key], list[Key]] = defaultdict(list)
        for key in self.allowed or ():
            for i in range(len(key)):
                found[i, key[:i] + key[i + 1 :]].append(key)
        return found

    def _fill(self, chosen: dict[Key, None], size: int, rng: random.Random) -> None:
        if self.allowed is not None:
            for key in rng.sample(self.allowed, min(size, len(self.allowed))):
                if len(chosen) >= size:
                    return
                chosen.setdefault(key)
        while len(chosen) < size:
            chosen.setdefault(tuple(part.distinct[rng.randrange(len(part.distinct))] for part in self.parts))

    def _fits(self, indices: Sequence[Any]) -> bool:
        return len(indices) == len(self.sizes) and all(
            isinstance(i, int) and not isinstance(i, bool) and 0 <= i < n
            for i, n in zip(indices, self.sizes, strict=True)
        )

    def _firsts(self, indices: Sequence[int]) -> Key:
        return tuple(part.first[int(i)] for part, i in zip(self.parts, indices, strict=True))

    def _checked(self, key: Sequence[int]) -> Key:
        if not isinstance(key, Sequence):
            raise SpaceError(f"Key {key!r}: give one index a part, for {', '.join(self.names)}.")
        if len(key) != len(self.sizes):
            wanted = f"{len(self.sizes)} ({', '.join(self.names)})"
            raise SpaceError(f"Key {tuple(key)} is of length {len(key)}: this space needs {wanted}.")
        for name, index, size in zip(self.names, key, self.sizes, strict=True):
            if not 0 <= index < size:
                raise SpaceError(f"Index {index} of {name}: there are {size} candidates, so 0 to {size - 1}.")
        return self._firsts(key)


def instruction_name(predictor: int) -> str:
    """The name of the part that is the instruction of a predictor, and of its parameter in a study."""
    return f"{predictor}_predictor_instruction"


def _parts(instructions: Mapping[int, Sequence[str]], demos: Mapping[int, Sequence[Any]] | None) -> tuple[Part, ...]:
    for name, given in {"instructions": instructions, "demos": {} if demos is None else demos}.items():
        if not isinstance(given, Mapping):
            raise SpaceError(f"{name}={given!r:.80}: give a dict of lists, {{predictor: candidates}}.")
    predictors = range(len(instructions))
    if not instructions or set(instructions) != set(predictors):
        raise SpaceError(f"Predictors {sorted(instructions)}: number them 0 to V-1, with at least one predictor.")
    if demos is not None and set(demos) != set(predictors):
        raise SpaceError(f"demos has predictors {sorted(demos)}, instructions {sorted(instructions)}: they must agree.")
    parts = []
    for i in predictors:
        texts = _listed(f"instructions of predictor {i}", instructions[i], "texts")
        for text in texts:
            if not isinstance(text, str):
                raise SpaceError(f"Instruction {text!r} of predictor {i} is {type(text).__name__}: it must be text.")
        parts.append(Part(instruction_name(i), i, "instruction", texts))
        if demos is not None:
            sets = _listed(f"demo sets of predictor {i}", demos[i], "demo sets, each a list of examples")
            for one in sets:
                if not isinstance(one, str) and not is_demo_set(one):
                    raise SpaceError(f"Demo set {one!r:.80} of predictor {i}: give a list of dspy.Example or mappings.")
            parts.append(Part(f"{i}_predictor_demos", i, "demos", sets))
    for part in parts:
        if not part.candidates:
            raise SpaceError(f"{part.name} has no candidates: give at least one, such as the program's own.")
    return tuple(parts)


def _listed(what: str, given: Any, wanted: str) -> tuple[Any, ...]:
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise SpaceError(f"The {what} are {given!r:.80}: give a list of {wanted}.")
    return tuple(given)

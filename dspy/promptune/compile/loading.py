"""What depends on the sampler: its parts, tried before a language model is called, and loaded while it answers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dspy.promptune.compile.options import CompileOptions
from dspy.promptune.options import embedder_of
from dspy.promptune.space import PromptSpace, instruction_name

if TYPE_CHECKING:
    from dspy.primitives.module import Module
    from dspy.promptune.storage.run_store import RunStore

__all__ = ["by_blocks", "check_embedder", "load", "ours", "searches_early"]


def by_blocks(options: CompileOptions) -> bool:
    """Whether the search decides by itself how many examples each prompt deserves."""
    return ours(options) and options.minibatch_size is None


def ours(options: CompileOptions) -> bool:
    """Whether the sampler is one of this package's, which knows what the parts of a prompt mean."""
    return embedder_of(options.sampler, options.sampler_options) is not None


def searches_early(options: CompileOptions, books: RunStore, instructions: Mapping[int, Sequence[str]]) -> bool:
    """Whether the search begins with these instructions, while others are proposed.

    It does where instructions come during the search anyway, and the same seed need not give the same trials. A
    search that is taken up again begins as it did.
    """
    begun = None if books.store is None else books.store.study.user_attrs.get("candidates")
    if not options.reflect or begun is None:
        return options.reflect and options.schedule != "batch" and not options.share
    return all(len(begun[instruction_name(i)]) == len(each) for i, each in instructions.items())


def check_embedder(options: CompileOptions, program: Module) -> None:
    """Try the user's embedder on the program's own instructions, before a language model is called.

    What is packaged is not tried: it loads while the first two steps wait for answers.

    Raises:
        EmbeddingError: It is unknown, raises, or returns what are no vectors.
    """
    embedder = embedder_of(options.sampler, options.sampler_options)
    if embedder is None or (isinstance(embedder, str) and embedder in ("minilm", "onehot")):
        return
    from dspy.promptune.features import embed_parts

    embed_parts(PromptSpace({0: [each.signature.instructions for each in program.predictors()]}), embedder)


def load(options: CompileOptions, space: PromptSpace) -> None:
    """Import and load what step 3 needs. What goes wrong here goes wrong there again, and is told there."""
    with contextlib.suppress(Exception):
        importlib.import_module("dspy.promptune.samplers")
        embedder = embedder_of(options.sampler, options.sampler_options)
        if embedder in ("minilm", "ngram"):
            from dspy.promptune.features import embed_parts

            embed_parts(space, embedder)

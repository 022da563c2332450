"""From text to vectors: every candidate of every part of a prompt space, embedded once."""

from dspy.promptune.features.embed import EmbedderLike, embed_parts

__all__ = ["EmbedderLike", "embed_parts"]

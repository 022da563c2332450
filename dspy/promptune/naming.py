"""What a prompt is called in words."""

from __future__ import annotations

from dspy.promptune.space import Key, PromptSpace

__all__ = ["prompt_name"]

WORDS = {"instruction": "instruction", "demos": "demo set"}


def prompt_name(space: PromptSpace, key: Key) -> str:
    """A combination as people say it: ``instruction 3 with demo set 1``; of several predictors, in their order,
    ``instructions 3/0 with demo sets 1/2``. All zeros are ``the original prompt``.
    """
    if not any(key):
        return "the original prompt"
    chosen: dict[str, list[str]] = {}
    for part, index in zip(space.parts, key, strict=True):
        chosen.setdefault(WORDS[part.kind], []).append(str(index))
    return " with ".join(f"{word}{'s' * (len(found) > 1)} {'/'.join(found)}" for word, found in chosen.items())

"""What the server answers: a prompt read back from DSPy's chat format, and rules from prompts to texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tests.server.behavior import Messages, digest, unit

HEADER = re.compile(r"^\[\[ ## (\w+) ## \]\]\s*$", re.MULTILINE)
OBJECTIVE = "your objective is:"
PROPOSER = ("observations", "summary", "program_description", "module_description", "proposed_instruction")


@dataclass(frozen=True)
class Prompt:
    """A request of DSPy's ChatAdapter, taken apart: instruction, demos (texts), input fields, names of the outputs."""

    instruction: str
    demos: tuple[str, ...]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]

    @classmethod
    def read(cls, messages: Messages) -> Prompt:
        """Take the messages apart; a request in another format has its whole text as the only input ``text``."""
        texts = [_text(message["content"]) for message in messages]
        last = texts[-1]
        body, _, wanted = last.partition("\nRespond with the corresponding output fields")
        inputs = _fields(body) or {"text": last}
        outputs = [name for name in re.findall(r"\[\[ ## (\w+) ## \]\]", wanted) if name != "completed"]
        instruction = texts[0].partition(OBJECTIVE)[2].strip() if len(texts) > 1 else ""
        demos = tuple(f"{user}\n{answer}" for user, answer in zip(texts[1:-1:2], texts[2:-1:2], strict=False))
        return cls(instruction, demos, inputs, tuple(outputs))

    @cached_property
    def label(self) -> str:
        """What is asked for: the names of the output fields."""
        return ",".join(self.outputs) or "text"

    @cached_property
    def digest(self) -> str:
        """Stands for instruction and demos."""
        return digest(self.instruction, *self.demos)


def chat_text(outputs: Mapping[str, str]) -> str:
    """The outputs in the form that ChatAdapter reads."""
    return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in outputs.items()) + "\n\n[[ ## completed ## ]]"


@dataclass(frozen=True)
class Quality:
    """How often a prompt is answered rightly: ``base`` plus what its instruction and its demos bring.

    Both shares are decided by the texts (a hash, or ``instructions`` where the text is listed there), never by what
    the answer should be. No demos bring nothing.
    """

    base: float = 0.35
    instruction: float = 0.3
    demos: float = 0.3
    instructions: Mapping[str, float] = field(default_factory=dict)

    def of(self, prompt: Prompt) -> float:
        """The probability of a right answer, in [0, 1]."""
        worth = self.instructions.get(prompt.instruction)
        if worth is None:
            worth = unit("instruction", prompt.instruction)
        shots = unit("demos", *prompt.demos) * min(1.0, len(prompt.demos) / 3) if prompt.demos else 0.0
        return min(1.0, max(0.0, self.base + self.instruction * worth + self.demos * shots))


@dataclass(frozen=True)
class TaskRule:
    """A model that knows ``answers`` and gets each right or wrong by a hash of (instruction, demos, inputs).

    An input text found in ``answers`` is the question. The field ``answer`` carries the answer; every other field a
    text that starts with "sound" or "poor", and a "poor" input halves the probability of a right answer: so all
    predictors of a chain matter. DSPy's requests for instructions are answered with texts decided by the request.

    Args:
        answers: Right answer of each question.
        answer: Names of the fields that carry the answer.
        quality: Probability of a right answer, by prompt.
        wrong: Answers to be wrong with; by default those of ``answers``.
    """

    answers: Mapping[str, str]
    answer: tuple[str, ...] = ("answer", "label", "sentiment")
    quality: Quality = field(default_factory=Quality)
    wrong: Sequence[str] = ()

    def __call__(self, messages: Messages) -> str:
        prompt = Prompt.read(messages)
        if set(prompt.outputs) & set(PROPOSER):
            return chat_text({name: proposer_text(name, prompt) for name in prompt.outputs})
        right = self.right(prompt)
        return chat_text({name: self._field(name, prompt, right) for name in prompt.outputs}) if prompt.outputs else "?"

    def right(self, prompt: Prompt) -> bool:
        """Whether this prompt is answered rightly."""
        chance = self.quality.of(prompt) * (0.5 if any(v.startswith("poor") for v in prompt.inputs.values()) else 1.0)
        return unit("right", prompt.instruction, *prompt.demos, *prompt.inputs.values()) < chance

    def _field(self, name: str, prompt: Prompt, right: bool) -> str:
        mark = digest(name, prompt.instruction, *prompt.demos, *prompt.inputs.values())
        if name not in self.answer:
            return f"{'sound' if right else 'poor'} {name} {mark}"
        known = next((self.answers[text] for text in prompt.inputs.values() if text in self.answers), "unknown")
        if right:
            return known
        others = sorted(set(self.wrong or self.answers.values()) - {known}) or ["unknown"]
        return others[int(mark, 16) % len(others)]


def proposer_text(name: str, prompt: Prompt) -> str:
    """An answer to one of DSPy's own requests for observations, descriptions and instructions."""
    mark = digest(name, *prompt.inputs.values())
    if name == "proposed_instruction":
        return f"Read the input with care, follow guideline {mark}, and give the answer alone."
    return f"The {name.replace('_', ' ')} numbered {mark}."


@dataclass(frozen=True)
class TableRule:
    """Recorded answers by the digest of the last message; a request that is not in the table gets ``default``."""

    table: Mapping[str, str]
    default: str = "[[ ## answer ## ]]\nunknown\n\n[[ ## completed ## ]]"

    def __call__(self, messages: Messages) -> str:
        return self.table.get(digest(_text(messages[-1]["content"])), self.default)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    return "\n".join(str(part.get("text", "")) for part in content)


def _fields(body: str) -> dict[str, str]:
    pieces = HEADER.split(body)
    return dict(zip(pieces[1::2], (text.strip() for text in pieces[2::2]), strict=True))

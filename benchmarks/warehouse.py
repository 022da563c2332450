"""A made-up task of one or two steps on which optimizers that write instructions can be compared without a network.

Notes name a thing that arrived at a warehouse. The first predictor says of what kind it is, the second on which shelf
it goes; the score is graded. The language model (:class:`Warehouse`) answers rightly with a probability that depends
only on what the prompt says: whether the instruction has a rule for the thing, whether a demo shows it, how many rules
there are, and a little on the wording. Asked to write an instruction, by whomever and in whichever format, it keeps
most of the rules that stand in the request, and adds rules for some of the things that stand there with their right
answer. :meth:`Warehouse.true_score` is the exact expected score, in closed form.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import dspy

__all__ = ["Lineage", "SortAndPlace", "Warehouse", "metric"]

KINDS = ("fragile", "liquid", "textile", "metal", "paper")
SHELVES = ("north", "east", "south", "west", "cellar", "gate")
THINGS = (
    "a crate of lamps", "a drum of glue", "a bale of wool", "a box of hinges", "a roll of maps", "a case of mirrors",
    "a keg of vinegar", "a stack of sails", "a bag of rivets", "a ream of forms", "a tray of lenses", "a can of paint",
    "a bundle of rope", "a coil of wire", "a pile of atlases", "a chest of china", "a flask of oil", "a set of rugs",
)  # fmt: skip
WORDINGS = (
    "Work calmly and answer briefly.", "You help in a warehouse.", "Name what is asked for, nothing else.",
    "Consider what the thing is made of.", "Follow the rules of the house.", "One word is enough.",
    "Think of the people who carry it.", "Check the note twice.",
)  # fmt: skip
RULES = {
    "kind": re.compile(r"Treat ([^.,\n]+) as (\w+)\."),
    "shelf": re.compile(r"Put ([^.,\n]+) on shelf (\w+)\."),
}
SENTENCES = {"kind": "Treat {} as {}.", "shelf": "Put {} on shelf {}."}
ANSWERS = {"kind": KINDS, "shelf": SHELVES}
MARK = re.compile(r"\[\[ ## (\w+) ## \]\]")
REFERENCE = re.compile(r"Reference (R[0-9a-f]{8})\.")
KEPT = 0.6  # of the rules, in a useless text
WRONG_KIND = 0.5  # of the chance of the right shelf is left where the kind was wrong


class SortAndPlace(dspy.Module):
    """A note's kind, and then its shelf; with one step, the shelf alone."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.sort = dspy.Predict(dspy.Signature("note -> kind", "Say the kind.")) if steps == 2 else None
        fields = "note, kind -> shelf" if steps == 2 else "note -> shelf"
        self.place = dspy.Predict(dspy.Signature(fields, "Say the shelf."))

    def forward(self, note: str) -> Any:
        """Kind and shelf of one note."""
        if self.sort is None:
            return self.place(note=note)
        kind = self.sort(note=note).kind
        return dspy.Prediction(kind=kind, shelf=self.place(note=note, kind=kind).shelf)


def metric(gold: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None) -> Any:
    """0.4 for the kind and 0.6 for the shelf; 1 for the shelf alone where the program has one step."""
    right = {name: str(getattr(pred, name, "")).strip() == gold[name] for name in ANSWERS if name in pred}
    score = 0.4 * right["kind"] + 0.6 * right["shelf"] if "kind" in right else float(right.get("shelf", False))
    if pred_name is None:
        return score
    names = [name for name in right if pred_name.endswith("sort") == (name == "kind")] or list(right)
    words = {n: "right" if right[n] else f"wrong, right is {gold[n]}" for n in names}
    said = [f"The {n} {getattr(pred, n, None)} is {words[n]}." for n in names]
    return dspy.Prediction(score=score, feedback=" ".join(said))


class Warehouse(dspy.BaseLM):  # type: ignore[misc]
    """Task model, proposer and reflection model in one; thread-safe; answers depend on the request alone.

    Args:
        seed: Another world: other rules, other things known from the start.
        things: How many things there are (at most 18); the frequency falls with the rank.
        insight: Probability that a rule is seen for a thing that stands in the request with its right answer.
        error: Probability that such a rule is written down wrongly.
        forget: Probability that a rule in the request is left out.
        crowd: Loss of attention for each rule beyond six.
        rule_gain: What a right rule brings, of the way to certainty.
        demo_gain: What a demo of the thing brings, of the way to certainty.
        useless: Probability that a text has no new rule and only some of the old ones: it may be the same again.
    """

    forward_contract = "legacy"

    def __init__(
        self, seed: int = 0, *, things: int = 14, insight: float = 0.5, error: float = 0.1, forget: float = 0.07,
        crowd: float = 0.04, rule_gain: float = 0.95, demo_gain: float = 0.5, useless: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(model=f"warehouse/{seed}", model_type="chat", temperature=0.0, max_tokens=1000, cache=False)
        self.seed, self.insight, self.error, self.forget, self.crowd = seed, insight, error, forget, crowd
        self.gains, self.useless = (rule_gain, demo_gain), useless
        rng = random.Random(f"warehouse {seed}")
        self.things = rng.sample(THINGS, things)
        self.right = {thing: {name: rng.choice(ANSWERS[name]) for name in ANSWERS} for thing in self.things}
        weights = [(rank + 2) ** -0.8 for rank in range(things)]
        self.weight = {thing: w / sum(weights) for thing, w in zip(self.things, weights, strict=True)}
        self.known = {thing: rng.choice((0.2, 0.25, 0.3, 0.7)) for thing in self.things}
        self.calls = {"task": 0, "write": 0, "other": 0}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Warehouse:
        return self

    # ------------------------------------------------------------------ data and judge

    def examples(self, start: int, stop: int) -> list[Any]:
        """Notes with their right answers, decided by their numbers."""
        found = []
        for i in range(start, stop):
            rng = random.Random(f"note {self.seed} {i}")
            thing = rng.choices(self.things, [self.weight[each] for each in self.things])[0]
            note = f"Note {i}: {thing} has arrived, {rng.choice(('please store it', 'where to', 'it is heavy'))}."
            found.append(dspy.Example(note=note, **self.right[thing]).with_inputs("note"))
        return found

    def chance(self, thing: str, name: str, instruction: str, demos: str) -> float:
        """Of a right answer ``name`` for ``thing``, given what the prompt says."""
        rules = RULES[name].findall(instruction)
        count = sum(len(pattern.findall(instruction)) for pattern in RULES.values())
        attention = 1 / (1 + self.crowd * max(0, count - 6))
        p = self.known[thing] + 0.06 * (_unit("wording", _without_rules(instruction)) - 0.5)
        said = [answer for about, answer in rules if about == thing]
        if said:
            p = p + (1 - p) * self.gains[0] * attention if said[-1] == self.right[thing][name] else 0.08
        if thing in demos:
            p += max(0.0, 0.95 - p) * self.gains[1]
        return min(0.97, max(0.03, p))

    def true_score(self, program: Any) -> float:
        """Expected score of a program of :class:`SortAndPlace` over all things, by its instructions and demos."""
        prompts = [
            (each.signature.instructions, "\n".join(str(dict(demo).get("note", "")) for demo in each.demos))
            for each in program.predictors()
        ]
        total = 0.0
        for thing, weight in self.weight.items():
            shelf = self.chance(thing, "shelf", *prompts[-1])
            if len(prompts) == 2:
                kind = self.chance(thing, "kind", *prompts[0])
                total += weight * (0.4 * kind + 0.6 * shelf * (kind + WRONG_KIND * (1 - kind)))
            else:
                total += weight * shelf
        return total

    # ------------------------------------------------------------------ the model

    def forward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
        """Answer a note, or write an instruction."""
        texts = [_text(each["content"]) for each in messages or [{"content": prompt}]]
        body, _, wanted = texts[-1].rpartition("Respond with")
        asked = [name for name in MARK.findall(wanted) if name != "completed"]
        task = [name for name in asked if name in ANSWERS]
        if task and "[[ ## note ## ]]" in body:
            return self._say("task", _fields({name: self._answer(name, texts, body) for name in asked}))
        whole, salt = "\n".join(texts), f"{kwargs.get('rollout_id')} {kwargs.get('temperature')}"
        if "JSON object" in wanted:
            return self._say("write", json.dumps({n: self._write(whole, salt) for n in re.findall(r"`(\w+)`", wanted)}))
        if asked:
            written = {n: self._write(whole, salt) if "instruction" in n else "Notes of a warehouse." for n in asked}
            return self._say("write" if any("instruction" in n for n in asked) else "other", _fields(written))
        return self._say("write", f"```\n{self._write(whole, salt)}\n```")

    def _answer(self, name: str, texts: Sequence[str], body: str) -> str:
        instruction, demos = texts[0].partition("your objective is:")[2].strip(), "\n".join(texts[1:-1])
        thing = next((each for each in self.things if each in body), None)
        if thing is None:
            return ANSWERS[name][0]
        p = self.chance(thing, name, instruction, demos)
        given = body.partition("[[ ## kind ## ]]")[2].strip()
        if name == "shelf" and given and given != self.right[thing]["kind"]:
            p *= WRONG_KIND
        luck = instruction, demos, body
        if _unit("luck", self.seed, name, *luck) < p:
            return self.right[thing][name]
        others = [each for each in ANSWERS[name] if each != self.right[thing][name]]
        return others[int(_unit("wrong", name, *luck) * len(others))]

    def _write(self, text: str, salt: str) -> str:
        rng = random.Random(f"write {self.seed} {salt} {hashlib.sha256(text.encode()).hexdigest()}")
        if self.useless and rng.random() < self.useless:
            old = [(name, rule) for name, pattern in RULES.items() for rule in pattern.findall(text)]
            kept = [SENTENCES[name].format(*rule) for name, rule in old if rng.random() < KEPT]
            return " ".join([WORDINGS[0], *kept])
        said = []
        for name, pattern in RULES.items():
            rules = {about: answer for about, answer in pattern.findall(text) if rng.random() >= self.forget}
            for thing in self._shown(text, name):
                right = self.right[thing][name]
                if rules.get(thing) != right and rng.random() < self.insight:
                    rules[thing] = right if rng.random() >= self.error else rng.choice(ANSWERS[name])
            said += [SENTENCES[name].format(*rule) for rule in rules.items()]
        rng.shuffle(said)
        return " ".join([rng.choice(WORDINGS), *said])

    def _shown(self, text: str, name: str) -> list[str]:
        """The things whose right answer stands behind their note, before the next note begins."""
        shown = {}
        for piece in re.split(r"Note \d+: ", text)[1:]:
            thing = next((each for each in self.things if piece.startswith(each)), None)
            if thing is not None and re.search(rf"\b{self.right[thing][name]}\b", piece):
                shown[thing] = True
        return list(shown)

    def _say(self, kind: str, text: str) -> Any:
        with self._lock:
            self.calls[kind] += 1
        message = SimpleNamespace(content=text, tool_calls=None)
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        return SimpleNamespace(
            choices=[SimpleNamespace(message=message, finish_reason="stop")], usage=usage, model=self.model
        )


class Lineage(Warehouse):
    """A world of one step in which nothing in a text says how good it is: small gains add up over generations.

    A text ends with a reference, and is as good as its parent (the first reference in the request it was written from,
    or else the original instruction) and ``better`` more, with probability ``luck``, or else ``worse`` less.
    """

    def __init__(self, seed: int = 0, *, luck: float = 0.3, better: float = 0.1, worse: float = 0.05) -> None:
        super().__init__(seed)
        self.luck, self.steps = luck, (better, -worse)
        self.quality = {"": 0.45}

    def chance(self, thing: str, name: str, instruction: str, demos: str) -> float:
        """The quality of the text, and a little more where a demo shows the thing."""
        p = self.quality[_reference(instruction)]
        return min(0.97, p + max(0.0, 0.95 - p) * 0.1 if thing in demos else p)

    def _write(self, text: str, salt: str) -> str:
        own = f"{self.seed} {salt} {hashlib.sha256(text.encode()).hexdigest()}"
        rng, parent = random.Random(f"child {own}"), _reference(text)
        step = self.steps[rng.random() >= self.luck]
        name = f"R{hashlib.sha256(own.encode()).hexdigest()[:8]}"
        self.quality[name] = min(0.95, max(0.05, self.quality[parent] + step))
        words = (rng.choice(WORDINGS) for _ in range(3))
        return f"{' '.join(words)} Reference {name}."


def _reference(text: str) -> str:
    found = REFERENCE.search(text)
    return found[1] if found else ""


def _unit(*parts: object) -> float:
    """A number in [0, 1) decided by the texts."""
    return int(hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()[:13], 16) / 16**13


def _without_rules(instruction: str) -> str:
    for pattern in RULES.values():
        instruction = pattern.sub("", instruction)
    return " ".join(instruction.split())


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def _fields(values: dict[str, str]) -> str:
    body = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items())
    return f"{body}\n\n[[ ## completed ## ]]"

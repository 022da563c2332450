"""Values of any type in demos and examples are stored, and come back as they were."""

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import re
import uuid
from fractions import Fraction

import numpy as np
import pydantic
import pytest

import dspy
from dspy.promptune.cli import main
from dspy.promptune.identity.encoding import TAG, as_json, decode, encode, know_types, restorable
from dspy.promptune.identity.plain import plain
from tests.server import RuleLM, TaskRule


class Color(str, enum.Enum):
    """Values that are texts as well."""

    RED = "red"


class Level(enum.IntEnum):
    """Values that are numbers as well."""

    LOW = 1


class Item(pydantic.BaseModel):
    """A model with values of other types."""

    model_config = pydantic.ConfigDict(extra="allow")
    name: str
    when: datetime.date
    parts: list["Item"] = []


@dataclasses.dataclass(frozen=True)
class Point:
    """A dataclass that cannot be assigned to."""

    x: int
    tags: frozenset


Pair = collections.namedtuple("Pair", "left right")
DAY = datetime.date(2026, 1, 2)

VALUES = [
    None, True, 3, 1.5, float("inf"), "text", "half \ud83d", "\x00", [1, [2]], (1, (2,)), {1, 2}, frozenset({"a"}),
    b"\x00\xff", bytearray(b"a"), 1 + 2j, range(3), DAY, datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc),
    datetime.time(1, 2), datetime.timedelta(days=1, microseconds=5), decimal.Decimal("1.50"), Fraction(1, 3),
    uuid.UUID(int=5), pathlib.Path("a/b"), Color.RED, Level.LOW, Pair(1, "b"), Point(1, frozenset({"a"})),
    Item(name="a", when=DAY, parts=[Item(name="b", when=DAY)], more=Color.RED), {1: "a", (2, 3): DAY},
    {"example": 1, "inputs": 2}, {TAG: "set", "value": 3}, {"nested": {"set": {DAY}}},
    dspy.Image(url="data:image/png;base64,AAAA"), dspy.Audio(data="AAAA", audio_format="wav"),
    dspy.History(messages=[{"question": "a", "answer": "b"}]), np.float64(1.5), np.int64(3),
    dspy.Example(base="a", image=dspy.Image(url="https://a/b"), when=DAY).with_inputs("base"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_as_it_was(value):
    """Through JSON and back a value is equal and of the same type, and is said to be restorable."""
    found = decode(json.loads(json.dumps(encode(value))))
    assert found == value and type(found) is type(value) and restorable(value)
    if isinstance(value, dspy.Example):
        assert found.inputs().toDict() == value.inputs().toDict()


def test_an_array_comes_back_as_it_was():
    """Arrays keep numbers, type and shape."""
    value = np.arange(6, dtype="float32").reshape(2, 3)
    found = decode(encode(value))
    assert np.array_equal(found, value) and found.dtype == value.dtype


def test_a_model_that_a_function_defines_comes_back_where_its_signature_is_known():
    """A local class is found by the signature that names it; without that a mapping stands for it."""

    def make():
        class Local(pydantic.BaseModel):
            name: str

        return Local

    first, second = make(), make()
    written = encode([first(name="a")])
    know_types(list[second])
    (found,) = decode(written)
    assert found.name == "a" and type(found) in (first, second)
    assert decode({TAG: "model", "type": "nowhere:None", "value": {"name": "a"}}) == {"name": "a"}


def test_what_has_no_form_is_not_said_to_be_restorable():
    """Objects without a form, whole or inside of others, are found; a text stands for them."""

    class Text(str):
        __slots__ = ()

    for value in (object(), [object()], {"a": {"b": Text("c")}}, dspy.Prediction(a=1)):
        assert not restorable(value)
    assert encode(Text("c")) == "c" and "0x" not in as_json(encode(object()))


def test_no_type_is_loaded_for_a_value():
    """A name in a file loads no module and calls nothing."""
    for name in ("antigravity:fly", "os:system", "subprocess:Popen", "builtins:eval"):
        for kind in ("model", "enum", "dataclass", "namedtuple"):
            assert decode({TAG: kind, "type": name, "value": {"args": "true"}}) == {"args": "true"}


QUESTIONS = {f"What is the code of item {i}?": str(i % 5) for i in range(24)}


class Answer(pydantic.BaseModel):
    """A typed answer, whose note differs each time it is made."""

    code: str
    note: str


class Worded(TaskRule):
    """Answers with a model in JSON, worded again each time."""

    def __init__(self):
        super().__init__(QUESTIONS)
        self.said = 0

    def __call__(self, messages):
        text = super().__call__(messages)
        self.said += 1
        return re.sub(
            r"(## answer ## \]\]\n)([^\n]*)", lambda m: m[1] + json.dumps({"code": m[2], "note": str(self.said)}), text
        )


def same_code(example, prediction, trace=None):
    """Whatever the note says."""
    return example.answer.code == prediction.answer.code


def typed(lm, place, **options):
    """A compile of a program with a typed answer."""
    pairs = [dspy.Example(question=q, answer=Answer(code=a, note="")) for q, a in QUESTIONS.items()]
    data = [each.with_inputs("question") for each in pairs]
    with dspy.context(lm=lm):
        program = dspy.Predict(dspy.Signature("question -> answer").with_updated_fields("answer", type_=Answer))
        return dspy.MIPROv2(metric=same_code, auto=None, num_candidates=3, num_threads=2, seed=1).compile(
            program, trainset=data[:10], valset=data[10:], num_trials=3, minibatch_size=7, sampler="random", n_jobs=2,
            storage=place, **options,
        )  # fmt: skip


def test_a_run_with_typed_demos_is_resumed_and_exported(tmp_path):
    """Demos with models are the same at the next start though the model rewords them; the program loads."""
    place = str(tmp_path / "runs.db")
    first = typed(RuleLM(Worded()), place)
    lm = RuleLM(Worded())
    again = typed(lm, place, resume=True)
    assert not [call for call in lm.calls if call.label != "answer"] and not lm.calls
    demos = [demo for demo in again.demos if "answer" in demo]
    assert again.score == first.score and all(type(demo.answer) is Answer for demo in demos)
    assert main(["export", place, "--program", str(tmp_path / "program.json")]) == 0
    loaded = dspy.Predict(dspy.Signature("question -> answer").with_updated_fields("answer", type_=Answer))
    loaded.load(tmp_path / "program.json")
    assert [Answer.model_validate(demo["answer"]) for demo in loaded.demos if "answer" in demo] == [
        demo.answer for demo in demos
    ]


def test_plain_values_of_a_program():
    """A program's file holds values as upstream's ``save`` writes them, and those it refuses in the obvious form."""
    value = {
        "color": Color.RED, "when": DAY, "sum": decimal.Decimal("1.5"), "set": {2, 1}, "bytes": b"a",
        "pair": (1, 2), "id": uuid.UUID(int=5), "item": Item(name="a", when=DAY), "point": Point(1, frozenset()),
        Color.RED: np.arange(2),
    }  # fmt: skip
    found = plain(value)
    assert json.loads(json.dumps(found)) == found
    assert found["color"] == "red" and found["when"] == "2026-01-02"
    assert found["sum"] == "1.5" and found["set"] == [1, 2]
    assert found["item"]["when"] == "2026-01-02" and found["red"] == [0, 1] and found["point"] == {"x": 1, "tags": []}
    with pytest.raises(TypeError, match="has no form in JSON"):
        plain({"a": object()})

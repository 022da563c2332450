"""A run is the same run only if its code is the same: the digest covers all of the user's that a score depends on."""

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pydantic
import pytest

import dspy
from dspy.promptune.identity.fingerprint import fingerprint, lm_settings
from dspy.promptune.identity.manifest import data_of
from tests.tables import Table

ROOT = Path(__file__).resolve().parents[2]

BASE = '''
import functools, dspy
import {helper} as helping
from {helper} import grade, Box

LIMIT = 0.5
GOLD = {{"a": 1}}
SEEN = []

def decorated(function):
    @functools.wraps(function)
    def inner(*given):
        SEEN.append(given)
        return function(*given)
    return inner

def plain(example, prediction, trace=None):
    """What it says of itself."""
    # and a comment
    return grade(example, prediction) > LIMIT

@decorated
def wrapped(example, prediction, trace=None):
    return plain(example, prediction)

def by_module(example, prediction, trace=None):
    return helping.grade(example, prediction) + GOLD["a"]

def made(limit):
    return lambda example, prediction, trace=None, least=0.25: grade(example, prediction) > max(limit, least)

class Judge:
    weight = 2
    def __init__(self, scale):
        self.scale, self.calls, self.log = scale, 0, {{}}
    def __call__(self, example, prediction, trace=None):
        self.calls += 1
        self.log[example] = prediction
        return self.score(example) * self.scale
    def score(self, example):
        return grade(example, example)

class Inner(dspy.Module):
    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
    def forward(self, question):
        return self.predict(question=Box().put(question))

class Program(dspy.Module):
    def __init__(self, k=3):
        super().__init__()
        self.inner, self.k = Inner(), k
    def forward(self, question):
        return self.inner(question=question)

METRICS = {{
    "plain": plain, "wrapped": wrapped, "by module": by_module, "closure": made(0.5),
    "partial": functools.partial(plain, trace=1),
    "object": Judge(3), "bound": Judge(3).__call__, "cached": functools.lru_cache(plain), "program": Program(),
}}
'''  # fmt: skip
HELPER = """
from {deeper} import RATE
def grade(example, prediction):
    return float(example == prediction) * RATE
class Box:
    def put(self, text):
        return text
"""
DEEPER = "RATE = 1.0\n"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes three modules of a user again, some text in them replaced, and gives their metrics."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(old="", new=""):
        names = {"helper": "helping", "deeper": "deeper"}
        texts = {"using": BASE, names["helper"]: HELPER, names["deeper"]: DEEPER}
        assert not old or any(old in text for text in texts.values())
        for name, text in texts.items():
            changed = text.replace(old, new) if old else text
            (tmp_path / f"{name}.py").write_text(changed.format(**names))
        importlib.invalidate_caches()
        for name in texts:
            sys.modules.pop(name, None)
        return importlib.import_module("using")

    return write


def codes(module):
    """The digest of each of a module's metrics; nothing in them may be without one."""
    found = {name: fingerprint(metric, name) for name, metric in module.METRICS.items()}
    assert not [each for each in found.values() if "unknown" in each]
    return {name: each["code"] for name, each in found.items()}


ALL = {"plain", "wrapped", "by module", "closure", "partial", "object", "bound", "cached", "program"}
GRADERS = ALL - {"program"}
USERS = {"plain", "wrapped", "partial", "cached"}  # of the function plain
CHANGES = {
    "nothing": ("", "", set()),
    "a comment": ("    # and a comment\n", "\n\n    # another\n", set()),
    "a docstring": ("What it says of itself", "Something else", set()),
    "the metric": ("> LIMIT", ">= LIMIT", USERS),
    "a constant": ("LIMIT = 0.5", "LIMIT = 0.6", USERS),
    "a table": ('"a": 1', '"a": 2', {"by module"}),
    "a helper": ("float(example == prediction)", "float(example != prediction)", GRADERS),
    "a helper's constant, two modules away": ("RATE = 1.0", "RATE = 0.9", GRADERS),
    "a decorator": ("return function(*given)", "return not function(*given)", {"wrapped"}),
    "a closure's value": ("made(0.5)", "made(0.6)", {"closure"}),
    "a default": ("least=0.25", "least=0.3", {"closure"}),
    "an argument that is bound": ("trace=1)", "trace=2)", {"partial"}),
    "a method": ("self.score(example) * self.scale", "self.score(example) + self.scale", {"object", "bound"}),
    "an attribute": ("Judge(3)", "Judge(4)", {"object", "bound"}),
    "a class's attribute": ("weight = 2", "weight = 3", {"object", "bound"}),
    "a sub-module's code": ("question=Box()", "question='not ' + Box()", {"program"}),
    "a program's attribute": ("k=3", "k=4", {"program"}),
    "a helper class of a sub-module": ("return text", "return text.upper()", {"program"}),
    "a signature inside": ("question -> answer", "question -> answer: int", {"program"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_change_reaches(written, what):
    """Exactly the metrics and programs that a change reaches have another digest; what is no code changes none."""
    old, new, reached = CHANGES[what]
    before, after = codes(written()), codes(written(old, new))
    assert {name for name in before if before[name] != after[name]} == reached


def test_what_changes_as_it_runs_is_not_compared(written):
    """Counters, logs and caches that code changes itself are no part of it: a second start here is the same."""
    module = written()
    before = codes(module)
    for metric in (module.wrapped, module.METRICS["object"], module.METRICS["cached"]):
        metric("a", "b")
    assert module.SEEN and module.METRICS["object"].calls == 1 and codes(module) == before


def test_what_optimizers_leave_on_a_program_is_no_part_of_it(written):
    """A program that was compiled is the same program whatever its run was like; a score of its own is a part of it."""
    module = written()
    compiled, own = module.Program(), module.Program()
    before = fingerprint(compiled, "program")["code"]
    own.score = 3
    for run in ("one run", "another"):
        compiled.optimization_run = compiled.trial_logs = compiled.score = compiled.total_calls = run
        compiled.candidate_programs = [run]
        assert fingerprint(compiled, "program")["code"] == before != fingerprint(own, "program")["code"]


def test_locks_logs_and_models_have_a_digest():
    """What synchronizes or reports decides no score; of a language model its settings count, not its state."""
    lock, logger, seen, counter = threading.Lock(), logging.getLogger("one"), [], collections.Counter()
    last = {}
    judge = dspy.ChainOfThought("question -> right: bool")
    judge.set_lm(dspy.LM("openai/one", temperature=0.5))

    def metric(example, prediction, trace=None):
        with lock:
            logger.info("Asked.")
            seen.append(example)
            counter[example] += 1
            counter[tuple(sorted([example])), "key"] += 1
            last[str(example)] = tuple(map(str, seen))
        return judge(question=example).right

    before = fingerprint(metric, "metric")
    seen.append(1)
    counter["a"] += 1
    last["a"] = ()
    judge.history.append({})
    assert fingerprint(metric, "metric") == before and "unknown" not in before
    judge.set_lm(dspy.LM("openai/one", temperature=0.6))
    assert fingerprint(metric, "metric") != before


def test_what_cannot_be_compared_is_named():
    """An object of another package that tells no value is named with the way to it."""
    client = subprocess.Popen([sys.executable, "-c", ""])

    def metric(example, prediction, trace=None):
        return client.poll()

    client.wait()
    assert fingerprint(metric, "metric")["unknown"] == ["metric's client (subprocess.Popen)"]


def test_the_state_of_a_table_that_is_searched():
    """An evaluation that keeps count of what it was asked is the same; one with other scores is another."""
    table, other = Table(seed=1), Table(seed=2)
    before = fingerprint(table, "metric")
    table(table.space.params(next(iter(table.space.keys()))), [0, 1])
    assert table.paid and fingerprint(table, "metric") == before != fingerprint(other, "metric")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("extra_body", {"top_k": 5}), ("logit_bias", {"5": 1}), ("verbosity", "low"), ("model_type", "text"),
        ("reasoning_effort", "high"), ("temperature", 0.3), ("seed", 4), ("anything_new", True),
    ],
)  # fmt: skip
def test_settings_that_decide_answers(name, value):
    """Any setting of a model is compared that can change its answers, whatever its name."""
    assert lm_settings(dspy.LM("openai/one", **{name: value})) != lm_settings(dspy.LM("openai/one"))


def test_settings_that_decide_no_answer():
    """Where a model is found, how it is asked and with which key may change."""
    asked = {"api_base": "http://127.0.0.1:1", "api_key": "planted-key-1", "extra_headers": {"a": "b"}, "timeout": 3}
    assert lm_settings(dspy.LM("openai/one", **asked)) == lm_settings(dspy.LM("openai/one"))


class Color(enum.Enum):
    """Some values."""

    RED = "red"


class Item(pydantic.BaseModel):
    """A model with a date in it."""

    name: str
    when: datetime.date


@dataclasses.dataclass
class Point:
    """Plain fields."""

    x: int


VALUES = """
import dspy, sys, datetime, decimal
sys.path[:0] = {paths!r}
from tests.identity.test_fingerprint import Color, Item, Point, data_of, fingerprint, VALUED
print(data_of([dspy.Example(**VALUED)])["digest"], fingerprint(lambda e, p: e.tags == VALUED, "m")["code"])
"""
VALUED = {
    "tags": {"alpha", "beta", "gamma"}, "when": datetime.datetime(2026, 1, 2), "sum": decimal.Decimal("1.5"),
    "color": Color.RED, "item": Item(name="a", when=datetime.date(2026, 1, 2)), "point": Point(1), "pair": (1, 2),
    "image": dspy.Image(url="data:image/png;base64,AAAA"), "array": np.arange(3.0), "sets": {frozenset({"x", "y"})},
}  # fmt: skip


def test_a_digest_is_the_same_in_every_process():
    """Values have one digest whatever the process's hash seed is."""
    paths = [str(ROOT), *sys.path]
    found = set()
    for seed in "12":
        code = VALUES.format(paths=paths)
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found.add(done.stdout)
    assert len(found) == 1


def test_values_that_differ_have_different_digests():
    """Long arrays are compared by value, not by an abbreviated text; so is every other kind of value."""
    one, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1
    pairs = [
        (one, other), (dspy.Image(url="https://a/b"), dspy.Image(url="https://a/c")), (Point(1), Point(2)),
        ({"a"}, {"b"}), ({"a"}, ["a"]), ((1,), [1]), (1, True), (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (Item(name="a", when=datetime.date(2026, 1, 2)), Item(name="a", when=datetime.date(2026, 1, 3))), (b"a", "a"),
    ]  # fmt: skip
    for left, right in pairs:
        assert data_of([dspy.Example(x=left)]) != data_of([dspy.Example(x=right)])


def test_code_of_installed_packages_counts_by_version():
    """Functions of packages are compared by name and version, those of Python by name."""
    found = [fingerprint(each, "metric") for each in (np.mean, np.median, functools.partial(sum, start=1), len)]
    assert len({each["code"] for each in found}) == 4 and not any("unknown" in each for each in found)

"""The same script is the same run on another day, in any process; a script with another meaning is another run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dspy
from dspy.promptune.identity.encoding import encode
from dspy.promptune.identity.fingerprint import RULE, fingerprint
from dspy.promptune.identity.manifest import compile_manifest, differences, noticed
from tests.identity.scripts import CHANGED, SAME

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path):
    """What each kind's two versions are, as two processes with different hash seeds see it."""
    found = []
    for seed in "12":
        (place := tmp_path / seed).mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.identity.scripts", str(place)], capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def test_what_decides_a_score_makes_another_run_and_nothing_else_does(runs):
    """Of sixty kinds, what a score depends on is refused, and the unchanged script is the same in another process."""
    resumed, refused = [], {}
    for kind in (*CHANGED, *SAME):
        (before, _), (same, after) = runs[0][kind], runs[1][kind]
        if kind in CHANGED and not differences(before, after):
            resumed.append(kind)
        if found := [*differences(before, same), *(differences(before, after) if kind in SAME else ())]:
            refused[kind] = found
    assert (resumed, refused) == ([], {})


def test_a_refusal_names_what_has_changed():
    """A global with another value at each start is named, so that one can find it."""

    def described(begun):
        def metric(example, prediction, trace=None):
            return begun > 0

        return compile_manifest(dspy.Predict("question -> answer"), {}, metric=metric, lms={}, settings={}, options={})

    assert differences(described(1.5), described(2.5)) == [
        "metric has changed: the code, or what it uses (metric's begun)"
    ]


def test_what_a_model_of_the_users_holds_makes_no_other_run():
    """A model's attributes, and another class in its place, are no difference; the code of the same class is."""

    class Own(dspy.BaseLM):
        def forward(self, prompt=None, messages=None, **kwargs):
            return self.client

    class Dying(Own):
        def forward(self, prompt=None, messages=None, **kwargs):
            raise SystemExit

    def described(lm):
        given = {"metric": len, "lms": {"task_model": lm}, "settings": {}, "options": {}}
        return compile_manifest(dspy.Predict("question -> answer"), {}, **given)

    lm, mended = Own("one"), Own("one")
    mended.client = subprocess.Popen([sys.executable, "-c", ""])
    mended.client.wait()
    before = described(lm)
    assert differences(before, described(mended)) == [] == differences(before, described(Dying("one")))
    Own.forward = Dying.forward
    assert differences(before, described(lm)) == [
        "model_settings.task_model has changed: the code, or what it uses (task_model.forward)"
    ]


class Serving(dspy.BaseLM):
    """A model as users write them."""

    def __init__(self, style, port):
        super().__init__("mine")
        self.style, self.examples, self.port = style, [1, 2], port
        self.url, self.api_token, self.session_id = f"http://127.0.0.1:{port}", f"token-{port}", f"session-{port}"
        self.asked, self.seen, self.unread = port, [port], port

    def forward(self, prompt=None, messages=None, **kwargs):
        self.asked += 1
        self.seen.append(prompt)
        return [self.style, self.examples, self.url, self.port, self.api_token, self.session_id, self.asked, self.seen]


def test_an_attribute_that_a_model_of_the_users_reads_is_noticed():
    """What code of such a model reads and does not change is told where it is another; ports and counters are not."""

    class Program(dspy.Module):
        def __init__(self, lm):
            super().__init__()
            self.answer, self.big = dspy.Predict("question -> answer"), lm

        def forward(self, question):
            return self.big(question)

    def described(lm):
        given = {"metric": lambda *_: lm is not None, "lms": {"task_model": lm}, "settings": {}, "options": {}}
        return json.loads(json.dumps(compile_manifest(Program(lm), {}, **given)))

    before, again, other = described(Serving("brief", 1)), described(Serving("brief", 2)), described(Serving("long", 3))
    assert differences(before, again) == differences(before, other) == [] and not noticed(before, again)
    told = noticed(before, other)
    assert 'task_model.style was "brief", is "long"' in told and "program.big.style was" in told
    assert told.count(" was ") == 3 and "\n" not in told
    assert "token-1" not in json.dumps(before) and not noticed({}, before) and not noticed(before, {})
    longer = Serving("brief", 1)
    longer.examples = [1, 2, 3]
    assert "task_model.examples was" in noticed(before, described(longer))


def test_objects_in_examples_that_cannot_be_compared_are_named():
    """Of many examples with an object without a value there is one line."""
    client = subprocess.Popen([sys.executable, "-c", ""])
    client.wait()
    data = {"trainset": [dspy.Example(question=client), dspy.Example(question=client)]}
    made = compile_manifest(dspy.Predict("q -> a"), data, metric=len, lms={}, settings={}, options={})
    assert differences(made, made) == ["trainset's question (subprocess.Popen) cannot be compared with what it was"]


def test_digests_of_an_earlier_rule_are_not_compared():
    """A run that an earlier version of the rule described is the same if all else is; examples are compared still."""

    class Doc:
        pass

    given = {"metric": len, "lms": {"task_model": dspy.LM("openai/x")}, "settings": {}, "options": {}}
    program = dspy.Predict("question -> answer")
    new = compile_manifest(program, {"trainset": [dspy.Example(question=Doc())]}, **given)
    old = json.loads(json.dumps(new))
    del old["digests"]
    old["code"] = {name: {"code": "3.11:0123456789abcdef", "unknown": ["x (y.Z)"]} for name in old["code"]}
    old["adapter"] = {"name": "ChatAdapter", "code": "3.11:0123456789abcdef"}
    old["data"] = {"trainset": {"examples": 1, "digest": "0123456789abcdef"}}
    old["program"]["predictors"]["self"]["demos"] = "0123456789abcdef"
    assert new["digests"] == RULE
    assert differences(old, new) == ["program.predictors.self.demos has changed"]
    plain = compile_manifest(program, {"trainset": [dspy.Example(question="a")]}, **given)
    assert "data.trainset has changed: other examples, or another order" in differences(old, plain)
    assert "data.trainset has changed: other examples, or another order" in differences(plain, new)


def test_a_long_chain_of_functions():
    """Code is followed to its end, however long the way there is."""
    variables = {"__name__": "__main__", "f0": lambda: 1}
    for i in range(1, 1500):
        exec(f"def f{i}(): return f{i - 1}()", variables)
    before = fingerprint(variables["f1499"], "metric")
    variables["f0"] = lambda: 2
    assert fingerprint(variables["f1499"], "metric")["code"] != before["code"] and len(before["parts"]) == 200


def test_things_in_sets_that_lead_back_to_them():
    """Objects that know each other by sets have a digest."""

    class Node:
        def __init__(self, name):
            self.name, self.near = name, set()

    def made(last):
        one, two = Node("one"), Node(last)
        one.near, two.near = {two}, {one, two}
        return fingerprint(one, "graph")["code"]

    assert made("two") == made("two") != made("three")


def test_the_text_of_an_object_with_a_set():
    """What stands for an object whose text shows a set is decided by its value, and not by the set's order."""

    class Tags:
        def __init__(self, *tags):
            self.tags = set(tags)

        def __str__(self):
            return f"Tags({{{', '.join(sorted(self.tags, reverse=next(backwards)))}}})"

    backwards = iter([False, True, False])
    texts = [encode(Tags(*tags)) for tags in ("ab", "ba", "ac")]
    assert texts[0] == texts[1] != texts[2]

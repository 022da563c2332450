"""What a stored run is: written at its beginning, and compared in words when it is taken up again."""

import sqlite3

import numpy as np
import optuna
import pytest

import dspy
from dspy.promptune import QEISampler, StorageError, search
from dspy.promptune.identity.manifest import compile_manifest, differences
from tests.server import RuleLM, TaskRule
from tests.tables import Table

ANSWERS = {f"question {i}": str(i % 3) for i in range(12)}
DATA = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]


def exact(example, prediction, trace=None):
    """Right or wrong."""
    return example.answer == prediction.answer


def lengths(texts):
    """An embedder."""
    return np.array([[len(text), 1.0] for text in texts])


def compiled(place, program=None, *, metric=exact, temperature=None, init=None, settings=None, adapter=None, **options):
    """A small compile in a storage."""
    lm = RuleLM(TaskRule(ANSWERS))
    lm.kwargs |= settings or {}
    if temperature is not None:
        lm.kwargs["temperature"] = temperature
    given = {"auto": None, "num_candidates": 3, "num_threads": 2, "seed": 1, **(init or {})}
    chosen = {
        "trainset": DATA[:4], "valset": DATA[4:], "num_trials": 2, "minibatch_size": 4, "sampler": "random",
        "n_jobs": 2, "storage": place, "study_name": "one", "resume": True, **options,
    }  # fmt: skip
    with dspy.context(lm=lm, adapter=adapter):
        program = program or dspy.Predict("question -> answer")
        return lm, dspy.MIPROv2(metric=metric, **given).compile(program, **chosen)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run in a file."""
    path = str(tmp_path_factory.mktemp("stored") / "runs.db")
    compiled(path)
    return path


def with_demo():
    """The program with a demo of its own."""
    program = dspy.Predict("question -> answer")
    program.demos = [DATA[0]]
    return program


def with_model():
    """The program with a language model of its own."""
    program = dspy.Predict("question -> answer")
    program.set_lm(RuleLM(TaskRule(ANSWERS)))
    return program


def mended(example, prediction, trace=None):
    """Another metric that goes by the name of the first."""
    return example.answer.strip() == prediction.answer


mended.__qualname__ = exact.__qualname__


CHANGES = {
    "the metric's code": ({"metric": mended}, "metric has changed: the code, or what it uses"),
    "the adapter": ({"adapter": dspy.JSONAdapter()}, 'adapter.name was "ChatAdapter", is "JSONAdapter"'),
    "the adapter's settings": (
        {"adapter": dspy.ChatAdapter(use_json_adapter_fallback=False)},
        "adapter has changed: the code, or what it uses",
    ),
    "what is sent beside": ({"settings": {"extra_body": {"k": 5}}}, "model_settings.task_model.extra_body is new"),
    "a model of the program's own": ({"program": with_model()}, "model_settings.program.self is new"),
    "the teacher": ({"teacher": dspy.Predict("question -> answer")}, "code.teacher is new"),
    "an instruction": (
        {"program": dspy.Predict(dspy.Signature("question -> answer", "Answer."))},
        'program.predictors.self.instructions was .*Given the fields.*, is "Answer."',
    ),
    "a field": ({"program": dspy.Predict("question, hint -> answer")}, "program.predictors.self.fields.hint is new"),
    "a demo": ({"program": with_demo()}, "program.predictors.self.demos has changed[;.]"),
    "the class": (
        {"program": dspy.ChainOfThought("question -> answer")},
        'program.class was "Predict", is "ChainOfThought"; program.predictors.self is gone',
    ),
    "the metric": ({"metric": lambda *given: True}, 'metric was ".*exact", is ".*<lambda>"'),
    "the trainset's order": ({"trainset": DATA[3::-1]}, "data.trainset has changed: other examples, or another order"),
    "the valset's size": ({"valset": DATA[4:11]}, r"data.valset.examples was 8, is 7\. Its"),
    "the language model": ({"temperature": 0.9}, "language_model.task_model.temperature was null, is 0.9"),
    "the seed": ({"init": {"seed": 2}}, "settings.seed was 1, is 2"),
    "the number of candidates": ({"init": {"num_candidates": 4}}, "settings.num_instruct_candidates was 3, is 4"),
    "an option of step 1": ({"max_bootstrapped_demos": 2}, "settings.max_bootstrapped_demos was 4, is 2"),
    "an option of step 2": ({"tip_aware_proposer": False}, "settings.tip_aware_proposer was true, is false"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_by_name(place, what):
    """What makes old scores incomparable is named, with the ways out, before a language model is called."""
    change, named = CHANGES[what]
    with pytest.raises(StorageError, match=named) as error:
        compiled(place, **change)
    assert 'accept it with resume="force"' in str(error.value) and len(str(error.value)) < 900


def test_another_release_of_dspy_is_refused(place, monkeypatch):
    """Scores of another release of DSPy, whose prompts may differ, are not compared with those of this one."""
    study = optuna.load_study(study_name="one", storage=f"sqlite:///{place}")
    assert differences(study.user_attrs, {"upstream": "9.9.9"}) == [
        f'upstream was "{study.user_attrs["upstream"]}", is "9.9.9"'
    ]


def test_what_cannot_be_compared_needs_force(tmp_path, caplog):
    """A metric that uses an object without a value is named when the run is resumed, and accepted by force."""
    client = sqlite3.connect(":memory:", check_same_thread=False)

    def metric(example, prediction, trace=None):
        return exact(example, prediction) and not client.in_transaction

    path = str(tmp_path / "runs.db")
    compiled(path, metric=metric)
    with pytest.raises(StorageError, match=r"metric's client \(_?sqlite3.Connection\) cannot be compared"):
        compiled(path, metric=metric)
    compiled(path, metric=metric, resume="force")
    client.close()
    assert "cannot be compared" in caplog.text


def test_what_changes_no_score_may_change(place):
    """Another sampler, budget, or number of jobs or threads continues the run."""
    lm, program = compiled(place, sampler="tpe", n_jobs=1, num_trials=5, init={"num_threads": 3})
    assert len(program.optimization_run.trials) > 3 and not [call for call in lm.calls if call.label != "answer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda old: ["other", *old[1:]], "candidates of 0_predictor_instruction have"), (lambda old: old[1:], "number")],
)
def test_other_candidates_are_refused(tmp_path, change, message):
    """Candidates that do not come out as they were are refused, though the options are the same."""
    place = str(tmp_path / "runs.db")
    compiled(place)
    study = optuna.load_study(study_name="one", storage=f"sqlite:///{place}")
    old = study.user_attrs["candidates"]
    name = "0_predictor_instruction"
    study.set_user_attr("candidates", {**old, name: change(old[name])})
    with pytest.raises(StorageError, match=message):
        compiled(place)


def test_the_code_of_a_programs_class_is_compared():
    """A class whose code has changed is another program; its comments and layout are not compared."""
    old, same, new = ({"program": {"source": f"3.11:{digest}"}} for digest in ("aa", "aa", "bb"))
    assert differences(old, same) == []
    assert differences(old, new) == ["program.source has changed: the code of the program's class"]
    assert differences(old, {"program": {"source": "3.12:cc"}}) == []


def test_a_long_text_is_shown_where_it_differs():
    """Of two long instructions the message has the part in which they differ."""
    texts = ["a long beginning that both have " * 9 + end + " and a long end" * 9 for end in ("ONE", "TWO")]
    (said,) = differences(*({"metric": text} for text in texts))
    assert "ONE" in said and "TWO" in said and len(said) < 250


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"sampler": "qei"}, "minilm"),
        ({"sampler": "onehot"}, "onehot"),
        ({"sampler": "tpe"}, None),
        ({"sampler": None}, None),
        ({"sampler": "qei", "sampler_options": {"embedder": "ngram"}}, "ngram"),
        ({"sampler": "qei", "sampler_options": {"embedder": dspy.Embedder("openai/small")}}, "openai/small"),
        ({"sampler": "qei", "sampler_options": {"embedder": dspy.Embedder(lengths)}}, f"{__name__}.lengths"),
        ({"sampler": "qei", "sampler_options": {"embedder": lengths}}, f"{__name__}.lengths"),
        ({"sampler": QEISampler(embedder="ngram")}, "ngram"),
        ({"sampler": QEISampler(embedder=dspy.Embedder("openai/small"))}, "openai/small"),
    ],
)
def test_the_embedder_is_named(options, name):
    """A stored run says which embedder gave its candidates their meaning, however that was chosen."""
    program = dspy.Predict("question -> answer")
    assert compile_manifest(program, {}, metric=exact, lms={}, settings={}, options=options)["embedder"] == name


@pytest.mark.parametrize(
    ("sampler", "options"), [(lambda space: QEISampler(space, embedder=lengths), {}), ("qei", {"embedder": lengths})]
)
def test_the_embedder_of_a_search_is_named(tmp_path, sampler, options):
    """In memory and in the study, also where the sampler is built for the space."""
    table, place = Table(instructions=2, demos=2, n_examples=4), str(tmp_path / "runs.db")
    found = search(table.space, table, n_examples=4, max_calls=8, sampler=sampler, storage=place, **options)
    stored = optuna.load_study(study_name="search", storage=f"sqlite:///{place}").user_attrs
    assert found.facts["embedder"] == stored["embedder"] == f"{__name__}.lengths"


def test_a_search_with_another_evaluate_is_refused_by_that_name(tmp_path):
    """What has changed is called as the argument of ``search()`` is called."""
    table = Table(instructions=2, demos=2, n_examples=4)
    given = {"n_examples": 4, "max_calls": 8, "sampler": "random", "storage": str(tmp_path / "runs.db"), "resume": True}
    search(table.space, table, **given)
    with pytest.raises(StorageError, match="evaluate has changed") as error:
        search(table.space, lambda params, examples: [0.5 for _ in examples], **given)
    assert "metric" not in str(error.value)

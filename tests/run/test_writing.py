"""Texts written during a search: without programs, and with a proposer that is a function."""

import html
import itertools
import math
import re
import sys
import threading

import pytest

from dspy.promptune import OptionError, PromptSpace, Written, search
from dspy.promptune.allocation.writing import FAILURES
from dspy.promptune.errors import StorageError
from dspy.promptune.findings.record import record_of
from dspy.promptune.run import writing
from dspy.promptune.run.texts import refusals

N = 40


def quality(text):
    """True score of a text: a tenth for each plus."""
    return min(0.9, 0.2 + 0.1 * text.count("+"))


class Task:
    """Scores by a fixed rule of text and example, and proposers that improve, or do not."""

    def __init__(self, texts=("say it", "tell it", "name it")):
        self.space = PromptSpace({0: list(texts)})
        self.requests = []
        self.written = []

    def evaluate(self, params, examples):
        text = self.texts[params["0_predictor_instruction"]]
        return [float((hash_of(text, example) % 1000) / 1000 < quality(text)) for example in examples]

    @property
    def texts(self):
        return [*self.space.parts[0].candidates, *self.written]

    def better(self, request):
        self.requests.append(request)
        text = f"{request.text} +{request.number}"
        self.written = [*self.written, text] if text not in self.texts else self.written
        return [text]


def lowered(texts):
    """An embedder that sees no case."""
    return [[text.lower().count(letter) + 0.01 for letter in "aeiou+stl"] for text in texts]


def hash_of(text, example):
    import zlib

    return zlib.crc32(f"{text}|{example}".encode())


def row_of(found, index):
    """Validation examples on which a candidate was scored."""
    trials = [trial for trial in found.trials if trial.params.get("0_predictor_instruction") == index]
    return {example for trial in trials for example in trial.user_attrs.get("examples", ())}


def run(task, propose, **options):
    options = {"n_examples": N, "max_calls": 400, "seed": 0, "embedder": "ngram", "propose": propose, **options}
    return search(task.space, task.evaluate, **options)


def test_better_texts_are_found_and_win():
    """Where each text is better than its parent, the winner is a written one, and far better than what was given."""
    task = Task()
    found = run(task, task.better)
    winner = found.space.parts[0].candidates[found.best_params["0_predictor_instruction"]]
    assert quality(winner) >= 0.5
    assert found.lineage[0]["cost"] == 1
    assert found.calls + sum(text["cost"] for text in found.lineage) <= 400
    assert len(task.space.parts[0]) == 3


def test_the_same_seed_writes_the_same_texts():
    """With batches, requests and trials of two runs are the same."""
    runs = [run(task, task.better) for task in (Task(), Task())]
    assert [t.params for t in runs[0].trials] == [t.params for t in runs[1].trials]
    assert runs[0].lineage == runs[1].lineage


def test_texts_that_bring_nothing_are_soon_not_written_any_more():
    """Of a proposer that only makes things worse at most 5 % of the calls are spent on it."""
    task = Task(("say it ++", "tell it +++", "name it ++"))

    def worse(request):
        text = f"{request.number} {re.sub('[+]', '', request.text)}"
        task.written = [*task.written, text]
        return [text]

    found = run(task, worse)
    assert 0 < sum(text["cost"] for text in found.lineage) <= 20


def test_a_proposer_that_fails_costs_its_calls_and_nothing_else():
    """The search ends as without it; each failure in a row doubles the calls until it is asked again."""
    asked, task = [], Task()

    def broken(request):
        asked.append(request)
        raise ValueError("no answer")

    found = run(task, broken)
    assert 1 < len(asked) <= FAILURES
    said = f"No instruction was written: {len(asked)} requests brought nothing, the last: ValueError: no answer"
    assert found.lineage == [] and any(said in line for line in found.verdict())
    assert found.calls == 3 * N


def test_a_proposer_that_was_mended_is_asked_again(tmp_path):
    """Failures of an earlier start end no later one; what they took stays spent."""
    task, file = Task(), str(tmp_path / "runs.db")

    def broken(request):
        raise ValueError("no such key")

    first = run(task, broken, storage=file)
    assert first.lineage == [] and len(refusals(first.trials)) == FAILURES
    second = run(task, task.better, storage=file, resume=True)
    assert len(second.lineage) > 1 and second.calls + FAILURES + len(task.requests) <= 400


def test_a_proposer_that_leaves_is_a_failed_request():
    """``sys.exit`` in a proposer ends no search, whichever thread it is called in."""
    for jobs in (1, 2):
        found = run(Task(), lambda request: sys.exit(3), n_jobs=jobs, max_calls=60)
        assert found.calls > 40 and "SystemExit" in refusals(found.trials)[0]


def test_a_proposer_that_never_answers_ends_no_search(monkeypatch, caplog):
    """When all else is measured it is waited for a while; then the search ends with what it has, and says so."""
    monkeypatch.setattr(writing, "PATIENCE", 0.5)
    forever = threading.Event()
    space = PromptSpace({0: ["say it", "tell it"]})
    found = search(
        space, lambda params, examples: [0.5 for _ in examples], n_examples=5, max_calls=60, n_jobs=2, seed=0,
        embedder="ngram", propose=lambda request: forever.wait() and ["name it"],
    )  # fmt: skip
    forever.set()
    assert found.calls == 10 and found.ended == "nothing is left to evaluate"
    assert "propose has not answered" in caplog.text


def test_a_proposer_that_repeats_itself_is_soon_not_asked_any_more(tmp_path):
    """After one good text only copies come: they space the requests, end them, and count as calls, also at a resume."""
    words = "it this them us me him her all those these one".split()
    task, file = Task([f"say {word}" for word in words]), str(tmp_path / "runs.db")

    def first_only(request):
        task.requests.append(request)
        if not task.written:
            task.written = [f"{request.text} at once, +++++"]
        return task.written

    found = run(task, first_only, storage=file, max_calls=250)
    assert len(found.lineage) == 1
    assert FAILURES / 2 < len(task.requests) <= FAILURES + 1
    refused = [trial.user_attrs for trial in found.trials if "refused" in trial.user_attrs]
    assert len(refused) == len(task.requests) - 1
    assert len(record_of(found).facts["refused"]) == len(refused)
    page = html.unescape(found.report(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"brought nothing: {len(refused)}" in page and all(one["refused"] in page for one in refused)
    gaps = [after["at"] - before["at"] for before, after in itertools.pairwise(refused)]
    assert all(gap >= 8 * 2**i for i, gap in enumerate(gaps, start=1))
    asked = len(task.requests)
    again = run(task, first_only, storage=file, resume="force", max_calls=251)
    assert len(task.requests) == asked
    assert again.calls + asked <= 251


def test_copies_in_one_answer_are_used_once():
    """Of texts that differ in their case alone one becomes a candidate."""
    task = Task()
    answers = iter([["say it well, and then stop", "Say it well, and then stop", "say it well, and then stop "]])
    assert run(task, lambda request: next(answers, []), max_calls=60, embedder=lowered).space.sizes == (4,)


@pytest.mark.parametrize("text", ["", "  ", "\u200b", "say it", "x" * 30_000])
def test_what_is_no_new_text_is_not_used(text):
    """Empty, endless and known texts leave the space as it was."""
    task = Task()
    assert run(task, lambda request: [text]).space.sizes == (3,)


def test_what_writing_took_is_counted():
    """A proposer that says it took nine calls leaves as many fewer for measuring."""
    task = Task()
    found = run(task, lambda request: Written(task.better(request), calls=9))
    assert {text["cost"] for text in found.lineage} == {9}
    assert found.calls + 9 * len(found.lineage) <= 400


def test_a_request_says_what_is_known():
    """Parent, its text, its scores, what is believed of it, and all texts of the part."""
    task = Task()
    run(task, task.better)
    first, last = task.requests[0], task.requests[-1]
    assert (first.part, first.predictor, first.number) == ("0_predictor_instruction", 0, 0)
    assert first.known == tuple(task.space.parts[0].candidates)
    assert first.text == first.known[first.parent["0_predictor_instruction"]]
    assert len(last.known) > 3
    assert any(request.scores for request in task.requests)


def test_a_run_that_is_taken_up_again_has_its_texts(tmp_path):
    """The second start asks for no text of the first, and its indices are the same."""
    task, file = Task(), str(tmp_path / "runs.db")
    first = run(task, task.better, max_calls=200, storage=file)
    asked = len(task.requests)
    second = run(task, task.better, max_calls=400, storage=file, resume="force")
    assert second.lineage[: len(first.lineage)] == first.lineage
    assert second.space.parts[0].candidates[: len(first.space.parts[0])] == first.space.parts[0].candidates
    assert task.requests[asked].number == asked


def test_an_open_space_is_taken_up_again_in_the_same_process(tmp_path):
    """A space that a stored search has grown goes on with that search as a new space does: nothing is told from it."""

    def go_on(space, max_calls):
        def evaluate(params, examples):
            text = space.parts[0].candidates[params["0_predictor_instruction"]]
            return [float(hash_of(text, example) % 1000 / 1000 < quality(text)) for example in examples]

        return search(
            space, evaluate, n_examples=N, max_calls=max_calls, seed=0, embedder="ngram", resume=True,
            storage=tmp_path / "runs.db", propose=lambda request: [f"{request.text} +{request.number}"],
        )  # fmt: skip

    space = PromptSpace({0: ["say it", "tell it"]}).open()
    first = go_on(space, 150)
    assert first.lineage and len(space.parts[0]) > 2
    same = go_on(space, 150)
    assert (same.calls, same.lineage, same.best_params) == (first.calls, first.lineage, first.best_params)
    more = go_on(space, 300)
    fresh = PromptSpace({0: ["say it", "tell it"]}).open()
    assert go_on(fresh, 300).lineage == more.lineage and len(more.lineage) > len(first.lineage)
    assert fresh.parts[0].candidates == space.parts[0].candidates
    with pytest.raises(StorageError, match="candidates"):
        go_on(PromptSpace({0: ["say it", "name it"]}).open(), 300)


def test_open_and_closed_runs_are_not_mixed(tmp_path):
    """A study without written texts is not continued with an open space, nor the other way round."""
    task = Task()
    for name, begun, now in (("a.db", None, task.better), ("b.db", task.better, None)):
        run(task, begun, max_calls=60, storage=str(tmp_path / name))
        with pytest.raises(StorageError, match="another study_name"):
            run(task, now, max_calls=90, storage=str(tmp_path / name), resume="force")


@pytest.mark.parametrize(
    "answer", [None, 3, {"text": "say it +"}, ["say it +", None], [b"say it +"], b"say it +"], ids=repr
)
def test_what_is_no_list_of_texts_is_a_failed_request(answer):
    """It costs its call, brings no candidate, and the refusal names it."""
    task = Task()
    found = run(task, lambda request: answer, n_jobs=2)
    refused = refusals(found.trials)
    assert refused and all("propose returned" in why for why in refused)
    assert found.space.sizes == (3,) and not found.lineage


@pytest.mark.parametrize("calls", [-5, math.nan, math.inf, None, "2"])
def test_calls_that_are_no_number_of_calls_are_refused(calls):
    """A proposer cannot enlarge the budget by what it says that writing took."""
    task = Task()
    found = run(task, lambda request: Written(task.better(request), calls=calls))
    assert found.calls <= 400 and not found.lineage
    assert {why for why in refusals(found.trials) if "it must be a number of calls, 0 or more" in why}


def test_of_many_texts_in_one_answer_twenty_are_used():
    """A proposer that does not end has its first twenty looked at."""
    endless = (f"Say it in {i} words." for i in itertools.count())
    space = PromptSpace({0: ["Say it.", "Tell it."]})
    found = search(
        space, lambda params, examples: [float(example % 2) for example in examples], n_examples=N, max_calls=100,
        seed=0, embedder="onehot", propose=lambda request: endless if request.number == 0 else [],
    )  # fmt: skip
    assert found.space.sizes == (22,)


def test_one_text_need_not_be_in_a_list():
    """A proposer that returns a text has written one text, not one for each letter."""
    task = Task()
    found = run(task, lambda request: task.better(request)[0])
    assert found.lineage and {text.count("+") >= 1 for text in found.space.parts[0].candidates[3:]} == {True}


def test_of_several_texts_one_is_looked_at_at_once():
    """Eight texts in each answer cost one look, not eight: the others are scored where that is worth it."""
    task = Task()

    def eight(request):
        new = [text for i in range(8) for text in (f"{request.text} {'abcdefgh'[i] * 9} +{request.number}",)]
        task.written = [*task.written, *(text for text in new if text not in task.texts)]
        return new

    found = run(task, eight)
    written = range(3, found.space.sizes[0])
    examples = [len(row_of(found, i)) for i in written]
    assert len(written) >= 16 and sum(count > 0 for count in examples) < len(written)
    assert found.best_params["0_predictor_instruction"] in written


@pytest.mark.parametrize("options", [{"sampler": "tpe", "embedder": None}, {"minibatch_size": 5}])
def test_writing_needs_beliefs(options):
    """Other samplers, and minibatches, are refused by name."""
    task = Task()
    options = {"embedder": "ngram", **options}
    options = {name: value for name, value in options.items() if value is not None}
    with pytest.raises(OptionError, match="sampler='qei'"):
        search(task.space, task.evaluate, n_examples=N, max_calls=50, propose=task.better, **options)


def test_the_search_goes_on_with_texts_from_a_thread():
    """With several jobs texts come from a thread of their own, and a space of one prompt waits for its first one."""
    task = Task(("say it",))
    found = run(task, task.better, n_jobs=3)
    assert len(found.lineage) >= 1
    assert found.calls > N


def test_drivers_of_a_shared_study_have_the_same_texts(tmp_path):
    """Two drivers that write at once end with the same candidates at the same indices, within the calls of both."""
    file, found = str(tmp_path / "runs.db"), {}

    class Shared(Task):
        def evaluate(self, params, examples):
            text = runs[id(self)].parts[0].candidates[params["0_predictor_instruction"]]
            return [float((hash_of(text, example) % 1000) / 1000 < quality(text)) for example in examples]

    runs = {}
    tasks = [Shared(), Shared()]
    for task in tasks:
        opened = task.space.open()
        runs[id(task)] = task.space = opened

    def drive(i):
        def better(request):
            return [f"{request.text} +{i}.{request.number}"]

        found[i] = run(tasks[i], better, storage=file, share=True, resume="force", n_jobs=2)

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (found[i].space.parts[0].candidates for i in range(2))
    shared = min(len(first), len(second))
    assert shared > 3
    assert first[:shared] == second[:shared]
    assert found[0].best_params == found[1].best_params
    writing = sum(trial.user_attrs["calls"] for trial in found[0].trials if trial.user_attrs.get("kind") == "write")
    assert writing > 0
    assert found[0].calls + writing <= 400

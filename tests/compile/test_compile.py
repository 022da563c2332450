"""MIPROv2.compile with a sampler: what it adds, and what it leaves as upstream has it."""

import asyncio
import dataclasses
import inspect
import json
import logging
import math
import os
import signal
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import dspy
from dspy._upstream.teleprompt.mipro_optimizer_v2 import MIPROv2 as Upstream
from dspy.promptune import EmbeddingError, EvaluationError, OptionError, QEISampler, SearchRun, SpaceError
from dspy.promptune.compile.options import CompileOptions
from dspy.promptune.naming import prompt_name
from dspy.promptune.options import SAMPLER_OPTIONS
from dspy.promptune.run.loop import SearchLoop
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMServerError
from dspy.utils.usage_tracker import track_usage
from tests.server import Latency, LMServer, Quality, RuleLM, TaskRule
from tests.threads import at_once

ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(80)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]
TRAINSET, VALSET = EXAMPLES[:12], EXAMPLES[12:52]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:dspy.LM"),
]


def exact(example, prediction, trace=None):
    return example.answer == prediction.answer


class Chain(dspy.Module):
    def __init__(self):
        super().__init__()
        self.plan = dspy.Predict("question -> plan")
        self.answer = dspy.Predict("question, plan -> answer")

    def forward(self, question):
        return self.answer(question=question, plan=self.plan(question=question).plan)


class Mixed(dspy.Module):
    """Two predictors of the same signature."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.Predict("question -> answer")

    def forward(self, question):
        self.first(question=question)
        return self.second(question=question)


def rule_lm(quality=0.5, **options):
    return RuleLM(TaskRule(ANSWERS, quality=Quality(quality)), **options)


def optimizer(cls=dspy.MIPROv2, *, metric=exact, **options):
    options = {"auto": None, "num_candidates": 4, "num_threads": 4, "max_bootstrapped_demos": 2, "seed": 1, **options}
    return cls(metric=metric, **options)


def compiled(lm=None, program=None, *, init=None, valset=VALSET, **options):
    options = {"sampler": "random", "n_jobs": 4, "num_trials": 4, "disable_progress_bar": True, **options}
    if options["sampler"] == "random":
        options.setdefault("minibatch_size", 8)
    with dspy.context(lm=lm or rule_lm()):
        return optimizer(**(init or {})).compile(
            program or dspy.Predict("question -> answer"), trainset=TRAINSET, valset=valset, **options
        )


def facts(program):
    """What two runs that did the same have in common."""
    drop = ("program", "path")
    logs = {
        number: {name: value for name, value in log.items() if not name.endswith(drop)}
        for number, log in program.trial_logs.items()
    }
    scores = [[each["score"] for each in data] for data in (program.candidate_programs, program.mb_candidate_programs)]
    texts = [(p.signature.instructions, [dict(demo) for demo in p.demos]) for p in program.predictors()]
    return logs, scores, texts, program.score, program.total_calls, program.prompt_model_total_calls


# ---------------------------------------------------------------------- the default path


@pytest.mark.parametrize("options", [{}, {"sampler": "tpe"}, {"sampler": None, "n_jobs": 1}, {"minibatch": False}])
@pytest.mark.parametrize("program", [lambda: dspy.Predict("question -> answer"), Chain])
def test_without_new_options_a_compile_is_upstreams(program, options):
    """The default path gives upstream's trials, scores, program and attributes, and no others."""
    plain = {name: value for name, value in options.items() if name == "minibatch"}
    results = []
    for cls, given in ((Upstream, plain), (dspy.MIPROv2, options)):
        with dspy.context(lm=rule_lm()):
            results.append(
                optimizer(cls).compile(
                    program(), trainset=TRAINSET, valset=VALSET, num_trials=6, minibatch_size=10, **given
                )
            )
    assert facts(results[0]) == facts(results[1])
    assert not hasattr(results[1], "optimization_run")


def test_upstreams_signature_comes_first():
    """Upstream's parameters are there in their order and with their defaults; what is added is keyword-only."""
    theirs, ours = (inspect.signature(cls.compile).parameters for cls in (Upstream, dspy.MIPROv2))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert [p.default for p in theirs.values()] == [p.default for p in ours.values()][: len(theirs)]
    added = list(ours.values())[len(theirs) :]
    assert added and all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in added)
    assert inspect.signature(Upstream.__init__) == inspect.signature(dspy.MIPROv2.__init__)


def test_the_module_has_upstreams_names():
    """What upstream's module exports can be imported from the replaced one."""
    import dspy._upstream.teleprompt.mipro_optimizer_v2 as theirs
    import dspy.teleprompt.mipro_optimizer_v2 as ours

    names = [name for name in vars(theirs) if name.isupper()]
    assert "AUTO_RUN_SETTINGS" in names
    assert all(getattr(ours, name) is getattr(theirs, name) for name in names)
    assert issubclass(dspy.MIPROv2, theirs.MIPROv2) and dspy.teleprompt.MIPROv2 is ours.MIPROv2


# ---------------------------------------------------------------------- what comes out

MINIBATCH = {"0_predictor_instruction", "0_predictor_demos", "mb_program_path", "mb_score", "mb_program"}
FULL = {"full_eval_program_path", "full_eval_score", "full_eval_program"}
CALLS = {"total_eval_calls_so_far"}


@pytest.mark.parametrize("sampler", ["onehot", "tpe", "random", "gp"])
def test_upstreams_attributes_come_with_the_result(sampler, tmp_path):
    """``trial_logs`` and its companions have upstream's keys, and ``optimization_run`` is added."""
    found = compiled(sampler=sampler, init={"log_dir": str(tmp_path)}, minibatch_size=10, num_trials=6)
    logs = found.trial_logs
    assert list(logs) == list(range(1, len(logs) + 1))
    assert set(logs[1]) == FULL | CALLS
    assert any(set(log) == MINIBATCH | CALLS for log in logs.values())
    assert all(set(log) in (FULL | CALLS, MINIBATCH | CALLS) for log in logs.values())
    calls = [log["total_eval_calls_so_far"] for log in logs.values()]
    assert calls == sorted(calls) and calls[-1] == found.optimization_run.calls == 6 * 10 + 3 * len(VALSET)
    assert isinstance(found.optimization_run, SearchRun) and found.total_calls == found.prompt_model_total_calls == 0
    for data, full in ((found.candidate_programs, True), (found.mb_candidate_programs, False)):
        scores = [each["score"] for each in data]
        assert data and scores == sorted(scores, reverse=True)
        assert all(set(each) == {"score", "program", "full_eval"} and each["full_eval"] is full for each in data)
    paths = [log.get("mb_program_path") or log["full_eval_program_path"] for log in logs.values()]
    assert paths[0].endswith("program_-1.json") and all(json.loads(Path(path).read_text()) for path in paths)
    assert any(path.endswith("_full_eval.json") for path in paths)


@pytest.mark.parametrize("sampler", ["onehot", "tpe"])
def test_the_automatic_settings(sampler):
    """``auto="light"`` sizes candidates and budget as upstream does: 3 instructions, 6 demo sets, 10 trials."""
    with dspy.context(lm=rule_lm()):
        found = dspy.MIPROv2(metric=exact, auto="light", num_threads=8).compile(
            dspy.Predict("question -> answer"), trainset=TRAINSET, valset=EXAMPLES[12:72], sampler=sampler, n_jobs=4,
            disable_progress_bar=True,
        )  # fmt: skip
    distributions = found.optimization_run.trials[0].distributions
    assert {name: len(each.choices) for name, each in distributions.items()} == {
        "0_predictor_instruction": 3, "0_predictor_demos": 6,
    }  # fmt: skip
    assert 10 * 35 + 3 * 60 - 5 <= found.optimization_run.calls <= 10 * 35 + 3 * 60


def test_without_minibatches_every_trial_is_in_full():
    """``minibatch=False`` spends (trials + 1) x examples, and logs parameters with full scores."""
    found = compiled(minibatch=False, num_trials=4, sampler="tpe")
    assert all({"0_predictor_demos", *FULL} <= set(log) for number, log in found.trial_logs.items() if number > 1)
    assert not found.mb_candidate_programs


def test_track_stats_false_attaches_nothing():
    """As upstream's, the result is then the bare program."""
    found = compiled(init={"track_stats": False})
    assert not any(hasattr(found, name) for name in ("trial_logs", "score", "optimization_run", "candidate_programs"))


def test_zero_shot_searches_instructions_only():
    """Without demos the space holds instructions only, and the winner has no demos."""
    found = compiled(init={"max_bootstrapped_demos": 0, "max_labeled_demos": 0})
    assert set(found.optimization_run.best_params) == {"0_predictor_instruction"} and not found.demos


def test_the_winner_carries_its_candidates():
    """The program that is returned is that of ``best_params``, built from the student, which is left as it was."""
    student = Chain()
    before = [(p.signature.instructions, list(p.demos)) for p in student.predictors()]
    found = compiled(program=student)
    assert [(p.signature.instructions, list(p.demos)) for p in student.predictors()] == before
    assert isinstance(found, Chain) and found is not student
    assert set(found.optimization_run.best_params) == {
        f"{i}_predictor_{part}" for i in (0, 1) for part in ("instruction", "demos")
    }


def test_a_compiled_program_can_be_saved_and_copied(tmp_path):
    """``save`` with and without the whole program, ``deepcopy`` and ``load`` work on the result."""
    found = compiled()
    found.save(str(tmp_path / "program.json"))
    found.save(str(tmp_path / "whole"), save_program=True)
    again = dspy.Predict("question -> answer")
    again.load(str(tmp_path / "program.json"))
    assert again.signature.instructions == found.signature.instructions
    assert found.deepcopy().optimization_run.calls == found.optimization_run.calls


# ---------------------------------------------------------------------- seeds, budgets, sizes


def test_seed_zero_is_obeyed():
    """``seed=0`` is a seed of its own under our samplers, and each seed gives the same run again in batches."""
    options = {"sampler": "onehot", "schedule": "batch", "init": {"seed": 9}, "num_trials": 2}
    runs = [facts(compiled(seed=seed, **options)) for seed in (0, 0, 9, None)]
    assert runs[0] == runs[1] != runs[2] == runs[3]


def test_batches_do_not_depend_on_threads():
    """With ``schedule="batch"`` the number of threads changes nothing but the time."""
    runs = [facts(compiled(sampler="onehot", schedule="batch", init={"num_threads": threads})) for threads in (1, 16)]
    assert runs[0] == runs[1]


def test_an_explicit_minibatch_size_is_obeyed_even_if_it_is_the_default():
    """35 that was asked for gives minibatches of 35; 35 by default, or ``None``, lets our sampler decide."""
    sizes = []
    for given in ({"minibatch_size": 35}, {}, {"minibatch_size": None}):
        trials = compiled(sampler="onehot", num_trials=3, **given).optimization_run.trials
        sizes.append({len(t.user_attrs["examples"]) for t in trials if t.user_attrs["kind"] != "full"})
    assert max(sizes[0]) == 35 and max(sizes[1]) < 35 and max(sizes[2]) < 35


def test_the_log_names_leaders_and_not_every_block(caplog):
    """INFO messages say which prompt leads, on all its scores, and leave the blocks of a race to DEBUG."""
    with caplog.at_level("DEBUG", logger="dspy.promptune"):
        run = compiled(sampler="onehot", num_trials=6).optimization_run
    ours = [record for record in caplog.records if record.name.endswith("recorder")]
    led = [record.getMessage() for record in ours if record.getMessage().startswith("In the lead: ")]
    blocks = [record for record in ours if " (block): " in record.getMessage()]
    assert len(blocks) == sum(trial.user_attrs["kind"] == "block" for trial in run.trials) > 3
    assert {record.levelname for record in blocks} == {"DEBUG"}
    assert f" on {len(VALSET)} examples, the original prompt." in led[0]
    assert led[-1].endswith(f" examples, {prompt_name(run.space, run.space.key(run.best_params))}.")


def test_a_validation_set_smaller_than_the_default_minibatch_is_no_error():
    """Upstream refuses the default 35 with fewer examples; here the default adapts, an explicit one is refused."""
    assert compiled(valset=VALSET[:7], sampler="onehot").optimization_run.calls <= 4 * 7 + 2 * 7
    with pytest.raises(ValueError, match=r"exceed the size of the valset\. Valset size: 7"):
        compiled(valset=VALSET[:7], minibatch_size=8)


@pytest.mark.parametrize("candidates", [1, 2])
def test_a_small_space_ends_well(candidates):
    """A pool that is exhausted before the budget ends the run with the best; upstream loses the run there."""
    found = compiled(
        init={"num_candidates": candidates, "max_bootstrapped_demos": 0, "max_labeled_demos": 0},
        num_trials=20, n_jobs=8, valset=VALSET[:10], sampler="onehot",
    )  # fmt: skip
    assert 10 <= found.optimization_run.calls <= 20 and found.score >= 0


@pytest.mark.parametrize("sampler", ["qei", "tpe"])
@pytest.mark.parametrize("n_jobs", [1, 4, 16])
def test_any_texts_and_numbers_of_jobs(sampler, n_jobs):
    """Non-ASCII and very long examples, and more jobs than combinations, are searched like any others."""
    odd = [dspy.Example(question=q, answer="да").with_inputs("question") for q in ("вопрос 🚀", "long " + "x" * 30_000)]
    found = compiled(
        init={"num_candidates": 2}, sampler=sampler, n_jobs=n_jobs, valset=[*VALSET[:10], *odd], num_trials=3,
        minibatch_size=6, **({"embedder": "ngram"} if sampler == "qei" else {}),
    )  # fmt: skip
    assert found.score > 0 and found.optimization_run.calls <= 3 * 6 + 2 * 12


def test_predictors_that_share_a_signature_have_parameters_of_their_own():
    """Two predictors of one signature are two parts of the space."""
    found = compiled(program=Mixed(), sampler="random")
    assert {name[0] for name in found.optimization_run.best_params} == {"0", "1"}


def test_two_compiles_of_one_optimizer_at_once():
    """A compile leaves its optimizer as it was, so two may go on together, each with its own seed."""
    with dspy.context(lm=rule_lm()):
        one = optimizer(num_threads=2)
    before = dict(one.__dict__)
    results = {}

    def work(seed):
        with dspy.context(lm=rule_lm()):
            results[seed] = facts(
                one.compile(
                    dspy.Predict("question -> answer"), trainset=TRAINSET, valset=VALSET, num_trials=4, seed=seed,
                    sampler="onehot", n_jobs=2, schedule="batch",
                )
            )  # fmt: skip

    at_once(partial(work, 3), partial(work, 4))
    assert one.__dict__ == before and results[3] != results[4]
    work(3)
    assert set(results) == {3, 4}


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "bayes"}, "sampler='bayes' is unknown: it must be one of tpe, gp, random, qei"),
        ({"sampler": "tpe", "n_jobs": 2, "max_space_size": 10}, "max_space_size=10: 'tpe' does not take it"),
        ({"sampler": None, "n_batches": 10}, "n_batches=10: 'tpe' does not take it"),
        ({"sampler": optuna.samplers.RandomSampler(), "acquisition": "qei"}, "acquisition='qei'"),
        ({"n_jobs": 0}, "n_jobs=0: it must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"sampler": None, "batch_size": 4, "n_jobs": 2}, "batch_size=4: 'tpe' is asked for one trial at a time"),
        ({"sampler": "qei", "max_space_size": 1}, "max_space_size=1: it must be an integer of at least 2"),
        ({"sampler": "qei", "min_cold_start": -1}, "min_cold_start=-1"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"schedule": "soon"}, "schedule='soon'"),
        ({"example_timeout": 0}, "example_timeout=0"),
        ({"sampler": 3}, "sampler=3"),
        ({"sampler": "qei", "acquisition": "ucb"}, "acquisition='ucb': it must be one of qei, qlogei, qlognei, thom"),
        ({"sampler": "qlogei", "acquisition": "qei"}, "acquisition='qei' contradicts sampler='qlogei'"),
        ({"sampler": "qei", "seed": "one"}, "seed='one': it must be an integer"),
        ({"sampler": "qei", "seed": 1.5}, "seed=1.5: it must be an integer"),
    ],
)
def test_wrong_options_are_refused_before_the_first_call(options, message):
    """Unknown names, options that a sampler does not take and values out of range cost no call."""
    lm = rule_lm()
    with pytest.raises(OptionError, match=message):
        compiled(lm, **options)
    assert not lm.calls


def test_the_names_known_at_the_door_are_those_of_the_factory():
    """The door checks against the samplers that there are."""
    from dspy.promptune.options import OF_OPTUNA, OURS
    from dspy.promptune.samplers.factory import SAMPLERS

    assert set(SAMPLERS) == {*OURS, *OF_OPTUNA}


def test_the_door_and_the_options_agree():
    """Every option that is added at the door is one of a compile or of its sampler, with the same default."""
    theirs, ours = (inspect.signature(cls.compile).parameters for cls in (Upstream, dspy.MIPROv2))
    added = {name: p.default for name, p in ours.items() if name not in theirs}
    of_sampler = {name: added.pop(name) for name in SAMPLER_OPTIONS}
    known = {field.name: field.default for field in dataclasses.fields(CompileOptions)}
    assert {known.pop("minibatch_size"), *of_sampler.values()} == {None}
    assert added == {name: default for name, default in known.items() if name != "sampler_options"}


def test_unknown_keywords_are_type_errors():
    """As everywhere in Python."""
    with pytest.raises(TypeError, match="smapler"):
        compiled(smapler="qei")


def test_samplers_come_by_name_as_objects_and_from_callables():
    """An Optuna sampler, or what builds one from the space, is used as it is."""
    spaces = []

    def build(space):
        spaces.append(space)
        return optuna.samplers.RandomSampler(seed=0)

    for sampler in (optuna.samplers.RandomSampler(seed=0), build):
        assert isinstance(compiled(sampler=sampler).optimization_run.study.sampler, optuna.samplers.RandomSampler)
    assert len(spaces) == 1 and spaces[0].sizes == (4, 4)


def test_both_forms_of_choosing_our_sampler():
    """By name with options, or as an object without a space, which the compile binds: the same search."""
    options = {"max_space_size": 100, "n_batches": 20, "batch_size": 4, "min_cold_start": 4, "embedder": "onehot"}
    common = {"n_jobs": 2, "schedule": "batch", "batch_size": 4, "num_trials": 2}
    by_name = compiled(sampler="qei", **{**common, **options})
    as_object = compiled(sampler=QEISampler(seed=1, **options), **common)
    assert facts(by_name) == facts(as_object)
    study = as_object.optimization_run.study
    assert isinstance(study.sampler, QEISampler) and study.sampler.options.n_batches == 20


def no_service(texts):
    raise ConnectionError("no such service")


@pytest.mark.parametrize(
    ("embedder", "message"),
    [
        (no_service, "no such service"),
        (lambda texts: [[0.0, math.nan]] * len(texts), "NaN"),
        (lambda texts: [[0.0, 1.0]] * (len(texts) + 1), "returned shape"),
        (dspy.Embedder(lambda texts: no_service(texts), caching=False), "no such service"),
        ("word2vec", "'word2vec' is not known"),
        (3, "embedder=3 is int"),
    ],
)
@pytest.mark.parametrize("form", ["option", "instance"])
def test_an_embedder_that_fails_costs_no_call(embedder, message, form):
    """What an embedder raises, or returns in the wrong form, ends the compile before a language model is called."""
    lm, option = rule_lm(), {"embedder": embedder}
    with pytest.raises(EmbeddingError, match=message):
        compiled(lm, **({"sampler": "qei", **option} if form == "option" else {"sampler": QEISampler(**option)}))
    assert not lm.calls


def test_a_program_without_predictors_is_refused():
    """There would be nothing to optimize, and the message says so."""

    class Nothing(dspy.Module):
        def forward(self, question):
            return dspy.Prediction(answer="yes")

    with pytest.raises(SpaceError, match="Nothing has no predictors"):
        compiled(program=Nothing())


def test_an_empty_trainset_is_upstreams_error():
    """Upstream's own checks of the data still speak."""
    with dspy.context(lm=rule_lm()), pytest.raises(ValueError, match="Trainset cannot be empty"):
        optimizer().compile(dspy.Predict("question -> answer"), trainset=[], sampler="qei", n_jobs=2, num_trials=3)


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize("value", [None, math.nan, "good"])
def test_a_metric_that_returns_no_number_ends_the_run_and_names_it(value):
    """No trial can be scored: the error says what the metric returned."""

    def metric(example, prediction, trace=None):
        return exact(example, prediction) if trace is not None else value

    with pytest.raises(EvaluationError, match="metric returned"):
        compiled(init={"metric": metric})


@pytest.mark.parametrize("scale", [-5, 0.5, 100])
def test_metrics_of_any_scale(scale):
    """Scores below 0 and beyond 1 are taken as they are, in percent as upstream has them."""

    def metric(example, prediction, trace=None):
        return scale * exact(example, prediction)

    found = compiled(init={"metric": metric})
    assert found.score == pytest.approx(100 * found.optimization_run.best_score, abs=0.01)


def test_prompts_that_make_the_program_fail_are_failed_trials():
    """A program that raises with some prompts: those trials are FAILED with the error, and others win."""
    own = dspy.Predict("question -> answer").signature.instructions

    class Fragile(dspy.Module):
        def __init__(self):
            super().__init__()
            self.answer = dspy.Predict("question -> answer")

        def forward(self, question):
            if self.answer.signature.instructions != own and len(self.answer.demos) < 2:
                raise ZeroDivisionError("too few demos")
            return self.answer(question=question)

    found = compiled(program=Fragile(), init={"max_errors": 2}, sampler="random", minibatch_size=4, num_trials=12)
    trials = [t for t in found.optimization_run.trials if "overruled" not in t.user_attrs]
    failed = [t for t in trials if t.state == TrialState.FAIL]
    assert failed and all("too few demos" in t.user_attrs["error"] for t in failed)
    assert all(t.params["0_predictor_instruction"] > 0 for t in failed)
    assert any("too few demos" in log.get("error", "") for log in found.trial_logs.values())


def test_single_errors_score_nothing_as_upstream_has_it():
    """Fewer errors than ``max_errors`` count as wrong answers; the trial says how many there were."""
    broken = {example.question for example in VALSET[::10]}

    def metric(example, prediction, trace=None):
        if trace is None and example.question in broken:
            raise KeyError("missing")
        return exact(example, prediction)

    run = compiled(init={"metric": metric}).optimization_run
    assert not any(t.state == TrialState.FAIL and len(t.user_attrs["examples"]) > 10 for t in run.trials)
    assert run.trials[0].user_attrs["errors"] == 4
    assert all(run.trials[0].user_attrs["scores"][i] == 0.0 for i in range(0, 40, 10))


def test_max_errors_ends_an_evaluation():
    """With ``max_errors=2`` two errors make a trial FAILED, and the rest of its examples is not evaluated."""
    asked = []

    def metric(example, prediction, trace=None):
        if trace is None:
            asked.append(example)
            raise KeyError("missing")
        return exact(example, prediction)

    with pytest.raises(EvaluationError, match="missing"):
        compiled(init={"metric": metric, "max_errors": 2, "num_threads": 1}, n_jobs=1, minibatch=False, sampler="tpe")
    assert len(asked) <= 200 // 5 + 2  # a fifth of the run's calls, and then it gives up


def test_answers_that_cannot_be_read_are_wrong_answers():
    """An answer in no format scores 0.0, is no error, and does not use up ``max_errors``."""
    rule = TaskRule(ANSWERS, quality=Quality(0.5))

    def mumble(messages):
        text = rule(messages)
        return "hm" if "question 1" in messages[-1]["content"] and "plan" not in text else text

    found = compiled(RuleLM(mumble), init={"max_errors": 3})
    trial = found.optimization_run.trials[0]
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["unreadable"] >= 8
    assert "errors" not in trial.user_attrs


def hanging(gate, *, always):
    """A model that does not answer about question 20 before ``gate`` is opened, or only the first time."""
    asked = []

    def hang(call):
        if call.label == "answer" and "question 20\n" in call.messages[-1]["content"]:
            asked.append(call)
            if always or len(asked) == 1:
                gate.wait(30)

    return rule_lm(fault=hang)


def test_an_example_that_hangs_once_is_tried_again():
    """An answer that does not come in time is asked for once more, and nothing is missing from the trial."""
    gate = threading.Event()
    try:
        found = compiled(hanging(gate, always=False), example_timeout=0.3, max_concurrency=2)
    finally:
        gate.set()
    trial = found.optimization_run.trials[0]
    assert trial.state == TrialState.COMPLETE and len(trial.user_attrs["scores"]) == len(VALSET)


def test_an_example_that_always_hangs_counts_as_an_error():
    """Where an answer never comes two trials fail, then the example is one of ``max_errors``, and no thread is lost."""
    gate = threading.Event()
    try:
        found = compiled(
            hanging(gate, always=True), example_timeout=0.2, sampler="random", minibatch=False, max_concurrency=1,
            n_jobs=1, schedule="batch",
        )  # fmt: skip
    finally:
        gate.set()
    first, second, *others = found.optimization_run.trials
    assert first.state == second.state == TrialState.FAIL and "example_timeout" in first.user_attrs["error"]
    assert others and all(trial.state == TrialState.COMPLETE for trial in others)
    assert others[0].user_attrs["errors"] >= 1  # on a machine that is busy, others may take as long


def test_a_job_that_is_tried_again_asks_only_for_what_it_lacks():
    """When one example gets no answer, the others of its job are waited for, and none of them is asked for twice."""
    asked = Counter()

    def unplugged(call):
        if call.label == "answer":
            asked[str(call.messages)] += 1
            if "question 20\n" in call.messages[-1]["content"] and asked[str(call.messages)] <= 2:
                raise LMServerError("unplugged", retry_after=0.0)

    lm = rule_lm(fault=unplugged, seconds=0.05)
    found = compiled(lm, sampler="random", minibatch=False, n_jobs=1, num_trials=1)
    assert all(trial.state == TrialState.COMPLETE for trial in found.optimization_run.trials)
    assert sorted(set(asked.values())) == [1, 3] and list(asked.values()).count(3) <= 2


# ---------------------------------------------------------------------- context


class Spy(BaseCallback):
    """Collects evaluations, and which call each module call belongs to."""

    def __init__(self):
        self.started, self.ended, self.compiles, self.order = [], [], [], []

    def on_evaluate_start(self, call_id, instance, inputs):
        self.order.append((call_id, threading.get_ident()))
        self.started.append((call_id, inputs["callback_metadata"]["metric_key"], len(inputs["devset"])))

    def on_evaluate_end(self, call_id, outputs, exception=None):
        self.order.append((call_id, threading.get_ident()))
        self.ended.append((call_id, outputs, exception))

    def on_compile_start(self, call_id, instance, inputs):
        self.compiles.append(instance)


def test_evaluation_callbacks_fire_for_every_job():
    """Each evaluation starts and ends in the caller's thread, with its kind and results; a compile is one."""
    spy = Spy()
    with dspy.context(callbacks=[spy]):
        found = compiled(minibatch_size=10, sampler="tpe")
    assert {call for call, *_ in spy.started} == {call for call, *_ in spy.ended}
    assert ("eval_full", 40) in {(key, size) for _, key, size in spy.started}
    assert {key for _, key, _ in spy.started} == {"eval_full", "eval_minibatch"}
    assert all(error is None and len(out.results) > 0 for _, out, error in spy.ended)
    assert sum(isinstance(each, dspy.MIPROv2) for each in spy.compiles) == 1
    assert len(spy.started) <= len(found.optimization_run.trials)
    assert spy.order[::2] == spy.order[1::2] and {thread for _, thread in spy.order} == {threading.get_ident()}


def test_usage_is_tracked_over_all_threads():
    """``track_usage`` around a compile reports the tokens of every call."""
    with LMServer(TaskRule(ANSWERS)) as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False)
        with track_usage() as tracker:
            compiled(lm, num_trials=3)
        assert len(tracker.usage_data["openai/gpt-4o-mini"]) == server.requests


class Formatting(dspy.ChatAdapter):
    """An adapter that counts what it formats."""

    def __init__(self):
        super().__init__()
        self.formatted = []

    def format(self, signature, demos, inputs):
        self.formatted.append(signature)
        return super().format(signature, demos, inputs)


def test_adapter_and_history_are_the_callers():
    """Calls are formatted by the adapter of ``dspy.context``, and each is in the history of the caller's model."""
    adapter, lm = Formatting(), rule_lm()
    with dspy.context(adapter=adapter):
        compiled(lm)
    assert len(adapter.formatted) == len(lm.calls)
    assert len(lm.history) == len([call for call in lm.calls if call.rollout is None])


def test_the_limit_on_calls_in_flight_holds():
    """``max_concurrency`` holds over all three steps, whatever the number of jobs and threads."""
    lm = rule_lm(seconds=0.002)
    compiled(lm, max_concurrency=3, n_jobs=4)
    assert lm.level.most == 3


def test_an_idle_thread_wakes_the_search(monkeypatch):
    """Work is handed out when a thread has none, and not only when an evaluation has ended."""
    woken = []
    wake = SearchLoop.wake
    monkeypatch.setattr(SearchLoop, "wake", lambda self: (woken.append(threading.current_thread().name), wake(self)))
    compiled()
    assert woken and all(name.startswith("promptune") for name in woken)


def test_a_predictors_own_model_is_used_and_given_back():
    """A predictor with a language model of its own keeps it, within the limit too, and so does the result."""
    own, general = rule_lm(seconds=0.002), rule_lm()
    student = dspy.Predict("question -> answer")
    student.lm = own
    found = compiled(general, program=student, max_concurrency=2)
    assert type(found.lm) is RuleLM and own.level.most == 2
    assert all(type(each["program"].lm) is RuleLM for each in found.candidate_programs)
    assert {call.label for call in own.calls} == {"answer"}


@pytest.mark.parametrize("num_threads", [4, 64])
def test_compile_from_a_thread_and_from_a_running_event_loop(num_threads):
    """A compile works without the main thread, and in a coroutine as in a notebook's cell; with 256 workers too."""
    found, init = [], {"num_threads": num_threads}
    thread = threading.Thread(target=lambda: found.append(compiled(init=init)))
    thread.start()
    thread.join(60)

    async def cell():
        found.append(compiled(init=init))

    asyncio.run(cell())
    assert len(found) == 2 and all(each.optimization_run.calls for each in found)


def global_state():
    """What a compile could change for the whole process."""
    import gpytorch
    import numpy
    import torch

    levels = {name: logging.getLogger(name).level for name in ("", "dspy", "optuna", "httpx", "torch", "botorch")}
    return {
        "settings": dict(dspy.settings.config),
        "logging": (levels, optuna.logging.get_verbosity(), logging.root.manager.disable),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "random": (repr(numpy.random.get_state()), torch.get_rng_state().tolist()),  # Python's: DSPy's modules draw
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "gpytorch": (gpytorch.settings.cholesky_jitter.value(torch.float64), gpytorch.settings.debug.on()),
        "python": (sys.getswitchinterval(), threading.excepthook, dict(os.environ)),
    }


@pytest.mark.parametrize("sampler", ["onehot", "tpe", "random"])
def test_no_global_state_is_left_changed(sampler):
    """Settings, logging, handlers of signals and generators of random numbers are afterwards what they were before."""
    before = global_state()
    compiled(sampler=sampler)
    after = global_state()
    assert {name for name in before if before[name] != after[name]} == set()


def test_logs_have_no_colors(caplog):
    """Log messages are plain text, without control characters."""
    with caplog.at_level(logging.INFO, logger="dspy"):
        logging.getLogger("dspy").addHandler(caplog.handler)
        try:
            compiled()
        finally:
            logging.getLogger("dspy").removeHandler(caplog.handler)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("dspy.promptune")]
    assert ours and not any("\x1b" in text for text in ours)


def test_faults_of_the_provider_are_lived_with(caplog):
    """With 429s and 5xx among the answers a run still spends its budget, and says that it was slowed down."""
    from tests.server import Faults

    faults = Faults(limit=3, retry_after=0.02)
    monitor = logging.getLogger("dspy.promptune.limits.concurrency")
    monitor.addHandler(caplog.handler)
    with LMServer(TaskRule(ANSWERS), latency=Latency(0.01, 0.0), faults=faults) as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.url, api_key="none", cache=False)
        try:
            found = compiled(lm, num_trials=3)
        finally:
            monitor.removeHandler(caplog.handler)
    assert "at once instead of" in caplog.text
    assert found.optimization_run.calls > 100
    assert all(t.state == TrialState.COMPLETE for t in found.optimization_run.trials)

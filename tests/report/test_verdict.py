"""The verdict of a run, what next, the examples that were fixed and broken, and the call that repeats it."""

import logging
import re
from dataclasses import replace
from html import escape

import optuna
import pytest

import dspy
from dspy.promptune import EvaluationError, OptionError, PromptSpace, plots, search
from dspy.promptune.findings.cases import cases_of
from dspy.promptune.findings.headline import headline
from dspy.promptune.findings.held_out import held_out
from dspy.promptune.findings.leaderboard import leaderboard, texts_of
from dspy.promptune.findings.lineage import lineage
from dspy.promptune.findings.record import Moment, record_of
from dspy.promptune.findings.scale import Scale
from dspy.promptune.findings.verdict import Verdict
from dspy.promptune.report.page import page
from dspy.promptune.report.reproduce import command
from dspy.promptune.run.failures import ExampleFailures
from tests.report.conftest import ANSWERS, EXAMPLES, Table, compiled, exact
from tests.server import Quality, RuleLM, TaskRule


@pytest.fixture(scope="module")
def program():
    return compiled(schedule="batch")


@pytest.fixture(scope="module")
def record(program):
    return record_of(program.optimization_run)


def with_rows(record, before, after, *, best=(1, 1), **changes):
    """The record of a run whose original and winner have these scores, and nothing else."""
    facts = {**record.facts, "expected_score": None}
    changes = {"evaluations": (), "history": (), **changes}
    found = replace(record, best=best, facts=facts, **changes)
    found.__dict__["rows"] = {best: dict(enumerate(after)), record.default: dict(enumerate(before))}
    found.__dict__["beliefs"] = None
    return found


def test_the_sentence_counts_what_is_right(record):
    """Scores of 0 and 1 are told as examples right, with the paired gain and its interval."""
    found = with_rows(record, [0.0] * 8 + [1.0] * 2, [1.0] * 6 + [0.0] * 3 + [1.0])
    assert Verdict(found).sentence() == (
        "7 of 10 validation examples right instead of 2: +50 points (95 %: -1 to +101), which may be chance."
    ).replace("+101", "+100")
    graded = with_rows(record, [0.25] * 10, [0.5] * 10)
    assert Verdict(graded).sentence() == (
        "Score 50.0 % instead of 25.0 % on 10 validation examples: +25 points (95 %: +3 to +47)."
    )


def test_a_winner_with_more_examples_than_the_original_is_told_of_all(record):
    """The gain is of the examples that both have; the score of the winner on all of its examples stands beside it."""
    found = with_rows(record, [0.0] * 4, [1.0] * 4 + [0.0] * 6)
    assert Verdict(found).sentence() == (
        "4 of 4 validation examples right instead of 0: +100 points (95 %: +52 to +100); the winner has 40.0 % on all "
        "10 examples that it was scored on."
    )
    assert Verdict(found).lines()[:4] == [
        "Before   0.0 % (0 of 4 right; 95 %: 0 to 49)",
        "After    100.0 % (4 of 4 right; 95 %: 51 to 100), instruction 1 with demo set 1",
        "Gain     +100.0 points (95 %: +52.3 to +100.0); of 4 examples 4 fixed, 0 broken",
        "Winner   40.0 % on all 10 examples that it was scored on",
    ]
    cards = {card.name: card for card in headline(found)}
    assert [cards[name].value for name in ("before", "after", "gain")] == ["0.0 %", "100.0 %", "+100.0"]
    assert cards["after"].note.endswith("4 examples; winner on all of its 10: 40.0 %")


@pytest.mark.parametrize(
    ("factor", "shift", "words"),
    [
        (
            100,
            0,
            ["Before   25.0 (10", "After    52.5 (10", "Gain     +27.5 (95", "52.5 instead of 25.0 (in the metric's"],
        ),
        (1, -1, ["Before   -0.750 (10", "After    -0.475 (10", "Gain     +0.275 (95", "-0.475 instead of -0.750 (in"]),
        (
            2000,
            0,
            ["Before   500 (10", "After    1,050 (10", "Gain     +550 (95", "1,050 instead of 500 (in the metric's"],
        ),
    ],
)
def test_scores_of_other_metrics_are_in_their_own_units(record, factor, shift, words):
    """Scores that are not from 0 to 1 are nowhere in percent: not in the log, not in the tables."""
    before, after = [0.25] * 10, [0.25] * 4 + [0.75] * 5 + [0.5]
    found = with_rows(record, *([factor * score + shift for score in row] for row in (before, after)))
    said = "\n".join([Verdict(found).sentence(), *Verdict(found).lines()])
    assert [word for word in words if word not in said] == [] and "points" not in said
    assert "in the metric's units; of 10 examples 6 better, 0 worse" in said
    shown = page(found)
    for part in ("verdict", "leaderboard", "cases", "all"):
        text = re.sub(r"<[^>]*>|9[05]\s%", " ", shown.partition(f'id="{part}"')[2].partition("</section>")[0])
        assert "%" not in text, (part, text)


def test_figures_are_in_the_metrics_units():
    """Axes and labels of figures say percent for scores from 0 to 1 only."""
    table = Table()
    run = search(
        table.space, lambda params, examples: [40 * score for score in table(params, examples)],
        n_examples=20, max_calls=150, sampler="qei", embedder="ngram", seed=0,
    )  # fmt: skip
    for figure in (plots.best_so_far, plots.estimates, plots.effects, plots.spending, plots.timeline):
        drawn = figure(run)
        drawn.update_layout(template="none")
        assert " %" not in drawn.to_json().replace("95 %", "") and "(%)" not in drawn.to_json()
    (line,) = (each for each in plots.best_so_far(run).data if each.name == "best, as known at the end")
    assert line.y[-1] == pytest.approx(run.best_score) and run.best_score > 1


def test_graded_scores_are_better_or_worse(record):
    """What rose from 0.3 to 0.4 is not called fixed, and a score of 0 is wrong only where none is lower."""
    graded = cases_of(with_rows(record, [0.3, 0.4, 0.0], [0.4, 0.3, 0.0]))
    assert graded.words[:2] == ("better", "worse") and (len(graded.fixed), len(graded.broken)) == (1, 1)
    assert len(graded.wrong) == 1 and graded.title == "Examples better and worse"
    assert cases_of(with_rows(record, [-1.0, 0.0], [0.0, 0.0])).wrong == ()
    assert cases_of(with_rows(record, [0.0, 1.0], [1.0, 1.0])).words[:2] == ("fixed", "broken")


def test_what_the_run_expects_is_told(record, program):
    """What the run itself expects of its winner on new data is in sentence and lines, with its 90 % interval."""
    run = program.optimization_run
    words = f"about {100 * run.expected_score:.0f} % (90 %: {100 * run.interval[0]:.0f} to "
    assert f"; on new data {words}" in Verdict(record).sentence()
    assert any(line.startswith(f"New data {words}") for line in run.verdict())


def test_an_original_that_stays_is_said(record):
    """Where the original is the best, nothing is claimed."""
    found = with_rows(record, [1.0] * 9 + [0.0], [], best=record.default)
    assert Verdict(found).sentence() == (
        "No better prompt than the original was found: it scores 90.0 % (9 of 10 right; 95 %: 60 to 98)."
    )
    assert not any("testset" in step for step in Verdict(found).next_steps())


def test_many_failures_come_first(record):
    """With a fifth of the examples failing, the block, the advice and the page begin with it."""
    failures = ExampleFailures(scored=100, errors=25, error_sample="example 3: RuntimeError: <down>")
    found = with_rows(record, [0.0] * 10, [1.0] * 10, example_failures=failures)
    verdict = Verdict(found)
    assert verdict.lines()[0].startswith("Failing  25 of 100 scored examples (25 %) raised an error")
    assert verdict.next_steps()[0] == "Fix the failures first: 25 % of the scored examples failed."
    shown = page(found)
    first = shown.index("25 of 100 scored examples")
    assert first < shown.index('class="sentence"') and "RuntimeError: &lt;down&gt;" in shown


def test_the_log_ends_with_the_verdict(program, record, caplog):
    """A compile's last message has before, after, gain, new data, what it took and how to see the report."""
    logger = logging.getLogger("dspy")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "dspy"):
        again = compiled(schedule="batch")
    logger.removeHandler(caplog.handler)
    block = next(message for message in caplog.messages if message.startswith("Ended: "))
    for word in ("Before", "After", "Gain", "New data", "Spent", "Report"):
        assert re.search(rf"^  {word} ", block, re.M), word
    assert f"{program.score:.1f} %" in block and "optimization_run.report" in block
    lines = again.optimization_run.verdict()
    assert lines[0] == f"Before   {re.search(r'Before   (.*)', block)[1]}"
    assert "load" in again.optimization_run.spent


def test_examples_are_fixed_and_broken_with_their_answers(record, program):
    """Each example that changed is there with its input, label and both answers; the answers fit the scores."""
    found = cases_of(record)
    rows = record.rows[record.default], record.rows[record.best]
    assert len(found.fixed) == sum(rows[1][i] > rows[0][i] for i in rows[0])
    assert len(found.broken) == sum(rows[1][i] < rows[0][i] for i in rows[0])
    assert found.compared == 40 and len(found.fixed) > 0
    for case in found.fixed:
        question = EXAMPLES[12 + case.example].question
        assert (case.inputs, case.expected) == (question, ANSWERS[question])
        assert case.answer_after == case.expected != case.answer_before
    assert program.optimization_run.cases[0]["answer_before"]


def test_the_leaderboard_is_in_the_order_of_what_is_expected(record):
    """The returned prompt is first, the others by posterior mean, with texts, intervals and P(best)."""
    rows = leaderboard(record)
    assert rows[0].best and rows[0].key == record.best and sum(row.original for row in rows) == 1
    others = [row.expected for row in rows[1:]]
    assert others == sorted(others, reverse=True)
    assert all(row.low <= row.score <= row.high and row.texts[0][0].startswith("instruction") for row in rows)
    untried = sum(record.beliefs.of(key)[2] for key in record.beliefs.keys if key not in record.rows)
    assert sum(row.p_best for row in rows) + untried == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("probability", "words"), [(0.0, "< 1 %"), (0.0049, "< 1 %"), (0.006, "1 %"), (0.996, "100 %")]
)
def test_a_small_chance_is_told_alike_everywhere(record, probability, words):
    """The probability that the winner is the best reads the same on the card as in the leaderboard."""
    shown = record.beliefs.p_best.copy()
    shown[record.beliefs.keys.index(record.best)] = probability
    found = replace(record)
    found.__dict__["beliefs"] = replace(record.beliefs, p_best=shown)
    text = page(found).replace("\u00a0", " ")
    assert (
        f"; {escape(words)} likely to be the best of all" in text and f'data-label="P(best)">{escape(words)}<' in text
    )


def test_where_the_rest_of_the_probability_lies_is_said(record):
    """Where untried prompts are probably the best, the card says how probably, and a larger budget is the advice."""
    chances = record.beliefs.p_best.copy()
    tried = [key in record.rows for key in record.beliefs.keys]
    chances[tried], chances[[not each for each in tried]] = 0.2 / sum(tried), 0.8 / (len(tried) - sum(tried))
    found = replace(record)
    found.__dict__["beliefs"] = replace(record.beliefs, p_best=chances)
    count = len(record.space) - len(record.rows)
    (card,) = (each for each in headline(found) if each.name == "expected on new data")
    assert card.note.endswith("combinations not tried: 80 %)") and f"{count} combination" in card.note
    advice = f"With a probability of 80 % the best prompt is one of the {count} combinations that were not tried"
    steps = Verdict(found).next_steps()
    assert f"{advice}: a larger budget may find it." in steps and not any("hardly help" in step for step in steps)
    assert not any("not tried" in step for step in Verdict(found, model=False).next_steps())


@pytest.mark.parametrize(
    ("leads", "words"),
    [
        ([(10, (2, 0)), (90, (1, 1))], "came into the lead late, after 90 % of the examples: a larger budget may"),
        (
            [(10, (2, 1)), (90, (1, 1))],
            "was in the lead early, after 10 % of the examples: a larger budget will hardly",
        ),
        ([(10, (2, 0)), (60, (1, 1))], None),
    ],
)
def test_a_larger_budget_is_the_advice_where_the_score_still_rose(record, leads, words):
    """Late is when no prompt as good as the winner led before, whichever of equal ones is returned."""
    history = tuple(Moment(calls, 0.0, key) for calls, key in leads)
    evaluations = (replace(record.evaluations[0], paid=100),)
    found = with_rows(record, [0.0] * 40, [1.0] * 30 + [0.0] * 10, history=history, evaluations=evaluations)
    found.__dict__["rows"].update({(2, 0): {0: 1.0, 1: 1.0}, (2, 1): dict(enumerate([0.0] * 5 + [1.0] * 15))})
    steps = [step for step in Verdict(found).next_steps() if "larger budget" in step]
    assert (words is None and not steps) or words in steps[0]


def test_a_run_of_failures_says_what_happened(tmp_path):
    """Where every trial failed, page and block begin with that and the first error, and claim nothing of programs."""
    path = str(tmp_path / "runs.db")
    with pytest.raises(EvaluationError, match="Every evaluation failed"):
        Table(broken=(0, 1, 2, 3), error=f"<b>down</b> {'x' * 500}").search(storage=path)
    record = record_of(optuna.load_study(study_name="search", storage=f"sqlite:///{path}"))
    count = len(record.evaluations)
    first = f"Nothing was scored: {count} of {count} trials failed, trial 0 with ValueError: <b>down</b> xxx"
    verdict = Verdict(record)
    assert verdict.sentence().startswith(first) and len(verdict.sentence()) < 400
    assert "Gain     not known: nothing was scored" in verdict.lines() and "returned" not in "".join(verdict.lines())
    (card,) = (each for each in headline(record) if each.name == "failed")
    assert (card.value, card.note) == (f"{count} trials", f"of {count}: no score stands for them")
    shown = page(record)
    assert f'<p class="sentence alarm">{escape(first)}' in shown and "the original program is returned" not in shown
    assert (
        "<th>P(best)</th>" not in shown
        and "has not ended" not in shown
        and shown.count('<td class="text">as trial 0</td>') > 0
    )


def test_predictors_have_their_names(record):
    """With several predictors the program's names for them stand beside their numbers."""
    space = PromptSpace({0: ["a", "b"], 1: ["c", "d"]})
    program = {"predictors": {"plan": {}, "solve.predict": {}}}
    found = replace(record, space=space, best=(1, 1), evaluations=(), facts={**record.facts, "program": program})
    assert [found.of_predictor(i) for i in (0, 1)] == [" of predictor 0 (plan)", " of predictor 1 (solve)"]
    assert texts_of(found, (1, 1))[1] == ("instruction 1 of predictor 1 (solve)", "d")
    assert replace(found, facts={}).of_predictor(1) == " of predictor 1" and record.of_predictor(0) == ""


def test_without_a_model_few_lucky_examples_do_not_lead():
    """A random search has no model of the prompts to ask in the log; means are drawn to the common level."""
    run = Table().search(max_calls=60)
    found = replace(record_of(run))
    found.__dict__["beliefs"] = None
    rows = leaderboard(found)
    assert all(row.expected is None for row in rows) and rows[0].best
    assert Verdict(found, model=False).lines()[0].startswith("Before")


def test_a_test_set_is_shown(program, tmp_path):
    """``report(testset=...)`` evaluates both programs on new examples and shows it, so that it is advised no more."""
    with dspy.context(lm=RuleLM(TaskRule(ANSWERS, quality=Quality(0.2)))):
        path = program.optimization_run.report(tmp_path / "report.html", testset=EXAMPLES[52:])
    shown = path.read_text(encoding="utf-8")
    said = re.findall(r"\d of 8 test examples right instead of \d", shown)
    assert 'id="test"' in shown and len(said) == 2 and shown.index(said[0]) < shown.index("What next")
    advice = "<li>Measure it on examples that the run has not seen"
    assert advice not in shown and advice in page(program.optimization_run)
    with pytest.raises(OptionError, match="give at least one"):
        program.optimization_run.report(tmp_path / "report.html", testset=[])
    with pytest.raises(OptionError, match=r"dspy\.Evaluate"):
        Table().search().report(tmp_path / "report.html", testset=EXAMPLES[52:])
    with pytest.raises(OptionError, match=r"Example 0 of testset is a int: give a list of dspy\.Example"):
        program.optimization_run.report(tmp_path / "report.html", testset=[1, 2])


def test_a_test_set_without_a_model_is_no_result(program, tmp_path):
    """Where the winner never answers, a test set is refused with the remedy, few examples or many: no 0 right."""
    with dspy.context(lm=None):
        for size in (2, 12):
            with pytest.raises(EvaluationError, match=r"dspy\.configure\(lm=\.\.\.\)"):
                program.optimization_run.report(tmp_path / "report.html", testset=EXAMPLES[-size:])
    assert not (tmp_path / "report.html").exists()


def test_an_original_that_fails_throughout_is_compared(program, tmp_path):
    """An original program that fails on all of a test set, however many examples, has 0 right beside the winner."""
    run = program.optimization_run

    class Failing(dspy.Module):
        def forward(self, **inputs):
            raise ValueError("cannot be read")

    found = replace(run, programs=replace(run.programs, original=Failing()))
    with dspy.context(lm=RuleLM(TaskRule(ANSWERS, quality=Quality(0.2)))):
        shown = found.report(tmp_path / "report.html", testset=EXAMPLES[44:]).read_text(encoding="utf-8")
    assert re.search(r"\d+ of 16 test examples right instead of 0", shown)


def test_held_out_examples_are_compared():
    """A test set gives one sentence and the examples that changed."""
    rows = [(EXAMPLES[i], dspy.Prediction(answer="no"), float(i < 2)) for i in range(4)]
    better = [(EXAMPLES[i], dspy.Prediction(answer="yes"), float(i > 0)) for i in range(4)]
    found = held_out(rows, better)
    assert found.sentence.startswith("3 of 4 test examples right instead of 2: +25 points")
    assert [case.example for case in found.cases.fixed] == [2, 3] and found.cases.broken[0].answer_after == "yes"
    many = [(example, answer, 100 * score) for example, answer, score in better]
    assert held_out(rows, many).sentence.startswith("Score 75.0 instead of 0.5 (in the metric's units) on 4 test ex")
    own = held_out(rows, better, Scale(percent=False, span=100.0))
    assert own.sentence.startswith("Score 0.8 instead of 0.5 (in the metric's units) on 4 test examples: +0 (95 %: -1")


def test_the_call_repeats_the_run(program, record):
    """The code on the page runs as it is, and with the batch schedule gives the same program."""
    code = command(record)
    assert "from tests.report.conftest import exact as metric" in code and "disable_progress_bar" not in code
    names = {"program": None, "trainset": EXAMPLES[:12], "valset": EXAMPLES[12:52]}
    names["program"] = dspy.Predict(dspy.Signature("question -> answer", record.space.texts(0)[0]))
    with dspy.context(lm=RuleLM(TaskRule(ANSWERS, quality=Quality(0.2)))):
        exec(code, names)
    assert names["best"].score == program.score
    assert names["best"].optimization_run.best_params == program.optimization_run.best_params


def test_what_cannot_be_written_down_is_named(record):
    """Objects among the options are named in a comment, a metric without an importable name as well; it is Python."""
    call = {"optimizer": {"auto": None}, "compile": {"executor": {"__object__": "pool.Mine"}}, "valset": False}
    code = command(replace(record, facts={**record.facts, "call": call, "metric": "__main__.<lambda>"}))
    compile(code, "call", "exec")
    assert "# metric is yours: it was __main__.<lambda>" in code and "# also given: executor" in code
    compile(command(record_of(Table().search())), "call", "exec")


def test_instructions_stand_below_those_they_were_written_from(record):
    """With parents known, instructions are a tree with the best score of each; without, there is none."""
    standings = leaderboard(record)
    assert lineage(record, standings) == []
    name = "0_predictor_instruction"
    written = [{"part": name, "index": 2, "parent": {name: 1}}, {"part": name, "index": 3, "parent": {name: 2}}]
    known = replace(record, facts={**record.facts, "lineage": written})
    tree = lineage(known, standings)
    assert [(line.depth, line.title) for line in tree] == [
        (0, "instruction 0"), (0, "instruction 1"), (1, "instruction 2"), (2, "instruction 3"),
    ]  # fmt: skip
    assert [line.best for line in tree] == [node == record.best[0] for node in range(4)]
    best = standings[0]
    assert tree[record.best[0]].known == f"{100 * best.score:.1f} % on {best.examples} examples"
    shown = page(known)
    assert 'href="#lineage"' in shown and "Written during the search: 2 instructions." in shown


def test_exact_is_what_the_run_was_scored_by(record):
    """The metric's name is the one that is imported again."""
    assert record.facts["metric"] == f"{exact.__module__}.{exact.__qualname__}"

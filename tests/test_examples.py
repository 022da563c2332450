"""The examples: their data, and the scripts' parts that need no language model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import dspy
from benchmarks.tables import data_folder, load_tables
from examples import demo, replay
from tests.server import LMServer, Quality, TaskRule

EXAMPLES = Path(__file__).parents[1] / "examples"
LETTERS = [json.loads(line) for line in (EXAMPLES / "letters.jsonl").read_text(encoding="utf-8").splitlines()]


def test_letters_are_balanced_in_every_split() -> None:
    """240 letters: 100 to learn from, 40 to choose with, 100 to judge by, the four subjects evenly in each."""
    counted = Counter((letter["split"], letter["subject"]) for letter in LETTERS)
    sizes = {"train": 25, "validation": 10, "test": 25}
    subjects = ("food", "sport", "weather", "music")
    assert counted == {(split, subject): n for split, n in sizes.items() for subject in subjects}


def test_no_letter_appears_twice() -> None:
    """Letters differ by more than case and punctuation, across splits too."""
    texts = ["".join(filter(str.isalnum, letter["letter"].lower())) for letter in LETTERS]
    assert len(set(texts)) == len(texts)


def test_letters_have_the_fields_of_the_program() -> None:
    """Each has a split, a text of a sentence's length and a subject."""
    for letter in LETTERS:
        assert set(letter) == {"split", "letter", "subject"}
        assert 15 <= len(letter["letter"]) <= 120


def test_word_problems_end_in_their_answer() -> None:
    """Each has a question, the worked steps, and `####` before a whole number, as GSM8K has."""
    rows = [json.loads(line) for line in (EXAMPLES / "word_problems.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 20
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        steps, _, number = row["answer"].partition("#### ")
        assert steps.strip()
        assert number.isdigit()
        assert number in steps


def test_the_replay_draws_two_curves_and_says_what_they_say(capsys) -> None:
    """One search each on 46 recorded prompts ends in a chart with both marks and in the final accuracies."""
    replay.main(["--table", "subj_mistral", "--searches", "1"])
    printed = capsys.readouterr().out
    assert "46 prompts, 300 examples, no model is called" in printed
    assert "Subj, Mistral Small 24B: accuracy of the prompt" in printed
    assert "after 180 examples: TPE's prompt is right on" in printed
    assert replay.OURS in printed or replay.BOTH in printed
    assert "\x1b" not in printed


def test_the_replay_does_not_claim_what_it_did_not_reach() -> None:
    """A search below TPE's end is said to be below it; one above it is credited with the calls it took."""
    (table,) = load_tables(data_folder(), ["subj_mistral"])
    low, high = np.full((2, 10), 0.6), np.linspace([0.5, 0.5], [0.7, 0.7], 10, axis=1)
    assert "only with the whole budget, or not at all" in replay.verdict(low, high, table)
    said = replay.verdict(high, low, table)
    assert "qei's is better in 2 pairs, TPE's in 0." in said
    assert "TPE's in 0; 2 end alike." in replay.verdict(low, low, table)
    assert "qei was at TPE's end after 60 examples, 0.60 of TPE's budget." in said


def test_a_chart_puts_high_values_on_top() -> None:
    """The first row is the highest accuracy, the row before the axis the lowest; equal values share a mark."""
    rows = replay.chart([("a", np.array([0.0, 1.0])), ("b", np.array([0.0, 0.0]))], 0.0, 1.0, 2)
    assert (rows[0], rows[replay.ROWS - 1]) == (" 100 % │ a", f"   0 % │{replay.BOTH}b")


def test_the_candidates_of_the_demo_are_letters_to_learn_from() -> None:
    """Fourteen demo sets: two of six letters at random, and twelve of four with every subject in them."""
    train = demo.letters("train")
    sets = demo.demo_sets(train, seed=0)
    assert list(map(len, sets)) == [6] * 2 + [4] * 12
    assert all(letter in train for letters in sets for letter in letters)
    for letters in sets[2:]:
        assert {letter.subject for letter in letters} == set(demo.SUBJECTS)


def test_the_demo_compares_letter_by_letter() -> None:
    """The gain is over the mean of the draws, with the interval of paired differences, and says what may be chance."""
    found, draws = ([demo.Judged("", scores, 0, 0) for scores in rows] for rows in (
        [[1.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]],
    ))  # fmt: skip
    said = "+38 points against the mean of 2 draws of LabeledFewShot (95 %: -39 to +114), which may be chance."
    assert demo.compared(found[0], draws) == said
    sure = demo.compared(demo.Judged("", [1.0] * 30, 0, 0), [demo.Judged("", [0.0, 0.0, 1.0] * 10, 0, 0)])
    assert sure == "+67 points against one draw of LabeledFewShot (95 %: +49 to +85)."


@pytest.mark.parametrize(
    ("answer", "subject"),
    [
        ("[[ ## subject ## ]]\nweather", "weather"),
        ("Music, not sport.", "music"),
        ("I do not know.", "none"),
    ],
)
def test_the_demo_reads_the_subject_that_an_answer_names_first(answer: str, subject: str) -> None:
    """Whatever the form; an answer that names none of the four is read as "none", which is never right."""
    assert demo.ShortChat().parse(demo.SortLetter, answer) == {"subject": subject}


def test_the_letters_of_the_demo_mix_the_subjects() -> None:
    """A part of a split has every subject alike."""
    assert set(Counter(letter.subject for letter in demo.letters("test", 20)).values()) == {5}


@pytest.mark.parametrize("script", ["demo.py", "gsm8k.py"])
def test_scripts_explain_themselves(script: str) -> None:
    """`--help` prints the options without starting anything."""
    command = [sys.executable, str(EXAMPLES / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "--seed" in done.stdout


def gsm8k(out: Path, *options: str) -> str:
    """What `examples/gsm8k.py` prints with these options."""
    command = [sys.executable, str(EXAMPLES / "gsm8k.py"), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_gsm8k_runs_against_an_openai_compatible_endpoint(tmp_path: Path) -> None:
    """The script asks the endpoint that it is given, and saves a program that can be loaded."""
    rows = [json.loads(line) for line in (EXAMPLES / "word_problems.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = {row["question"]: row["answer"].partition("#### ")[2] for row in rows}
    with LMServer(TaskRule(answers, quality=Quality(base=0.5))) as server:
        endpoint = ("--model", "openai/rules", "--api-base", server.url, "--api-key", "none")
        printed = gsm8k(tmp_path / "out.json", *endpoint, "--limit", "24", "--num-candidates", "3", "--num-trials", "4")
        assert server.requests > 20
    score = float(printed.partition("Right on the validation problems: ")[2].partition(" %")[0])
    assert 0 < score <= 100
    program = dspy.ChainOfThought("question -> answer")
    program.load(str(tmp_path / "out.json"))
    assert program.predictors()[0].signature.instructions in printed


@pytest.mark.slow
def test_gsm8k_runs_on_the_embedded_model(tmp_path: Path) -> None:
    """With `--local` the script comes to an end on a model that can hardly count, and saves what it has."""
    sizes = ("--limit", "9", "--num-candidates", "2", "--num-trials", "1", "--max-tokens", "60", "--num-threads", "2")
    printed = gsm8k(tmp_path / "out.json", "--local", *sizes)
    assert "Right on the validation problems" in printed
    assert (tmp_path / "out.json").exists()

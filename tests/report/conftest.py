"""Finished runs that the tests of the report look at."""

import os
import random

import pytest

import dspy
from dspy.promptune import PromptSpace, search
from tests.server import Quality, RuleLM, TaskRule

CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--no-first-run"] + [
    f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync")
]
MARKUP = "Answer <b>the</b> question &amp; <img src=x onerror='document.title=1'><script>document.title = 2</script>"
ANSWERS = {f"question {i}": ["yes", "no", "maybe"][i % 3] for i in range(60)}
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in ANSWERS.items()]


def exact(example, prediction, trace=None):
    return example.answer == prediction.answer


def compiled(path=None, **options):
    """A small compile of a program whose instruction is full of markup."""
    program = dspy.Predict(dspy.Signature("question -> answer", MARKUP))
    options = {"sampler": "qei", "embedder": "ngram", "n_jobs": 2, "num_trials": 8, "seed": 1, **options}
    with dspy.context(lm=RuleLM(TaskRule(ANSWERS, quality=Quality(0.2)), seconds=0.002)):
        optimizer = dspy.MIPROv2(metric=exact, auto=None, num_candidates=4, num_threads=2, max_bootstrapped_demos=2)
        return optimizer.compile(
            program, trainset=EXAMPLES[:12], valset=EXAMPLES[12:52], storage=path, disable_progress_bar=True, **options
        )


class Table:
    """A recorded search of 4 instructions and 3 demo sets; ``broken`` instructions raise."""

    def __init__(self, broken=(), error="No <b>luck</b>.", n_examples=20):
        rng = random.Random(0)
        self.space = PromptSpace(
            {0: [f"Do it in the {word} way." for word in ("first", "second", "third", "fourth")]},
            {0: [[], [dspy.Example(q="1+1", a="2")], [dspy.Example(q="2+3", a="5"), dspy.Example(q="4+4", a="8")]]},
        )
        self.broken, self.error, self.n_examples = broken, error, n_examples
        self.worth = {key: rng.random() for key in self.space.keys()}

    def __call__(self, params, examples):
        key = self.space.key(params)
        if key[0] in self.broken:
            raise ValueError(self.error)
        return [float(random.Random(f"{key}{example}").random() < self.worth[key]) for example in examples]

    def search(self, **options):
        options = {"sampler": "random", "minibatch_size": 5, "seed": 0, "max_calls": 150, **options}
        return search(self.space, self, n_examples=self.n_examples, **options)


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """The database of a finished compile, and its program."""
    path = str(tmp_path_factory.mktemp("report") / "runs.db")
    return path, compiled(path)


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, headless; while it is there, its event loop is the running one of this thread."""
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"{CHROMIUM} is not there: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()

"""Finished runs that the tests of the report look at."""

import shutil

import pytest

import dspy
from tests.engine.hazards import EXAMPLES, TRAINSET, metric, rule_lm

MARKUP = "Answer <b>the</b> question <script>document.title = 'hacked'</script> & </script> briefly."


def compiled_with(storage=None, **options):
    """A small compile of a program whose instruction is full of markup; the optimised program."""
    program = dspy.Predict(dspy.Signature("question -> answer", MARKUP))
    with dspy.context(lm=rule_lm()):
        optimizer = dspy.MIPROv2(
            metric=metric, auto=None, num_candidates=4, num_threads=2, max_bootstrapped_demos=1, seed=1
        )
        options = {"sampler": "qei", "embedder": "ngram", "n_jobs": 2, "disable_progress_bar": True, **options}
        return optimizer.compile(
            program, trainset=TRAINSET, valset=EXAMPLES[12:60], num_trials=6, storage=storage, **options
        )


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """The database of a finished compile, and its program."""
    path = tmp_path_factory.mktemp("report") / "runs.db"
    return path, compiled_with(str(path))


@pytest.fixture(scope="session")
def browser():
    """Headless chromium."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: apt-get install -y chromium")
    api = pytest.importorskip("playwright.sync_api", reason="its driver is not installed: pip install playwright")
    quiet = "sandbox first-run".split(), "gpu quic background-networking component-update sync".split()
    arguments = [*(f"--no-{name}" for name in quiet[0]), *(f"--disable-{name}" for name in quiet[1])]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()

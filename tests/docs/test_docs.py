"""The documentation does what it says: its code runs, its commands exist, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import cost_table
import dspy
from dspy import promptune
from dspy.promptune.cli import main
from tests.docs.pages import DOCS, GENERATED, ROOT, commands, links, pages, python_blocks
from tests.server import LMServer, Quality, TaskRule

LEGS = {
    f"How many legs do {spiders} spiders and {hens} hens have together?": str(8 * spiders + 2 * hens)
    for spiders in range(2, 31)
    for hens in range(2, 31)
}
COSTS = (DOCS / "cost-and-resume.md").read_text(encoding="utf-8")
FEW = 20  # validation examples of pages that go on from the quick start, which itself runs with all
FIRST = ("README", "quickstart")  # what a newcomer runs; the other pages' code runs with the slow tests
WITH_PYTHON = [
    pytest.param(page, id=page.stem, marks=[] if page.stem in FIRST else [pytest.mark.slow])
    for page in pages()
    if (page.parent == DOCS or page.name == "README.md") and python_blocks(page)
]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:dspy.LM"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


@pytest.fixture(scope="module")
def server():
    """A model on loopback that knows the answers of the quick start, and is wrong now and then."""
    with LMServer(TaskRule(LEGS, quality=Quality(base=0.3))) as running:
        yield running


@pytest.fixture
def loopback(server, monkeypatch, tmp_path):
    """``dspy.LM(...)`` talks to the server whatever model it names, and files land in an empty folder."""

    class LM(dspy.LM):
        def __init__(self, model, **options):
            options |= {"api_base": server.url, "api_key": "none", "cache": False}
            super().__init__("openai/" + model.rpartition("/")[2], **options)

    monkeypatch.setattr(dspy, "LM", LM)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # the price list in the package, not one of the network
    monkeypatch.chdir(tmp_path)
    yield
    dspy.configure(lm=None)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_every_python_block_runs(page, loopback):
    """The blocks of a page run one after another in one namespace; what needs a network or a part not here compiles."""
    namespace = {"__name__": "page"}
    if page.read_text(encoding="utf-8").startswith("<!-- continue -->"):
        exec(python_blocks(DOCS / "quickstart.md")[0].code(), namespace)
        namespace["valset"] = namespace["valset"][:FEW]
    ran = 0
    for block in python_blocks(page):
        code = block.code()
        if block.runs:
            exec(code, namespace)
            ran += 1
    if not ran:
        pytest.skip("all blocks of the page need a part that is not installed")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists(page):
    """Each `make` target is in the Makefile, each `dspy-promptune` command known."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    lines = [line.strip() for line in commands(page)]
    named = {line.split()[1] for line in lines if line.startswith("make ")}
    named |= set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
    assert named <= targets
    for line in lines:
        if found := re.match(r"(?:python -m dspy.promptune|dspy-promptune) ([a-z]+) ", line):
            with pytest.raises(SystemExit) as done:
                main([found[1], "--help"])
            assert done.value.code == 0


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_sources_lead_somewhere(page):
    """Files that a page links to are there; external links are well-formed (nobody is asked: tests have no network)."""
    for target in links(page):
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https" and "." in parts.netloc, target
        elif parts.path:
            name = parts.path if page.parent != DOCS else GENERATED.get(parts.path, parts.path)
            assert (page.parent / name).exists(), f"{page.name}: {target}"


def test_the_reference_has_every_public_name():
    """Each name of `dspy.promptune` is on the page of the API, or in the module of errors that it lists whole."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert "::: dspy.promptune.errors" in text
    named = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, flags=re.M))
    assert set(promptune.__all__) <= named | set(promptune.errors.__all__)


def test_the_map_of_the_wings_is_the_one_that_is_checked():
    """CONTRIBUTING lists the folders of the import contract in its order, and the files it points to exist."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [")[2].partition("]")[0]
    layers = re.findall(r'^    "(\w+)",$', contract, flags=re.M)
    wings = [name for name in reversed(layers) if (ROOT / "dspy" / "promptune" / name).is_dir()]
    table = text.partition("## The map")[2].partition("### Where")[0]
    listed = [row.strip("`/") for row in re.findall(r"^\| (`\w+/`)", table, flags=re.M)]
    assert listed == wings
    for name in re.findall(r"`((?:compile|samplers|gp|features|allocation|limits|storage|run)/\w+\.py)`", text):
        assert (ROOT / "dspy" / "promptune" / name).exists(), name


def test_the_table_of_costs_is_what_a_compile_would_say():
    """Examples scored and LM calls by `auto` are those of the estimate (dollars follow a price list)."""
    rows = re.findall(r"^\| (light|medium|heavy) \| (\d+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|", COSTS, flags=re.M)
    assert len(rows) == 12
    for auto, size, predictors, examples, calls in rows:
        scored, found = cost_table.costs(auto, int(size), int(predictors), "openai/gpt-4o-mini")
        assert (f"{scored:,}", f"{found.calls:,}") == (examples, calls)


def test_the_changelog_can_be_made():
    """Towncrier takes every fragment."""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for path in (ROOT / "changelog.d").glob("+*.md"):
        first = " ".join(path.read_text(encoding="utf-8").split())[:40]
        assert first in " ".join(done.stdout.split())


def test_pages_have_no_other_repository_path():
    """Paths that pages quote from the repository exist."""
    quoted = r"`((?:benchmarks|docs|dspy|examples|tests|tools)/[\w./-]+\.\w+)`"
    for page in pages():
        for name in re.findall(quoted, page.read_text(encoding="utf-8")):
            assert Path(ROOT, name).exists(), f"{page.name}: {name}"

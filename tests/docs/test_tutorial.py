"""The notebook is what it was when it ran, and runs again."""

import re

import pytest

from tests.docs.pages import DOCS, ROOT

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = DOCS / "tutorial.ipynb"


def cells(notebook):
    """The cells with code that can be run here."""
    from dspy.promptune import SearchRun

    later = not hasattr(SearchRun, "report")
    tagged = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in tagged if not (later and "needs-report" in cell.metadata.get("tags", []))]


def test_the_notebook_is_stored_with_its_results():
    """Every cell has run, in order, without an error, and names no path of the machine it ran on."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    ran = [cell for cell in cells(notebook) if cell.execution_count]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert len(ran) >= 6
    outputs = [output for cell in ran for output in cell.outputs]
    assert any(output.output_type != "error" for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert not re.search(r"/(?:root|home|tmp|work)/", text) and str(ROOT) not in text


@pytest.mark.slow
def test_the_notebook_runs_again(tmp_path):
    """From plain DSPy to a finished program on the embedded model; the last accuracy is above the first."""
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or cell in cells(notebook)]
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(DOCS)}})
    client.execute()
    printed = "".join(o.get("text", "") for cell in cells(notebook) for o in cell.outputs)
    before, after = (float(number) for number in re.findall(r"(?:Before|After): (\d+) %", printed))
    assert after > before

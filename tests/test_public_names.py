"""The public door of dspy.promptune."""

import subprocess
import sys

import pytest

import dspy.promptune as promptune
from dspy.promptune import errors


def test_the_public_names_are_sorted_and_all_there():
    """Every name in __all__ is sorted and can be loaded."""
    assert promptune.__all__ == sorted(promptune.__all__)
    assert all(getattr(promptune, name) is not None for name in promptune.__all__)


def test_an_unknown_name_lists_the_known_ones():
    """Asking for a name that is not there raises AttributeError that lists those that are."""
    with pytest.raises(AttributeError, match="make_sampler"):
        promptune.no_such_name  # noqa: B018


def test_every_error_is_a_promptune_error():
    """All errors of the package have one base class, and say so in their documentation."""
    found = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(error, errors.PromptuneError) and error.__doc__ for error in found)


def test_importing_dspy_loads_nothing_heavy():
    """`import dspy` and `import dspy.promptune` load none of the packages that only a search needs."""
    heavy = "torch botorch gpytorch sentence_transformers transformers optuna plotly matplotlib dask xllamacpp".split()
    code = f"import sys, dspy, dspy.promptune; print([n for n in {heavy!r} if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_compile_does_not_wait_for_torch_before_its_first_call():
    """What a compile imports before step 1 leaves out PyTorch, which is loaded while the first answers are awaited."""
    code = "import sys, dspy.promptune.compile.optimizer; print([n for n in ('torch', 'gpytorch') if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_search_loads_no_package_that_it_does_not_need():
    """What every search imports leaves out statistics, transformers and figures, which take seconds."""
    spared = "scipy.stats transformers sentence_transformers sklearn botorch pandas plotly matplotlib".split()
    loaded = "import sys, dspy.promptune.samplers, dspy.promptune.run.search"
    code = f"{loaded}; print([n for n in {spared!r} if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""Comparing the outcomes of upstream's suite on the fork and on unmodified upstream."""

import pytest

import upstream_suite

JUNIT = """\
<testsuites><testsuite>
<testcase classname="tests.a" name="test_good" />
<testcase classname="tests.a" name="test_bad"><failure message="no">trace</failure><system-out>x</system-out></testcase>
<testcase classname="tests.a" name="test_left"><skipped message="why" /></testcase>
<testcase classname="" name="tests.b"><error message="collection failure" /></testcase>
<testcase classname="" name="tests.b"><skipped message="again" /></testcase>
</testsuite></testsuites>
"""


def test_outcomes_are_read_from_junit(tmp_path):
    """Each test has one outcome, the worst that pytest reported for it."""
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert upstream_suite.read_outcomes(tmp_path / "junit.xml") == {
        "tests.a::test_good": "passed",
        "tests.a::test_bad": "failure",
        "tests.a::test_left": "skipped",
        "tests.b": "error",
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        ("passed", "passed", 0),
        ("failure", "passed", 1),
        ("error", "skipped", 1),
        ("skipped", "passed", 1),
        ("missing", "passed", 1),
        ("failure", "error", 0),
        ("missing", "failure", 0),
        ("passed", "failure", 0),
    ],
)
def test_only_a_test_that_got_worse_fails_the_comparison(ours, theirs, code, capsys):
    """A test that passes on upstream must pass on the fork; what upstream fails may fail, however it does."""
    found = {} if ours == "missing" else {"t": ours}
    assert upstream_suite.report(found, {"t": theirs}, "9.9.1") == code
    assert f"worse on the fork: {code}\n" in capsys.readouterr().out


def test_tests_that_only_the_fork_has_are_no_difference(capsys):
    """A test that upstream's run does not know cannot be worse on the fork."""
    assert upstream_suite.report({"t": "passed", "new": "failure"}, {"t": "passed"}, "9.9.1") == 0
    assert "1 passed" in capsys.readouterr().out


def test_only_tests_and_settings_are_copied(tmp_path, monkeypatch):
    """The folder the suite runs in has no dspy/ that would shadow the installed package."""
    for name in ("tests/test_a.py", "dspy/__init__.py", "pyproject.toml"):
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_text("")
    monkeypatch.setenv("DSPY_TESTS", str(tmp_path / "given"))
    target = upstream_suite.find_tests("9.9.1", tmp_path)
    assert sorted(path.name for path in target.iterdir()) == ["pyproject.toml", "tests"]
    monkeypatch.setenv("DSPY_TESTS", str(tmp_path / "given/dspy"))
    with pytest.raises(SystemExit, match=r"must hold DSPy's tests/ and pyproject\.toml"):
        upstream_suite.find_tests("9.9.1", tmp_path)

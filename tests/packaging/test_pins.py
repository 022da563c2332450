"""The pinned upstream release: choosing, fetching and checking it, and what its metadata says."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import compose
import upgrade


def test_the_default_release_is_taken_unless_another_is_named(pins):
    """An unset or empty UPSTREAM means the default release."""
    assert pins.choose(None).version == pins.choose("").version == "9.9.1"
    assert pins.choose("9.9.0").version == "9.9.0"


def test_an_unsupported_release_names_the_supported_ones(pins):
    """UPSTREAM with an unknown version says which are known and how to pin it."""
    with pytest.raises(compose.ComposeError, match=r"UPSTREAM=8\.0 .* 9\.9\.1, 9\.9\.0, .*upgrade.* VERSION=8\.0"):
        pins.choose("8.0")


def test_the_composed_version_is_upstreams_with_ours_as_local_part(pins):
    """Packages that require dspy>=9.9 stay satisfied, and pip sees which fork it is."""
    assert pins.composed_version(pins.choose(None)) == "9.9.1+promptune.0.1.0"


def test_a_given_wheel_is_used_as_it_is(pins, wheel, tmp_path):
    """DSPY_UPSTREAM_WHEEL needs no network and copies nothing."""
    assert compose.upstream_wheel(pins.choose(None), tmp_path / "cache", str(wheel)) == wheel
    assert not (tmp_path / "cache").exists()


def test_a_given_wheel_that_is_missing_is_named(pins, tmp_path):
    """A path without a file says which file is wanted."""
    with pytest.raises(compose.ComposeError, match=r"=/no/such\.whl is not a file; .*dspy-9\.9\.1-py3-none-any\.whl"):
        compose.upstream_wheel(pins.choose(None), tmp_path, "/no/such.whl")


def test_a_wheel_of_another_hash_is_refused(pins, wheel, tmp_path):
    """One changed byte stops the build, with both hashes and what to do."""
    other = tmp_path / "other.whl"
    other.write_bytes(wheel.read_bytes() + b" ")
    said = rf"has sha256 {compose.sha256(other)}, .*pins {compose.sha256(wheel)}"
    with pytest.raises(compose.ComposeError, match=said):
        compose.upstream_wheel(pins.choose(None), tmp_path, str(other))


def test_a_cached_wheel_is_checked_too(pins, tmp_path):
    """A truncated download of an earlier build is found out, not used."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/dspy-9.9.0-py3-none-any.whl").write_bytes(b"half a whe")
    with pytest.raises(compose.ComposeError, match=r"delete this file"):
        compose.upstream_wheel(pins.choose("9.9.0"), tmp_path / "cache")


@pytest.mark.parametrize(("index", "remedy"), [("empty", "check the network"), ("other", "has that release")])
def test_a_release_that_pip_cannot_find_says_so_in_one_line(index, remedy, pins, wheel, tmp_path, monkeypatch):
    """Without an index, and with one that has other releases only, the error is one line with a remedy."""
    links = tmp_path / index
    links.mkdir()
    if index == "other":
        (links / "dspy-9.9.1-py3-none-any.whl").write_bytes(wheel.read_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(compose.ComposeError, match=rf"could not download dspy 9\.9\.0 .*{remedy}") as caught:
        compose.upstream_wheel(pins.choose("9.9.0"), tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_pip_downloads_through_the_users_configuration(pins, wheel, tmp_path, monkeypatch):
    """The wheel comes from wherever the user's pip looks, and a composed wheel of this fork is not mistaken for it."""
    links = tmp_path / "links"
    links.mkdir()
    (links / wheel.name).write_bytes(wheel.read_bytes())
    (links / "dspy-9.9.1+promptune.0.1.0-py3-none-any.whl").write_bytes(b"the fork itself")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    path = compose.upstream_wheel(pins.choose(None), tmp_path / "cache")
    assert path.read_bytes() == wheel.read_bytes()


def test_requirements_are_sorted_by_extra_with_their_markers(wheel):
    """Every Requires-Dist of upstream is found again, its extra apart and its other markers kept."""
    assert compose.requirements(compose.metadata(wheel)) == {
        "": ["requests>=2", 'tomli>=2; python_version < "3.11"'],
        "dev": ["pytest>=6", 'uvloop; (sys_platform != "win32" and python_version < "3.14")'],
        "empty": [],
    }


def test_the_license_is_read_from_the_wheel(wheel):
    """Upstream's license text comes out of its wheel."""
    assert compose.license(wheel) == "Do as you like, but keep this text.\n"


def test_upgrading_pins_the_new_wheel_and_keeps_the_old(pins, wheel, tmp_path, monkeypatch):
    """The new release becomes the default with its true hash; nothing else in upstream.toml changes."""
    newer = tmp_path / "dspy-9.10.0-py3-none-any.whl"
    newer.write_bytes(wheel.read_bytes())
    monkeypatch.setenv("DSPY_UPSTREAM_WHEEL", str(newer))
    for _ in range(2):  # a second time changes nothing
        upgrade.upgrade("9.10.0", tmp_path / "upstream.toml", tmp_path)
    after = compose.Pins.read(tmp_path / "upstream.toml")
    assert after.default == "9.10.0"
    assert after.wheels == {"9.10.0": compose.Pin("9.10.0", newer.name, compose.sha256(newer)), **pins.wheels}


def test_upgrading_shows_what_changed_under_the_overlay(wheel, overlay, tmp_path):
    """A replaced module that changed upstream is shown as a diff; one that did not is said to be unchanged."""
    newer = tmp_path / "newer.whl"
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(newer, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"'upstream'", b"'changed'"))
    source = overlay({"teleprompt/base.py": "", "teleprompt/mipro.py": "", "promptune/x.py": ""})
    lines = list(upgrade.changes(wheel, newer, source))
    assert {"-NAME = 'upstream'", "+NAME = 'changed'", "dspy/teleprompt/mipro.py: unchanged upstream"} <= set(lines)
    assert not any("promptune" in line for line in lines)


@pytest.mark.parametrize(("variable", "value"), [("UPSTREAM", "1.2.3"), ("DSPY_UPSTREAM_WHEEL", "/no/such.whl")])
def test_a_build_that_cannot_start_prints_one_line(variable, value, monkeypatch):
    """setup.py says what is wrong and what to do, without a traceback."""
    monkeypatch.setenv(variable, value)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "setup.py", "--version"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.strip().startswith(f"dspy: {variable}={value} is not")
    assert len(run.stderr.strip().splitlines()) == 1

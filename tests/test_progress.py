"""The line that says how a run stands."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tqdm

from dspy.promptune import progress
from dspy.promptune.progress import Progress, Standing, TimeLeft
from tests.compile.hazards import ANSWERS, compiled, rule_lm, served
from tests.server import LMServer, Quality, TaskRule

STANDING = Standing(
    count=120, running=8, done=30, failed=2, in_flight=17, calls=1400, best=0.8125, tokens=12345, cost=0.5, raised=3
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (
            None,
            "best 81.2 %; 3 raised; 8 running, 30 done; 2 failed; 1,400 LM calls; 17 in flight; 12,345 tokens; $0.50",
        ),
        (90, "best 81.2 %; 3 raised; 8 running, 30 done; 2 failed; 1,400 LM calls; 17 in flight; $0.50"),
        (60, "best 81.2 %; 3 raised; 2 failed; 1,400 LM calls; $0.50"),
        (30, "best 81.2 %; 3 raised"),
        (5, ""),
    ],
)
def test_the_most_important_parts_are_shown_where_there_is_little_room(width, text):
    """The best score, what raised and what failed stay longest, then calls and dollars; tokens go first."""
    assert STANDING.text(width) == text


def test_a_metric_that_does_not_go_to_1_is_told_in_its_own_units():
    """The best score of a metric from 0 to 100 is not multiplied."""
    assert replace(STANDING, best=75.83, percent=False).text(22) == "best 75.83; 3 raised"
    assert replace(STANDING, best_on=1200).text(30) == "best 81.2 % on 1,200; 3 raised"


def test_what_is_not_known_is_not_shown():
    """Without usage there are no tokens, without a result no best, without failures none."""
    assert Standing(count=0, running=1, in_flight=3).text() == "1 running, 0 done; 0 LM calls; 3 in flight"


def test_the_time_left_is_that_of_the_last_minute():
    """Results that come in at once at the beginning say nothing; then the speed of the last minute decides."""
    now = [0.0]
    left = TimeLeft(lambda: now[0])
    found = []
    for second, count in ((0, 0), (1, 500), (4, 500), (6, 510), (8, 520), (80, 880), (140, 880)):
        now[0] = float(second)
        found.append(left(count, 1000))
    assert found == [None, None, None, None, 96.0, 24.0, None]


@pytest.mark.parametrize(("stream", "disable"), [(io.StringIO, False), (Terminal, True)])
def test_nothing_is_drawn_without_a_terminal_or_where_it_is_disabled(monkeypatch, stream, disable):
    """Pipes and files are not filled with bars, and ``disable_progress_bar`` is quiet on a terminal too."""
    monkeypatch.setattr(sys, "stderr", stream())
    bar = Progress(disable=disable)
    bar.step("Search", 650, "examples", lambda: STANDING)
    bar.close()
    assert sys.stderr.getvalue() == ""


def test_without_a_terminal_the_log_says_it_now_and_then(monkeypatch, caplog):
    """What would be drawn is logged at intervals, so that a log file tells how far a run is."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    logging.getLogger("dspy").addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "dspy")
    bar = Progress()
    bar.step("Search", 650, "examples", lambda: STANDING)
    bar.close()
    logging.getLogger("dspy").removeHandler(caplog.handler)
    assert caplog.messages[0].startswith("Search: 120/650 examples in 00:00; best 81.2 %; 3 raised;")


def test_a_notebook_has_the_line_as_well(monkeypatch):
    """In a Jupyter kernel, whose standard error is no terminal, the line is drawn."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    bar = Progress()
    bar.step("Search", 650, "examples", lambda: STANDING)
    bar.close()
    assert "Search: 120/650 examples in 00:00; best 81.2 %" in sys.stderr.getvalue()


def test_a_widget_is_told_how_much_there_is_and_has_no_more_text_than_room(monkeypatch):
    """A notebook's widget fills as the step goes on, has no second bar in its text, and is not red at an early end."""
    drawn = []

    class Widget(tqdm.tqdm):
        def reset(self, total=None):
            drawn.append(("total", total))
            super().reset(total)

        def set_description_str(self, desc=None, refresh=True):
            drawn.append((self.n, self.bar_format, desc))

        def close(self):
            drawn.append(("closed", self.n, self.total))
            super().close()

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setattr(progress, "_new_bar", lambda: Widget(total=1, file=io.StringIO(), bar_format="{desc}"))
    bar = Progress()
    bar.step("Step 3 of 3, search", 650, "examples", lambda: STANDING)
    bar.close()
    assert drawn[0] == ("total", 650) and drawn[-1] == ("closed", 120, 120)
    count, form, text = drawn[1]
    assert (count, form) == (120, "{desc}") and 80 < len(text) <= progress.NOTEBOOK and "best 81.2 %" in text


def test_a_step_that_needs_no_calls_shows_no_fraction_of_nothing(monkeypatch):
    """Where nothing is to be counted and nothing was, the line has the step and its time alone."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress()
    bar.step("Step 1 of 3, demo sets", 0, "expected calls", lambda: Standing(count=0))
    bar.close()
    assert "Step 1 of 3, demo sets: 00:00" in sys.stderr.getvalue() and "0/0" not in sys.stderr.getvalue()


def test_more_than_was_expected_is_no_fraction(monkeypatch):
    """Once an estimate is exceeded, what was done stands alone."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress()
    bar.step("Step 1", 100, "expected calls", lambda: STANDING)
    bar.close()
    assert "Step 1: 120 calls in 00:00" in sys.stderr.getvalue()


@contextlib.contextmanager
def terminal(monkeypatch, columns):
    """Standard error as a terminal; what was written to it, once the block has ended."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = bytearray()

    def read():
        with contextlib.suppress(OSError):  # nobody writes any more
            while block := os.read(master, 4096):
                written.extend(block)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(slave, "w") as screen:
        patch.setattr(sys, "stderr", screen)
        yield written
    reader.join(10)
    os.close(master)


def rows(written):
    """What stood in the rows of the screen, each as it was when the next one began or when it was drawn again."""
    return [row.rstrip() for row in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", written.decode()))]


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_on_a_terminal_a_compile_shows_how_it_stands(monkeypatch, columns):
    """All three steps have their line, no line is wider than the terminal, and no message is glued to it."""
    with LMServer(TaskRule(ANSWERS, quality=Quality(0.5))) as server, terminal(monkeypatch, columns) as written:
        compiled(served(server, cache=False), disable_progress_bar=False)
    seen = rows(written)
    bars = [row for row in seen if re.search(r"(Step [123] of 3|Loading the model).*: [\d,]+/", row)]
    assert {row.partition("Step ")[2][:1] for row in bars if "Step " in row} == {"1", "2", "3"}
    assert max(map(len, bars)) < columns
    assert any(re.search(r"examples in \d\d:\d\d; best \d+\.\d %", row) for row in bars)
    messages = [row for row in seen if " INFO " in row or " WARNING " in row]
    assert len(messages) > 8 and all(re.match(r"\d{4}/\d\d/\d\d ", row) for row in messages)
    assert not any(" INFO " in row for row in bars)


def test_a_disabled_line_is_not_shown(monkeypatch):
    """With ``disable_progress_bar`` a terminal shows the messages only."""
    with terminal(monkeypatch, 100) as written:
        compiled(rule_lm(), disable_progress_bar=True)
    assert b"INFO" in written and b"Step 3 of 3" not in written

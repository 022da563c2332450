"""The line that says how a run stands."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from dspy.promptune.run.progress import Progress, Standing
from tests.compile.hazards import ANSWERS, compiled, served
from tests.server import LMServer, Quality, TaskRule

STANDING = Standing(
    evaluated=120, running=8, done=30, failed=2, in_flight=17, calls=1400, best=0.8125, tokens=12345, cost=0.5
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_says_it_all(monkeypatch):
    """Jobs, best, calls made and in flight, tokens and cost stand beside the count of examples."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress(650)
    bar.show(STANDING)
    bar.close()
    written = sys.stderr.getvalue()
    assert "120/650" in written
    for part in ("8 running, 30 done, 2 failed", "best 81.2", "1,400 calls, 17 in flight", "12,345 tokens", "$0.50"):
        assert part in written


def test_without_a_terminal_nothing_is_written(monkeypatch):
    """Logs and pipes are not filled with bars."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Progress(650)
    bar.show(STANDING)
    bar.close()
    assert sys.stderr.getvalue() == ""


def test_it_can_be_disabled(monkeypatch):
    """``disable_progress_bar`` is quiet on a terminal too."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress(650, disable=True)
    bar.show(STANDING)
    bar.close()
    assert sys.stderr.getvalue() == ""


def test_what_is_not_known_is_not_shown():
    """Without usage there are no tokens, without a result no best."""
    text = Standing(evaluated=0, running=1, done=0, failed=0, in_flight=3).text()
    assert text == "1 running, 0 done, 0 failed; 0 calls, 3 in flight"


@contextlib.contextmanager
def terminal(monkeypatch):
    """Standard error as a terminal of 240 columns; what was written to it, once the block has ended."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 240, 0, 0))
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


LINE = (
    r"\d+/\d+ \[\d\d:\d\d<[\d:?]+, .* \d+ running, \d+ done, 0 failed; best \d+\.\d; [\d,]+ calls, \d+ in flight; "
    r"[\d,]+ tokens; \$\d+\.\d\d"
)


@pytest.mark.parametrize("disable", [False, True])
def test_on_a_terminal_a_compile_shows_how_it_stands(monkeypatch, disable):
    """One line has it all: examples, time left, jobs, best, calls, tokens and cost; disabled, there is none."""
    with LMServer(TaskRule(ANSWERS, quality=Quality(0.5))) as server, terminal(monkeypatch) as written:
        compiled(served(server, cache=False), disable_progress_bar=disable)
    assert bool(re.search(LINE, written.decode())) != disable
    assert (b" running, " in written) != disable

"""The line that says how a run stands."""

import io
import sys

from dspy.promptune.engine.progress import Progress, Standing

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

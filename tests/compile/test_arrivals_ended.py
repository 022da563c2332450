"""Signals in the midst of a search whose instructions are still being proposed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.server import Faults, LMServer, Prompt, TaskRule
from tests.storage.lives import LIMIT, QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
ENDS = (signal.SIGKILL, signal.SIGINT, None)
PROPOSED = 3  # instructions of step 2


class Ending:
    """Lets each life have one more instruction, and ends it once a question was asked with that one.

    The other requests for instructions hang, except in the last life.
    """

    def __init__(self) -> None:
        self.pids: SimpleQueue[int] = SimpleQueue()
        self.used: list[str] = []
        self.life, self.asked = 0, 0

    def __call__(self, messages, attempt):
        prompt, kind = Prompt.read(messages), None
        if ENDS[self.life] is None:
            return None
        if prompt.label == "proposed_instruction":
            self.asked += 1
            kind = "hang" if self.asked > 1 else None
        elif "follow guideline" in prompt.instruction and prompt.instruction not in self.used:
            self.used.append(prompt.instruction)
        if len(self.used) > self.life and self.asked == PROPOSED - self.life:
            os.kill(self.pids.get(timeout=60), ENDS[self.life])
            self.life, self.asked = self.life + 1, 0
        return kind


@pytest.mark.slow
@pytest.mark.parametrize("file", ["runs.db", "runs.log"])
def test_what_came_before_a_kill_and_an_interrupt_stays(tmp_path, file):
    """Each start has the instructions of the last one, pays for none again, and knows what the others have spent."""
    ending, found = Ending(), []
    with LMServer(TaskRule(QUESTIONS), faults=Faults(rule=ending)) as server:
        command = [sys.executable, "-m", "tests.compile.arriving", server.url, str(tmp_path / file), str(len(ENDS))]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as lives:
            for line in lives.stdout:
                if line[0].isdigit():
                    ending.pids.put(int(line))
                else:
                    found.append(json.loads(line))
        records, requests = server.records(), server.requests
    assert found[0] is None and found[1]["ended"] == "interrupted"
    known, instructions = (one["instructions"] for one in found[1:])
    assert instructions[: len(known)] == known
    assert [text for text in instructions if text in ending.used] == ending.used
    assert sum("follow guideline" in text for text in instructions) == PROPOSED
    written = Counter(record.key for record in records if record.label != "answer")
    assert max(written.values()) == 1
    assert abs(found[-1]["spent"] - requests) <= LIMIT  # those in flight at the kill count, or do not

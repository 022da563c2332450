"""SIGKILL at any moment loses nothing that was finished, and pays twice for nothing but what was in flight."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from dspy.promptune.distributed.programs import STRAGGLERS
from tests.server import Latency, LMServer, TaskRule
from tests.storage.lives import LIMIT, QUESTIONS, compiled, found

ROOT = Path(__file__).resolve().parents[2]
RULE = TaskRule(QUESTIONS)
NOISE = 100 * (0.25 / (len(QUESTIONS) - 20)) ** 0.5  # of a score in percent of the validation set
LONGEST = 11 + 3 * 2  # calls of the summary and of three descriptions: a piece of step 2 is repeated as a whole


@dataclass
class Toll:
    """What some deaths cost, over all studies.

    ``twice`` counts requests of examples, ``most_twice`` those of one death, ``steps`` those of unfinished pieces of
    step 2; ``late`` is the longest time (s) between an answer and the death that took it; ``steps_of`` counts deaths
    by the step they came in; ``scores`` are those of the programs that the studies ended with.
    """

    deaths: int = 0
    requests: int = 0
    twice: int = 0
    most_twice: int = 0
    steps: int = 0
    late: float = 0.0
    steps_of: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)


def killed(storage: str, **config: Any) -> tuple[list[dict[str, Any]], Any]:
    """Studies whose process is killed, and what the server saw."""
    with LMServer(RULE, latency=Latency(0.05), process=True) as server:
        given = {"url": server.url, "storage": storage, "seed": 0, "seconds": 0.4, **config}
        command = [sys.executable, "-m", "tests.storage.lives", json.dumps(given)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1]), server.records()


def undisturbed(**options: Any) -> dict[str, Any]:
    """The same run without a death and without a storage."""
    with LMServer(RULE, latency=Latency(0.05), process=True) as server:
        return found(compiled(server.url, None, resume=False, **options))


def check(studies: list[dict[str, Any]], records: Any) -> Toll:
    """Hold every study to the promise."""
    toll = Toll()
    for study in studies:
        mine = sorted(record for record in records if study["began"] <= record.start <= study["ended"])
        before: set[Any] = set()
        for death in study["deaths"]:
            stored = {tuple(pair) for pair in death["pairs"]} | set(death["pieces"])
            assert before <= stored, "something that was on disk is gone"
            before = stored
        final = study["stored"]
        pairs = {tuple(pair) for pair in final["pairs"]}
        assert before <= pairs | set(final["pieces"])
        assert len(pairs) == len({pair[:-1] for pair in pairs})
        # An answer that comes after the end of a run, which waits for no straggler, is stored all the same.
        assert study["found"]["calls"] <= len(pairs) <= study["found"]["calls"] + LIMIT
        assert "RUNNING" not in study["found"]["states"]
        _count(toll, study, mine)
    return toll


def _count(toll: Toll, study: dict[str, Any], records: list[Any]) -> None:
    """For each death: requests of the life it ended that were made again in a later one."""
    toll.deaths += len(study["deaths"])
    toll.steps_of.update(death["step"] for death in study["deaths"])
    toll.scores.append(study["found"]["score"])
    toll.requests += len(records)
    last = {record.key: record.start for record in records}
    start = study["began"]
    for death in study["deaths"]:
        life = [record for record in records if start <= record.start < death["at"]]
        again = [record for record in life if last[record.key] > death["at"]]
        chains = [record for record in again if record.label != "answer"]
        again = [record for record in again if record.label == "answer"]
        assert len(again) <= LIMIT, "more was paid twice than was in flight"
        assert len(chains) <= LONGEST, "more was proposed twice than the pieces that were not finished"
        toll.twice += len(again)
        toll.most_twice = max(toll.most_twice, len(again))
        toll.steps += len(chains)
        answered = [death["at"] - record.end for record in again if record.end < death["at"]]
        toll.late = max([toll.late, *answered])
        start = death["at"]
    answers = Counter(record.key for record in records if record.label == "answer")
    assert max(answers.values()) <= 1 + len(study["deaths"])


@pytest.fixture(scope="module")
def calm():
    """What a compile finds that nobody kills."""
    return undisturbed()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["runs.db", "runs.log"])
def test_a_few_kills(tmp_path, file, calm):
    """A compile killed twice ends with every score it ever had, and with a program as without the kills."""
    studies, records = killed(str(tmp_path / file), kills=2)
    assert check(studies, records).deaths == 2
    for study in studies:  # the last stragglers of a run are not waited for
        assert calm["calls"] - STRAGGLERS <= study["found"]["calls"] <= calm["calls"] + STRAGGLERS
        assert abs(study["found"]["score"] - calm["score"]) <= 3.5 * NOISE  # its trials differ


@pytest.mark.slow
@pytest.mark.parametrize(("file", "sampler"), [("runs.db", "tpe"), ("runs.log", "onehot")])
def test_a_hundred_kills(tmp_path, file, sampler, capsys):
    """In a hundred deaths, in every step, nothing finished is lost, and nothing but calls in flight is repeated."""
    config = {"kills": 100, "kills_each": 12, "options": {"sampler": sampler}}
    studies, records = killed(str(tmp_path / file), **config)
    toll = check(studies, records)
    assert toll.deaths >= 90 and toll.twice > 0
    assert all(toll.steps_of[step] > 0 for step in ("bootstrap", "propose", "search"))
    calm = [undisturbed(**config["options"])["score"] for _ in range(3)]
    assert mean(toll.scores) >= mean(calm) - 3 * NOISE / len(calm) ** 0.5
    with capsys.disabled():
        print(f"\n{file}, {sampler}: {len(studies)} studies, {toll}")

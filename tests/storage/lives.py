"""A compile in a process of its own that is killed again and again: ``python -m tests.storage.lives CONFIG`` (JSON).

The packages load once; every life is a fork. What is on disk after each death is read by another fork.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
import urllib.request
from typing import Any

import dspy

QUESTIONS = {f"What is the code of item {i}?": str(i % 5) for i in range(44)}
AT_WORK = 0.85  # of the deaths come after the first call of a life, the others at any moment from its birth
LIMIT = 8  # calls in flight: n_jobs times num_threads


def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Right or wrong."""
    return bool(example.answer == prediction.answer)


def compiled(url: str, storage: Any, **options: Any) -> Any:
    """One compile on the server at ``url``; an option that is ``...`` is left out."""
    data = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in QUESTIONS.items()]
    lm = dspy.LM("openai/gpt-4o-mini", api_base=url, api_key="none", cache=False)
    given = {
        "sampler": "tpe", "n_jobs": 2, "num_trials": 8, "minibatch_size": 8, "minibatch_full_eval_steps": 4,
        "trainset": data[:20], "valset": data[20:], "storage": storage, "resume": True, **options,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not ...}
    with dspy.context(lm=lm):
        optimizer = dspy.MIPROv2(metric=metric, auto=None, num_candidates=4, num_threads=LIMIT // 2, seed=3)
        return optimizer.compile(dspy.Predict("question -> answer"), **given)


def found(program: Any) -> dict[str, Any]:
    """A finished run as JSON."""
    run = program.optimization_run
    states = [trial.state.name for trial in run.trials]
    return {
        "score": program.score,
        "params": run.best_params,
        "calls": run.calls,
        "states": {state: states.count(state) for state in states},
        "instructions": [each.signature.instructions for each in program.predictors()],
    }


def on_disk(storage: str, name: str) -> dict[str, Any]:
    """What is stored: (combination, example) pairs with a score, finished pieces of steps 1 and 2, and its step."""
    import optuna

    from dspy.promptune.storage.backend import open_storage
    from dspy.promptune.storage.history import told_scores

    opened = open_storage(storage).storage
    if name not in [study.study_name for study in opened.get_all_studies()]:
        return {"pairs": [], "pieces": [], "step": "start"}
    study = optuna.load_study(study_name=name, storage=opened)
    pairs = set()
    for trial in study.get_trials(deepcopy=False):
        key = tuple(trial.params[part] for part in sorted(trial.params, reverse=True))
        scores = [*told_scores(trial), *trial.intermediate_values.items()]
        pairs |= {(*key, example, score) for example, score in scores}
    notes = opened.get_study_system_attrs(study._study_id)
    for note, rows in notes.items():
        if note.startswith("promptune:early_scores:"):
            pairs |= {(*key, example, score) for key, example, score in rows}
    pieces = sorted(note for note in notes if note.startswith("promptune:piece:"))
    return {"pairs": sorted(pairs), "pieces": pieces, "step": _step(notes)}


def _step(notes: Any) -> str:
    """The step that a study is in."""
    if "promptune:demos" not in notes:
        return "bootstrap"
    return "search" if "promptune:instructions" in notes else "propose"


def forked(function: Any, *args: Any) -> tuple[int, int]:
    """Call in a fork whose result is read from the returned file descriptor as JSON."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 1
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump(function(*args), pipe)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    os.close(write)
    return pid, read


def result(pid: int, read: int) -> Any:
    """The result of a fork that is left to end."""
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"A life failed with status {status}.")
    return json.loads(text)


def requests(url: str) -> int:
    """Requests that the server has seen."""
    with urllib.request.urlopen(url.removesuffix("v1") + "requests", timeout=30) as answer:
        return int(json.load(answer))


def ended_before(pid: int, seconds: float, url: str | None) -> bool:
    """Whether a fork ends by itself within the time, which counts from its first request if there is a ``url``."""
    before = requests(url) if url else 0
    while url and requests(url) == before and not _over(pid):
        time.sleep(0.005)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _over(pid):
            return True
        time.sleep(0.002)
    return False


def _over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def study(config: dict[str, Any], name: str, rng: random.Random, kills: int) -> dict[str, Any]:
    """One study: killed at random moments, at most ``kills`` times, and then left to finish."""
    life = lambda: found(compiled(config["url"], config["storage"], study_name=name, **config.get("options", {})))  # noqa: E731
    deaths: list[dict[str, Any]] = []
    while len(deaths) < kills:
        pid, read = forked(life)
        at_work = rng.random() < AT_WORK
        if ended_before(pid, rng.uniform(0, config["seconds"]), config["url"] if at_work else None):
            return {"name": name, "deaths": deaths, "found": result(pid, read)}
        os.kill(pid, signal.SIGKILL)
        at = time.monotonic()
        os.waitpid(pid, 0)
        os.close(read)
        deaths.append({"at": at, **result(*forked(on_disk, config["storage"], name))})
    return {"name": name, "deaths": deaths, "found": result(*forked(life))}


def main(config: dict[str, Any]) -> None:
    """Studies one after the other until there were enough deaths; prints what happened as JSON."""
    import dspy.promptune.compile.engine
    import dspy.promptune.samplers  # noqa: F401

    logging.disable(logging.CRITICAL)
    rng, left, studies = random.Random(config["seed"]), config["kills"], []
    while left > 0:
        name = f"study {len(studies)}"
        began = time.monotonic()
        one = study(config, name, rng, min(left, config.get("kills_each", left)))
        stored = result(*forked(on_disk, config["storage"], name))
        studies.append({**one, "began": began, "ended": time.monotonic(), "stored": stored})
        left -= max(1, len(one["deaths"]))
    print(json.dumps(studies))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

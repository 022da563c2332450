"""What upstream attaches to a compiled program, derived from the records of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy.promptune.allocation.records import Job, ScoreTable
from dspy.promptune.distributed.programs import ProgramCache
from dspy.promptune.errors import EvaluationError
from dspy.promptune.run.search import SearchRun
from dspy.promptune.secrets import masked
from dspy.promptune.space import Key, PromptSpace
from dspy.promptune.storage.history import RunHistory
from dspy.teleprompt.utils import save_candidate_program

if TYPE_CHECKING:
    from dspy.promptune.storage.run_store import RunStore

__all__ = ["Entry", "attach", "attach_unsearched", "percent"]


@dataclass(frozen=True)
class Entry:
    """One job that ended: the scores of its examples, or the error of one that failed, and what it newly paid for."""

    job: Job
    scores: tuple[float, ...]
    paid: int
    error: BaseException | None = None


def entries_of(past: RunHistory, space: PromptSpace) -> list[Entry]:
    """The jobs of earlier starts of the run."""
    from dspy.promptune.samplers.failures import evaluated
    from dspy.promptune.samplers.trials import key_of

    told = {job.number: (job, scores) for job, scores in past.jobs}
    found = []
    for trial in past.trials:
        key, attributes = key_of(trial.params, space), trial.user_attrs
        if trial.number in told:
            job, scores = told[trial.number]
            found.append(Entry(job, tuple(scores), attributes.get("paid", len(scores))))
        elif key is not None and evaluated(trial):
            job = Job(trial.number, key, tuple(attributes.get("examples", ())), attributes.get("kind", "block"))
            error = EvaluationError(attributes.get("error", "It did not end."))
            found.append(Entry(job, (), attributes.get("paid", len(trial.intermediate_values)), error))
    return found


@dataclass(frozen=True)
class Ledger:
    """A run as upstream's attributes are made of it: entries in the order of their trials."""

    space: PromptSpace
    programs: ProgramCache
    table: ScoreTable
    entries: Sequence[Entry]
    n_examples: int
    minibatch: bool
    log_dir: str | None

    def scores(self, entry: Entry) -> tuple[Sequence[float], bool]:
        """The scores behind an entry, and whether they are of all examples.

        A job that completes a prompt's evaluation pays for the examples that were missing, and stands for all.
        """
        row = self.table.row(entry.job.key)
        if entry.job.kind == "full" and len(row) >= self.n_examples:
            return list(row.values()), True
        return entry.scores, len(entry.scores) >= self.n_examples


def percent(scores: Sequence[float]) -> float:
    """Upstream's score: the mean in percent, to two places."""
    return round(100 * math.fsum(scores) / len(scores), 2) if scores else math.nan


def attach(program: Any, ledger: Ledger, best: Key) -> None:
    """Give ``program`` upstream's attributes: same names, same keys."""
    program.trial_logs = _trial_logs(ledger)
    program.score = percent(list(ledger.table.row(best).values()))
    program.prompt_model_total_calls = 0
    program.total_calls = 0
    data = sorted(_score_data(ledger), key=lambda each: each["score"], reverse=True)
    program.mb_candidate_programs = [each for each in data if not each["full_eval"]]
    program.candidate_programs = [each for each in data if each["full_eval"]]
    if not program.candidate_programs:  # upstream has the winner there, too
        program.candidate_programs.append({"score": program.score, "program": program, "full_eval": False})


def attach_unsearched(program: Any, books: RunStore, ended: str, scores: Sequence[float] = ()) -> None:
    """Give the program of a run that ended before its search the same attributes: no trials, and what was spent.

    ``scores`` are its own on all validation examples, if it was evaluated in full by then.
    """
    space = PromptSpace({i: [each.signature.instructions] for i, each in enumerate(program.predictors())})
    program.trial_logs, program.candidate_programs, program.mb_candidate_programs = {}, [], []
    program.score = percent(scores) if scores else math.nan
    program.prompt_model_total_calls = program.total_calls = 0
    program.optimization_run = SearchRun(
        best_params=space.params((0,) * len(space.names)), calls=books.meter.examples, history=[],
        best_score=math.fsum(scores) / len(scores) if scores else math.nan,
        trials=[], order=[], ended=ended, study=getattr(books.store, "study", None), space=space, facts=books.facts,
        spent=books.meter.spent(at_end=True),
    )  # fmt: skip


def _score_data(ledger: Ledger) -> list[dict[str, Any]]:
    """One record for each evaluation that ended well, and one for each prompt scored in full piece by piece."""
    data, full = [], set()
    for entry in ledger.entries:
        if entry.error is None:
            scores, whole = ledger.scores(entry)
            full.update([entry.job.key] if whole else [])
            data.append(_scored(ledger, entry.job.key, scores, whole))
    for key in ledger.table.keys():
        row = ledger.table.row(key)
        if key not in full and len(row) >= ledger.n_examples:
            data.append(_scored(ledger, key, list(row.values()), True))
    return data


def _scored(ledger: Ledger, key: Key, scores: Sequence[float], full: bool) -> dict[str, Any]:
    return {"score": percent(scores), "program": ledger.programs[key], "full_eval": full}


def _trial_logs(ledger: Ledger) -> dict[int, dict[str, Any]]:
    logs, calls = {}, 0
    for i, entry in enumerate(ledger.entries, 1):
        calls += entry.paid
        log: dict[str, Any] = {}
        scores, full = ledger.scores(entry)
        if not full or (not ledger.minibatch and i > 1):
            log.update(ledger.space.params(entry.job.key))
        if entry.error is not None:
            log["error"] = masked(f"{type(entry.error).__name__}: {entry.error}")
        else:
            log.update(_evaluated(ledger, entry, i, (scores, full)))
        log["total_eval_calls_so_far"] = calls
        logs[i] = log
    return logs


def _evaluated(ledger: Ledger, entry: Entry, number: int, result: tuple[Sequence[float], bool]) -> dict[str, Any]:
    scores, full = result
    program = ledger.programs[entry.job.key]
    note = "full_eval" if full and ledger.minibatch and number > 1 else None
    path = save_candidate_program(program, ledger.log_dir, -1 if number == 1 and full else number, note)
    kind = "full_eval" if full else "mb"
    return {f"{kind}_program_path": path, f"{kind}_score": percent(scores), f"{kind}_program": program}

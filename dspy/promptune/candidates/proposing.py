"""Step 2: candidate instructions, each proposed as upstream does it, all at once."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dspy
from dspy.promptune.allocation.requests import LONGEST
from dspy.promptune.candidates.step_report import StepReport, Submitter, as_they_end
from dspy.promptune.errors import EvaluationError
from dspy.promptune.limits.answers import is_empty
from dspy.promptune.limits.gateway import Stopped
from dspy.promptune.reflection.replies import asking
from dspy.promptune.secrets import cause, said
from dspy.propose.dataset_summary_generator import create_dataset_summary
from dspy.propose.grounded_proposer import TIPS, GenerateModuleInstruction, generate_instruction_class
from dspy.propose.utils import get_dspy_source_code, strip_prefix

if TYPE_CHECKING:
    from dspy.primitives.module import Module

__all__ = ["ProposeOptions", "propose_instructions", "start_summary"]

RETRIES = 2  # tries of one proposal, or of the summary, after the first

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProposeOptions:
    """What upstream's ``GroundedProposer`` takes from ``MIPROv2``, with its meanings.

    ``num_candidates`` counts the student's own instruction too; there are never more candidates than demo sets.
    """

    prompt_model: Any
    num_candidates: int
    view_data_batch_size: int = 10
    program_aware: bool = True
    data_aware: bool = True
    tip_aware: bool = True
    fewshot_aware: bool = True
    init_temperature: float = 1.0
    num_demos_in_context: int = 3
    whole: bool = False  # instructions that are cut off or endless are not used
    found: Callable[[int, str], None] | None = None  # called with each instruction as it comes, and its predictor


@dataclass(frozen=True)
class Proposal:
    """One instruction to propose, with what was drawn for it; ``fields`` and ``aware`` come with its description."""

    predictor: int
    demo_set: int
    tip: str | None
    rollout: int
    aware: bool = False
    fields: Mapping[str, Any] | None = field(default=None, compare=False)


def start_summary(
    trainset: Sequence[Any],
    *,
    pool: Submitter,
    prompt_model: Any,
    view_data_batch_size: int = 10,
    report: StepReport | None = None,
) -> Future[str | None]:
    """Begin upstream's summary of the trainset: up to 11 calls one after another, the longest chain of both steps.

    It needs neither demos nor the program, so it may run while the demo sets are bootstrapped.

    Returns:
        The summary's future: ``None`` where it could not be made, as ``report`` then says.
    """
    return pool.submit(_summary, list(trainset), prompt_model, view_data_batch_size, report or StepReport())


def propose_instructions(
    program: Module,
    trainset: Sequence[Any],
    demo_candidates: Mapping[int, Sequence[Sequence[Any]]] | None,
    *,
    options: ProposeOptions,
    rng: random.Random,
    pool: Submitter,
    summary: Future[str | None] | None = None,
    report: StepReport | None = None,
) -> dict[int, list[str]]:
    """Candidate instructions of every predictor; number 0 is the program's own.

    The others are those of upstream's ``GroundedProposer``, and ``rng`` is left in the same state. Upstream proposes
    number 0 as well and throws it away: those calls are not made.

    A proposal that fails is asked for again in a fresh rollout. One that fails for good is left out, and ``report``
    names it: there are fewer candidates then, never a filler.

    Args:
        program: Gives the predictors, their instructions and (``program_aware``) its source code.
        trainset: What the summary is made of, where none is given.
        demo_candidates: The sets of step 1, shown to the proposer (``fewshot_aware``).
        options: What the proposer is told, and by which model it proposes.
        rng: Source of the tips and of the rollout numbers.
        pool: Runs the calls.
        summary: What ``start_summary`` returned; without it, it is started here (``data_aware``).
        report: What has to be done without is written here.

    Raises:
        EvaluationError: Not one instruction could be proposed.
    """
    report = report or StepReport()
    if options.data_aware and summary is None:
        size = options.view_data_batch_size
        summary = start_summary(
            trainset, pool=pool, prompt_model=options.prompt_model, view_data_batch_size=size, report=report
        )
    code = _source(program, report) if options.program_aware else None
    run = _Step(program, _shown(demo_candidates), replace(options, program_aware=code is not None), code, report)
    proposals = _draw(program, demo_candidates, options, rng)
    found = run.propose(proposals, pool, summary if options.data_aware else None)
    if proposals and not found:
        raise _nothing(len(proposals), options, report)
    return {
        i: [predictor.signature.instructions, *(found[p] for p in proposals if p.predictor == i and p in found)]
        for i, predictor in enumerate(program.predictors())
    }


@dataclass(frozen=True)
class _Step:
    """The proposals of one program. A proposal's description needs no summary, so it does not wait for it."""

    program: Module
    demo_candidates: Mapping[int, Sequence[Sequence[Any]]] | None
    options: ProposeOptions
    code: str | None
    report: StepReport

    def propose(
        self, proposals: list[Proposal], pool: Submitter, summary: Future[str | None] | None
    ) -> dict[Proposal, str]:
        """The instruction of every proposal that worked."""
        found: dict[Proposal, str] = {}
        described: list[tuple[Proposal, Proposal]] = []
        waiting: dict[Future[Any], Any] = {pool.submit(self._describe, proposal): proposal for proposal in proposals}
        if summary is not None:
            waiting[summary] = None

        def ended(tag: Any, future: Future[Any]) -> dict[Future[Any], Any]:
            if isinstance(tag, tuple):
                self._take(tag[0], future, found)
            elif tag is not None and (future.exception() is None):
                described.append((tag, future.result()))
            elif tag is not None:
                self._take(tag, future, found)
            if summary is not None and not summary.done():
                return {}
            text = self._text_of(summary)
            ready = {pool.submit(self._generate, full, text): (proposal, text) for proposal, full in described}
            described.clear()
            return dict(ready)

        as_they_end(waiting, ended)
        return found

    def _text_of(self, summary: Future[str | None] | None) -> str | None:
        """The summary; none where it could not be made, or was out of time."""
        error = None if summary is None else summary.exception()
        if isinstance(error, Stopped):
            raise error
        return None if summary is None or error is not None else summary.result()

    def _take(self, proposal: Proposal, future: Future[str], found: dict[Proposal, str]) -> None:
        error = future.exception()
        if error is None:
            found[proposal] = future.result()
            if self.options.found is not None:
                self.options.found(proposal.predictor, found[proposal])
        elif not isinstance(error, Stopped):
            what = f"instruction {proposal.demo_set} of predictor {proposal.predictor}"
            self.report.give_up("proposal", what, error)
        else:
            raise error

    def _describe(self, proposal: Proposal) -> Proposal:
        """Upstream's proposal of one instruction up to its last call, whose inputs are kept for later."""
        name = f"description:{proposal.predictor}:{proposal.demo_set}"
        fields = self.report.memory.once(name, lambda: self._described(proposal))
        return replace(proposal, fields=fields, aware=self.options.program_aware)

    def _described(self, proposal: Proposal) -> dict[str, Any]:
        options = self.options
        kept: dict[str, Any] = {}
        module = GenerateModuleInstruction(
            program_code_string=self.code,
            use_dataset_summary=False,
            program_aware=options.program_aware,
            use_task_demos=bool(options.fewshot_aware and self.demo_candidates),
            use_instruct_history=False,
            use_tip=bool(proposal.tip),
        )

        def keep(**fields: Any) -> dspy.Prediction:
            kept.update(fields)
            return dspy.Prediction(proposed_instruction="")

        module.generate_module_instruction = keep
        with dspy.context(lm=self._rollout(proposal.rollout)):
            module(
                demo_candidates=self.demo_candidates,
                pred_i=proposal.predictor,
                demo_set_i=proposal.demo_set,
                program=self.program,
                data_summary=None,
                previous_instructions="",
                num_demos_in_context=options.num_demos_in_context,
                tip=proposal.tip,
            )
        return kept

    def _generate(self, proposal: Proposal, summary: str | None) -> str:
        """The last call of a proposal, tried again in other rollouts when it fails."""
        name = f"instruction:{proposal.predictor}:{proposal.demo_set}"
        return self.report.memory.once(name, lambda: self._generated(proposal, summary))

    def _generated(self, proposal: Proposal, summary: str | None) -> str:
        predictor = generate_instruction_class(
            use_dataset_summary=summary is not None,
            program_aware=proposal.aware,
            use_task_demos=bool(self.options.fewshot_aware and self.demo_candidates),
            use_instruct_history=False,
            use_tip=bool(proposal.tip),
        )
        known = {**(proposal.fields or {}), "dataset_description": summary}
        fields = {name: known[name] for name in predictor.signature.input_fields}
        rollouts = [proposal.rollout, *_fresh(proposal.rollout)]
        for last, rollout in enumerate(rollouts, start=1):
            try:
                with asking(self._rollout(rollout)) as cut_off:
                    text = str(strip_prefix(strip_prefix(predictor(**fields).proposed_instruction or "")))
                if is_empty(text):
                    raise EvaluationError("the model gave an empty instruction")
                if self.options.whole and (cut_off() or len(text) > LONGEST):
                    raise EvaluationError(
                        f"the instruction was cut off (max_tokens allows more), or has over {LONGEST:,} characters"
                    )
                return text
            except Exception:
                if last == len(rollouts):
                    raise
        raise AssertionError("unreachable")

    def _rollout(self, number: int) -> Any:
        return self.options.prompt_model.copy(rollout_id=number, temperature=self.options.init_temperature)


def _shown(
    demo_candidates: Mapping[int, Sequence[Sequence[Any]]] | None,
) -> Mapping[int, Sequence[Sequence[Any]]] | None:
    """The demo sets as the proposer sees them: it looks at bootstrapped demos only, so labeled ones pass for such
    where there are no others."""
    every = [demo for sets in (demo_candidates or {}).values() for demos in sets for demo in demos]
    if demo_candidates is None or any("augmented" in demo for demo in every):
        return demo_candidates
    return {
        i: [[dspy.Example(**{**demo, "augmented": True}) for demo in demos] for demos in sets]
        for i, sets in demo_candidates.items()
    }


def _nothing(proposals: int, options: ProposeOptions, report: StepReport) -> EvaluationError:
    """Not one instruction came: what the first one failed with, and what may be wrong."""
    first = next(each.error for each in report.failures if each.step == "proposal")
    error = EvaluationError(
        f"Not one of {proposals} instructions could be proposed, the first for this reason: {said(first).rstrip('.')}. "
        f"Check prompt_model={getattr(options.prompt_model, 'model', options.prompt_model)!r}, its key, its "
        f"max_tokens and init_temperature={options.init_temperature:g}."
    )
    error.__cause__ = cause(first)
    return error


def _draw(
    program: Module,
    demo_candidates: Mapping[int, Sequence[Sequence[Any]]] | None,
    options: ProposeOptions,
    rng: random.Random,
) -> list[Proposal]:
    """Tips and rollout numbers of all proposals, in upstream's order; those of number 0 are drawn and dropped."""
    sets = max(len(demo_candidates[0]), 1) if demo_candidates else options.num_candidates
    proposals = []
    for predictor in range(len(program.predictors())):
        for demo_set in range(min(options.num_candidates, sets)):
            tip = TIPS[rng.choice(list(TIPS))] if options.tip_aware else None
            proposals.append(Proposal(predictor, demo_set, tip, rng.randint(0, 10**9)))
    return [proposal for proposal in proposals if proposal.demo_set > 0]


def _fresh(rollout: int) -> list[int]:
    source = random.Random(rollout)
    return [source.randint(0, 10**9) for _ in range(RETRIES)]


def _source(program: Module, report: StepReport) -> str | None:
    try:
        return str(get_dspy_source_code(program))
    except Exception as error:
        report.give_up("proposal", "reading the program's source code", error)
        return None


def _summary(trainset: list[Any], prompt_model: Any, view_data_batch_size: int, report: StepReport) -> str | None:
    for last in range(RETRIES + 1):
        try:
            return report.memory.once(
                "summary", lambda: str(create_dataset_summary(trainset, view_data_batch_size, prompt_model))
            )
        except Exception as error:
            if last == RETRIES:
                report.give_up("summary", "the description of the trainset", error)
                return None
    raise AssertionError("unreachable")

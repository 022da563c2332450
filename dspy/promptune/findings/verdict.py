"""What a run found, in words: one sentence, a block of lines for the log, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dspy.promptune.counted import counted, dollars
from dspy.promptune.findings.cases import Cases, cases_of
from dspy.promptune.findings.headline import Expectation, duration, expectation, total
from dspy.promptune.findings.pair import Pair, Row, pair_of
from dspy.promptune.findings.record import RunRecord, mean
from dspy.promptune.findings.scale import Scale, chance
from dspy.promptune.findings.statistics import Difference, interval
from dspy.promptune.naming import prompt_name

__all__ = ["Verdict", "instead", "scored", "shortened", "shown", "sure"]

LATE, EARLY = 0.85, 0.5  # shares of the budget: a score reached later may still rise, one reached earlier is at rest
FEW = 100  # validation examples, below which a score is known to no better than some ten points
SAID = 3  # lines about what steps 1 and 2 could not make; the report has more of them
UNTRIED = 0.5  # probability that an untried combination is the best, from which on a larger budget is the advice
SHOWN = 300  # characters of an error
RIVAL = 0.2  # share of the winner's probability of being best, from which on another prompt is as good a choice


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a run.

    Args:
        record: The run.
        model: Fit a model of the prompts for what the run itself does not say; that takes a moment.
    """

    record: RunRecord
    model: bool = True

    @cached_property
    def pair(self) -> Pair:
        """Scores of the original program and the returned one by example."""
        return pair_of(self.record)

    @cached_property
    def cases(self) -> Cases:
        """What became of the examples that both were scored on."""
        return cases_of(self.record)

    @property
    def changed(self) -> bool:
        """Whether another program than the original is returned."""
        return self.pair.changed

    @property
    def failed(self) -> bool:
        """Whether there is no score, and trials that failed."""
        return not self.pair.winner and bool(self.record.having("failed"))

    @cached_property
    def expected(self) -> Expectation | None:
        """What the winner should score on new data; ``None`` without a model."""
        return expectation(self.record, fit=self.model) if self.pair.winner else None

    # ------------------------------------------------------------------ one sentence

    def sentence(self) -> str:
        """What was found, and how sure that is."""
        pair, scale = self.pair, self.record.scale
        if not pair.winner:
            why = self._failed() if self.failed else f"{self.record.ended or 'the run has not ended'}."
            return f"Nothing was scored: {why}"
        if not pair.changed:
            return f"No better prompt than the original was found: it scores {scored(pair.winner, scale)}."
        if not pair.original:
            return f"The best prompt found scores {scored(pair.winner, scale)}; the original was not scored."
        if pair.gain is None:
            found = f"The best prompt found scores {scored(pair.winner, scale)}"
            return f"{found}; the original {scored(pair.original, scale)}."
        rest = "".join(f"; the {name} has {_on_all(row, scale)}" for name, row in pair.more)
        rest += f"; on new data {self.expected.words()}" if self.expected else ""
        return f"{instead(pair.before, pair.after, scale)}{sure(pair.gain, scale)}{rest}."

    def _failed(self) -> str:
        """How many trials failed, and the first error where there is no score."""
        failed, trials = self.record.having("failed"), counted(len(self.record.evaluations), "trial")
        first = f", trial {failed[0].number} with {shown(failed[0].error)}" if self.failed else ""
        return f"{len(failed)} of {trials} failed{first}"

    # ------------------------------------------------------------------ lines

    def lines(self) -> list[str]:
        """The block at the end of a compile."""
        failures = self.record.example_failures
        found = [f"Failing  {line}" for line in failures.lines()] if failures.many else []
        pair, scale = self.pair, self.record.scale
        winner = f", {prompt_name(self.record.space, self.record.best)}" if pair.winner and self.record.best else ""
        found += [
            f"Before   {scored(pair.before, scale)}",
            f"After    {scored(pair.after, scale)}{winner}",
            f"Gain     {self._gain()}",
        ]
        found += [f"{name.title():8} {_on_all(row, scale)}" for name, row in pair.more]
        if self.expected is not None:
            found.append(f"New data {self.expected.words()}, as the model of the prompts has it")
        found.append(f"Spent    {self.spent()}")
        failed = [f"Failed   {self._failed()}"] if self.record.having("failed") else []
        failed += [f"Missing  {line}" for line in shortened(self.record.missing, SAID)]
        if (refused := self.record.facts.get("refused")) and not self.record.facts.get("lineage"):
            requests = counted(len(refused), "request")
            failed.append(
                f"Missing  No instruction was written: {requests} brought nothing, the last: {shown(refused[-1])}"
            )
        return found + failed + ([] if failures.many else [f"Failing  {line}" for line in failures.lines()])

    def _gain(self) -> str:
        gain, scale, cases = self.pair.gain, self.record.scale, self.cases
        if gain is None:
            return f"{'not known' if self.changed or not self.pair.winner else 'none'}: {self.pair.reason}"
        changed = f"{len(cases.fixed)} {cases.words[0]}, {len(cases.broken)} {cases.words[1]}"
        units = "" if scale.percent else ", in the metric's units"
        return f"{scale.gain(gain)}{units}; of {counted(cases.compared, 'example')} {changed}"

    def spent(self) -> str:
        """Calls, examples, tokens, dollars and wall time."""
        record = self.record
        calls, tokens, cost = (total(record, kind) for kind in ("calls", "tokens", "cost"))
        parts = [counted(calls, "language-model call")] if calls else []
        parts.append(f"{counted(record.calls, 'example')} scored")
        if tokens:
            parts.append(counted(tokens, "token"))
            parts.append(dollars(cost) if cost else "dollars not known")
        seconds = total(record, "seconds") or record.seconds
        loading = float(record.spent.get("load", {}).get("seconds") or 0.0)
        parts.append(duration(seconds) + (f" ({duration(loading)} of it loading)" if loading >= 1 else ""))
        return ", ".join(parts)

    # ------------------------------------------------------------------ what next

    def next_steps(self, tested: bool = False) -> list[str]:
        """What a reader should do now, the most pressing first; ``tested``: a test set has been measured already."""
        if not self.pair.winner:
            return ["Fix what failed, and run again."] if self.failed else ["Wait for the first scores, or run again."]
        steps = [*self._about_failures(), *self._about_the_budget(), *self._about_examples(), *self._about_rivals()]
        if self.changed and not tested:
            steps.append(
                "Measure it on examples that the run has not seen: run.report(path, testset=...). The winner was "
                "chosen on the validation examples, so its score there is somewhat optimistic."
            )
        return steps

    def _about_failures(self) -> list[str]:
        failures = self.record.example_failures
        if failures.many:
            return [f"Fix the failures first: {100 * failures.share:.0f} % of the scored examples failed."]
        return []

    def _about_the_budget(self) -> list[str]:
        if self.untried > UNTRIED:
            count = counted(len(self.record.space) - len(self.record.rows), "combination")
            best = f"With a probability of {chance(self.untried)} the best prompt is one of the {count}"
            return [f"{best} that were not tried: a larger budget may find it."]
        history, calls, rows = self.record.history, self.record.calls, self.record.rows
        if len(rows) < 3 or not history or not calls:
            return []
        least, level = len(self.pair.winner) / 2, mean(self.pair.winner.values())
        as_good = {key for key, row in rows.items() if len(row) >= least and mean(row.values()) >= level}
        share = next((moment.calls for moment in history if moment.key in as_good), calls) / calls
        at = f"after {100 * share:.0f} % of the examples"
        if share > LATE:
            return [f"A prompt as good as the winner came into the lead late, {at}: a larger budget may find more."]
        if share < EARLY:
            return [
                f"A prompt as good as the winner was in the lead early, {at}: a larger budget will hardly help, other "
                "candidates may (num_candidates=, instructions of your own)."
            ]
        return []

    @property
    def untried(self) -> float:
        """Probability that a combination is the best that was not tried, as the model has it; 0 without one."""
        return self.record.chances[2] if self.model and self.record.chances else 0.0

    def _about_examples(self) -> list[str]:
        found, size, row, scale = [], self.record.n_examples, self.pair.winner, self.record.scale
        if size and len(row) < size:
            found.append(f"The winner was scored on {len(row)} of {counted(size, 'validation example')} only.")
        if size and size < FEW:
            low, high = interval(list(row.values()))
            if high == high:
                half = scale.number((high - low) / 2, short=True) + scale.points
                found.append(f"With {counted(len(row), 'example')} a score is known to ±{half}: give more, if you can.")
        return found

    def _about_rivals(self) -> list[str]:
        beliefs = self.record.beliefs if self.model else None
        mine = beliefs.of(self.record.best) if beliefs and self.record.best else None
        if beliefs is None or mine is None:
            return []
        rivals = [key for key in self.record.rows if key != self.record.best]
        close = sum((beliefs.of(key) or (0, 0, 0))[2] > RIVAL * max(mine[2], 1e-9) for key in rivals)
        if not close:
            return []
        words = f"{close} other prompts are" if close > 1 else "Another prompt is"
        return [f"{words} about as good: take the one you can read, or the shortest."]


def shortened(lines: Sequence[str], most: int) -> list[str]:
    """The first lines, and how many more there are."""
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def shown(error: str | None) -> str:
    """An error, cut where it is long."""
    text = error or "an error that was not recorded"
    return text if len(text) <= SHOWN else f"{text[:SHOWN].rstrip()} …"


def scored(row: Row, scale: Scale) -> str:
    """A score in words: how many are right where that can be said, and its interval."""
    if not row:
        return "not scored"
    low, high = interval(list(row.values()))
    right = (
        f"{round(math.fsum(row.values()))} of {len(row)} right"
        if _counted(row, scale)
        else counted(len(row), "example")
    )
    ends = f"; 95 %: {scale.range(low, high, short=True)}" if low == low else ""
    return f"{scale.score(mean(row.values()))} ({right}{ends})"


def _on_all(row: Row, scale: Scale) -> str:
    """The score of a program on more examples than the gain has."""
    return f"{scale.score(mean(row.values()))} on all {counted(len(row), 'example')} that it was scored on"


def _counted(row: Row, scale: Scale) -> bool:
    return scale.percent and all(score in (0.0, 1.0) for score in row.values())


def instead(before: Row, after: Row, scale: Scale) -> str:
    """Two rows of the same examples in words."""
    count = counted(len(after), "validation example")
    if _counted(before, scale) and _counted(after, scale):
        right = [round(math.fsum(row.values())) for row in (after, before)]
        return f"{right[0]} of {count} right instead of {right[1]}"
    score = [scale.score(mean(row.values())) for row in (after, before)]
    units = "" if scale.percent else " (in the metric's units)"
    return f"Score {score[0]} instead of {score[1]}{units} on {count}"


def sure(gain: Difference | None, scale: Scale) -> str:
    """How sure a gain is, to be put behind it."""
    if gain is None:
        return ""
    return f": {scale.gain(gain, short=True)}" + (", which may be chance" if gain.low <= 0 else "")

"""What a run found, in words: one sentence, a block of lines for the log, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dspy.promptune.counted import counted
from dspy.promptune.report.cases import Cases, cases_of
from dspy.promptune.report.drawing import percent
from dspy.promptune.report.headline import Expectation, duration, expectation, total
from dspy.promptune.report.record import RunRecord, mean
from dspy.promptune.report.statistics import Difference, difference, interval
from dspy.promptune.run.naming import prompt_name

__all__ = ["Verdict", "instead", "scored", "shortened", "sure"]

Row = Mapping[int, float]
LATE, EARLY = 0.85, 0.5  # shares of the budget: a best found later is still rising, one found earlier has come to rest
FEW = 100  # validation examples, below which a score is known to no better than some ten points
SAID = 3  # lines about what steps 1 and 2 could not make; the report has more of them
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
    def before(self) -> Row:
        """Scores of the original program by example."""
        return self.record.rows.get(self.record.default, {})

    @cached_property
    def after(self) -> Row:
        """Scores of the returned program by example."""
        return self.record.rows.get(self.record.best, {}) if self.record.best else {}

    @cached_property
    def cases(self) -> Cases:
        """What became of the examples that both were scored on."""
        return cases_of(self.record)

    @cached_property
    def gain(self) -> Difference | None:
        """The paired gain; ``None`` where the original is returned or too few examples were shared."""
        return difference(self.before, self.after) if self.changed else None

    @property
    def changed(self) -> bool:
        """Whether another program than the original is returned."""
        return self.record.best is not None and self.record.best != self.record.default

    @cached_property
    def expected(self) -> Expectation | None:
        """What the winner should score on new data; ``None`` without a model."""
        return expectation(self.record, fit=self.model) if self.after else None

    # ------------------------------------------------------------------ one sentence

    def sentence(self) -> str:
        """What was found, and how sure that is."""
        if not self.after:
            return f"Nothing was scored: {self.record.ended or 'the run has not ended'}."
        if not self.changed:
            return f"No better prompt than the original was found: it scores {scored(self.after)}."
        if not self.before:
            return f"The best prompt found scores {scored(self.after)}; the original was not scored."
        shared = {example: score for example, score in self.before.items() if example in self.after}
        if not shared:
            return f"The best prompt found scores {scored(self.after)}; the original {scored(self.before)}."
        now = {example: self.after[example] for example in shared}
        more = len(self.after) > len(now)
        rest = f"; {percent(mean(self.after.values()))} % on all {len(self.after)}" if more else ""
        return f"{instead(shared, now)}{sure(self.gain)}{rest}{self._new_data()}."

    def _new_data(self) -> str:
        if self.expected is None:
            return ""
        return f"; on new data {self.expected.words()}"

    # ------------------------------------------------------------------ lines

    def lines(self) -> list[str]:
        """The block at the end of a compile."""
        failures = self.record.example_failures
        found = [f"Failing  {line}" for line in failures.lines()] if failures.many else []
        found += [
            f"Before   {scored(self.before)}",
            f"After    {scored(self.after)}, {self._winner()}",
            f"Gain     {self._gain()}",
        ]
        if self.expected is not None:
            found.append(f"New data {self.expected.words()}, as the model of the prompts has it")
        found.append(f"Spent    {self.spent()}")
        failed = [f"Failed   {counted(len(self.record.failures), 'trial')}"] if self.record.failures else []
        failed += [f"Missing  {line}" for line in shortened(self.record.missing, SAID)]
        return found + failed + ([] if failures.many else [f"Failing  {line}" for line in failures.lines()])

    def _winner(self) -> str:
        return prompt_name(self.record.space, self.record.best) if self.record.best else "nothing"

    def _gain(self) -> str:
        if not self.changed:
            return "none: the original program is returned"
        if self.gain is None:
            return "not known: too few examples were scored by both"
        points = f"{100 * self.gain.mean:+.1f} points (95 %: {100 * self.gain.low:+.1f} to {100 * self.gain.high:+.1f})"
        cases = self.cases
        return f"{points}; of {counted(cases.compared, 'example')} {len(cases.fixed)} fixed, {len(cases.broken)} broken"

    def spent(self) -> str:
        """Calls, examples, tokens, dollars and wall time."""
        record = self.record
        calls, tokens, cost = (total(record, kind) for kind in ("calls", "tokens", "cost"))
        parts = [counted(calls, "language-model call")] if calls else []
        parts.append(f"{counted(record.calls, 'example')} scored")
        if tokens:
            parts.append(counted(tokens, "token"))
            parts.append(f"${cost:,.2f}" if cost else "dollars not known")
        seconds = total(record, "seconds") or record.seconds
        loading = float(record.spent.get("load", {}).get("seconds") or 0.0)
        parts.append(duration(seconds) + (f" ({duration(loading)} of it loading)" if loading >= 1 else ""))
        return ", ".join(parts)

    # ------------------------------------------------------------------ what next

    def next_steps(self) -> list[str]:
        """What a reader should do now, the most pressing first."""
        if not self.after:
            return ["Fix what failed, and run again."]
        steps = [*self._about_failures(), *self._about_the_budget(), *self._about_examples(), *self._about_rivals()]
        if self.changed:
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
        history, calls = self.record.history, self.record.calls
        if len(self.record.rows) < 3 or not history or not calls:
            return []
        last = [moment.calls for moment in history if moment.key != history[-1].key]
        share = (next(m.calls for m in history if m.calls > (last[-1] if last else -1))) / calls
        at = f"after {100 * share:.0f} % of the examples"
        if share > LATE:
            return [f"The winner came into the lead late, {at}: a larger budget may find more."]
        if share < EARLY:
            return [
                f"The winner was in the lead from early on, {at}: a larger budget will hardly help, other candidates "
                "may (num_candidates=, instructions of your own)."
            ]
        return []

    def _about_examples(self) -> list[str]:
        found, size = [], self.record.n_examples
        if size and len(self.after) < size:
            found.append(f"The winner was scored on {len(self.after)} of {counted(size, 'validation example')} only.")
        if size and size < FEW:
            low, high = interval(list(self.after.values()))
            if high == high:
                half = f"{50 * (high - low):.0f}"
                count = counted(len(self.after), "example")
                found.append(f"With {count} a score is known to ±{half} points: give more, if you can.")
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


def scored(row: Row) -> str:
    """A score in words: percent, how many right where that can be said, and its interval."""
    if not row:
        return "not scored"
    low, high = interval(list(row.values()))
    right = f"{round(math.fsum(row.values()))} of {len(row)} right" if _counted(row) else counted(len(row), "example")
    return f"{percent(mean(row.values()))} % ({right}" + (f"; 95 %: {_range(low, high)})" if low == low else ")")


def _counted(row: Row) -> bool:
    return all(score in (0.0, 1.0) for score in row.values())


def instead(before: Row, after: Row) -> str:
    """Two rows of the same examples in words."""
    if _counted(before) and _counted(after):
        right = [round(math.fsum(row.values())) for row in (after, before)]
        return f"{right[0]} of {counted(len(after), 'validation example')} right instead of {right[1]}"
    score = [percent(mean(row.values())) for row in (after, before)]
    return f"Score {score[0]} % instead of {score[1]} % on {counted(len(after), 'validation example')}"


def sure(gain: Difference | None) -> str:
    """How sure a gain is, to be put behind it."""
    if gain is None:
        return ""
    points = f": {100 * gain.mean:+.0f} points (95 %: {100 * gain.low:+.0f} to {100 * gain.high:+.0f})"
    return points + (", which may be chance" if gain.low <= 0 else "")


def _range(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}"

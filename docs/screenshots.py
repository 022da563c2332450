"""Pictures of a report: ``make screenshots`` writes docs/images/report-*.png.

The run is real, its language model is not: MIPROv2 with ``sampler="qei"`` sorts letters to a shop, answered by a rule
that is right more or less often by the prompt. ``make screenshots STORAGE=runs.db`` takes a stored run instead.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import dspy
from dspy.promptune.report.page import write
from tests.server import Quality, RuleLM, TaskRule
from tests.server.rules import chat_text

IMAGES = Path(__file__).parent / "images"
CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--no-first-run"] + [
    f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync")
]
PLAIN = "Sort the letter."
INSTRUCTIONS = {
    PLAIN: 0.1,
    "Name the department that should answer this letter: billing, delivery, returns or account.": 0.7,
    "Read the letter twice. Decide what the customer wants to happen next, then name the department for it.": 0.95,
    "You are a clerk in a busy post room. Sort the letter.": 0.3,
    "Name one department and nothing else.": 0.5,
    "Look for money, parcels, faults or passwords in the letter, and name the department that deals with that.": 0.85,
    "Be polite and thorough, and explain your reasoning at length before you decide.": 0.05,
}
LETTERS = {
    f"{opening} {matter}": department
    for opening in ("Dear team,", "Hello,", "Good morning,", "To whom it may concern:", "Hi there,", "Good evening,")
    for matter, department in {
        "I was charged twice this month.": "billing", "my invoice shows the wrong amount.": "billing",
        "the voucher was not taken off the sum.": "billing", "my parcel has not come.": "delivery",
        "the driver left the box in the rain.": "delivery", "where is order 1042 now?": "delivery",
        "the kettle arrived broken.": "returns", "how do I send these shoes back?": "returns",
        "I cannot log in any more.": "account", "please change my e-mail address.": "account",
    }.items()
}  # fmt: skip


class Clerk(RuleLM):
    """Answers by the rule, and proposes the instructions above."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """An answer after 0.12 seconds."""
        answer = super().forward(*args, **kwargs)
        message = answer.choices[0].message
        if proposed := re.search(r"Rollout (\d+)", message.content):
            text = [*INSTRUCTIONS][1 + int(proposed[1]) % (len(INSTRUCTIONS) - 1)]
            message.content = chat_text({"proposed_instruction": text})
        return answer


def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Whether the department is the right one."""
    return bool(example.department == prediction.department)


def compiled() -> Any:
    """A run of some ten seconds."""
    examples = [dspy.Example(letter=a, department=b).with_inputs("letter") for a, b in LETTERS.items()]
    quality = Quality(base=0.3, instruction=0.35, demos=0.3, instructions=INSTRUCTIONS)
    lm = Clerk(TaskRule(LETTERS, answer=("department",), quality=quality), seconds=0.12)
    program = dspy.Predict(dspy.Signature("letter -> department", PLAIN))
    with dspy.context(lm=lm):
        optimizer = dspy.MIPROv2(
            metric=right, auto=None, num_candidates=7, num_threads=4, max_bootstrapped_demos=2, max_labeled_demos=2
        )
        found = optimizer.compile(
            program, trainset=examples[::4], valset=[e for i, e in enumerate(examples) if i % 4], num_trials=14,
            sampler="qei", n_jobs=4, seed=3, disable_progress_bar=True,
        )  # fmt: skip
    return found.optimization_run


def stored(storage: str) -> Any:
    """The only study of a storage."""
    import optuna

    from dspy.promptune.storage.backend import open_storage

    return optuna.load_study(study_name=None, storage=open_storage(storage, must_exist=True).storage)


def main(storage: str | None = None) -> None:
    """Write the pictures."""
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        address = write(stored(storage) if storage else compiled(), Path(folder) / "report.html").resolve().as_uri()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for scheme in ("light", "dark"):
            page = shown(browser, address, width=1200, height=820, scheme=scheme)
            page.screenshot(path=IMAGES / f"report-{scheme}.png")
            if scheme == "light":
                for name in ("best", "estimates", "effects", "spending", "timeline"):
                    page.locator(f"section:has(#{name})").screenshot(path=IMAGES / f"report-{name}.png")
        page = shown(browser, address, width=390, height=844, scheme="light")
        page.screenshot(path=IMAGES / "report-phone.png")
        browser.close()
    for path in sorted(IMAGES.glob("report-*.png")):
        print(f"{path.relative_to(Path.cwd())}  {path.stat().st_size / 1000:.0f} kB")


def shown(browser: Any, address: str, *, width: int, height: int, scheme: str) -> Any:
    """The report in a window, all figures drawn."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(address)
    page.evaluate("document.querySelectorAll('details.plots').forEach(each => { each.open = true; })")
    page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 5")
    return page


if __name__ == "__main__":
    main(*sys.argv[1:2])

"""The report of a finished run in Debian's chromium, and the run's study in optuna-dashboard."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest

from dspy.promptune import EvaluationError
from dspy.promptune.findings.record import record_of
from dspy.promptune.naming import prompt_name
from dspy.promptune.report.page import write
from tests.report.conftest import MARKUP, Table

pytestmark = pytest.mark.slow  # in all; CI runs them

FIGURES = ["best", "estimates", "effects", "spending", "timeline"]


@pytest.fixture(scope="module")
def address(stored, tmp_path_factory):
    """The report's address."""
    return stored[1].optimization_run.report(tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the report in a window, and returns it with what the browser complained of or fetched."""
    contexts = []

    def open_page(width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page, said = contexts[-1].new_page(), []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: None if request.url == address else said.append(request.url))
        page.goto(address)
        page.evaluate("document.querySelectorAll('details.plots').forEach(each => { each.open = true; })")
        page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 5")
        return page, said

    yield open_page
    for context in contexts:
        context.close()


def hovered(page, figure, curve, point):
    """What the label of a figure's point shows, as text."""
    cell = "([f, c, p]) => Plotly.Fx.hover(document.getElementById(f), {xval: p[1], yval: p[0]})"
    show = "([f, c, p]) => Plotly.Fx.hover(document.getElementById(f), [{curveNumber: c, pointNumber: p}])"
    page.evaluate(cell if isinstance(point, list) else show, [figure, curve, point])
    return page.locator(f"#{figure} .hoverlayer .hovertext").first.text_content()


def test_all_figures_are_drawn_and_the_console_is_silent(opened):
    """A laptop shows five figures with marks in each, and no message, error or request comes of it."""
    page, said = opened()
    assert said == []
    marks = "f => document.querySelectorAll(`#${f} .main-svg :is(.point, .js-line, .hm image)`).length"
    assert all(page.evaluate(marks, figure) > 0 for figure in FIGURES)


def test_hovering_shows_the_prompt(opened, stored):
    """The label of the winner's cell has its estimate and its texts as they are."""
    page, _ = opened()
    record = record_of(stored[1].optimization_run)
    cells = page.evaluate("document.getElementById('estimates').data[0].text")
    place = next([i, j] for i, row in enumerate(cells) for j, cell in enumerate(row) if "★" in cell)
    shown = hovered(page, "estimates", 0, place)
    assert shown.startswith(prompt_name(record.space, record.best)) and "expected" in shown
    text = record.space.texts(0)[record.best[0]]
    assert text[:40] in shown


def test_markup_in_a_prompt_stays_text(opened):
    """Tags of a prompt are shown on the page and in labels, make no element, and nothing of them runs."""
    page, said = opened()
    place = page.evaluate("document.getElementById('effects').data[0].hovertext.findIndex(t => t.includes('I0'))")
    shown = hovered(page, "effects", 0, place)
    assert "<b>the</b>" in shown and "&amp;" in shown and "<script>" in shown
    assert MARKUP in page.locator("main").text_content()
    assert page.locator("img, main script:not([type='application/json'])").count() == 0
    assert page.title() == "Predict: optimization report" and said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(opened, scheme):
    """At 360 pixels neither the page nor a figure is wider than the screen, and no open table is wider than its box."""
    page, said = opened(width=360, color_scheme=scheme, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360 and said == []
    assert all(page.locator(f"#{figure}").bounding_box()["width"] <= 360 for figure in FIGURES)
    hidden = "[...document.querySelectorAll('section > .wide')].map(each => each.scrollWidth - each.clientWidth)"
    assert set(page.evaluate(hidden)) == {0}


def test_numbers_are_not_broken_over_lines(opened):
    """On a laptop a score before and after, and a time, are each on one line."""
    page, _ = opened(width=1024)
    lines = "e => { const r = document.createRange(); r.selectNodeContents(e); return r.getClientRects().length; }"
    cells = page.locator("section > .wide td.number").all()
    assert len(cells) > 0 and {cell.evaluate(lines) for cell in cells} == {1}


def test_labels_on_a_phone_differ(opened):
    """Candidates whose texts begin alike have labels of their own on a phone, beyond their codes."""
    page, _ = opened(width=360, is_mobile=True, has_touch=True)
    labels = page.locator("#effects :is(.ytick, .y2tick) text").all_text_contents()
    texts = [label.partition(" ")[2] for label in labels]
    assert len(texts) == 8 and len(set(texts)) == 8, labels


def test_a_run_of_failures_fits_a_phone(browser, tmp_path):
    """Where nothing was scored, the table of failures is stacked, and figures say so within their width."""
    path = str(tmp_path / "runs.db")
    with pytest.raises(EvaluationError):
        Table(broken=(0, 1, 2, 3), error="down: " + "x" * 400).search(storage=path)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{path}")
    context = browser.new_context(viewport={"width": 360, "height": 800}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(write(study, tmp_path / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 3")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator(".failed tr").nth(1).evaluate("e => getComputedStyle(e).display") == "flex"
    for figure in ("best", "estimates", "effects"):
        box, text = (
            page.locator(f"#{figure}").bounding_box(),
            page.locator(f"#{figure} .annotation-text").bounding_box(),
        )
        assert box["x"] <= text["x"] and text["x"] + text["width"] <= box["x"] + box["width"]
    context.close()


def test_the_curve_is_shown_against_time_as_well(opened, stored):
    """A button changes the axis of "best so far" from examples to seconds and back."""
    page, _ = opened()
    record = record_of(stored[1].optimization_run)
    ends = "document.getElementById('best').data.map(trace => trace.x[trace.x.length - 1])"
    for label, end in (("by time", record.seconds), ("by examples", record.calls)):
        page.get_by_role("button", name=label).click()
        page.wait_for_timeout(200)
        assert page.evaluate(ends) == [pytest.approx(end)] * 4


def test_dark_mode_can_be_read(opened):
    """In both modes, and after a change, texts of page and figures stand out from the card (WCAG: 4.5 to 1)."""
    page, _ = opened(color_scheme="light")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        card = luminance(page, "section", "backgroundColor")
        assert (card < 0.1) == (scheme == "dark")
        for text, what in (("h2", "color"), (".subtitle", "color"), ("#best .g-ytitle text", "fill")):
            ratio = contrast(card, luminance(page, text, what))
            assert ratio >= 4.5, (scheme, text, ratio)


def luminance(page, selector, what):
    """Relative luminance of a color in use, as WCAG 2 defines it."""
    style = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    parts = [float(each) / 255 for each in style.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


# ---------------------------------------------------------------------- live


@pytest.mark.slow
def test_the_dashboard_lists_the_study_and_its_trials(stored):
    """``optuna-dashboard`` on the run's storage serves its page, the study, its trials and the name of their value."""
    command = Path(sys.executable).with_name("optuna-dashboard")
    if not (command.exists() or shutil.which("optuna-dashboard")):
        pytest.skip("optuna-dashboard is not installed: pip install optuna-dashboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(command), "--host", "127.0.0.1", "--port", str(port), f"sqlite:///{stored[0]}"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        (study,) = answer(process, f"{base}/api/studies")["study_summaries"]
        detail = answer(process, f"{base}/api/studies/{study['study_id']}?after=0")
        assert study["study_name"] == "Predict"
        assert len(detail["trials"]) == len(stored[1].optimization_run.trials)
        assert detail["objective_names"] == ["mean of the examples"]
        with urllib.request.urlopen(f"{base}/dashboard/", timeout=30) as response:
            assert b"Optuna Dashboard" in response.read()
    finally:
        process.terminate()
        process.wait(30)


def answer(process, address):
    """JSON of a server that may be starting still."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                return json.load(response)
        except OSError:
            assert process.poll() is None, "optuna-dashboard ended"
            time.sleep(0.1)
    raise AssertionError(f"{address} did not answer")

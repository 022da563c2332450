"""The report in a real browser, and the run in a real dashboard."""

import json
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.report.conftest import MARKUP


@pytest.fixture(scope="module")
def report(stored, tmp_path_factory):
    """The address of a written report."""
    return stored[1].optimization_run.report(tmp_path_factory.mktemp("page") / "report.html").as_uri()


def opened(browser, address, *, width=1280, scheme="light"):
    """The page, and what the browser complained of."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "blob:"))
            else complaints.append(request.url))  # fmt: skip
    page.goto(address)
    page.wait_for_selector("body[data-painted]")
    return page, complaints


def test_all_figures_are_drawn(browser, report):
    """A laptop shows six figures, each with marks, and the browser has nothing to complain of or to fetch."""
    page, complaints = opened(browser, report)
    assert complaints == []
    assert page.locator(".js-plotly-plot .main-svg >> nth=0").is_visible()
    marks = "figure => figure.querySelectorAll('.point, .lines, .points path, .hm image, .js-line').length"
    counts = [page.locator(".js-plotly-plot").nth(i).evaluate(marks) for i in range(6)]
    assert page.locator(".js-plotly-plot").count() == 6 and min(counts) > 0


def test_markup_does_nothing(browser, report):
    """A script in an instruction is shown, not run; so is what the hover of a figure says."""
    page, complaints = opened(browser, report)
    assert page.title().startswith("Optimisation report") and complaints == []
    assert MARKUP in page.locator("table td").all_text_contents()
    hover = page.evaluate(
        "() => { Plotly.Fx.hover('figure-2', [{curveNumber: 0, pointNumber: 0}]);"
        " return document.querySelector('#figure-2 .hovertext').textContent; }"
    )
    assert "examples" in hover and "<script>" in hover


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it(browser, report, scheme):
    """On a phone nothing is wider than the screen, and ink and paper differ in both schemes."""
    page, complaints = opened(browser, report, width=390, scheme=scheme)
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ink, paper, axis = page.evaluate(
        "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.xtick text')).fill]"
    )
    assert abs(luminance(ink) - luminance(paper)) > 100 and abs(luminance(axis) - luminance(paper)) > 100


def luminance(color):
    """Brightness of ``rgb(r, g, b)``, 0 to 255."""
    numbers = [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    return 0.3 * numbers[0] + 0.6 * numbers[1] + 0.1 * numbers[2]


def test_the_dashboard_shows_the_run(stored):
    """optuna-dashboard on the run's storage lists the study and its trials."""
    pytest.importorskip("optuna_dashboard", reason="pip install optuna-dashboard")
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, f"sqlite:///{stored[0]}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    ) as child:  # fmt: skip
        try:
            base = f"http://127.0.0.1:{int(child.stdout.readline())}"
            studies = answered(f"{base}/api/studies")["study_summaries"]
            assert [study["study_name"] for study in studies] == ["Predict"]
            number = studies[0]["study_id"]
            trials = answered(f"{base}/api/studies/{number}?after=0")["trials"]
            assert len(trials) == len(stored[1].optimization_run.trials)
            assert b"<div" in urllib.request.urlopen(f"{base}/dashboard", timeout=10).read()
        finally:
            child.terminate()


SERVE = """
import sys
from wsgiref.simple_server import make_server
from optuna.storages import RDBStorage
from optuna_dashboard import wsgi
server = make_server("127.0.0.1", 0, wsgi(RDBStorage(sys.argv[1])))
print(server.server_port, flush=True)
server.serve_forever()
"""


def answered(address):
    """What a server that may still be starting answers, as JSON."""
    for attempt in range(50):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            if attempt == 49:
                raise
            time.sleep(0.2)

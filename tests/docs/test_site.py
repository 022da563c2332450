"""The built site: no warning, no remote asset, no link that leads nowhere."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import DOCS, GENERATED, ROOT
from tests.report.conftest import CHROMIUM, QUIET

pytestmark = pytest.mark.slow

ASSETS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
HARMLESS = ("canonical", "next", "prev")  # links of the head that nothing is loaded from


class Page(HTMLParser):
    """Anchors, links and loaded files of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.assets = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ASSETS and given.get(ASSETS[tag]) and given.get("rel") not in HARMLESS:
            self.assets.append(given[ASSETS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    convert = [sys.executable, "-m", "nbconvert", "--to", "markdown", "--log-level", "ERROR"]
    subprocess.run([*convert, str(DOCS / "tutorial.ipynb")], check=True, timeout=120)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site):
    """Every page of it, by path."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there(site, built):
    """Each source has its page, the tutorial too."""
    names = {path.stem for path in DOCS.glob("*.md")} | {name.removesuffix(".md") for name in GENERATED}
    assert names <= {path.stem for path in built}


def test_nothing_is_loaded_from_elsewhere(built):
    """Scripts, styles, fonts and pictures are local: the site reads the same without a network."""
    for path, page in built.items():
        remote = [asset for asset in page.assets if urlsplit(asset).scheme not in ("", "data")]
        assert not remote, f"{path.name}: {remote}"


def test_every_internal_link_leads_somewhere(site, built):
    """Links between pages name files that are there, and anchors that the page has."""
    for path, page in built.items():
        if path.name == "404.html":
            continue  # its links are absolute
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in built:
                assert unquote(parts.fragment) in built[target].ids | {"__skip"}, f"{path.name}: {link}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone(site, scheme):
    """No page, and no table but pandas' own, is wider than a screen of 390 pixels."""
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"{CHROMIUM} is not there: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        for path in sorted(site.glob("*.html")):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
            tables = "each => [...each].filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)"
            assert page.locator(".md-typeset__scrollwrap").evaluate_all(tables) == [], path.name
        browser.close()

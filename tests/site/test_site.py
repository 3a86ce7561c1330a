"""The built site, opened in a browser: whole, and readable at a telephone's width."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from tests.readme_blocks import REPOSITORY

pytestmark = pytest.mark.site

SITE = Path(os.environ.get("HAIKU_MQA_SITE", REPOSITORY / "docs/_build"))
PAGES = sorted(page.relative_to(SITE).as_posix() for page in SITE.rglob("*.html"))
CHROMIUM = "/usr/bin/chromium"
# It looks up nothing but the site: no updates, no reports.
FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
DESK, TELEPHONE = (1280, 800), (390, 844)  # CSS pixels
SMALLEST_LETTERS = 11  # CSS pixels

every_page = pytest.mark.parametrize("page", PAGES)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def desk(browser):
    return _window(browser, DESK)


@pytest.fixture(scope="module")
def telephone(browser):
    return _window(browser, TELEPHONE)


def _window(browser: Any, size: tuple[int, int]) -> Any:
    return browser.new_page(viewport={"width": size[0], "height": size[1]})


def test_there_is_a_site():
    assert "index.html" in PAGES, f"build it first: sphinx-build -b html docs {SITE}"


@every_page
def test_page_loads_whole_and_without_complaint(address, desk, page):
    faults: list[str] = []

    def answered(response: Any) -> None:
        if response.status >= 400:
            faults.append(f"{response.status} {response.url}")

    def said(message: Any) -> None:
        if message.type == "error":
            faults.append(message.text)

    desk.on("response", answered)
    desk.on("console", said)
    try:
        desk.goto(address + page, wait_until="load")
        missing = desk.evaluate(
            "[...document.images].filter(i => !i.complete || !i.naturalWidth)"
            ".map(i => i.currentSrc)"
        )
    finally:
        desk.remove_listener("response", answered)
        desk.remove_listener("console", said)
    assert faults == []
    assert missing == []
    assert desk.title()
    assert desk.locator("h1, #search-results").count()  # or what it shall find


@every_page
def test_pictures_say_in_words_what_they_show(address, desk, page):
    desk.goto(address + page)
    bare = desk.evaluate(
        "[...document.querySelectorAll('article img')].filter(i => !i.alt.trim())"
        ".map(i => i.src)"
    )
    assert bare == []


@every_page
def test_page_of_a_telephone_is_read_without_moving_sideways(address, telephone, page):
    telephone.goto(address + page)
    width = telephone.evaluate("document.documentElement.scrollWidth")
    assert width <= TELEPHONE[0], _wide(telephone)


def _wide(window: Any) -> list[str]:
    """Returns what sticks out of a page, for the message."""
    return window.evaluate(
        "[...document.querySelectorAll('article *')].filter(e =>"
        " e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.tagName + ': ' + e.textContent.slice(0, 60)).slice(0, 5)"
    )


@every_page
def test_letters_on_a_telephone_are_large_enough(address, telephone, page):
    telephone.goto(address + page)
    small = telephone.evaluate(
        """least => {
          const found = []
          const walker = document.createTreeWalker(
            document.querySelector('article'), NodeFilter.SHOW_TEXT)
          for (let node; (node = walker.nextNode());) {
            const style = getComputedStyle(node.parentElement)
            if (node.data.trim() && parseFloat(style.fontSize) < least)
              found.push(style.fontSize + ' ' + node.data.trim().slice(0, 40))
          }
          return found.slice(0, 5)
        }""",
        SMALLEST_LETTERS,
    )
    assert small == []


# --- Links ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anchors(address, desk) -> dict[str, set[str]]:
    """Returns each page's address to what a link can name in it."""
    found = {}
    for page in PAGES:
        desk.goto(address + page, wait_until="domcontentloaded")
        ids = desk.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        found[address + page] = {"", *ids}
    return found


@every_page
def test_every_link_leads_somewhere(address, desk, anchors, page):
    desk.goto(address + page, wait_until="domcontentloaded")
    links = desk.evaluate(
        "[...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href'))"
    )
    broken = [link for link in links if not _leads(address, page, link, anchors)]
    assert broken == []


def _leads(address: str, page: str, link: str, anchors: dict[str, set[str]]) -> bool:
    target, anchor = urldefrag(urljoin(address + page, link))
    if not target.startswith(address):  # somewhere else: named, and not looked up
        return target.startswith("https://")
    if target in anchors:
        return unquote(anchor) in anchors[target]
    return (SITE / unquote(target.removeprefix(address))).is_file()


def test_search_finds_a_public_name(address, desk):
    desk.goto(f"{address}search.html?q=from_pretrained")
    results = desk.locator("#search-results li a")
    results.first.wait_for()
    assert any("from_pretrained" in text for text in results.all_inner_texts())

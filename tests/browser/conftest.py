"""One Chromium and one place to work for all tests of a module; tests are skipped where there is no browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from browser.place import Place, open_place
from karat.feedback.web import task_view

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 20_000
"""How long a test waits for what must come; a busy machine is no failure."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A running browser. Closed with its module: Playwright keeps an event loop, and other tests want their own."""
    path = os.environ.get("KARAT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: install the package chromium, or say where it is in KARAT_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place to work that asks nobody back for being quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_view, "FASTEST_S", 0.0)
        patch.setattr(task_view, "FASTEST_WORDS_PER_S", float("inf"))
        with open_place(tmp_path_factory.mktemp("place") / "people.db") as opened:
            yield opened


@pytest.fixture
def visit(chromium: Browser, place: Place) -> Iterator[Callable[..., Page]]:
    """Opens a page signed in by an invite link: `visit(link, path, **options of the context)`; errors fail the test."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opened(link: str, path: str = "/work", **options) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(link)
        with page.expect_navigation():  # a sign-in still under way would take the place of the page that is asked for
            page.click("main button")
        page.goto(place.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong, wrong


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which is not part of this package."""
    given = os.environ.get("KARAT_AXE")
    path = Path(given) if given else Path.home() / ".cache" / "karat-test" / "axe.min.js"
    if not path.is_file():
        pytest.skip(f"no axe-core at {path}: put axe.min.js of the npm package axe-core 4.10 there, or set KARAT_AXE")
    return path.read_text(encoding="utf-8")

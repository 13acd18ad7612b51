"""At 200 %: no page scrolls sideways, nothing is cut off, and everything that can be used can be reached and pressed.

Zoomed as browsers do it (1280 x 1024 becomes 640 x 512 points of twice the size, WCAG 1.4.10), and with texts alone twice
as large, as somebody sets them in the browser (WCAG 1.4.4).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from browser.place import QUESTIONS, Place, add_kind
from browser.test_rater_axe import pages_of
from karat.feedback.people import standing
from karat.feedback.work import requeue

pytestmark = pytest.mark.browser

PROBE = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
ZOOMED = {"width": 640, "height": 512}
UNZOOMED = {"width": 1280, "height": 1024}
KEPT = os.environ.get("KARAT_SCREENSHOTS")
"""A folder for what was looked at, to be looked at by people; None = none is kept."""


def enlarged(page: Page, name: str) -> Iterator[str]:
    """Shows a page in both ways of being twice as large, and says which."""
    session = page.context.new_cdp_session(page)
    for way, size, points in (("zoom", ZOOMED, 16), ("text", UNZOOMED, 32)):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        session.send("Page.setFontSizes", {"fontSizes": {"standard": points, "fixed": points * 13 // 16}})
        assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= points * (
            1 if way == "zoom" else 0.99
        )
        yield f"{name} ({way})"
        if KEPT:  # last, and what is in sight only: a picture of the whole page would undo the size of the texts
            file = f"{name.strip('/').replace('/', '-') or 'home'}-{way}.jpg"
            page.screenshot(path=Path(KEPT) / file, scale="css", type="jpeg", quality=60)
    session.send("Page.setFontSizes", {"fontSizes": {"standard": 16, "fixed": 13}})
    session.detach()


def problems(page: Page, name: str) -> list[str]:
    """What is wrong with a page that is twice as large."""
    return [f"{shown}: {each}" for shown in enlarged(page, name) for each in page.evaluate(PROBE)]


def test_every_kind_of_task_can_be_done_at_twice_the_size(place: Place, visit):
    account, link = place.rater()
    page = visit(link, "/", device_scale_factor=2)
    found = []
    for kind in QUESTIONS:
        task = add_kind(place.store, kind, account.annotator, content_warning="Violence." if kind == "label" else "")
        page.goto(f"{place.url}/work")
        assert page.locator(f'#answer[data-kind="{kind}"]').count() == 1
        if kind == "label":
            page.locator('[name="uncovered"]').check(force=True)
        found += problems(page, kind)
        page.evaluate("document.getElementById('more').open = true")
        found += problems(page, f"{kind}-more")
        requeue.pull(place.store, [task.id], reason="seen", by="admin", now=time.time())
    assert not found, "\n".join(found)


@pytest.mark.long
@pytest.mark.parametrize("role", ["admin", "annotator", "auditor", "expert"])
def test_every_other_page_can_be_used_at_twice_the_size(role: str, place: Place, visit):
    account, link = place.rater(role=role)
    page = visit(link, "/", device_scale_factor=2)
    paths = ("/", "/guidelines", "/me", "/away", "/standing", "/work", "/work/history")
    if role == "annotator":
        standing.quarantine(place.store, str(account.annotator), reason="Read on.", by="x", now=time.time())
    else:
        paths = pages_of(role, place)
    found = []
    for path in paths:
        page.goto(place.url + path)
        found += problems(page, path.split("?")[0])
    assert not found, "\n".join(found)

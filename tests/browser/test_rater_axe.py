"""Everybody can use the pages: axe-core finds nothing serious or critical, in any kind, colour or state."""

from __future__ import annotations

import time

import pytest

from browser.looks import serious
from browser.place import QUESTIONS, Place, add_kind, crowd, failed_test
from karat.feedback.people import standing
from karat.feedback.web.desk import ADMIN_TABS
from karat.feedback.work.check_items import put_items
from karat.feedback.work.checks import add_gold
from karat.rowfiles import rows_of_text

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("kind", list(QUESTIONS))
def test_axe_finds_nothing_serious_on_any_kind(kind: str, place: Place, visit, axe: str):
    account, link = place.rater()
    add_kind(place.store, kind, account.annotator, content_warning="Violence." if kind == "label" else "")
    page = visit(link, reduced_motion="reduce")
    assert page.locator(f'#answer[data-kind="{kind}"]').count() == 1
    page.evaluate(axe)
    dark = {"comparison": ("dark", True), "ranking": ("contrast", True)}.get(kind, ("light", False))
    page.evaluate(
        "([theme, open]) => { document.documentElement.dataset.theme = theme; if (open) document.documentElement.dataset.guide = 'open'; }",
        list(dark),
    )
    page.evaluate("document.getElementById('more').open = true")
    assert not serious(page)
    named = page.evaluate(
        "axe.run(document, {runOnly: ['landmark-unique']}).then(r => r.violations.map(v => v.nodes[0].html))"
    )
    assert not named  # of two regions of one name nobody knows which one she is in
    if kind == "comparison":
        page.set_viewport_size({"width": 360, "height": 740})
        page.evaluate("document.documentElement.dataset.guide = 'closed'")
        page.get_by_role("button", name="Menu").click()
        assert not serious(page)


def test_axe_finds_nothing_serious_on_the_other_pages(place: Place, visit, axe: str):
    account, link = place.rater()
    page = visit(link, "/")
    standing.quarantine(
        place.store, str(account.annotator), reason="Please read the guidelines.", by="x", now=time.time()
    )
    for path in ("/", "/guidelines", "/me", "/away", "/standing", "/consent", "/work/history"):
        page.goto(place.url + path)
        page.evaluate(axe)
        assert not serious(page), path


ROLES = ("admin", "auditor", "expert")


def pages_of(role: str, place: Place) -> tuple[str, ...]:
    """Every page of a role, with something on it."""
    rater, _ = place.rater()
    task = add_kind(place.store, "comparison", rater.annotator)
    rows = rows_of_text(f'{{"task": "{task.id}", "expected": "a"}}', "items")
    version = task.id[-30:]
    add_gold(place.store, put_items(place.store, rows, version=version), version=version)
    clicker, failed = (crowd(place)[0], failed_test(place)) if role == "admin" else ("", "")
    admins = (
        f"/admin/task?id={task.id}",
        *(f"/admin/rater?who={who}" for who in (rater.annotator, clicker, failed)),
        "/admin/qualification",
        f"/admin/qualification/rater?who={failed}",
    )
    return {
        "admin": (*(path for path, _ in ADMIN_TABS), *admins),
        "auditor": ("/audit", "/audit/slices", "/audit/record"),
        "expert": ("/", "/review", "/me"),
    }[role]


@pytest.mark.parametrize("role", ROLES)
def test_no_page_of_the_other_roles_scrolls_sideways_on_a_phone(role: str, place: Place, visit):
    page = visit(place.rater(role=role)[1], "/", viewport={"width": 360, "height": 740})
    for path in pages_of(role, place):
        answer = page.goto(place.url + path)
        assert answer is not None
        assert answer.status == 200, path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


@pytest.mark.long
@pytest.mark.parametrize("role", ROLES)
def test_axe_finds_nothing_serious_on_the_pages_of_the_other_roles(role: str, place: Place, visit, axe: str):
    scheme = "dark" if role == "auditor" else "light"
    page = visit(place.rater(role=role)[1], "/", reduced_motion="reduce", color_scheme=scheme)
    for path in pages_of(role, place):
        page.goto(place.url + path)
        page.evaluate(axe)
        assert not serious(page), path

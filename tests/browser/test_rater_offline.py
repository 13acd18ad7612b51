"""What is handed in without a network: it waits on the device, is sent once, and what is not taken is not lost."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Page, expect

from browser.place import Place, add_kind, go_offline
from karat.feedback.web.positions import as_shown
from karat.feedback.work import requeue

pytestmark = pytest.mark.browser

# The next reply from /work breaks off after its head, as it does where a page is left or the network goes just then.
CUT_OFF = """() => {
for (const name of ["json", "text"]) {
  const whole = Response.prototype[name];
  Response.prototype[name] = function () {
    if (window.cutOff || !this.url.endsWith("/work")) return whole.call(this);
    window.cutOff = true;
    return Promise.reject(new TypeError("network error"));
  };
}}
"""


def hand_in(page: Page) -> None:
    """Submit the last task."""
    with page.expect_navigation():
        page.locator("#submit").click()
    expect(page.locator("h1")).to_have_text("All done")


def waiting(page: Page) -> list[str]:
    """Where this device keeps answers that were not sent or not taken."""
    return page.evaluate("Object.keys(localStorage).filter(name => name.startsWith('karat:queue:'))")


def hand_in_offline(page: Page, text: str) -> None:
    """Write something, and submit it where there is no network."""
    go_offline(page)
    page.locator("#text").fill(text)
    page.locator("#text").press("Control+Enter")
    expect(page.locator("#saved")).to_contain_text("1 answer waits on this device")


def test_offline_keeps_the_answer_and_sends_it_once(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    go_offline(page)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#saved")).to_contain_text("1 answer waits on this device")
    assert not place.judgements(account.annotator)
    with page.expect_navigation():
        page.context.set_offline(False)
    expect(page.locator("h1")).to_have_text("All done")
    [judgement] = place.judgements(account.annotator)
    assert as_shown("comparison", judgement.value, judgement.shown_order) == {"level": 5, "n_levels": 7}
    assert not waiting(page)


@pytest.mark.parametrize("required", ["off", "required"])
def test_a_reply_that_breaks_off_is_neither_taken_nor_refused(place: Place, visit, required: str):
    account, link = place.rater()
    add_kind(place.store, "critique", account.annotator, rationale=required)
    page = visit(link)
    hand_in_offline(page, "It is wrong.")
    page.evaluate(CUT_OFF)
    page.context.set_offline(False)
    if required == "required":  # the refusal comes whole the second time
        expect(page.locator("#messages [role=alert].error")).to_contain_text("Say in a few words why.")
        page.locator("#reason").fill("Because.")
        hand_in(page)
    expect(page.locator("h1")).to_have_text("All done")
    assert len(place.judgements(account.annotator)) == 1
    assert not waiting(page)


def test_a_late_answer_leads_nobody_away_from_what_she_types(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "critique", account.annotator)
    closed = visit(link)
    page = closed.context.new_page()
    page.goto(f"{place.url}/work")
    hand_in_offline(closed, "It is wrong.")
    closed.close()
    page.locator("#text").fill("It is quite wrong.")
    page.context.set_offline(False)
    expect(page.locator("#messages")).to_contain_text("What you have entered since is not handed in.")
    expect(page.locator("#text")).to_have_value("It is quite wrong.")
    page.locator("#submit").click()
    expect(page.locator("#messages")).to_contain_text("You have given another answer to this already")
    hand_in(page)
    first, second = place.judgements(account.annotator)
    assert (second.supersedes, second.value["text"]) == (first.id, "It is quite wrong.")


def test_an_answer_that_waited_and_is_not_taken_is_on_the_page_again(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "critique", account.annotator, rationale="required")
    page = visit(link)
    hand_in_offline(page, "It is wrong.")
    page.goto("about:blank")  # she closes the page, and comes back when there is a network
    page.context.set_offline(False)
    page.goto(f"{place.url}/work")
    page.locator("#messages [role=alert]").wait_for()
    expect(page.locator("#messages [role=alert]")).to_contain_text("Say in a few words why.")
    expect(page.locator("#text")).to_have_value("It is wrong.")
    page.locator("#reason").fill("Because.")
    hand_in(page)
    [judgement] = place.judgements(account.annotator)
    assert (judgement.value["text"], judgement.reason) == ("It is wrong.", "Because.")
    assert not waiting(page)


def test_a_refusal_that_only_a_page_that_was_left_got_is_shown_by_the_next(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "critique", account.annotator, rationale="required")
    left = visit(link)
    hand_in_offline(left, "It is wrong.")
    with left.expect_response(lambda response: response.status == 422):
        left.context.set_offline(False)
        left.evaluate("dispatchEvent(new Event('online'))")
    expect(left.locator("#messages [role=alert]")).to_be_visible()
    page = left.context.new_page()
    left.close()  # nobody has read it
    for typed in ("It is wrong.", "It is quite wrong."):
        page.goto(f"{place.url}/work")
        expect(page.locator("#messages [role=alert]")).to_contain_text("Say in a few words why.")
        expect(page.locator("#text")).to_have_value(typed)
        page.locator("#text").fill("It is quite wrong.")  # what was changed since then is newer
    page.locator("#reason").fill("Because.")
    hand_in(page)
    [judgement] = place.judgements(account.annotator)
    assert (judgement.value["text"], judgement.reason) == ("It is quite wrong.", "Because.")
    assert not waiting(page)


def test_an_answer_that_waited_goes_out_on_any_page_and_its_refusal_stays_until_read(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "critique", account.annotator)
    left = visit(link)
    hand_in_offline(left, "It is wrong.")
    page = left.context.new_page()
    left.close()
    page.context.set_offline(False)
    page.goto(f"{place.url}/me")
    expect(page.locator("main [role=status]").first).to_contain_text("was sent at")
    [judgement] = place.judgements(account.annotator)
    assert judgement.value["text"] == "It is wrong."
    assert not waiting(page)

    task = add_kind(place.store, "critique", account.annotator, rationale="required")
    page.goto(f"{place.url}/work")
    hand_in_offline(page, "No reason given.")
    requeue.pull(place.store, [task.id], reason="broken", by="admin", now=time.time())
    page.context.set_offline(False)
    for _ in range(2):
        page.goto(f"{place.url}/work")
        expect(page.locator(".leftover")).to_contain_text("Say in a few words why.")
        expect(page.locator(".leftover pre")).to_have_text("No reason given.")
    page.locator(".leftover").get_by_role("button").click()
    expect(page.locator(".leftover")).to_have_count(0)
    assert not waiting(page)

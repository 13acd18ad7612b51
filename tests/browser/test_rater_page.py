"""Every kind of task by keyboard alone, by touch on a small screen, and without scripts; and nothing gets lost."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from browser.place import PASSWORD, TEXTS, Place, add_kind, add_task, conversation, go_offline
from karat.feedback.people import accounts, drafts
from karat.feedback.web import task_view
from karat.feedback.web.positions import as_shown
from karat.feedback.work import requeue
from karat.questions import Question
from karat.records import user_prompt

pytestmark = pytest.mark.browser

SPAN = {"response": 0, "start": 0, "end": 7, "class": "wrong"}
STEPS = {"steps": [{"start": 0, "end": 15, "mark": 1}, {"start": 17, "end": 30, "mark": -1}]}
EXPECTED: dict[str, dict[str, Any]] = {
    "comparison": {"level": 5, "n_levels": 7},
    "ranking": {"ranks": [2, 3, 1, 3]},
    "best_of": {"best": 1},
    "rating": {"scores": {"true": 6, "clear": 3}, "low": 1, "high": 7},
    "label": {"good": False, "flags": ["spam"]},
    "correction": {"text": "Air scatters blue. " + TEXTS[0]},
    "demonstration": {"text": "Air scatters blue."},
    "critique": {"text": "It is wrong.", "aspects": ["facts"]},
    "span_marks": {"spans": [SPAN]},
    "step_marks": STEPS,
}
"""What each walk below answers, in the order shown."""
KEYS = {
    "comparison": ["2"],
    "ranking": ["3", "1", "2", "4", "t"],
    "best_of": ["2"],
    "rating": ["6", "3"],
    "label": ["2", "4"],
    "correction": ["w", "Control+Home", "type:Air scatters blue. "],
    "demonstration": ["w", "type:Air scatters blue."],
    "critique": ["1", "w", "type:It is wrong."],
    "span_marks": ["m", "ArrowRight", "Shift+ArrowRight", "1"],
    "step_marks": ["3", "1"],
}
TAPS = {
    "comparison": ['[data-scale][value="1"]'],
    "ranking": [*(f'.pool .chip[data-p="{i}"] .grip' for i in (2, 0, 1, 3)), '[aria-label^="Tie D"]'],
    "best_of": ['#candidate-1 input[name="choice"]'],
    "rating": ['[name="score-0"][value="6"]', '[name="score-1"][value="3"]'],
    "label": ['[name="good"][value="no"]', '[name="flag"][value="spam"]'],
    "correction": ["#text", "type:Air scatters blue. "],
    "demonstration": ["#text", "type:Air scatters blue."],
    "critique": ['[name="aspect"][value="facts"]', "#text", "type:It is wrong."],
    "span_marks": ["word:blue", "word:sky", "word:sky", "word:The", '[data-class="wrong"]'],
    "step_marks": ['[name="step-0"][value="1"]', '[name="step-1"][value="-1"]'],
}
MIDDLE_OF = """word => {
  const root = document.querySelector(".spannable .plain");
  root.scrollIntoView({ block: "center" });
  const text = document.createTreeWalker(root, NodeFilter.SHOW_TEXT).nextNode();
  const range = document.createRange();
  range.setStart(text, text.data.indexOf(word));
  range.setEnd(text, text.data.indexOf(word) + word.length);
  const { x, y, width, height } = range.getBoundingClientRect();
  return [x + width / 2, y + height / 2];
}"""
PLAIN = {
    "ranking": {f"rank-{i}": str(rank) for i, rank in enumerate((2, 3, 1, 3))},
    "correction": {"text": EXPECTED["correction"]["text"]},
    "demonstration": {"text": EXPECTED["demonstration"]["text"]},
    "critique": {"text": EXPECTED["critique"]["text"]},
    "span_marks": {"quote-0": "The sky", "quote-class-0": "wrong"},
}
"""What is filled in without scripts, besides what is tapped."""
KINDS = list(EXPECTED)


def answered(place: Place, annotator: str | None, kind: str) -> Any:
    """The one judgement of a rater, its value checked against what the walk answers."""
    [judgement] = place.judgements(annotator)
    assert as_shown(kind, judgement.value, judgement.shown_order) == EXPECTED[kind]
    return judgement


def submit(page: Page, act: Callable[[], object]) -> None:
    """Hand in, and wait for the page that comes after."""
    with page.expect_navigation():
        act()
    expect(page.locator("h1")).to_have_text("All done")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_by_keyboard_alone(kind: str, place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, kind, account.annotator)
    page = visit(link)
    for key in KEYS[kind]:
        if key.startswith("type:"):
            page.keyboard.type(key.removeprefix("type:"))
        else:
            page.keyboard.press(key)
    submit(page, lambda: page.keyboard.press("Control+Enter" if "text" in EXPECTED[kind] else "Enter"))
    judgement = answered(place, account.annotator, kind)
    assert judgement.shown["script"] is True
    assert (judgement.shown["layout"], judgement.shown["width"]) == ("side", "desktop")
    assert judgement.active_s is not None
    assert len(judgement.shown["truncated"]) == len(judgement.response_ids)


@pytest.mark.parametrize("kind", ["comparison", "ranking", "best_of", "rating", "label", "step_marks"])
def test_keys_mean_the_same_after_an_answer_that_was_refused(kind: str, place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, kind, account.annotator)
    page = visit(link)
    page.keyboard.press("Enter")
    page.locator("#messages [role=alert]").wait_for()
    for key in KEYS[kind]:
        page.keyboard.press(key)
    submit(page, lambda: page.keyboard.press("Enter"))
    answered(place, account.annotator, kind)


@pytest.mark.parametrize("words", ["the sky is never green, even then", "hello there, use e or u or s"])
def test_words_typed_where_no_box_takes_them_are_no_keys(place: Place, visit, words: str):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    page.keyboard.type(words)
    expect(page).to_have_url(f"{place.url}/work")
    assert not page.locator("#more").evaluate("fold => fold.open")
    assert not page.locator("dialog[open]").count()
    assert not place.judgements(account.annotator)
    page.wait_for_timeout(1100)
    page.keyboard.press("2")
    submit(page, lambda: page.keyboard.press("Enter"))
    answered(place, account.annotator, "comparison")


def test_from_the_link_to_the_end_by_keyboard_alone(place: Place, visit):
    account, _ = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(place.rater()[1])  # whoever sat here before
    page.context.clear_cookies()
    page.goto(f"{place.url}/invite/{accounts.invite(place.store, account.id, now=time.time())}")
    for wanted in ("main button", 'main a[href="/work"]'):  # sign in, and start
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                break
        with page.expect_navigation():
            page.keyboard.press("Enter")
    expect(page.locator("#submit")).to_be_visible()
    page.keyboard.press("2")
    submit(page, lambda: page.keyboard.press("Enter"))
    answered(place, account.annotator, "comparison")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_by_touch_on_a_small_screen(kind: str, place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, kind, account.annotator)
    page = visit(link, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for tap in TAPS[kind]:
        if tap.startswith("type:"):
            page.keyboard.press("Control+Home")
            page.keyboard.type(tap.removeprefix("type:"))
        elif tap.startswith("word:"):
            page.touchscreen.tap(*page.evaluate(MIDDLE_OF, tap.removeprefix("word:")))
        else:
            page.locator(tap).tap()
    small = page.evaluate(
        "[...document.querySelectorAll('.verdict button, .verdict label.pick, .scale label')]"
        ".filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 36).map(e => e.textContent.trim())"
    )
    assert not small, small
    submit(page, lambda: page.locator("#submit").tap())
    assert answered(place, account.annotator, kind).shown["width"] == "phone"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_without_scripts(kind: str, place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, kind, account.annotator)
    page = visit(link, java_script_enabled=False)
    for name, value in PLAIN.get(kind, {}).items():
        field = page.locator(f'[name="{name}"]')
        field.select_option(value) if name.startswith(("rank", "quote-class")) else field.fill(value)
    if kind not in ("ranking", "span_marks"):
        for tap in TAPS[kind]:
            if tap.startswith("[") or "input" in tap:
                page.locator(tap).check(force=True)
    page.locator("#submit").click()
    expect(page.locator("h1")).to_have_text("All done")
    judgement = answered(place, account.annotator, kind)
    assert judgement.shown["script"] is False
    assert judgement.active_s is None


def test_what_does_not_fit_comes_back_with_a_message_and_everything_typed(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator, rationale="required")
    for scripts in (True, False):
        page = visit(link, java_script_enabled=scripts)
        page.locator("#reason").fill("because <b>& so")
        page.locator("#submit").click()
        expect(page.locator("#messages [role=alert]")).to_contain_text("Choose which response is better")
        expect(page.locator("#reason")).to_have_value("because <b>& so")
    assert not place.judgements(account.annotator)


def test_a_reason_that_is_too_long_is_said_to_be_so_and_kept_whole(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    page.keyboard.press("1")
    page.keyboard.press("r")
    page.keyboard.insert_text("y" * 5001)
    page.locator("#submit").click()
    expect(page.locator("#messages [role=alert]")).to_contain_text("5,001 characters")
    assert page.locator("#reason").input_value() == "y" * 5001
    assert not place.judgements(account.annotator)


def test_without_a_mark_the_text_to_be_marked_is_where_one_goes_on(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "span_marks", account.annotator)
    page = visit(link)
    page.locator("#submit").click()
    expect(page.locator("#messages [role=alert]")).to_contain_text("Mark at least one part")
    expect(page.locator(".spannable")).to_be_focused()


def test_r_leads_into_the_reason_and_never_hides_what_was_written(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    for words in ("because", " of this"):
        page.keyboard.press("r")
        expect(page.locator("#reason")).to_be_focused()
        page.keyboard.press("End")
        page.keyboard.type(words)
        page.keyboard.press("Escape")
        expect(page.locator("#reason")).not_to_be_focused()
    expect(page.locator("#reason")).to_have_value("because of this")
    expect(page.locator("#reason")).to_be_visible()


def test_a_very_quick_answer_is_asked_back_once(place: Place, visit, monkeypatch):
    monkeypatch.setattr(task_view, "FASTEST_S", 1e6)
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#messages [role=alert]")).to_contain_text("very quick")
    expect(page.locator("#submit")).to_be_focused()
    submit(page, lambda: page.keyboard.press("Enter"))
    answered(place, account.annotator, "comparison")


def test_a_draft_is_saved_within_a_second_and_survives(place: Place, visit):
    account, link = place.rater()
    task = add_kind(place.store, "critique", account.annotator)
    page = visit(link)
    page.locator("#text").fill("half a thou")
    page.locator("#text").press("g")  # in a text it is a letter, not a key
    expect(page.locator("#saved")).to_have_text(re.compile(r"Saved \d\d:\d\d:\d\d"))
    draft = drafts.draft(place.store, task.id, str(account.annotator))
    assert draft is not None
    assert draft.body["fields"]["text"] == ["half a thoug"]
    go_offline(page)
    page.locator("#text").press("t")
    expect(page.locator("#saved")).to_contain_text("Offline: kept on this device")
    page.context.set_offline(False)
    with page.expect_response("**/work/draft"):
        page.evaluate("dispatchEvent(new Event('online'))")
    page.reload()
    expect(page.locator("#text")).to_have_value("half a thougt")


@pytest.mark.parametrize("hours", [-1, 1])
def test_which_draft_is_newer_does_not_hang_on_the_clock_of_the_device(place: Place, visit, hours: int):
    account, link = place.rater()
    add_kind(place.store, "critique", account.annotator)
    page = visit(link)
    page.evaluate("hours => { const now = Date.now; Date.now = () => now() + 3.6e6 * hours; }", hours)
    page.locator("#text").fill("first")
    expect(page.locator("#saved")).to_contain_text("Saved")
    page.context.route("**/work/draft", lambda route: route.abort())
    page.locator("#text").fill("first and second")  # the server never gets it
    page.reload()
    expect(page.locator("#text")).to_have_value("first and second")
    page.context.unroute("**/work/draft")
    with page.expect_response("**/work/draft"):
        page.locator("#text").fill("third")
    there = visit(f"{place.url}/invite/{accounts.invite(place.store, account.id, now=time.time())}")
    with there.expect_response("**/work/draft"):
        there.locator("#text").fill("fourth, elsewhere")
    page.reload()
    expect(page.locator("#text")).to_have_value("fourth, elsewhere")


def test_what_was_begun_on_a_task_that_was_taken_back_is_shown_until_it_was_read(place: Place, visit):
    account, link = place.rater()
    first = add_kind(place.store, "critique", account.annotator)
    add_kind(place.store, "critique", account.annotator)
    page = visit(link)
    with page.expect_response("**/work/draft"):
        page.locator("#text").fill("half a thought")
    requeue.pull(place.store, [first.id], reason="broken", by="admin", now=time.time())
    for _ in range(2):
        page.goto(f"{place.url}/work")
        expect(page.locator(".leftover")).to_contain_text("It is not yours any more")
        expect(page.locator(".leftover pre")).to_have_text("half a thought")
        expect(page.locator("#text")).to_have_value("")
    page.locator("#text").fill("another thought")
    page.locator(".leftover").get_by_role("button").click()
    page.reload()
    expect(page.locator("#text")).to_have_value("another thought")
    expect(page.locator(".leftover")).to_have_count(0)


def test_who_types_without_a_pause_is_saved_on_the_way(place: Place, visit):
    account, link = place.rater()
    task = add_kind(place.store, "critique", account.annotator)
    page = visit(link)
    words = "a thought that takes a while to write down"
    page.locator("#text").press_sequentially(words, delay=80)  # quicker than the quiet that the page waits for
    draft = drafts.draft(place.store, task.id, str(account.annotator))  # there before the last key was cold
    assert draft is not None
    [text] = draft.body["fields"]["text"]
    assert text
    assert words.startswith(text)


def test_an_ended_session_is_renewed_on_the_page_and_nothing_is_lost(place: Place, visit):
    account, link = place.rater(password=PASSWORD)
    add_kind(place.store, "critique", account.annotator)
    page = visit(link)
    page.locator("#text").fill("It is wrong.")
    page.locator('[name="aspect"][value="facts"]').check(force=True)
    expect(page.locator("#saved")).to_contain_text("Saved")
    place.end_sessions()
    page.locator("#submit").click()
    dialog = page.locator("#relogin")
    expect(dialog).to_be_visible()
    dialog.locator('button[value="in"]').focus()
    page.keyboard.press("2")  # keys are off while a window is open
    dialog.locator('[name="password"]').fill("not the password")
    dialog.locator('button[value="in"]').click()
    expect(dialog.locator("#relogin-message")).to_contain_text("do not match")
    dialog.locator('[name="password"]').fill(PASSWORD)
    submit(page, lambda: dialog.locator('button[value="in"]').click())
    answered(place, account.annotator, "critique")


def test_undo_changes_the_last_answer_and_keeps_the_first(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    add_kind(place.store, "label", account.annotator)
    page = visit(link)
    page.keyboard.press("6")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("#instruction")).to_have_text("Is this response good?")
    with page.expect_navigation():
        page.keyboard.press("u")
    expect(page.locator('[data-scale][value="5"]')).to_be_checked()
    page.keyboard.press("2")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("#instruction")).to_have_text("Is this response good?")
    first, second = place.judgements(account.annotator)
    assert second.supersedes == first.id
    assert as_shown("comparison", second.value, second.shown_order) == EXPECTED["comparison"]


def test_skipping_needs_a_reason_and_asks_back_when_much_is_written(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "critique", account.annotator)
    page = visit(link)
    page.locator("#text").fill("x" * 300)
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.locator("#skip").click()
    expect(page.locator("#messages [role=alert]")).to_contain_text("Say why")
    page.locator('[name="skip_reason"]').first.check(force=True)
    page.locator("#skip").click()
    expect(page.locator("#messages [role=alert]")).to_contain_text("not handed in")
    submit(page, lambda: page.locator("#skip").click())
    assert [reason for _, who, reason in place.store.skips() if who == account.annotator]


def test_skipping_by_keyboard_says_why_by_arrows_and_leaves_the_answer_alone(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    page.keyboard.press("s")
    page.keyboard.press("Enter")
    expect(page.locator("#messages [role=alert]")).to_contain_text("Say why")
    page.locator('[name="skip_reason"]').first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator('[name="skip_reason"]').nth(1)).to_be_checked()
    expect(page.locator("[data-scale]:checked")).to_have_count(0)
    submit(page, lambda: page.keyboard.press("Enter"))
    assert [reason for _, who, reason in place.store.skips() if who == account.annotator]
    assert not place.judgements(account.annotator)


def test_keys_can_be_turned_off_and_the_sheet_shows_them(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    page.keyboard.press("?")
    expect(page.locator("dialog#keys")).to_be_visible()
    page.keyboard.press("2")
    page.locator("#keys-on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    expect(page.locator("[data-scale]:checked")).to_have_count(0)
    page.keyboard.press("ArrowRight")
    expect(page.locator('[data-scale][value="4"]')).to_be_checked()


def test_a_ranking_is_dragged_from_its_letters_only(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "ranking", account.annotator)
    page = visit(link)

    def drag(start: str, end: str) -> None:
        boxes = [page.locator(each).bounding_box() for each in (start, end)]
        (x0, y0), (x1, y1) = [(box["x"] + box["width"] - 12, box["y"] + box["height"] / 2) for box in boxes if box]
        page.mouse.move(x0, y0)
        page.mouse.down()
        page.mouse.move((x0 + x1) / 2, (y0 + y1) / 2, steps=3)
        page.mouse.move(x1, y1, steps=3)
        page.mouse.up()

    for letter in (1, 0, 2):
        drag(f'.pool .chip[data-p="{letter}"] .grip', ".places")
    drag('.pool .chip[data-p="3"] .grip', '.place[data-at="0"]')
    ranks = [page.locator(f'[name="rank-{i}"]').input_value() for i in range(4)]
    assert ranks == ["2", "1", "3", "1"]


def test_a_ranking_is_changed_by_its_buttons(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "ranking", account.annotator)
    page = visit(link)

    def press(label: str) -> list[str]:
        page.locator(f'[aria-label^="{label}"]').click()
        return [page.locator(f'[name="rank-{i}"]').input_value() for i in range(4)]

    for letter in "ABCD":
        ranks = press(f"Response {letter}: next best")
    assert ranks == ["1", "2", "3", "4"]
    assert press("Move D towards best") == ["1", "2", "4", "3"]
    assert press("Move A towards worst") == ["2", "1", "4", "3"]
    assert press("Tie D") == ["2", "1", "3", "2"]
    assert press("Tie D") == ["2", "1", "4", "3"]
    submit(page, lambda: page.locator("#submit").click())
    [judgement] = place.judgements(account.annotator)
    assert [judgement.value["ranks"][i] for i in judgement.shown_order] == [2, 1, 4, 3]


def test_disturbing_texts_are_covered_until_the_rater_uncovers_them(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator, content_warning="Violence.")
    page = visit(link)
    assert page.locator(".veil").first.evaluate("node => node.inert && getComputedStyle(node).filter.includes('blur')")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#messages [role=alert]")).to_contain_text("Uncover the texts")
    page.keyboard.press("v")
    assert page.locator(".veil").first.evaluate("node => !node.inert && getComputedStyle(node).filter == 'none'")
    page.locator("body").evaluate("document.activeElement.blur()")
    submit(page, lambda: page.keyboard.press("Enter"))
    assert answered(place, account.annotator, "comparison").shown["uncovered"] is True


def test_nothing_scrolls_sideways_and_little_moves_at_any_width(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    for width, height in itertools.product((320, 360, 768, 1024, 1440, 3840), (450, 900)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        boxes = [page.locator(f"#candidate-{i}").bounding_box() for i in range(2)]
        first, second = [box for box in boxes if box]
        assert abs(first["width"] - second["width"]) < 1
        assert (first["y"] == second["y"]) == (width >= 1024 and height >= 640)


def test_what_is_written_from_right_to_left_is_read_and_written_so(place: Place, visit):
    account, link = place.rater()
    question = Question(principle="فضّل الإجابة الصحيحة.", rationale="required")
    texts = ("السماء زرقاء لأن الهواء يشتت الضوء الأزرق (Rayleigh, 1871).", "لأنها تعكس لون البحر، `code = 1`.")
    task = add_task(
        place.store, question, texts, prompt=user_prompt("لماذا السماء زرقاء؟"), reserved_for=account.annotator
    )
    page = visit(link)
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        for part in (".turn .text", "#text-0", "#text-1", ".principle [lang]"):
            style = page.locator(part).first.evaluate(
                "(node) => [getComputedStyle(node).direction, getComputedStyle(node).textAlign]"
            )
            assert style[0] == "rtl", (width, part)
            assert style[1] in ("start", "right"), (width, part)
    assert page.locator("#candidate-0 .badge").evaluate("(node) => getComputedStyle(node).direction") == "ltr"
    page.locator("#reason").fill("لأنها صحيحة")
    assert page.locator("#reason").evaluate("(node) => node.matches(':dir(rtl)')")
    page.locator("#instruction").click()
    page.keyboard.press("ArrowLeft")
    with page.expect_navigation():
        page.locator("#submit").click()
    [given] = place.judgements(account.annotator)
    assert given.task_id == task.id
    first = given.shown_order[0] == 0
    assert (given.value["level"] > 3) == first  # the left arrow is towards A, whatever the writing's direction


IN_THE_MENU = ["Work", "Me", "Keys", "Sign out"]


def test_what_a_phone_has_no_room_for_is_in_a_menu(place: Place, visit):
    account, link = place.rater()
    for _ in range(2):
        add_kind(place.store, "comparison", account.annotator)
    page = visit(link)
    page.keyboard.press("2")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator("#undo")).to_be_visible()  # the row is as full as it gets
    menu, button = page.locator("#menu"), page.get_by_role("button", name="Menu")
    expect(button).to_be_hidden()
    assert page.locator("#keys-button, .theme, .out").evaluate_all("all => all.every(e => e.checkVisibility())")

    page.set_viewport_size({"width": 360, "height": 740})
    assert (page.locator(".top").bounding_box() or {})["height"] < 90  # one row of controls, one of progress
    expect(menu).to_be_hidden()
    button.focus()
    page.keyboard.press("Enter")
    assert menu.get_by_role("link").or_(menu.get_by_role("button")).all_inner_texts() == IN_THE_MENU
    small = menu.evaluate(
        "menu => [...menu.querySelectorAll('a, button, select')].filter(e => e.checkVisibility())"
        ".filter(e => { const r = e.getBoundingClientRect(); return Math.min(r.width, r.height) < 24 || r.right > innerWidth; })"
        ".map(e => e.outerHTML)"
    )
    assert small == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    menu.get_by_label("Colours").select_option("dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    page.locator("#instruction").click()
    page.keyboard.press("?")
    expect(page.locator("dialog#keys")).to_be_visible()


def test_a_phone_without_scripts_signs_out_by_the_menu(place: Place, visit):
    account, link = place.rater()
    add_kind(place.store, "comparison", account.annotator)
    page = visit(link, viewport={"width": 360, "height": 740}, has_touch=True, java_script_enabled=False)
    page.get_by_role("button", name="Menu").tap()
    with page.expect_navigation():
        page.locator("#menu").get_by_role("button", name="Sign out").tap()
    assert page.url.endswith("/login")


def test_a_long_prompt_is_read_from_its_beginning_and_a_conversation_from_its_last_turn(place: Place, visit):
    long = "\n\n".join(f"Paragraph {i} of a text that is longer than its place." for i in range(60))
    at = "document.querySelector('.prompt > .body').scrollTop"
    account, link = place.rater()
    add_task(place.store, Question(), TEXTS[:2], prompt=user_prompt(long), reserved_for=account.annotator, batch="long")
    assert visit(link).evaluate(at) == 0
    account, link = place.rater()
    said = conversation("Why?", long, f"And now? {long}")
    add_task(place.store, Question(), TEXTS[:2], prompt=said, reserved_for=account.annotator, batch="turns")
    page = visit(link)
    assert page.evaluate(at) > 0
    begins = "document.querySelector('.turn:last-child p').getBoundingClientRect().top"
    top, height = page.evaluate(
        "() => { const box = document.querySelector('.prompt > .body').getBoundingClientRect(); return [box.top, box.height]; }"
    )
    assert top <= page.evaluate(begins) < top + height / 2

"""Scales say what they mean: a digit chooses the point that it names, and a phone loses no words."""

from __future__ import annotations

import pytest

from browser.place import Place, add_task
from karat.questions import Choice, Question

pytestmark = pytest.mark.browser

CODE = "```python\nresult = scattering_of_light(wavelength_nm=450.0, thickness_km=8.4, molecules_per_m3=2.5e25)\n```"


@pytest.mark.parametrize(
    ("low", "high", "keys", "score"),
    [(0, 10, ["3"], 3), (0, 4, ["0"], 0), (1, 7, ["3"], 3), (3, 6, ["5"], 5), (-2, 2, ["1"], -2), (0, 10, ["1", "0"], 1)],
)  # fmt: skip
def test_a_digit_is_the_point_that_it_names(low, high, keys, score, place: Place, visit):
    account, link = place.rater()
    question = Question(kind="rating", low=low, high=high, topic=f"{keys}")
    add_task(place.store, question, ("The sky is blue.",), reserved_for=account.annotator)
    page = visit(link)
    page.keyboard.press(keys[0])
    with page.expect_navigation():
        page.keyboard.press("Enter")
    [given] = place.judgements(account.annotator)
    assert given.value["score"] == score


def test_words_of_a_scale_are_read_on_a_phone_too(place: Place, visit):
    account, link = place.rater()
    words = ("useless", "some use", "useful")
    add_task(place.store, Question(kind="rating", high=3, anchors=words), ("Blue.",), reserved_for=account.annotator)
    page = visit(link, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for word in words:
        assert page.get_by_text(word, exact=True).is_visible(), word
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

    account, link = place.rater()
    sides = ("the second wins", "even", "the first wins")
    add_task(place.store, Question(n_levels=3, anchors=sides), ("Blue.", "Red."), reserved_for=account.annotator)
    page = visit(link, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.locator(".ends").inner_text().split("\n") == ["the first wins", "the second wins"]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question(kind="rating"), ["← less", "more →"]),
        (Question(kind="rating", high=100), ["From 1 to 100"]),
        (Question(kind="rating", low=0, high=100, anchors=("useless", "useful")), ["From 0 (useless) to 100 (useful)"]),
    ],
)
def test_every_rating_says_which_end_is_which(question: Question, said: list[str], place: Place, visit):
    account, link = place.rater()
    add_task(place.store, question, ("Blue.",), reserved_for=account.annotator)
    page = visit(link)
    for words in said:
        assert page.locator(".attribute").get_by_text(words, exact=True).is_visible(), words


def test_one_frame_goes_with_the_choice_that_a_key_makes(place: Place, visit):
    account, link = place.rater()
    add_task(place.store, Question(topic="frame"), ("Blue.", "Red."), reserved_for=account.annotator)
    page = visit(link)
    page.locator("[data-scale]").first.focus()
    for key in ("ArrowRight", "2", "+"):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.checked"), key


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_the_button_that_copies_is_there_once_and_lies_over_no_code(width, place: Place, visit):
    account, link = place.rater()
    question = Question(kind="best_of", topic=str(width))
    add_task(place.store, question, (CODE, "a", "b"), reserved_for=account.annotator)
    page = visit(link, viewport={"width": width, "height": 800})
    button, code = page.locator(".copy").bounding_box(), page.locator(".text pre code").bounding_box()
    assert button
    assert code
    assert button["y"] + button["height"] <= code["y"] + 1


@pytest.mark.parametrize("width", [390, 1280])
def test_flags_stand_apart_from_good_and_bad(width, place: Place, visit):
    account, link = place.rater()
    question = Question(kind="label", flags=(Choice("spam"),), topic=str(width))
    add_task(place.store, question, ("Blue.",), reserved_for=account.annotator)
    page = visit(link, viewport={"width": width, "height": 844})
    bad, flag = (page.locator(".pick", has_text=word).bounding_box() for word in ("Bad", "spam"))
    assert bad
    assert flag
    assert flag["y"] > bad["y"] + 20 or flag["x"] > bad["x"] + bad["width"] + 20

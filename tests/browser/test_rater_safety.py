"""Nothing that a person typed or a model wrote runs or loads anything in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from browser.place import QUESTIONS, Place, add_kind, add_task, conversation
from karat.feedback import documents
from karat.feedback.people import care, drafts, standing
from karat.questions import Choice, Question
from karat.records import user_prompt
from web_payloads import EVIL, payloads

pytestmark = pytest.mark.browser

LISTEN = """
window.ran = [];
for (const name of ["xss", "alert", "confirm", "prompt", "print", "open"]) window[name] = () => window.ran.push(name);
window.parent.xss = window.xss;
document.addEventListener("securitypolicyviolation", (event) => window.ran.push(event.violatedDirective + " " + event.blockedURI));
"""
TOUCH_ALL = """
for (const node of document.querySelectorAll("*")) {
  node.focus?.();
  for (const type of ["pointerenter", "mouseover", "click"]) {
    if (type !== "click" || !node.closest("form, a, button, summary, label")) node.dispatchEvent(new Event(type, {bubbles: false}));
  }
}
"""


class Watcher:
    """Notes everything that a page runs or asks for beyond our own files."""

    def __init__(self, page: Page, place: Place) -> None:
        self.page, self.place = page, place
        self.wrong: list[str] = []
        self.n_pages = 0
        page.add_init_script(LISTEN)
        page.on(
            "response",
            lambda answer: (
                self.wrong.append(f"{answer.status} {answer.url} {answer.text()[:300]}")
                if answer.status >= 400
                else None
            ),
        )
        page.on("request", lambda request: self._asked(request.url))
        page.on("dialog", lambda dialog: self.wrong.append(f"dialog {dialog.message}"))
        page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        page.context.route(f"{EVIL}/**", lambda route: route.abort())

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self.place.url}/", "data:image/svg+xml,")):
            self.wrong.append(f"request {url}")

    def look(self, path: str, *holds: str) -> None:
        """Open a page, touch everything on it, and see that the texts are there as texts."""
        answer = self.page.goto(self.place.url + path)
        assert answer is not None
        assert answer.status == 200, (path, answer.status)
        self.page.evaluate(TOUCH_ALL)
        self.wrong += self.page.evaluate("window.ran")
        assert self.page.url == self.place.url + path
        for text in holds:
            assert text in self.page.evaluate("document.body.textContent"), (path, text)
        foreign = "script:not([src^='/static/']), iframe, object, embed, img, svg:not([role=img]), video, base"
        assert self.page.locator(foreign).count() == 0, path
        leads_away = "[...document.links].filter(a => a.origin !== location.origin).map(a => a.href)"
        assert self.page.evaluate(leads_away) == [], path
        handlers = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => /^on/i.test(a.name) || a.name === 'style').map(a => a.name)"
        assert self.page.evaluate(handlers) == ["style"] * self.page.locator("[style]").count(), path
        self.n_pages += 1


@pytest.fixture
def joined() -> str:
    return "\n".join(text.replace("\r", "").replace("\x00", "") for text in payloads())


@pytest.fixture
def watcher(visit, place: Place) -> Iterator[tuple[Watcher, str, str]]:
    account, link = place.rater()
    page = visit(link, "/away")
    watcher = Watcher(page, place)
    yield watcher, str(account.annotator), account.id
    assert not watcher.wrong, watcher.wrong[:5]
    assert watcher.n_pages


def test_every_payload_in_model_output_and_prompts_is_only_text(watcher, place: Place):
    watch, annotator, _ = watcher
    texts = payloads()
    mine = {"reserved_for": annotator}
    add_task(place.store, QUESTIONS["comparison"], ("\n\n".join(texts[:140]), "\n\n".join(texts[140:])), **mine,
             prompt=conversation(*texts))  # fmt: skip
    watch.look("/work", "<script>xss()</script>", "onerror=xss()")
    assert watch.page.locator(".turn").count() >= 200
    watch.page.keyboard.press("2")
    with watch.page.expect_navigation():
        watch.page.keyboard.press("Enter")
    for kind in ("span_marks", "step_marks", "correction"):
        add_task(place.store, QUESTIONS[kind], ("\n\n".join(texts),), **mine, batch=kind, prompt=user_prompt(texts[0]))
        watch.look("/work", "<script>xss()</script>")
        watch.page.keyboard.press("s")
        watch.page.locator('[name="skip_reason"]').first.check(force=True)
        with watch.page.expect_navigation():
            watch.page.locator("#skip").click()
    watch.look("/work/history")


@pytest.mark.long
def test_every_payload_in_a_question_is_only_text(watcher, place: Place, joined: str):
    watch, annotator, _ = watcher
    choices = tuple(Choice(f"{i} {text[:40]}", label=text, help=text) for i, text in enumerate(payloads()))
    for kind, named in (
        ("label", "flags"),
        ("rating", "attributes"),
        ("critique", "aspects"),
        ("span_marks", "span_classes"),
    ):
        some = choices if kind == "label" else choices[:40]
        question = Question(kind=kind, instruction=joined, principle=joined, content_warning=joined, topic=joined,
                            anchors=("x" + joined, joined), **{named: some})  # fmt: skip
        add_task(place.store, question, ("plain",), reserved_for=annotator, batch=f"q-{kind}")
        watch.look("/work", "<script>xss()</script>")
        watch.page.evaluate("document.getElementById('more').open = true")
        watch.page.locator('[name="skip_reason"]').first.check(force=True)
        with watch.page.expect_navigation():
            watch.page.locator("#skip").click()


def test_every_payload_that_a_rater_types_is_only_text(watcher, place: Place, joined: str):
    watch, annotator, _ = watcher
    task = add_kind(place.store, "critique", annotator, rationale="required")
    watch.look("/work")
    fields = {
        "text": [joined],
        "reason": [joined],
        "aspect": [joined],
        "quote-0": [joined],
        "width": [joined],
        "active_s": [joined],
    }
    drafts.save_draft(place.store, task.id, annotator, {"fields": fields}, now=time.time())
    watch.look("/work")
    assert watch.page.locator("#text").input_value().startswith("<script>xss()</script>")
    watch.page.locator("#text").fill(joined[:9000])
    watch.page.locator("#reason").fill(joined[:4500])
    with watch.page.expect_navigation():
        watch.page.locator("#submit").click()
    watch.look("/work/history")
    with watch.page.expect_navigation():
        watch.page.locator("a[href^='/work/change/']").click()
    watch.wrong += watch.page.evaluate("window.ran")
    about = {"country": payloads()[0], "field": payloads()[17], "first_language": payloads()[-1]}
    care.save_demographics(place.store, annotator, about, consent="x", now=time.time())
    watch.look("/me")
    for part in (joined[:9000], joined[9000:18000] or "x"):
        standing.quarantine(place.store, annotator, reason=part, by="admin", now=time.time())
        standing.answer_quarantine(place.store, annotator, part, by="me", now=time.time())
        watch.look("/standing", "<script>xss()</script>" if part == joined[:9000] else "")
        standing.release(place.store, annotator, reason=part, by="admin", now=time.time())


@pytest.mark.long
def test_every_payload_in_a_projects_texts_is_only_text(watcher, place: Place, joined: str):
    watch, annotator, _ = watcher
    now = time.time()
    add_kind(place.store, "comparison", annotator)
    before = documents.project_settings(place.store)
    try:
        hostile = documents.ProjectSettings(title=joined, contact=joined, completion_url="javascript:xss()", locale="x\"><script>",
                                            pay=documents.Pay(1, joined), gold_rate=0, repeat_rate=0)  # fmt: skip
        documents.put_settings(place.store, hostile, now=now)
        for name in ("examples", "guideline"):
            documents.put_document(place.store, name, "hostile", {"text": "\n\n".join(payloads())}, now=now)
        documents.put_document(
            place.store,
            "demographics",
            "1",
            {"fields": [{"name": t, "label": t, "options": [t]} for t in payloads()]},
            now=now,
        )
        for path in (
            "/",
            "/work",
            "/guidelines",
            "/guidelines?version=hostile",
            "/me",
            "/away",
            "/standing",
            "/consent",
            "/work/history",
        ):
            watch.look(path)
        documents.put_document(place.store, "consent", payloads()[0], {"text": "\n\n".join(payloads())}, now=now)
        watch.look("/consent", "<script>xss()</script>")
        watch.page.locator('[name="agree"]').check()
        watch.page.locator("button.primary").click()
        watch.look("/work")
    finally:
        documents.put_settings(place.store, before, now=now)

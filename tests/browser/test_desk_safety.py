"""Nothing that a rater or a platform sent runs or loads anything on the pages of the people in charge."""

from __future__ import annotations

import time

import pytest

from browser.place import Place, add_kind, crowd, failed_test, judge
from browser.test_rater_axe import pages_of
from browser.test_rater_safety import Watcher
from karat.feedback import documents
from karat.feedback.detect.evidence import Flag
from karat.feedback.people import accounts, care, standing, studies
from web_payloads import payloads

pytestmark = pytest.mark.browser


def joined() -> str:
    """Every payload in one text that a form could send."""
    return "\n".join(text.replace("\r", "").replace("\x00", "") for text in payloads())


def hostile_place(place: Place) -> str:
    """Every text that comes from outside holds every payload; returns the rater who sent them."""
    store, now = place.store, time.time()
    hostile = joined()
    parts = [hostile[at : at + 1900] for at in range(0, len(hostile), 1900)]
    who = crowd(place, n_raters=2)[0]
    for kind, value in (
        ("critique", {"text": hostile, "aspects": ["facts"]}),
        ("label", {"good": False, "flags": ["spam"]}),
        ("demonstration", {"text": hostile}),
        ("correction", {"text": hostile}),
    ):
        judge(store, add_kind(store, kind, who), who, value, reason=hostile)
    judge(store, add_kind(store, "comparison", who), who, {"missing": "escalated"}, reason=hostile)
    standing.record_flags(store, [Flag((who,), "rings", 9.0, 0.001, 12, hostile)], now=now)
    for part in parts:
        standing.quarantine(store, who, reason=part, by=part, now=now)
        standing.answer_quarantine(store, who, part, by=who, now=now)
        standing.release(store, who, reason=part, by=part, now=now)
        accounts.log(store, part[:200], part, who, part, now=now)
    standing.quarantine(store, who, reason=parts[0], by="x", now=now)
    standing.answer_quarantine(store, who, parts[1], by=who, now=now)
    about = {"country": payloads()[0], "field": payloads()[17], "first_language": payloads()[-1]}
    care.save_demographics(store, who, about, consent="x", now=now)
    documents.put_document(store, documents.EXAMPLES, payloads()[0][:40], {"text": hostile}, now=now)
    for text in payloads()[:40]:
        name = "".join(filter(str.isprintable, text))[:50].strip()
        study = studies.open_study(store, name, now=now)
        studies.join(store, study, studies.Participant(name, name, name), now=now)
    return who


@pytest.mark.long
@pytest.mark.parametrize("role", ["admin", "auditor", "expert"])
def test_every_payload_that_came_from_outside_is_only_text_to_those_in_charge(role: str, place: Place, visit):
    who = hostile_place(place)
    watch = Watcher(visit(place.rater(role=role)[1], "/away" if role == "expert" else "/"), place)
    paths = [path for path in pages_of(role, place) if role != "expert" or path == "/review"]
    if role == "admin":
        failed = failed_test(place, words=joined()[:1900])
        paths = [path for path in paths if "qualification/" not in path]  # of the version before this one
        paths += [f"/admin/task?id={task.id}" for task in place.store.tasks()[-10:]]
    for path in paths:
        watch.look(path)
    if role == "admin":
        watch.look(f"/admin/rater?who={who}", "<script>xss()</script>", "onerror=xss()")
        watch.look(f"/admin/qualification/rater?who={failed}", "<script>xss()</script>")
        watch.look("/admin/log", "<script>xss()</script>")
    assert not watch.wrong, watch.wrong[:5]

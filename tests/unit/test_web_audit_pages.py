"""The auditor reads everything under pseudonyms and changes nothing; small groups never appear."""

from __future__ import annotations

import html
import io
import re
import zipfile

import pytest
from sqlalchemy import select

import web_app
from every_kind import store_of_every_kind
from feedback_cases import tamper, vote
from karat.feedback.people import accounts
from karat.feedback.people.care import save_demographics
from karat.feedback.record.bundle import verify_bundle
from karat.feedback.record.seals import seal, seals
from karat.feedback.schema import metadata
from karat.records import Annotator

NAMES = [f"secret-{i:02d}" for i in range(24)]


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    """24 raters of whom 14 say one thing, 6 another, 4 nothing; each judged once."""
    site = web_app.served(tmp_path, 1, overlap=30)
    site.store.add_annotators([Annotator(name) for name in NAMES])
    [task] = site.store.tasks()
    for i, name in enumerate(NAMES):
        site.store.submit(vote(task, name, level=i % 3, active_s=float(i), reason="in my WORDS" if i == 0 else None))
        if i < 20:
            said = {"region": "NORTH-REGION" if i < 14 else "SOUTH-REGION"}
            save_demographics(site.store, name, said, consent="1", now=site.now)
    return site


def text_of(answer) -> str:
    """What a reader sees, without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def everything(site: web_app.Served) -> dict[str, list[tuple]]:
    """All rows of all tables but those that only say who is signed in."""
    with site.store.connection() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table))]
            for table in metadata.sorted_tables
            if table.name not in ("sessions", "limits", "keys")
        }


PAGES = ("/audit", "/audit/slices", "/audit/record", "/audit/record?verify=1")


def test_every_judgement_is_there_and_no_name_is(site):
    auditor = site.browser("auditor")
    seal(site.store, now=site.now)
    listed = auditor.get("/audit")
    assert '<td class="num"><a href="/audit?rater=' in listed.text  # a pseudonym broken over four lines is no name
    assert "24 judgements fit." in text_of(listed)
    ids = re.findall(r"/audit/judgement\?id=(judgement%3A\w+)", listed.text)
    assert len(ids) == 24
    pages = [auditor.get(path) for path in PAGES] + [auditor.get(f"/audit/judgement?id={one}") for one in ids]
    submissions = [one.submission for one in site.store.judgements()]
    for page in pages:
        assert page.status_code == 200
        for name in (*NAMES, *submissions):
            assert name not in page.text
    read = " ".join(text_of(page) for page in pages)
    for judgement in site.store.judgements():
        assert judgement.id in read
    assert "in my WORDS" in read


def test_the_list_says_answers_in_words_as_their_own_pages_do(tmp_path):
    site = web_app.Served(store_of_every_kind(tmp_path / "kinds.db"), web_app.ServerSettings())
    auditor = site.browser("auditor")
    cells = re.findall(
        r'judgement\?id=([^"]+)">.*?<td class="wide-text" dir="auto">(.*?)</td>', auditor.get("/audit").text
    )
    assert len(cells) == len(site.store.judgements())
    for id_, said in cells:
        own = re.search(r"<strong>(.*?)</strong>", auditor.get(f"/audit/judgement?id={id_}").text, re.S).group(1)
        assert " ".join(own.split()).startswith(said) or said == "Wrong or unsupported"
    said = [html.unescape(one) for _, one in cells]
    assert {"C > A = B", "B is best", "bad; flag: spam; escalated"} <= set(said), said
    assert not [one for one in said if one.startswith("{")]
    tamper(site.store, "UPDATE tasks SET question = 'gone' WHERE kind = 'ranking'")
    assert "ranks" in text_of(auditor.get("/audit", params={"kind": "ranking"}))


def test_a_pseudonym_holds_for_the_sitting_and_not_for_the_next(site):
    auditor, again = site.browser("auditor"), site.browser("auditor")
    names = re.findall(r"p-[0-9a-f]{12}", auditor.get("/audit").text)
    assert len(set(names)) == 24
    assert not set(names) & set(re.findall(r"p-[0-9a-f]{12}", again.get("/audit").text))
    assert "1 judgements fit." in text_of(auditor.get("/audit", params={"rater": names[0]}))
    assert "0 judgements fit." in text_of(again.get("/audit", params={"rater": names[0]}))
    assert "0 judgements fit." in text_of(auditor.get("/audit", params={"rater": NAMES[0]}))


def test_filters_that_are_not_on_the_list_are_not_there(site):
    auditor = site.browser("auditor")
    assert "24 judgements fit." in text_of(auditor.get("/audit", params={"annotator": NAMES[0], "submission": "x"}))
    assert "0 judgements fit." in text_of(auditor.get("/audit", params={"batch": "x' OR 1=1 --"}))
    assert auditor.get("/audit", params={"kind": "x" * 300}).status_code == 422
    assert auditor.get("/audit", params={"before": "-1 OR 1=1"}).status_code == 200
    assert auditor.get("/audit/judgement", params={"id": "judgement:0"}).status_code == 422


def test_the_auditor_changes_nothing_whatever_she_tries(site):
    seal(site.store, now=site.now)
    auditor, before = site.browser("auditor"), everything(site)
    for path in (*PAGES, "/audit/bundle"):
        auditor.get(path)
    own = {"/logout", "/password", "/login", "/api/v1/session"}
    for entry in site.app.state.route_table:
        if entry.method in ("GET", "HEAD") or entry.path in own or entry.roles is None:
            continue
        path = re.sub(r"{[^}]*}", "x", entry.path)
        answer = auditor.client.request(entry.method, path, headers={"X-CSRF": auditor.csrf}, json={})
        assert answer.status_code in (403, 405), entry
    for path in PAGES:
        assert auditor.post(path).status_code == 405
    assert everything(site) == before


def test_small_groups_never_appear_and_cannot_be_worked_out(site):
    said = text_of(site.browser("auditor").get("/audit/slices"))
    assert "NORTH-REGION 14 14" in said
    assert "SOUTH-REGION suppressed" in said
    assert "not said suppressed" in said
    assert not re.search(r"SOUTH-REGION \d", said)
    cells = re.findall(r"<td[^>]*>(\d+)</td>", site.browser("auditor").get("/audit/slices").text)
    assert "6" not in cells
    assert "4" not in cells


def test_where_nothing_can_be_shown_nothing_is(tmp_path):
    site = web_app.served(tmp_path, 1, overlap=30)
    site.store.add_annotators([Annotator("a"), Annotator("b")])
    for name in ("a", "b"):
        site.store.submit(vote(site.store.tasks()[0], name))
        save_demographics(site.store, name, {"region": "RARE-PLACE"}, consent="1", now=site.now)
    page = site.browser("auditor").get("/audit/slices")
    assert "RARE-PLACE" not in page.text
    assert "fewer than 10 raters" in text_of(page)


def test_the_bundle_verifies_on_its_own_and_holds_no_words(site, tmp_path):
    seal(site.store, now=site.now)
    answer = site.browser("auditor").get("/audit/bundle")
    assert answer.headers["content-type"] == "application/zip"
    assert 'filename="karat-bundle.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "taken")
    held = b"".join(one.read_bytes() for one in (tmp_path / "taken").rglob("*") if one.is_file())
    for secret in (*NAMES, "in my WORDS", "Question 0?", "Answer 0"):
        assert secret.encode() not in held
    published = [seals(site.store)[-1].line]
    assert verify_bundle(tmp_path / "taken" / "karat-bundle", published) == []


def test_verifying_names_what_was_altered(site):
    seal(site.store, now=site.now)
    auditor = site.browser("auditor")
    assert "as it was submitted and sealed" in text_of(auditor.get("/audit/record", params={"verify": "1"}))
    victim = site.store.records()[3]
    tamper(site.store, f"UPDATE judgements SET value = '{{\"level\":1,\"n_levels\":3}}' WHERE id = '{victim.id}'")
    said = text_of(site.browser("auditor").get("/audit/record", params={"verify": "1"}))
    assert victim.id in said
    assert "1 problem was found" in said


def test_admins_read_the_audit_too_and_raters_do_not(site):
    assert site.browser("admin").get("/audit").status_code == 200
    for role in ("annotator", "expert"):
        for path in (*PAGES, "/audit/bundle"):
            assert site.browser(role).get(path).status_code == 403
    assert accounts.log_entries(site.store) == []

"""What one rater's cycle costs the database: a guard against the query that somebody adds without noticing.

The bounds are what `bench/load_study.py` was measured with, and one statement more, which counts what is left. They
hold for a project with everything that a page reads: settings, a consent text, a guideline, worked examples, an
experiment, gold items, hidden repeats and a draft.
"""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from karat.feedback import documents
from karat.feedback.documents import ProjectSettings
from karat.feedback.people import accounts, care
from karat.feedback.store import Store, open_store
from karat.feedback.web.app import create_app
from karat.feedback.work import checks
from karat.records import Response, Task, user_prompt
from statement_counter import Sent
from web_app import NOW, Browser, Served

MOST = {
    ("next", "sqlite"): (20, 2), ("submit", "sqlite"): (15, 3),
    ("next", "postgresql"): (19, 2), ("submit", "postgresql"): (15, 3),
}  # fmt: skip
"""Statements and transactions of one request by what it does and on which database."""
N_TASKS = 40
LOOKED_AT = re.compile(r"ORDER BY judgements\.seq\s+LIMIT \S+ OFFSET")
HIDDEN = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)"')


def fill(store: Store) -> None:
    prompts = [user_prompt(f"Question {i}?") for i in range(N_TASKS + 2)]
    responses = [Response(one.id, f"Answer {k} to {one.text}", "policy") for one in prompts for k in range(2)]
    store.add_prompts(prompts)
    store.add_responses(responses)
    pairs = zip(prompts, responses[::2], responses[1::2], strict=True)
    tasks = [Task(prompt.id, (a.id, b.id), overlap=2) for prompt, a, b in pairs]
    store.add_tasks(tasks[:N_TASKS])
    checks.add_gold(store, [(task, {"level": 6, "n_levels": 7}) for task in tasks[N_TASKS:]], version="1")
    settings = ProjectSettings(repeat_gap=2, experiments={"pay": {"high": 1.0, "low": 1.0}})
    documents.put_settings(store, settings, now=NOW)
    for name in ("guideline", "examples", "consent"):
        documents.put_document(store, name, "v1", {"text": f"The {name}."}, now=NOW)


@pytest.fixture
def site(new_address) -> Served:
    store = open_store(new_address("statements"))
    fill(store)
    found = Served(store)
    care.give_consent(store, found.accounts["annotator"].id, "v1", now=NOW)
    return found


def cycle(site: Served, rater: Browser, sent: Sent) -> dict[str, tuple[list[str], int]]:
    """One item and its answer, as a browser without scripts does it; what each request sent."""
    sent.forget()
    page = rater.get("/work")
    assert page.status_code == 200
    costs = {"next": (list(sent.statements), sent.transactions)}
    form = dict(HIDDEN.findall(page.text)) | {"choice": "0", "active_s": "60"}
    assert rater.post("/work/draft", form).status_code == 303
    sent.forget()
    assert rater.post("/work", form).status_code == 303
    costs["submit"] = (list(sent.statements), sent.transactions)
    site.now += 30.0
    return costs


def test_a_cycle_costs_so_many_statements_and_no_more(site: Served):
    rater = site.browser("annotator")
    sent = Sent(site.store)
    for _ in range(3):  # keys, arms and connections are made once
        cycle(site, rater, sent)
    seen: dict[str, list[tuple[int, int]]] = {"next": [], "submit": []}
    for _ in range(15):
        site.now -= 30.0  # once a minute it is written down that she was seen: not here
        for kind, (statements, transactions) in cycle(site, rater, sent).items():
            most = MOST[kind, site.store.dialect]
            # up to three earlier answers are looked at for one to ask again, and a turn that does so writes it down, and reads in which order it was shown
            n_looked = sum(LOOKED_AT.search(one) is not None for one in statements)
            repeats = any("INSERT INTO checks" in one for one in statements)
            allowed = most[0] + 2 * max(0, n_looked - 1) + 9 * repeats
            said = "\n".join(statements)
            assert len(statements) <= allowed, f"{kind}: {len(statements)} statements, at most {allowed}:\n{said}"
            assert transactions <= most[1], f"{kind}: {transactions} transactions, at most {most[1]}:\n{said}"
            seen[kind].append((len(statements), transactions))
    for kind, found in seen.items():  # the bound is what is needed, not more
        assert max(n for n, _ in found) >= MOST[kind, site.store.dialect][0]
        assert max(n for _, n in found) == MOST[kind, site.store.dialect][1]


def two_workers(new_address) -> tuple[Store, Store, Served, TestClient]:
    """One store opened twice: the site of the first worker, where the rater has consented, and a client of the second."""
    address = new_address("two")
    here, there = open_store(address), open_store(address)
    fill(here)
    site = Served(here)
    care.give_consent(here, site.accounts["annotator"].id, "v1", now=NOW)
    app = create_app(there, site.settings, clock=lambda: NOW)
    client = TestClient(app, base_url=site.settings.url, headers={"Origin": site.settings.url}, follow_redirects=False)
    return here, there, site, client


def test_what_an_admin_changes_by_one_worker_is_so_on_another_at_the_next_request(new_address):
    here, there, site, client = two_workers(new_address)
    client.cookies.set(site.settings.cookie, accounts.open_session(here, site.accounts["annotator"].id, now=NOW))
    assert "The examples." in client.get("/work").text
    documents.put_document(here, "examples", "v2", {"text": "New examples."}, now=NOW)
    documents.put_settings(here, ProjectSettings(contact="somebody@example.org"), now=NOW)
    page = client.get("/work").text
    assert "New examples." in page
    assert "somebody@example.org" in page
    documents.put_document(here, "consent", "v2", {"text": "Other terms."}, now=NOW)
    assert client.get("/work").headers["location"] == "/consent"
    here.close()
    there.close()


def test_a_rater_may_meet_another_worker_at_every_request(new_address):
    """Task, draft, answer and undo go back and forth between two workers that share nothing but the store."""
    here, there, site, client = two_workers(new_address)
    first = site.browser("annotator")
    client.cookies.set(site.settings.cookie, first.token)
    second = Browser(client, first.csrf, first.token)

    def form(page: str) -> dict[str, str]:
        return dict(HIDDEN.findall(page))

    page = first.get("/work").text
    assert form(second.get("/work").text)["lease"] == form(page)["lease"]
    assert second.post("/work/draft", form(page) | {"choice": "0", "reason": "so far"}).status_code == 303
    again = first.get("/work").text
    assert "so far" in again
    assert second.post("/work", form(again) | {"choice": "0", "active_s": "60"}).status_code == 303
    changed = first.get(first.get("/work/undo").headers["location"]).text
    assert second.post("/work", form(changed) | {"choice": "6", "active_s": "60"}).status_code == 303
    given = [one for one in there.judgements() if one.annotator == site.annotator()]
    assert len(given) == 2
    assert given[1].supersedes == given[0].id
    assert form(first.get("/work").text)["lease"] != form(page)["lease"]
    here.close()
    there.close()

"""Signing in and staying in: passwords, links, sessions, limits, cookies, and the first admin."""

from __future__ import annotations

import dataclasses
import html

import pytest
from argon2 import PasswordHasher

import web_app
from karat.feedback import documents
from karat.feedback import people_tables as tables
from karat.feedback.people import accounts, sessions
from karat.feedback.people.roles import COMMAND_LINE, lock
from karat.feedback.web.account_pages import local_path
from karat.feedback.web.first_admin import setup_token
from karat.feedback.web.settings import ServerSettings
from web_app import PASSWORD

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PROXIED = ServerSettings(
    public_url="https://judge.example.org", trusted_proxies=("10.0.0.0/8",), attempts_per_address=5
)


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch):
    # what is tested is who gets in, not how long a hash takes
    monkeypatch.setattr(
        accounts.set_password, "__kwdefaults__", {**accounts.set_password.__kwdefaults__, "hasher": CHEAP}
    )
    checked = accounts.account_of_password
    monkeypatch.setattr(checked, "__kwdefaults__", {**checked.__kwdefaults__, "hasher": CHEAP})


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    site = web_app.served(tmp_path)
    accounts.set_password(site.store, site.accounts["admin"].id, PASSWORD, now=site.now)
    return site


def sign_in(browser, login="admin", password=PASSWORD, **fields):
    return browser.client.post("/login", data={"login": login, "password": password, **fields})


def cookies(answer) -> str:
    return answer.headers.get("set-cookie", "")


# By password


def test_the_right_password_opens_a_session_and_the_page_that_was_asked_for(site):
    browser = site.browser()
    assert browser.get("/admin?x=1").headers["location"] == "/login?next=%2Fadmin%3Fx%3D1"
    answer = sign_in(browser, next="/admin?x=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin?x=1")
    assert browser.get("/api/v1/me").json()["role"] == "admin"
    assert browser.get("/login").status_code == 303


def test_nothing_tells_an_unknown_login_from_a_wrong_password_or_a_locked_account(site):
    lost = accounts.make_account(site.store, "auditor", login="locked", now=site.now)
    accounts.set_password(site.store, lost.id, PASSWORD, now=site.now)
    lock(site.store, lost.id, by=COMMAND_LINE, now=site.now)
    said = []
    for login, password in (
        ("admin", "wrong horse battery"),
        ("nobody", PASSWORD),
        ("locked", PASSWORD),
        ("expert", ""),
    ):
        answer = sign_in(site.browser(), login, password)
        by_json = site.anybody().post("/api/v1/session", json={"login": login, "password": password})
        said.append(
            (answer.status_code, answer.text.replace(f'value="{login}"', ""), by_json.status_code, by_json.text)
        )
        assert "set-cookie" not in answer.headers
        assert "set-cookie" not in by_json.headers
    assert said.count(said[0]) == 4
    assert said[0][0] == said[0][2] == 401


def test_an_unknown_login_costs_one_computation_as_well(site, monkeypatch):
    seen = []

    class Counting(PasswordHasher):
        def verify(self, hash, password):
            seen.append(hash)
            return super().verify(hash, password)

    counting = Counting(time_cost=1, memory_cost=8, parallelism=1)
    checked = accounts.account_of_password
    monkeypatch.setattr(checked, "__kwdefaults__", {"hasher": counting})
    sign_in(site.browser(), "admin", "wrong horse battery")
    sign_in(site.browser(), "nobody", "wrong horse battery")
    assert len(seen) == 2


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\\\evil",
        "javascript:alert(1)",
        "",
        "work",
        "/a b",
        "/a\nb",
        "/\tx",
    ],
)
def test_signing_in_never_leads_to_another_server(site, path):
    assert local_path(path) == "/"
    assert sign_in(site.browser(), next=path).headers["location"] == "/"


def test_a_program_signs_in_for_a_token_and_a_page_for_a_cookie(site):
    client = site.anybody()
    token = client.post("/api/v1/session", json={"login": "admin", "password": PASSWORD}).json()["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert client.get("/api/v1/me", headers=bearer).json()["role"] == "admin"
    assert client.delete("/api/v1/session", headers=bearer).json() == {"done": True}
    assert client.get("/api/v1/me", headers=bearer).status_code == 401
    page = site.browser()
    sent = {"login": "admin", "password": PASSWORD, "kind": "browser"}
    found = page.client.post("/api/v1/session", json=sent)
    assert found.json()["token"] is None
    assert page.client.delete("/api/v1/session", headers={"X-CSRF": found.json()["csrf"]}).status_code == 200
    assert page.get("/api/v1/me").status_code == 401


# Sessions


def test_a_session_that_somebody_planted_is_not_used(site):
    mallory = site.browser("annotator")
    victim = site.browser()
    victim.client.cookies.set(site.settings.cookie, mallory.token)
    answer = sign_in(victim)
    assert mallory.token not in cookies(answer)
    assert mallory.get("/api/v1/me").status_code == 401
    unknown = site.browser()
    unknown.client.cookies.set(site.settings.cookie, "chosen-by-somebody-else")
    assert "chosen-by-somebody-else" not in cookies(sign_in(unknown))


def test_a_session_ends_by_the_clock_by_idleness_and_by_signing_out(site):
    browser = site.browser("admin")
    for _ in range(4):
        site.now += 3 * 3600
        last = browser.get("/api/v1/me").status_code
    assert last == 401  # 12 hours after signing in, though it was in use
    idle = site.browser("admin")
    site.now += 4 * 3600 + 1
    assert idle.get("/api/v1/me").status_code == 401
    out = site.browser("admin")
    answer = out.post("/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in cookies(answer)
    out.client.cookies.set(site.settings.cookie, out.token)
    assert out.get("/api/v1/me").status_code == 401


def test_another_password_ends_every_other_session(site):
    here, there, program = site.browser("admin"), site.browser("admin"), site.program("admin")
    fields = {"old": PASSWORD, "new": "a much better one", "again": "a much better one"}
    answer = here.post("/password", fields)
    assert answer.status_code == 303
    assert here.get("/api/v1/me").status_code == 200
    assert there.get("/api/v1/me").status_code == program.get("/api/v1/me").status_code == 401
    assert sign_in(site.browser()).status_code == 401
    assert sign_in(site.browser(), password="a much better one").status_code == 303


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"old": "wrong", "new": "a much better one", "again": "a much better one"}, "present password is not right"),
        ({"old": PASSWORD, "new": "a much better one", "again": "another one"}, "differ"),
        ({"old": PASSWORD, "new": "short", "again": "short"}, "found 5 characters"),
        ({"old": PASSWORD, "new": "aaaaaaaaaaaa", "again": "aaaaaaaaaaaa"}, "too easy"),
        ({"old": PASSWORD, "new": "x" * 5000, "again": "x" * 5000}, "found 5000 characters"),
    ],
)
def test_a_password_that_will_not_do_is_refused_with_the_reason(site, fields, message):
    browser = site.browser("admin")
    answer = browser.post("/password", fields)
    assert answer.status_code == 422
    assert message in answer.text
    assert browser.get("/api/v1/me").status_code == 200


def test_whoever_came_by_link_may_choose_a_login_that_is_free(site):
    rater = accounts.make_account(site.store, "annotator", now=site.now)
    browser = site.browser(account=rater.id)
    new = {"new": "a much better one", "again": "a much better one"}
    refused = browser.post("/password", {"login": "Admin", **new}).text
    assert "is taken" in refused
    assert '<input name="login" value="Admin"' in refused
    assert browser.post("/password", {"login": "", **new}).status_code == 422
    assert browser.post("/password", {"login": "Zoë", **new}).status_code == 303
    assert sign_in(site.browser(), "ZOË", "a much better one").status_code == 303


def test_a_locked_account_is_out_at_once(site):
    browser, program = site.browser("annotator"), site.program("annotator")
    link = accounts.invite(site.store, site.accounts["annotator"].id, now=site.now)
    lock(site.store, site.accounts["annotator"].id, by=COMMAND_LINE, now=site.now)
    assert browser.get("/api/v1/me").status_code == program.get("/api/v1/me").status_code == 401
    assert site.browser().get(f"/invite/{link}").status_code == 404


# A form that an ended session interrupted


def test_what_was_sent_with_an_ended_session_is_kept_and_sent_again(site):
    browser = site.browser("annotator")
    accounts.set_password(site.store, site.accounts["annotator"].id, PASSWORD, now=site.now)
    text = 'long <b>thoughts</b> & "quotes"'
    page = browser.post("/work", {"reason": text, "choice": "3"})
    assert page.status_code == 401
    assert "&lt;b&gt;thoughts" in page.text
    assert "<b>thoughts" not in page.text
    assert browser.csrf not in page.text
    again = sign_in(browser, "annotator", "wrong horse battery", **{"kept:reason": text, "next": "/work"})
    assert "&lt;b&gt;thoughts" in again.text
    sent = sign_in(browser, "annotator", **{"kept:reason": text, "kept:choice": "3", "next": "/work"})
    assert sent.status_code == 200
    assert 'action="/work"' in sent.text
    assert "&lt;b&gt;thoughts" in sent.text
    assert 'name="csrf"' in sent.text
    script = site.browser("annotator")
    sessions.close_sessions(site.store, site.accounts["annotator"].id, now=site.now)
    answer = script.client.post("/work", data={}, headers={"X-CSRF": script.csrf})
    assert answer.status_code == 401
    assert answer.json()["error"]["status"] == 401


# Links


def test_a_link_signs_in_by_a_click_and_not_by_being_looked_at(site):
    rater = accounts.make_account(site.store, "annotator", now=site.now)
    link = accounts.invite(site.store, rater.id, now=site.now)
    preview = site.browser()
    for _ in range(3):
        answer = preview.get(f"/invite/{link}")
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
    browser = site.browser()
    answer = browser.client.post(f"/invite/{link}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert browser.get("/api/v1/me").json()["annotator"] == rater.annotator


def test_a_link_dies_by_age_and_by_a_newer_one(site):
    rater = accounts.make_account(site.store, "annotator", now=site.now)
    old = accounts.invite(site.store, rater.id, now=site.now)
    new = accounts.invite(site.store, rater.id, now=site.now, days=1.0)
    assert site.browser().client.post(f"/invite/{old}").status_code == 404
    site.now += 86_401
    assert site.browser().client.post(f"/invite/{new}").status_code == 404


@pytest.mark.parametrize("contact", ["Ada <ada@example.org>, mornings", ""])
def test_a_dead_link_names_whom_to_ask(site, contact):
    settings = dataclasses.replace(documents.project_settings(site.store), contact=contact)
    documents.put_settings(site.store, settings, now=site.now)
    rater = accounts.make_account(site.store, "annotator", now=site.now)
    link = accounts.invite(site.store, rater.id, now=site.now, days=1.0)
    assert "ada@" not in site.browser().get(f"/invite/{link}").text
    site.now += 86_401
    for method in ("get", "post"):
        answer = getattr(site.browser().client, method)(f"/invite/{link}")
        assert answer.status_code == 404
        expected = html.escape(f"for a new one: {contact}") if contact else "for a new one.</p>"
        assert expected in answer.text


# How often somebody may try


def test_a_login_is_tried_ten_times_in_a_window_from_wherever(site):
    for i in range(10):
        assert sign_in(site.browser(), password=f"wrong horse {i}").status_code == 401
    answer = sign_in(site.browser())
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "900"
    assert site.anybody().post("/api/v1/session", json={"login": " ADMIN ", "password": PASSWORD}).status_code == 429
    site.now += 901
    assert sign_in(site.browser()).status_code == 303


def test_success_starts_the_count_anew(site):
    for _ in range(3):
        for i in range(9):
            sign_in(site.browser(), password=f"wrong horse {i}")
        assert sign_in(site.browser()).status_code == 303


def test_an_address_is_counted_over_all_logins_and_links(tmp_path):
    site = web_app.served(tmp_path, settings=ServerSettings(attempts_per_address=6))
    for i in range(3):
        assert sign_in(site.browser(), f"login{i}").status_code == 401
        assert site.browser().get(f"/invite/guess{i}").status_code == 404
    assert sign_in(site.browser(), "another").status_code == 429
    assert site.browser().get("/invite/another").status_code == 429


def test_the_setup_link_cannot_be_guessed_for_ever(tmp_path):
    site = web_app.served(tmp_path, settings=ServerSettings(attempts_per_address=3))
    found = [site.browser().get(f"/setup/guess{i}").status_code for i in range(5)]
    assert found == [404, 404, 404, 429, 429]


def test_only_our_own_proxies_say_where_somebody_is(tmp_path):
    site = web_app.served(tmp_path, settings=PROXIED)

    def origin(client_host: str, forwarded: str | None) -> str:
        client = web_app.TestClient(
            site.app, base_url=site.settings.url, client=(client_host, 5000), follow_redirects=False,
            headers={"Origin": site.settings.url, **({"X-Forwarded-For": forwarded} if forwarded else {})},
        )  # fmt: skip
        link = accounts.invite(site.store, site.accounts["annotator"].id, now=site.now)
        assert client.post(f"/invite/{link}").status_code == 303
        token = client.cookies[site.settings.cookie]
        return sessions.session_of(site.store, token, now=site.now).origin_hash

    direct = origin("203.0.113.9", None)
    assert origin("203.0.113.9", "198.51.100.1") == direct
    assert origin("10.0.0.1", "203.0.113.9") == direct
    assert origin("10.0.0.1", "198.51.100.1, 203.0.113.9") == direct
    assert origin("10.0.0.1", "203.0.113.9, 10.0.0.2") == direct
    assert origin("10.0.0.1", "198.51.100.1") != direct
    assert "203.0.113.9" not in direct


# Cookies


@pytest.mark.parametrize(
    ("settings", "name", "secure"),
    [(ServerSettings(), "karat", False), (PROXIED, "__Host-karat", True)],
)
def test_the_cookie_is_bound_to_https_where_there_is_https(tmp_path, settings, name, secure):
    site = web_app.served(tmp_path, settings=settings)
    accounts.set_password(site.store, site.accounts["admin"].id, PASSWORD, now=site.now)
    answer = sign_in(site.browser())
    parts = {part.strip().lower() for part in cookies(answer).split(";")}
    assert cookies(answer).startswith(f"{name}=")
    assert {"httponly", "samesite=lax", "path=/", "max-age=43200"} <= parts
    assert ("secure" in parts) is secure
    assert not any(part.startswith("domain") for part in parts)
    assert ("strict-transport-security" in answer.headers) is secure


# The first admin


def test_the_first_admin_is_made_once_by_the_link_of_the_terminal(tmp_path):
    site = web_app.served(tmp_path)
    lone = dataclasses.replace(site.accounts["admin"])
    assert setup_token(site.store) is None
    again = site.browser().get("/setup/anything")
    assert again.status_code == 404
    assert "makes the first admin, once" in again.text  # whoever opens her link again is told that she can sign in
    locked = tables.accounts.update().where(tables.accounts.c.id == lone.id).values(state="locked")
    site.store.write(lambda connection: connection.execute(locked))
    assert setup_token(site.store) is None  # a locked admin is unlocked on the terminal, not by a link


def test_without_accounts_there_is_nothing_but_the_setup_link(tmp_path):
    store = web_app.open_store(tmp_path / "new.db")
    assert accounts.accounts(store) == []
    token, other = setup_token(store), setup_token(web_app.open_store(tmp_path / "other.db"))
    assert token is not None
    assert token != other
    assert len(token) >= 43  # 256 bits
    site = web_app.Served.__new__(web_app.Served)
    site.store, site.settings, site.now = store, ServerSettings(), web_app.NOW
    site.app = web_app.create_app(store, site.settings, clock=lambda: site.now)
    assert sign_in(site.browser(), "admin", "admin").status_code == 401
    assert site.browser().get(f"/setup/{other}").status_code == 404
    browser = site.browser()
    assert browser.get(f"/setup/{token}").status_code == 200
    fields = {"login": "ada", "new": "short", "again": "short"}
    assert browser.client.post(f"/setup/{token}", data=fields).status_code == 422
    assert accounts.accounts(store) == []
    answer = browser.client.post(f"/setup/{token}", data={"login": "ada", "new": PASSWORD, "again": PASSWORD + "!"})
    assert answer.status_code == 422
    assert "The two passwords differ" in answer.text
    assert 'value="ada"' in answer.text
    fields = {"login": "ada", "new": PASSWORD, "again": PASSWORD}
    assert browser.client.post(f"/setup/{token}", data=fields).status_code == 303
    assert browser.get("/api/v1/me").json()["role"] == "admin"
    assert [account.login for account in accounts.accounts(store)] == ["ada"]
    assert site.browser().client.post(f"/setup/{token}", data={**fields, "login": "eve"}).status_code == 404

"""Who may call what: every route × every role × own and others' things; forged, foreign and oversized requests."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import APIRouter, Depends, FastAPI

import web_app
from karat.errors import ConfigError
from karat.feedback.people import accounts
from karat.feedback.web.access import PUBLIC, SAFE_METHODS, RouteAccess, needs, route_table
from karat.feedback.web.settings import ServerSettings

ENDLESS = ("/admin/events",)
"""Routes that answer for as long as somebody listens."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
POLICY = {
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'",
    "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> web_app.Served:
    return web_app.served(tmp_path_factory.mktemp("access"))


def table(site: web_app.Served) -> list[RouteAccess]:
    return site.app.state.route_table


def filled(path: str, **values: str) -> str:
    """The path with its parameters filled in; those that are not given name nothing that exists."""
    parts = [
        values.get(part[1:-1].split(":")[0], "nothing") if part.startswith("{") else part for part in path.split("/")
    ]
    return "/".join(parts)


def test_the_table_covers_every_page_of_every_module(site):
    paths = {entry.path for entry in table(site)}
    assert {"/", "/work", "/login", "/invite/{token}", "/admin", "/review", "/audit", "/arena", "/health"} <= paths
    assert len(table(site)) == len({(entry.method, entry.path) for entry in table(site)})


def test_what_everybody_may_call_is_a_short_list(site):
    public = {(entry.method, entry.path) for entry in table(site) if entry.roles is None}
    assert public <= {
        ("GET", "/"), ("GET", "/health"), ("GET", "/api/v1/openapi.json"), ("GET", "/login"), ("POST", "/login"),
        ("GET", "/invite/{token}"), ("POST", "/invite/{token}"), ("GET", "/setup/{token}"), ("POST", "/setup/{token}"),
        ("POST", "/api/v1/session"), ("GET", "/study/{token}"), ("POST", "/study/{token}"),
    }  # fmt: skip


def test_nobody_gets_past_a_route_without_a_session(site):
    for entry in table(site):
        if entry.roles is None:
            continue
        answer = site.browser().client.request(entry.method, filled(entry.path))
        if entry.method == "GET" and not entry.path.startswith("/api/"):
            assert answer.status_code == 303, entry
            assert answer.headers["location"].startswith("/login?next="), entry
        else:
            assert answer.status_code == 401, entry


@pytest.mark.parametrize("role", web_app.ROLES)
def test_every_route_is_closed_to_every_other_role(site, role):
    browser, program = site.browser(role), site.program(role)
    for entry in table(site):
        if entry.roles is None or role in entry.roles:
            continue
        assert (
            browser.client.request(entry.method, filled(entry.path), headers={"X-CSRF": browser.csrf}).status_code
            == 403
        ), entry
        assert program.request(entry.method, filled(entry.path)).status_code == 403, entry


@pytest.mark.parametrize("role", web_app.ROLES)
def test_every_route_answers_its_own_roles(tmp_path, role):
    site = web_app.served(tmp_path)
    program = site.program(role)
    for entry in sorted(table(site), key=lambda entry: entry.path == "/api/v1/session"):
        if entry.roles is None or role not in entry.roles or entry.path in ENDLESS or entry.path == "/logout":
            continue
        answer = program.request(entry.method, filled(entry.path), json={} if entry.path.startswith("/api") else None)
        assert answer.status_code in (200, 303, 400, 404, 409, 422), (entry, answer.status_code, answer.text[:300])


@pytest.mark.parametrize("stranger", ["annotator", "expert"])
def test_nobody_reads_or_changes_what_is_in_another_raters_hands(tmp_path, stranger):
    site = web_app.served(tmp_path)
    owner = site.program("annotator")
    lease = owner.post("/api/v1/tasks/next").json()["task"]["lease"]
    body = {"key": "k", "value": {"level": 0, "n_levels": 7}, "reason": "because", "body": {"a": 1}}
    fields = {"judgement": ("key", "value"), "skip": ("reason",), "draft": ("body",)}
    other = accounts.make_account(site.store, stranger, now=site.now)
    thief = site.program(stranger, account=other.id)
    tried = 0
    for entry in table(site):
        if "{lease}" not in entry.path:
            continue
        wanted = {name: body[name] for name in fields.get(entry.path.rsplit("/", 1)[1], ())}
        answer = thief.request(entry.method, filled(entry.path, lease=lease), json=wanted)
        assert answer.status_code == 404, (entry, answer.text)
        assert owner.request("GET", f"/api/v1/tasks/{lease}").status_code == 200
        tried += 1
    assert tried >= 6
    assert site.store.n_judgements() == 0
    assert set(site.store.assignments().values()) == {"leased"}


@pytest.mark.parametrize("role", web_app.ROLES)
def test_ids_of_other_peoples_things_open_nothing_on_any_page(tmp_path, role):
    site = web_app.served(tmp_path)
    lease = site.program("annotator").post("/api/v1/tasks/next").json()["task"]["lease"]
    other = accounts.make_account(site.store, "annotator" if role == "annotator" else role, now=site.now)
    browser = site.browser(account=other.id)
    before = site.store.assignments()
    for entry in table(site):
        if entry.roles is None or role not in entry.roles or role == "admin" or entry.path.startswith("/api/"):
            continue
        names = {"lease": lease, "judgement": "judgement:0", "task": site.store.tasks()[0].id}
        if entry.path in ("/logout", "/me/deletion") or entry.path in ENDLESS:
            continue
        if entry.method == "GET":
            answer = browser.get(filled(entry.path, **names), params=names)
            assert lease not in answer.text, entry
        else:
            answer = browser.post(filled(entry.path, **names), {**names, "reason": "x", "choice": "0", "key": "k"})
        assert answer.status_code in (200, 303, 400, 404, 409, 422), (entry, answer.status_code)
    assert site.store.n_judgements() == 0
    after = site.store.assignments()
    assert {pair: after[pair] for pair in before} == before


# What a route must declare


def test_a_route_that_declares_nothing_is_not_served():
    app, router = FastAPI(openapi_url=None, docs_url=None, redoc_url=None), APIRouter()
    router.get("/open")(lambda: "x")
    app.router.routes.extend(router.routes)
    with pytest.raises(ConfigError, match=r"/open.*found 0 declarations"):
        route_table(app.routes)


def test_a_route_that_declares_two_things_is_not_served():
    router = APIRouter(dependencies=[Depends(PUBLIC)])
    router.get("/both", dependencies=[Depends(needs("admin"))])(lambda: "x")
    with pytest.raises(ConfigError, match="found 2 declarations"):
        route_table(router.routes)


def test_a_mounted_app_is_not_served():
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.mount("/files", FastAPI())
    with pytest.raises(ConfigError, match="found no declared roles"):
        route_table(app.routes)


def test_a_role_that_does_not_exist_cannot_be_declared():
    with pytest.raises(ConfigError, match="root"):
        needs("root")
    with pytest.raises(ConfigError, match="expected some of"):
        needs()


# Forged requests


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "http://localhost:8000"}, True),
        ({"Referer": "http://127.0.0.1:8000/work?x=1"}, True),
        ({}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:9000"}, False),
        ({"Origin": "http://127.0.0.1:8000.evil.example"}, False),
        ({"Referer": "https://evil.example/http://127.0.0.1:8000/"}, False),
        ({"Origin": "https://evil.example", "Referer": "http://127.0.0.1:8000/"}, False),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, True),
    ],
)
def test_a_cookie_counts_only_on_requests_from_our_own_pages(site, headers, allowed):
    browser = site.browser("annotator")
    client = site.anybody(**headers)
    client.cookies.set(site.settings.cookie, browser.token)
    answer = client.post("/api/v1/tasks/next", headers={"X-CSRF": browser.csrf})
    assert answer.status_code == (200 if allowed else 403), answer.text


@pytest.mark.parametrize("role", web_app.ROLES)
def test_no_route_that_changes_something_takes_a_cookie_alone(site, role):
    browser = site.browser(role)
    plain = site.anybody()
    plain.cookies.set(site.settings.cookie, browser.token)
    tried = 0
    for entry in table(site):
        if entry.method in SAFE_METHODS:
            continue
        path = filled(entry.path)
        assert plain.request(entry.method, path, headers={"X-CSRF": browser.csrf}).status_code == 403, entry
        if entry.roles is None or role not in entry.roles:
            continue
        for answer in (
            browser.client.request(entry.method, path),
            browser.client.request(entry.method, path, headers={"X-CSRF": site.browser(role).csrf}),
        ):
            assert answer.status_code == 403, entry
            assert "older than your session" in answer.text, entry
        tried += 1
    assert tried >= 2
    assert browser.get("/api/v1/me").status_code == 200


def test_the_token_must_be_that_of_the_session(site):
    first, second = site.browser("annotator"), site.browser("annotator")
    for token in ("", "wrong", second.csrf, first.csrf + "x", "é"):
        assert first.client.post("/api/v1/tasks/next", headers={"X-CSRF": token.encode()}).status_code == 403
        assert first.client.post("/password", data={"csrf": token}).status_code == 403
    assert first.client.post("/api/v1/tasks/next").status_code == 403
    assert first.client.post("/api/v1/tasks/next", headers={"X-CSRF": first.csrf}).status_code == 200
    assert first.post("/password", {"new": "a", "again": "b"}).status_code == 422


def test_a_token_in_the_address_or_in_json_does_not_count(site):
    browser = site.browser("annotator")
    assert browser.client.post(f"/api/v1/tasks/next?csrf={browser.csrf}").status_code == 403
    assert browser.client.post("/api/v1/tasks/next", json={"csrf": browser.csrf}).status_code == 403


def test_a_bearer_token_needs_neither_origin_nor_token_and_leaves_the_cookie_out(site):
    program = site.program("annotator")
    assert program.post("/api/v1/tasks/next").status_code == 200
    program.cookies.set(site.settings.cookie, site.browser("admin").token)
    assert program.get("/api/v1/me").json()["role"] == "annotator"
    nobody = site.anybody(Authorization="Bearer nonsense")
    nobody.cookies.set(site.settings.cookie, site.browser("admin").token)
    assert nobody.get("/api/v1/me").status_code == 401


def test_looking_changes_nothing(site):
    # GET carries the cookie from anywhere (SameSite=Lax on links): it must not answer, skip or sign out
    browser = site.browser("annotator")
    browser.client.headers.pop("Origin")
    before = site.store.n_judgements()
    for entry in table(site):
        if entry.method == "GET" and entry.roles is not None and "annotator" in entry.roles:
            browser.get(filled(entry.path))
    assert browser.get("/api/v1/me").status_code == 200
    assert site.store.n_judgements() == before
    assert "skipped" not in set(site.store.assignments().values())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "evil.example:8000"])
def test_another_name_for_this_machine_is_refused(site, host):
    answer = site.browser("annotator").client.get("/api/v1/me", headers={"Host": host})
    assert answer.status_code == 421
    assert site.anybody().get("/health", headers={"Host": "10.0.0.7"}).status_code == 200


# Headers


@pytest.mark.parametrize(
    ("method", "path", "status", "extra"),
    [
        ("GET", "/login", 200, {}),
        ("GET", "/health", 200, {}),
        ("GET", "/nothing", 404, {}),
        ("GET", "/api/v1/nothing", 404, {}),
        ("GET", "/admin", 303, {}),
        ("PATCH", "/login", 405, {}),
        ("POST", "/api/v1/session", 422, {"content": b"{"}),
        ("GET", "/login", 421, {"headers": {"Host": "evil.example"}}),
        ("POST", "/login", 413, {"content": b"x" * 3_000_000}),
        ("GET", "/static/nothing.js", 404, {}),
        ("GET", "/static/karat.css", 200, {}),
        ("GET", "/static/../settings.py", 404, {}),
        ("GET", "/static/%2e%2e/settings.py", 404, {}),
    ],
)
def test_every_answer_carries_the_headers(site, method, path, status, extra):
    answer = site.anybody(Origin=site.settings.url).request(method, path, **extra)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    directives = {part.strip() for part in answer.headers["content-security-policy"].split(";")}
    assert directives >= POLICY
    assert not any("unsafe" in part or "*" in part or "http" in part for part in directives)
    assert "server" not in answer.headers
    if not path.startswith("/static"):
        assert answer.headers["cache-control"] == "no-store"


def test_what_nobody_foresaw_shows_a_number_and_nothing_else(tmp_path, caplog):
    site = web_app.served(tmp_path)
    router = APIRouter()

    @router.get("/broken", dependencies=[Depends(PUBLIC)])
    @router.get("/api/broken", dependencies=[Depends(PUBLIC)])
    def broken() -> None:
        raise RuntimeError("secret <b>detail</b>")

    site.app.router.routes[:0] = router.routes
    for path in ("/broken", "/api/broken"):
        answer = site.anybody().get(path)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.headers["x-frame-options"] == "DENY"
    assert "RuntimeError: secret" in caplog.text
    assert answer.json()["error"]["message"].split()[-1].strip(".") in caplog.text


def test_a_files_address_changes_with_its_content_and_is_kept(site):
    page = site.anybody().get("/login").text
    address = page.split('href="/static/karat.css?v=')[1].split('"')[0]
    answer = site.anybody().get(f"/static/karat.css?v={address}")
    assert "immutable" in answer.headers["cache-control"]
    assert site.anybody().get("/static/karat.css").headers["cache-control"] == "no-cache"


# Size and form of requests


def test_a_body_is_refused_by_its_stated_length_and_by_its_true_one(site):
    client = site.anybody(Origin=site.settings.url)
    assert client.post("/login", content=b"login=" + b"x" * 2_000_001).status_code == 413

    def pieces():
        for _ in range(40):
            yield b"x" * 100_000

    answer = client.post("/login", content=pieces(), headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 413
    for length in ("-1", "1e3", "９", "9" * 5000):
        assert client.post("/login", content=b"", headers={"Content-Length": length.encode()}).status_code == 400


def test_only_an_admin_may_send_much(site):
    large = b'{"x": "' + b"y" * 3_000_000 + b'"}\n'
    headers = {"Content-Type": "application/x-ndjson"}
    for path in ("/api/v1/import", "/api/v1/tasks", "/api/v1/judgements/batch"):
        for client in (site.anybody(), site.anybody(Authorization="Bearer x"), site.program("annotator")):
            assert client.post(path, content=large, headers=headers).status_code == 413
        assert site.program("admin").post(path, content=large, headers=headers).status_code == 422
        pieces = iter([large[:1_000_000], large[1_000_000:]])
        assert site.program("annotator").post(path, content=pieces, headers=headers).status_code == 413
    lease = site.program("annotator").post("/api/v1/tasks/next").json()["task"]["lease"]
    for role in ("annotator", "admin"):
        path = f"/api/v1/tasks/{lease}/judgement"
        assert site.program(role).post(path, content=large, headers=headers).status_code == 413


def test_one_line_of_a_megabyte_is_read_and_refused_politely(site):
    client = site.anybody(Origin=site.settings.url)
    assert client.post("/login", data={"login": "x" * 1_000_000, "password": "y"}).status_code == 401
    answer = client.post("/api/v1/session", json={"login": "x" * 1_000_000, "password": "y"})
    assert answer.status_code == 422
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"login": 1e999}', "application/json"),
        (b'{"login": "\\ud800", "password": "x"}', "application/json"),
        (b'{"login": "a\\u0000b", "password": "x"}', "application/json"),
        (b'{"login": ' + b"9" * 10_000 + b"}", "application/json"),
        (b"\xff\xfe\x00", "application/json"),
        (b"null", "application/json"),
        (b"<login/>", "application/xml"),
    ],
)
def test_garbage_is_an_error_of_the_sender(site, content, kind):
    answer = site.anybody(Origin=site.settings.url).post(
        "/api/v1/session", content=content, headers={"Content-Type": kind}
    )
    assert answer.status_code in (400, 422), answer.text
    assert set(answer.json()["error"]) == {"status", "message", "fields"}


@pytest.mark.parametrize(
    "content",
    [
        b"--x\r\nnonsense",
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n" + b"y" * 1_100_000 + b"\r\n--x--\r\n",
    ],
)
def test_a_broken_form_is_an_error_of_the_sender(site, content):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = site.anybody(Origin=site.settings.url).post("/login", content=content, headers=headers)
    assert answer.status_code in (400, 401), answer.text


def test_a_form_of_too_many_fields_and_a_compressed_body_are_refused(site):
    client = site.anybody(Origin=site.settings.url)
    assert client.post("/login", data={f"f{i}": "x" for i in range(2_001)}).status_code == 400
    zipped = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert client.post("/api/v1/session", content=b"x", headers=zipped).status_code == 415
    assert client.get("/invite/%00").status_code == 400
    assert client.get("/login?next=%00").status_code == 400
    assert client.post("/login", data={"login": "a\0b"}).status_code == 422


def test_errors_never_give_back_what_was_sent_as_html(site):
    attack = "<script>alert(1)</script>"
    client = site.anybody(Origin=site.settings.url)
    for answer in (
        client.get(f"/{attack}"),
        client.get("/login", params={"next": attack}),
        client.post("/login", data={"login": attack, "password": "x", "kept:<b>": attack, "next": "/work"}),
        client.get(f"/invite/{attack}"),
        client.post("/api/v1/session", json={"login": [attack], attack: 1}),
        client.request("<B>", "/login"),
    ):
        assert "<script>alert" not in answer.text or answer.headers["content-type"] == "application/json"
        assert attack not in answer.text


def test_a_body_that_never_ends_is_given_up(tmp_path):
    site = web_app.served(tmp_path, settings=ServerSettings(body_s=0.05))
    sent: list[dict] = []
    pieces = iter([{"type": "http.request", "body": b"login=", "more_body": True}])
    headers = {"host": "127.0.0.1", "origin": site.settings.url, "content-type": "application/x-www-form-urlencoded"}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/login", "raw_path": b"/login", "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000), "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip

    async def receive() -> dict:
        for piece in pieces:
            return piece
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(site.app(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"x-frame-options" in dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("role", "path"), [("admin", "/admin/rater?who=nobody"), ("annotator", "/nowhere"), ("expert", "/admin")]
)
def test_whoever_went_astray_goes_on_from_her_own_pages(site: web_app.Served, role: str, path: str):
    answer = site.browser(role).get(path)
    assert answer.status_code in (403, 404)
    assert ("/admin" if role == "admin" else "/work") in answer.text
    assert "Sign out" in answer.text
    assert "annotator" not in answer.text.replace("data-who", "")  # the product's word for her is rater
    nobody = site.anybody().get(path, headers={"Accept": "text/html"})
    assert "Sign out" not in nobody.text


def test_a_page_of_another_role_says_for_whom_it_is_not(site: web_app.Served):
    assert "This is not open to raters." in site.browser("annotator").get("/admin").text

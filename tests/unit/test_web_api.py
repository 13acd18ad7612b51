"""The API for raters and admins: what it shows, what it takes, what it never tells, and what it does with nonsense."""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import io
import json
from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

import web_app
from every_kind import VALUES, store_of_every_kind
from karat.feedback import documents
from karat.feedback.people import accounts, care, standing
from karat.feedback.web.api_models import MOST_DEPTH, sound
from karat.feedback.web.cells import cell
from karat.feedback.web.positions import as_shown, as_stored
from karat.feedback.work import checks
from karat.records import KINDS, Task

SECRETS = (
    "policy-",
    "random",
    "task:",
    "prompt:",
    "response:",
    "question:",
    "judgement:",
    "propensity",
    "batch",
    "strategy",
)
"""What must not be in anything a rater gets: it would tell who wrote what, or which item is a check."""
LEVEL = {"level": 6, "n_levels": 7}


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    return web_app.served(tmp_path)


def take(program) -> dict:
    return program.post("/api/v1/tasks/next").json()["task"]


def answer(program, lease, value, key="k", **rest):
    return program.post(f"/api/v1/tasks/{lease}/judgement", json={"key": key, "value": value, **rest})


# What a rater gets


def test_a_task_names_its_lease_and_positions_and_nothing_else(site):
    program = site.program("annotator")
    task = take(program)
    assert set(task) == {"lease", "expires_at", "question", "prompt", "responses", "guideline"}
    assert [response["number"] for response in task["responses"]] == [1, 2]
    assert {response["text"] for response in task["responses"]} == {
        "Answer 0 to Question 0?",
        "Answer 1 to Question 0?",
    }
    assert "topic" not in task["question"]
    stored = answer(program, task["lease"], LEVEL)
    texts = [json.dumps(task), stored.text, program.get("/api/v1/history").text, program.get("/api/v1/me").text]
    texts.append(program.get(f"/api/v1/tasks/{task['lease']}").text)
    texts += [answer(program, task["lease"], value, "other").text for value in ({}, {"level": 99}, LEVEL)]
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text.replace('"prompt":', "")], text


def test_a_silent_check_looks_like_work_in_every_field_and_header(tmp_path):
    site = web_app.served(tmp_path, n_tasks=30)
    documents.put_settings(
        site.store, documents.ProjectSettings(gold_rate=0.5, repeat_rate=0.3, repeat_gap=1), now=site.now
    )
    asked = [Task(task.prompt_id, task.response_ids[::-1], batch="gold") for task in site.store.tasks()[20:]]
    checks.add_gold(site.store, [(task, LEVEL) for task in asked], version="1")
    program = site.program("annotator")
    looks = set()
    for i in range(20):
        reply = program.post("/api/v1/tasks/next")
        task = reply.json()["task"]
        headers = tuple(sorted(name for name in reply.headers))
        looks.add(
            (
                headers,
                tuple(sorted(task)),
                json.dumps(task["question"]),
                len(task["lease"]),
                task["guideline"],
            )
        )
        answer(program, task["lease"], LEVEL, f"k{i}")
    kinds = {
        task.batch.split(":")[0]
        for task in site.store.tasks()
        if (task.id, site.annotator()) in site.store.assignments()
    }
    assert len(kinds) >= 2  # there were checks among them
    assert len(looks) == 1


def test_why_there_is_no_work_is_said(site):
    program = site.program("annotator")
    documents.put_document(site.store, documents.CONSENT, "1", {"text": "Agree?"}, now=site.now)
    assert program.post("/api/v1/tasks/next").json() == {"task": None, "reason": "consent"}
    care.give_consent(site.store, site.accounts["annotator"].id, "1", now=site.now)
    assert take(program) is not None
    standing.quarantine(site.store, site.annotator(), reason="Please call.", by="account:x", now=site.now)
    assert program.get("/api/v1/me").json()["state"] == "quarantined"


# Positions


@given(st.permutations([0, 1, 2]), st.sampled_from([1, 2, 3]))
def test_positions_and_identities_turn_into_one_another(order, n):
    order = [index for index in order if index < n]
    for kind in KINDS:
        n_responses, value = VALUES[kind]
        if n_responses not in (0, n):
            continue
        assert as_stored(kind, as_shown(kind, value, order), order) == value
        assert as_shown(kind, as_stored(kind, value, order), order) == value
        assert as_shown(kind, {"missing": "none fits"}, order) == {"missing": "none fits"}


def test_positions_by_hand():
    assert as_stored("comparison", {"level": 6, "n_levels": 7}, (0, 1)) == {"level": 6, "n_levels": 7}
    assert as_stored("comparison", {"level": 6, "n_levels": 7}, (1, 0)) == {"level": 0, "n_levels": 7}
    # shown: c, a, b; ranks by position: 1, 2, 3, so that c is first, then a, then b
    assert as_stored("ranking", {"ranks": [1, 2, 3]}, (2, 0, 1)) == {"ranks": [2, 3, 1]}
    assert as_stored("best_of", {"best": 0}, (2, 0, 1)) == {"best": 2}
    span = {"start": 0, "end": 2, "class": "wrong"}
    assert as_stored("span_marks", {"spans": [{"response": 1, **span}]}, (1, 0)) == {"spans": [{"response": 0, **span}]}


def test_the_one_that_was_chosen_on_the_screen_is_the_one_that_is_stored(tmp_path):
    site = web_app.served(tmp_path, n_tasks=12)
    program = site.program("annotator")
    responses = site.store.responses()
    for i in range(12):
        task = take(program)
        chosen = i % 2
        answer(
            program, task["lease"], {"level": 6 if chosen == 0 else 0, "n_levels": 7}, f"k{i}", truncated=[True, False]
        )
        judgement = site.store.judgements()[-1]
        better = judgement.response_ids[0 if judgement.value["level"] == 6 else 1]
        assert responses[better].text == task["responses"][chosen]["text"]
        assert [responses[judgement.response_ids[index]].text for index in judgement.shown_order] == [
            response["text"] for response in task["responses"]
        ]
        assert judgement.shown["truncated"][judgement.shown_order[0]] is True
    assert {judgement.shown_order for judgement in site.store.judgements()} == {(0, 1), (1, 0)}
    assert program.get("/api/v1/history").json()[0]["value"] == {"level": 0, "n_levels": 7}


# Answering


def test_what_is_stored_is_what_was_sent_and_what_the_server_knows(site):
    program = site.program("annotator")
    task = take(program)
    site.now += 12.5
    reply = answer(program, task["lease"], LEVEL, reason="clear", active_s=9, idle_s=1.5, page="p7", locale="de")
    assert reply.status_code == 200
    [record] = site.store.records()
    judgement = record.judgement
    assert reply.json() == {"receipt": record.commitment, "late": False}
    assert (judgement.annotator, judgement.origin, judgement.reason) == (site.annotator(), "person", "clear")
    assert (judgement.active_s, judgement.idle_s) == (9.0, 1.5)
    assert judgement.shown["server_s"] == pytest.approx(12.5, abs=1e-6)
    assert (judgement.shown["page"], judgement.shown["locale"]) == ("p7", "de")
    assert judgement.shown["question"].startswith("question:")
    assert judgement.created_at == "2026-09-21T14:13:32Z"
    assert (judgement.strategy, judgement.propensity, judgement.guideline) == ("random", 1.0, "v1")


def test_the_same_again_adds_nothing_and_another_answer_corrects(site):
    program = site.program("annotator")
    lease = take(program)["lease"]
    first = answer(program, lease, LEVEL, "k1").json()
    site.now += 5
    assert answer(program, lease, LEVEL, "k1").json() == first
    assert answer(program, lease, LEVEL, "k2").json() == first
    assert site.store.n_judgements() == 1
    clash = answer(program, lease, {"level": 0, "n_levels": 7}, "k1")
    assert clash.status_code == 409
    assert "another answer" in clash.text
    assert answer(program, lease, {"level": 0, "n_levels": 7}, "k3").status_code == 200
    first_record, second = site.store.records()
    assert second.judgement.supersedes == first_record.id
    assert len(program.get("/api/v1/history").json()) == 1


def test_ten_times_at_once_is_once(site):
    lease = take(site.program("annotator"))["lease"]
    token = site.token(site.accounts["annotator"].id)

    def send(_: int) -> tuple[int, str]:
        reply = answer(site.anybody(Authorization=f"Bearer {token}"), lease, LEVEL, "the-one-key")
        return reply.status_code, reply.text

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        replies = set(pool.map(send, range(10)))
    assert len(replies) == 1
    assert next(iter(replies))[0] == 200
    assert site.store.n_judgements() == 1


def test_keys_of_two_raters_do_not_meet(site):
    for role in ("annotator",):
        other = accounts.make_account(site.store, role, now=site.now)
        for program in (site.program(role), site.program(role, account=other.id)):
            assert answer(program, take(program)["lease"], LEVEL, "same-key").status_code == 200
    assert site.store.n_judgements() == 2


def test_an_answer_that_comes_too_late_is_kept_and_marked(site):
    program = site.program("annotator")
    old = take(program)["lease"]
    site.now += 3600
    assert answer(program, old, LEVEL).json()["late"] is True


def test_an_answer_under_the_name_of_an_older_lease_is_kept(site):
    program = site.program("annotator")
    old = take(program)["lease"]
    site.now += 3600
    new = take(program)["lease"]
    assert new != old
    assert answer(program, old, LEVEL).status_code == 200
    assert answer(program, new, LEVEL, "k2").status_code == 200
    assert site.store.n_judgements() == 1


def test_nothing_is_stored_of_a_rater_who_took_her_consent_back(site):
    documents.put_document(site.store, documents.CONSENT, "1", {"text": "Agree?"}, now=site.now)
    care.give_consent(site.store, site.accounts["annotator"].id, "1", now=site.now)
    program = site.program("annotator")
    lease = take(program)["lease"]
    care.withdraw_consent(site.store, site.accounts["annotator"].id, now=site.now)
    reply = answer(program, lease, LEVEL)
    assert reply.status_code == 409
    assert "consent" in reply.text
    assert site.store.n_judgements() == 0


@pytest.mark.parametrize(
    "value",
    [
        {}, {"level": 3}, {"level": 3, "n_levels": 5}, {"level": 7, "n_levels": 7}, {"level": -1, "n_levels": 7},
        {"level": 3.0, "n_levels": 7}, {"level": True, "n_levels": 7}, {"level": 6, "n_levels": 7, "extra": 1},
        {"level": 6, "n_levels": 7, "both": "good"}, {"missing": "because I say so"}, {"missing": 3}, {"missing": None},
        {"level": 10**30, "n_levels": 10**31}, {"ranks": [1, 2]}, {"best": 0}, {"level": [6], "n_levels": 7},
    ],
)  # fmt: skip
def test_an_answer_that_no_form_could_give_is_refused(site, value):
    program = site.program("annotator")
    reply = answer(program, take(program)["lease"], value)
    assert reply.status_code == 422, reply.text
    assert site.store.n_judgements() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_answered_by_program(tmp_path, kind):
    store = store_of_every_kind(tmp_path / "kinds.db")
    site = web_app.Served(store)
    documents.put_settings(store, documents.ProjectSettings(gold_rate=0.0, repeat_rate=0.0), now=site.now)
    program = site.program("annotator")
    n, value = VALUES[kind]
    before, [first] = store.n_judgements(), [task for task in store.tasks() if task.kind == kind]
    store.add_tasks([dataclasses.replace(first, batch="again", reserved_for=site.annotator())])
    for _ in range(20):
        task = take(program)
        if task["question"]["kind"] == kind and len(task["responses"]) == n:
            break
        program.post(f"/api/v1/tasks/{task['lease']}/skip", json={"reason": "not now"})
    if kind == "step_marks":
        from karat.segments import steps_of

        value = {"steps": [{"start": s, "end": e, "mark": 1} for s, e in steps_of(task["responses"][0]["text"])]}
    reply = answer(program, task["lease"], value)
    assert reply.status_code == 200, reply.text
    assert store.n_judgements() == before + 1
    stored = store.judgements()[-1]
    assert as_shown(kind, stored.value, stored.shown_order) == json.loads(json.dumps(value))


def test_drafts_heartbeats_and_skips(site):
    program = site.program("annotator")
    task = take(program)
    path = f"/api/v1/tasks/{task['lease']}"
    assert program.get(f"{path}/draft").json() == {"body": None, "saved_at": None}
    assert program.put(f"{path}/draft", json={"body": {"reason": "half a "}}).json()["saved_at"] == site.now
    assert program.get(f"{path}/draft").json()["body"] == {"reason": "half a "}
    site.now += 300
    assert program.post(f"{path}/heartbeat").json()["expires_at"] == site.now + 600
    assert program.post(f"{path}/skip", json={"reason": "too hard"}).json() == {"done": True}
    assert [reason for _, _, reason in site.store.skips()] == ["too hard"]
    assert take(program)["lease"] != task["lease"]
    assert program.put(f"{path}/draft", json={"body": {"a": "x" * 500_000}}).status_code == 422


def test_a_draft_is_gone_with_its_answer(site):
    program = site.program("annotator")
    path = f"/api/v1/tasks/{take(program)['lease']}"
    program.put(f"{path}/draft", json={"body": {"reason": "half a "}})
    program.post(f"{path}/judgement", json={"key": "k", "value": LEVEL})
    assert program.get(f"{path}/draft").json()["body"] is None


# What an admin's program does


def test_records_go_in_once_and_unknown_fields_are_refused(site):
    admin = site.program("admin")
    prompt = {"turns": [{"role": "user", "content": "Why?"}], "topic": None}
    assert admin.post("/api/v1/prompts", json=[prompt]).json() == {"new": 1}
    assert admin.post("/api/v1/prompts", json=[prompt]).json() == {"new": 0}
    wrong = admin.post("/api/v1/prompts", json=[{**prompt, "topik": "x"}])
    assert wrong.status_code == 422
    assert "topik" in wrong.text
    assert admin.post("/api/v1/prompts", json=[{"turns": []}]).status_code == 422
    assert (
        admin.post("/api/v1/responses", json=[{"prompt_id": "prompt:no", "text": "a", "source": "b"}]).status_code
        == 409
    )
    assert [entry.action for entry in accounts.log_entries(site.store)] == ["add"]


def test_nobody_speaks_for_a_person(site):
    admin = site.program("admin")
    assert admin.post("/api/v1/annotators", json=[{"id": "ann"}]).status_code == 422
    task = site.store.tasks()[0]
    pair = [[task.id, site.annotator()]]
    assert admin.post("/api/v1/leases", json={"pairs": pair}).status_code == 422
    event = {
        "task_id": task.id, "kind": "comparison", "prompt_id": task.prompt_id, "response_ids": task.response_ids,
        "value": LEVEL, "annotator": site.annotator(), "shown_order": [0, 1], "guideline": "v1",
        "created_at": "2026-01-01T00:00:00Z", "submission": "x",
    }  # fmt: skip
    for origin in ("person", "imported", "simulated", "ai"):
        reply = admin.post("/api/v1/judgements/batch", json=[{**event, "origin": origin}])
        assert reply.status_code == 422, (origin, reply.text)
    assert site.store.n_judgements() == 0


def test_what_goes_out_comes_in_again_the_same(tmp_path):
    old = web_app.Served(store_of_every_kind(tmp_path / "old.db"))
    lines = old.program("admin").get("/api/v1/export")
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.headers["content-disposition"] == 'attachment; filename="judgements.jsonl"'
    new = web_app.Served(web_app.open_store(tmp_path / "new.db"))
    admin = new.program("admin")
    reply = admin.post("/api/v1/import", content=lines.content, headers={"Content-Type": "application/x-ndjson"})
    assert reply.json()["n_new"] == old.store.n_judgements()
    assert [record.id for record in new.store.records()] == [record.id for record in old.store.records()]
    again = admin.post("/api/v1/import", content=lines.content, headers={"Content-Type": "application/x-ndjson"})
    assert again.json()["n_new"] == 0


@pytest.mark.parametrize(
    "lines",
    [
        b"", b"\n\n\n", b"{", b"[]\n", b"null\n", b'{"a": 1}\n', b"[" * 200_000, b'{"a":' * 50_000,
        b"\x1f\x8b" + b"\0" * 100, b'{"format": "karat-judgement-1"}\n' * 1000, b"\xff\xfe{}\n",
        b'{"x": "' + b"y" * 1_000_000 + b'"}\n', b'{"x": 1e999}\n', b'{"x": NaN}\n',
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["judgements", "votes", "preferences", "hh"])
def test_a_bomb_of_lines_is_one_clear_refusal(site, lines, form):
    headers = {"Content-Type": "application/x-ndjson"}
    reply = site.program("admin").post(f"/api/v1/import?form={form}", content=lines, headers=headers)
    assert reply.status_code == 422, reply.text
    assert len(reply.json()["error"]["message"]) < 600
    assert "/tmp" not in reply.text
    assert site.store.n_judgements() == 0


ATTACKS = [
    '=HYPERLINK("http://evil.example","x")', "+1+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1,1)", "\t=1+1",
    "\r=1+1", "\n=1+1", " =1+1", "＝1+1", "\u200b=1+1", '"=1+1', "|cmd", "%0A=1",
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_cell_of_a_table_is_a_formula(tmp_path, attack):
    site = web_app.served(tmp_path, n_tasks=1)
    program = site.program("annotator")
    answer(program, take(program)["lease"], LEVEL, reason=attack)
    reply = site.program("admin").get("/api/v1/export?form=csv")
    rows = list(csv.reader(io.StringIO(reply.text, newline="")))
    assert len(rows) == 2
    for text in rows[1]:
        first = text.lstrip(" \u200b\ufeff\u00a0")[:1]
        assert first not in ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "|", "%"), text
    assert attack.strip() in rows[1][rows[0].index("reason")].replace("\r\n", "\n")


def test_numbers_stay_numbers_in_a_table():
    assert [cell(value) for value in (-1.5, 3, None, [1, "a"], "plain")] == ["-1.5", "3", "", '[1, "a"]', "plain"]


def test_what_is_free_json_is_bounded():
    deep: dict = {}
    inner = deep
    for _ in range(MOST_DEPTH + 1):
        inner["a"] = inner = {}
    with pytest.raises(ValueError, match="deep"):
        sound(deep)
    for wrong in ({"a": "\0"}, {"\ud800": 1}, {"a": ["\udfff"]}):
        with pytest.raises(ValueError, match="not Unicode"):
            sound(wrong)
    assert sound({"a": ["ok", {"b": "ж"}]})


def test_the_state_of_the_work(site):
    program = site.program("annotator")
    answer(program, take(program)["lease"], LEVEL)
    found = site.program("admin").get("/api/v1/stats").json()
    assert (found["n_judgements"], found["n_open"]) == (1, 6)


# The description, and whatever fits or does not fit it


def test_the_description_says_who_may_call_what(site):
    described = site.anybody().get("/api/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for entry in site.app.state.route_table:
        if not entry.path.startswith("/api/"):
            continue
        operation = described["paths"][entry.path][entry.method.lower()]
        assert ("security" in operation) == (entry.roles is not None), entry
        assert operation["summary"]
        assert operation["description"]
    assert not any("login" in path or "admin/" in path for path in described["paths"])


def fuzzed(site: web_app.Served, n: int) -> int:
    """Send n examples of every operation, as whoever may call it; returns how many. Fails on any server error.

    Fails too where an operation refused everything for who sent it: then nothing behind that was tried.
    """
    program, admin = site.program("annotator"), site.program("admin")
    lease = take(program)["lease"]
    schema = schemathesis.openapi.from_dict(program.get("/api/v1/openapi.json").json())
    allowed = {(entry.method.lower(), entry.path): entry.roles for entry in site.app.state.route_table}
    n_sent, tried, seen = 0, set(), set()
    for found in schema.get_all_operations():
        operation = found.ok()
        tried.add((operation.method, operation.path))
        roles = allowed[operation.method, operation.path]
        client = program if roles is None or ("annotator" in roles and operation.method != "delete") else admin
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            sent = _examples(operation, mode, n)
            for case in sent:
                if case.media_type == "application/x-ndjson":
                    case.body = case.body if isinstance(case.body, bytes) else repr(case.body).encode()
                asked = case.as_transport_kwargs(base_url=site.settings.url)
                address = asked["url"].removeprefix(site.settings.url)
                path = operation.path.replace("{lease}", lease) if "{lease}" in operation.path else address
                body = {name: asked[name] for name in ("json", "data") if asked.get(name) is not None}
                body = {"content": body["data"]} if isinstance(body.get("data"), bytes) else body
                headers = {"Content-Type": case.media_type} if case.media_type and "json" not in body else {}
                try:
                    reply = client.request(asked["method"], path, params=asked.get("params"), headers=headers, **body)
                except (UnicodeError, ValueError, TypeError):
                    continue  # what no client can send
                n_sent += 1
                if roles is None or reply.status_code not in (401, 403):
                    seen.add((operation.method, operation.path))
                assert reply.status_code < 500, (asked["method"], path, reply.text)
                if operation.method == "delete":
                    admin = client = site.program("admin")
    assert seen == tried, tried - seen
    return n_sent


def _examples(operation, mode, n: int) -> list:
    cases: list = []
    try:
        strategy = operation.as_strategy(generation_mode=mode)

        @settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=strategy)
        def keep(case) -> None:
            cases.append(case)

        keep()
    except (Unsatisfiable, SkipTest):  # an operation without parameters has nothing to get wrong
        return []
    return cases


@schemathesis.serializer("application/x-ndjson")
def _lines(_, value):
    return value


def test_nothing_that_fits_or_breaks_the_description_breaks_the_server(tmp_path):
    assert fuzzed(web_app.served(tmp_path), 2) > 40


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_much_that_fits_or_breaks_the_description_breaks_nothing(tmp_path):
    assert fuzzed(web_app.served(tmp_path), 40) > 1000

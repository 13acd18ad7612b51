"""The typed client: the same records and votes as the store's own, through retries, refusals and lost replies."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

import web_app
from feedback_cases import small_store
from karat.errors import ConfigError, InputError, StoreError
from karat.feedback.client import AdminClient, Assigned, Connection, RaterClient, sign_in
from karat.feedback.people import accounts
from karat.feedback.simulated import RaterTraits, collect_simulated
from karat.feedback.snapshot import write_snapshot
from karat.questions import Choice, Question
from karat.records import Annotator, Task
from web_app import InProcess, Served

RATERS = [Annotator(f"sim{i}", "simulated") for i in range(6)]
LEVEL = {"level": 6, "n_levels": 7}


def options(site: Served, **rest) -> dict:
    return {"transport": InProcess(site.anybody()), "sleep": lambda _: None, **rest}


def admin(site: Served, **rest) -> AdminClient:
    return AdminClient(site.settings.url, site.token(site.accounts["admin"].id), **options(site, **rest))


def rater(site: Served, **rest) -> RaterClient:
    return RaterClient(site.settings.url, site.token(site.accounts["annotator"].id), **options(site, **rest))


def collect(desk) -> int:
    def longer(_annotator, _prompt, texts, rng):
        return [0.3 * len(text.split()) + 0.5 * rng.standard_normal() for text in texts]

    def flat(delta, _side, _traits, cutpoints):
        upto = 1 / (1 + np.exp(delta[:, None] - cutpoints[None, :]))
        return np.diff(np.concatenate([np.zeros((len(delta), 1)), upto, np.ones((len(delta), 1))], axis=1))

    traits = RaterTraits(1.0, 0.2, 0.05)
    return collect_simulated(desk, RATERS, longer, lambda _: traits, cutpoints=(-0.5, 0.5), seed=3, level_probs=flat)


def test_votes_through_the_server_are_those_through_the_store_to_the_bit(tmp_path):
    direct = small_store(tmp_path / "direct.db", overlap=3)
    behind = small_store(tmp_path / "behind.db", overlap=3)
    site = Served(behind)
    for store in (direct, behind):
        store.add_annotators(RATERS)
    with admin(site) as desk:
        assert collect(direct) == collect(desk) == 30
    assert [record.id for record in behind.records()] == [record.id for record in direct.records()]
    assert [record.commitment for record in behind.records()] == [record.commitment for record in direct.records()]
    assert [record.late for record in behind.records()] == [record.late for record in direct.records()]
    assert behind.assignments() == direct.assignments()
    assert write_snapshot(behind, tmp_path / "b").judgements == write_snapshot(direct, tmp_path / "a").judgements
    with admin(site) as desk:
        assert collect(desk) == 30  # once more adds nothing
    assert behind.n_judgements() == 30


def test_records_come_back_as_they_are(tmp_path):
    site = Served(small_store(tmp_path / "k.db", overlap=2))
    rated = Question(kind="rating", attributes=(Choice("helpful", "Helpful", "Does it help?"),), anchors=("no", "yes"))
    task = site.store.tasks()[0]
    with admin(site) as desk:
        assert desk.prompts() == site.store.prompts()
        assert desk.responses() == site.store.responses()
        assert desk.tasks() == site.store.tasks()
        assert desk.tasks(batch="none") == []
        assert desk.add_questions([rated]) == 1
        again = Task(task.prompt_id, task.response_ids[:1], kind="rating", question=rated.id, batch="rated",
                     reserved_for=site.annotator())  # fmt: skip
        assert desk.add_tasks([again]) == 1
        assert desk.add_tasks([again]) == 0
        assert desk.stats()["n_judgements"] == 0
        assert list(desk.export_lines()) == []
    with rater(site) as client:
        while (found := client.next_task()) and found.question.kind != "rating":
            client.skip(found.lease, "not now")
    assert isinstance(found, Assigned)
    assert found.question == Question(
        kind="rating", attributes=rated.attributes, anchors=rated.anchors, ways_out=("cannot_judge", "none_fits")
    )
    assert found.prompt.turns == site.store.prompts()[task.prompt_id].turns
    assert found.prompt.topic is None  # what splits the prompts is not for raters


def test_a_rater_works_through_her_queue(tmp_path):
    site = web_app.served(tmp_path, n_tasks=3)
    with rater(site) as client:
        first = client.next_task()
        assert client.next_task().lease == first.lease
        client.save_draft(first.lease, {"reason": "so far"})
        assert client.draft(first.lease) == {"reason": "so far"}
        assert client.heartbeat(first.lease) >= first.expires_at
        receipt = client.submit(first.lease, LEVEL, reason="so", active_s=4.0)
        assert receipt.commitment == site.store.records()[0].commitment
        assert not receipt.late
        client.skip(client.next_task().lease, "hard")
        client.submit(client.next_task().lease, {"missing": "cannot judge"})
        assert client.next_task() is None
        assert [(past.value, past.reason) for past in client.history()] == [
            ({"missing": "cannot judge"}, None), (LEVEL, "so"),
        ]  # fmt: skip
        assert client.standing() == "working"


class Losing(InProcess):
    """A network that loses the replies of the first requests, after the server has dealt with them."""

    def __init__(self, client, n_lost: int, error=httpx.ReadTimeout) -> None:
        super().__init__(client)
        self.n_lost, self.error = n_lost, error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if self.n_requests <= self.n_lost:
            raise self.error("lost", request=request)
        return answer


@pytest.mark.parametrize("error", [httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError])
def test_a_lost_reply_is_asked_for_again_under_the_same_key(tmp_path, error):
    site = web_app.served(tmp_path)
    lease = rater(site).next_task().lease
    losing, waits = Losing(site.anybody(), 3, error), []
    client = rater(site, transport=losing, sleep=waits.append)
    client.submit(lease, LEVEL)
    assert losing.n_requests == 4
    assert waits == [0.2, 0.4, 0.8]
    assert site.store.n_judgements() == 1


def test_a_server_out_of_reach_is_one_clear_line(tmp_path):
    site = web_app.served(tmp_path)
    dead = Losing(site.anybody(), 99, httpx.ConnectError)
    with pytest.raises(StoreError, match=r"did not answer in 4 attempts.*ConnectError") as found:
        rater(site, transport=dead, n_tries=4).next_task()
    assert dead.n_requests == 4
    assert "\n" not in str(found.value)
    nowhere = RaterClient("http://127.0.0.1:9", "x", n_tries=1)
    with nowhere, pytest.raises(StoreError, match="did not answer in 1 attempts"):
        nowhere.next_task()


class Busy(httpx.BaseTransport):
    """A server that is busy, and says until when."""

    def __init__(self, status: int, n: int) -> None:
        self.status, self.n = status, n

    def handle_request(self, _: httpx.Request) -> httpx.Response:
        self.n -= 1
        if self.n >= 0:
            return httpx.Response(self.status, headers={"Retry-After": "7"}, json={})
        return httpx.Response(200, json={"state": "working"})


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_waited_for(status):
    waits: list[float] = []
    client = RaterClient("http://127.0.0.1:8000", "x", transport=Busy(status, 2), sleep=waits.append)
    assert client.standing() == "working"
    assert waits == [7.0, 7.0]


def test_refusals_are_errors_of_karat(tmp_path):
    site = web_app.served(tmp_path)
    client = rater(site)
    lease = client.next_task().lease
    with pytest.raises(InputError, match="Choose which response"):
        client.submit(lease, {"level": 3, "n_levels": 99})
    with pytest.raises(StoreError, match="no task of yours"):
        client.submit("lease:nothing", LEVEL)
    client.submit(lease, LEVEL, key="k")
    with pytest.raises(StoreError, match="another answer"):
        client.submit(lease, {"level": 0, "n_levels": 7}, key="k")
    with pytest.raises(StoreError, match="not signed in"):
        RaterClient(site.settings.url, "nonsense", **options(site)).next_task()
    with pytest.raises(StoreError, match="not open to raters"):
        AdminClient(site.settings.url, site.token(site.accounts["annotator"].id), **options(site)).stats()
    with pytest.raises(ConfigError, match="expected http"):
        Connection("ftp://x", "t")


def test_an_answer_that_is_not_karats_is_said_to_be_none():
    class Other(httpx.BaseTransport):
        def handle_request(self, _: httpx.Request) -> httpx.Response:
            return httpx.Response(404, text="<html>nginx</html>")

    with pytest.raises(StoreError, match="404, which is not karat's"):
        RaterClient("http://127.0.0.1:8000", "x", transport=Other()).next_task()


def test_signing_in(tmp_path):
    site = web_app.served(tmp_path)
    accounts.set_password(site.store, site.accounts["annotator"].id, web_app.PASSWORD, now=site.now)
    token = sign_in(site.settings.url, "annotator", web_app.PASSWORD, **options(site))
    assert RaterClient(site.settings.url, token, **options(site)).next_task() is not None
    with pytest.raises(StoreError, match="do not match"):
        sign_in(site.settings.url, "annotator", "something wrong", **options(site))


def test_what_was_exported_is_imported(tmp_path):
    old, new = Served(small_store(tmp_path / "old.db", overlap=3)), Served(web_app.open_store(tmp_path / "new.db"))
    collect(admin(old))
    lines = "".join(json.dumps(row) + "\n" for row in admin(old).export_lines()).encode()
    assert admin(new).import_lines(lines)["n_new"] == 30
    assert [record.id for record in new.store.records()] == [record.id for record in old.store.records()]

"""A role is changed by somebody, in writing, at once, and never so that nobody is in charge."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import web_app
from karat import cli
from karat.errors import InputError, StoreError
from karat.feedback.people import accounts
from karat.feedback.people.roles import COMMAND_LINE, change_role, lock, unlock
from karat.feedback.store import open_store
from karat.feedback.work.assignment import next_work


@pytest.fixture
def store(new_address):
    return open_store(new_address("k"))


def test_a_new_role_ends_sessions_and_links_and_is_written_down(store):
    boss = accounts.make_account(store, "admin", now=0.0)
    ann = accounts.make_account(store, "annotator", now=0.0)
    session = accounts.open_session(store, ann.id, now=1.0)
    link = accounts.invite(store, ann.id, now=1.0)
    changed = change_role(store, ann.id, "expert", by=boss.id, now=2.0)
    assert (changed.role, changed.annotator) == ("expert", ann.annotator)
    assert accounts.session_of(store, session, now=3.0) is None
    assert accounts.account_of_invite(store, link, now=3.0) is None
    [entry] = accounts.log_entries(store)
    assert (entry.account, entry.action, entry.subject, entry.detail, entry.at) == (
        boss.id, "role changed", ann.id, "annotator → expert", 2.0,
    )  # fmt: skip
    change_role(store, ann.id, "expert", by=boss.id, now=4.0)
    assert len(accounts.log_entries(store)) == 1


def test_who_judges_gets_a_pseudonym_and_who_judged_keeps_it(store):
    accounts.make_account(store, "admin", now=0.0)
    auditor = accounts.make_account(store, "auditor", now=0.0)
    judging = change_role(store, auditor.id, "annotator", by=COMMAND_LINE, now=1.0)
    assert judging.annotator in store.annotators()
    back = change_role(store, auditor.id, "auditor", by=COMMAND_LINE, now=2.0)
    assert (back.role, back.annotator) == ("auditor", judging.annotator)
    assert change_role(store, auditor.id, "expert", by=COMMAND_LINE, now=3.0).annotator == judging.annotator


def test_the_last_active_admin_stays_one(store):
    first, second = (accounts.make_account(store, "admin", now=0.0) for _ in range(2))
    lock(store, second.id, by=first.id, now=1.0)
    with pytest.raises(InputError, match="this is the last active admin; make another account an admin first"):
        change_role(store, first.id, "annotator", by=first.id, now=2.0)
    assert accounts.account(store, first.id).role == "admin"
    unlock(store, second.id, by=first.id, now=2.0)
    assert change_role(store, first.id, "annotator", by=first.id, now=3.0).role == "annotator"
    with pytest.raises(InputError, match="last active admin"):
        change_role(store, second.id, "auditor", by=second.id, now=4.0)


def test_two_admins_who_demote_each_other_at_once_leave_one(store):
    pair = [accounts.make_account(store, "admin", now=0.0) for _ in range(2)]

    def demote(number: int) -> bool:
        try:
            change_role(store, pair[number].id, "annotator", by=pair[1 - number].id, now=1.0)
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(demote, range(2))) == [False, True]
    assert sorted(one.role for one in accounts.accounts(store)) == ["admin", "annotator"]


def test_a_lock_is_written_down_once_and_the_last_active_admin_stays(store):
    first, second = (accounts.make_account(store, "admin", now=0.0) for _ in range(2))
    assert lock(store, second.id, by=first.id, now=1.0).state == "locked"
    lock(store, second.id, by=first.id, now=2.0)
    with pytest.raises(InputError, match="this is the last active admin; make another account an admin first"):
        lock(store, first.id, by=COMMAND_LINE, now=3.0)
    assert unlock(store, second.id, by=COMMAND_LINE, now=4.0).state == "active"
    unlock(store, second.id, by=COMMAND_LINE, now=5.0)
    with pytest.raises(StoreError, match="found none by that id"):
        lock(store, "account:nobody", by=COMMAND_LINE, now=6.0)
    assert [(one.account, one.action, one.subject, one.at) for one in reversed(accounts.log_entries(store))] == [
        (first.id, "account locked", second.id, 1.0),
        (COMMAND_LINE, "account unlocked", second.id, 4.0),
    ]


def test_what_is_not_a_role_or_an_account_is_refused(store):
    ann = accounts.make_account(store, "annotator", now=0.0)
    with pytest.raises(InputError, match="found 'root'; expected one of annotator, expert, auditor, admin"):
        change_role(store, ann.id, "root", by=COMMAND_LINE, now=1.0)
    with pytest.raises(StoreError, match="found none by that id"):
        change_role(store, "account:nobody", "expert", by=COMMAND_LINE, now=1.0)
    assert accounts.log_entries(store) == []


def test_a_task_in_hand_goes_back_to_the_queue(tmp_path):
    site = web_app.served(tmp_path, 1, overlap=1)
    assert next_work(site.store, site.annotator(), now=site.now).lease is not None
    other = accounts.make_account(site.store, "annotator", now=site.now)
    assert next_work(site.store, other.annotator, now=site.now).lease is None
    change_role(site.store, site.accounts["annotator"].id, "auditor", by=COMMAND_LINE, now=site.now)
    assert next_work(site.store, other.annotator, now=site.now + 1).lease is not None


def test_the_task_of_who_is_locked_goes_back_to_the_queue(tmp_path):
    site = web_app.served(tmp_path, 1, overlap=1)
    assert next_work(site.store, site.annotator(), now=site.now).lease is not None
    other = accounts.make_account(site.store, "annotator", now=site.now)
    lock(site.store, site.accounts["annotator"].id, by=COMMAND_LINE, now=site.now)
    assert next_work(site.store, other.annotator, now=site.now + 1).lease is not None


def test_the_page_changes_roles_and_says_why_it_does_not(tmp_path):
    site = web_app.served(tmp_path)
    admin, rater = site.browser("admin"), site.browser("annotator")
    ann, boss = site.accounts["annotator"].id, site.accounts["admin"].id
    assert "Change role" in admin.get("/admin/accounts").text
    assert admin.post(f"/admin/accounts/{ann}/role", {"role": "expert"}).status_code == 303
    assert rater.get("/work").status_code == 303  # her session has ended
    assert site.browser("annotator").get("/review").status_code == 200
    for who, role, said in ((boss, "annotator", "last active admin"), (ann, "root", "expected one of")):
        answer = admin.post(f"/admin/accounts/{who}/role", {"role": role})
        assert (answer.status_code, said in answer.text) == (422, True)
    assert admin.post("/admin/accounts/nobody/role", {"role": "expert"}).status_code == 404
    assert "annotator → expert" in admin.get("/admin/log").text


def test_the_command_changes_roles_and_says_it_in_one_line(tmp_path, capsys):
    address = str(tmp_path / "k.db")
    with open_store(address) as store:
        ann = accounts.make_account(store, "annotator", now=0.0)
        accounts.make_account(store, "admin", login="boss", now=0.0)
    assert cli.main(["people", "role", address, ann.annotator, "expert", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done == {"account": ann.id, "annotator": ann.annotator, "role": "expert", "before": "annotator"}
    for arguments, said in (
        (["boss", "auditor"], "last active admin"),
        (["nobody", "expert"], "nobody called 'nobody'"),
    ):
        assert cli.main(["people", "role", address, *arguments]) != 0
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    with open_store(address) as store:
        assert [entry.account for entry in accounts.log_entries(store)] == [COMMAND_LINE]


def test_what_commands_do_to_accounts_is_written_down(tmp_path, capsys):
    address = str(tmp_path / "k.db")

    def done(*arguments):
        assert cli.main(["people", arguments[0], address, *arguments[1:], "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    [boss] = done("add", "--role", "admin", "--login", "boss")["accounts"]
    ann, bob = done("add", "--n", "2")["accounts"]
    done("link", bob["annotator"])
    assert done("lock", ann["annotator"]) == {
        "account": ann["account"],
        "annotator": ann["annotator"],
        "state": "locked",
    }
    assert done("unlock", ann["annotator"])["state"] == "active"
    done("study", "pilot")
    done("study", "pilot", "--close")
    with open_store(address) as store:
        entries = accounts.log_entries(store)
    assert {one.account for one in entries} == {COMMAND_LINE}
    assert [(one.action, one.subject, one.detail) for one in reversed(entries)] == [
        ("account made", boss["account"], "admin"),
        ("account made", ann["account"], "annotator"),
        ("account made", bob["account"], "annotator"),
        ("link made", bob["account"], ""),
        ("account locked", ann["account"], ""),
        ("account unlocked", ann["account"], ""),
        ("study opened", "pilot", ""),
        ("study closed", "pilot", ""),
    ]
    for arguments, said in (
        (["lock", address, "boss"], "last active admin"),
        (["unlock", address, "nobody"], "nobody called 'nobody'"),
    ):
        assert cli.main(["people", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_a_link_for_a_locked_account_says_which_command_unlocks_it(tmp_path, capsys):
    address = str(tmp_path / "k.db")
    with open_store(address) as store:
        ann = accounts.make_account(store, "annotator", now=0.0)
        lock(store, ann.id, by=COMMAND_LINE, now=1.0)
    assert cli.main(["people", "link", address, ann.annotator]) == 2
    assert "karat people unlock" in capsys.readouterr().err


def test_the_command_issues_a_token_that_a_program_signs_in_with_and_writes_it_down(tmp_path, capsys):
    address = str(tmp_path / "k.db")
    with open_store(address) as store:
        boss = accounts.make_account(store, "admin", login="boss", now=0.0)
    assert cli.main(["people", "token", address, "boss", "--hours", "2", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["account"], done["role"], done["hours"]) == (boss.id, "admin", 2.0)
    with open_store(address) as store:
        [entry] = accounts.log_entries(store)
        assert (entry.account, entry.action, entry.subject) == (COMMAND_LINE, "token issued", boss.id)
        session = accounts.session_of(store, done["token"], now=entry.at + 7000.0)
        assert (session.kind, session.role) == ("api", "admin")
        assert accounts.session_of(store, done["token"], now=entry.at + 7201.0) is None
    assert cli.main(["people", "token", address, "nobody"]) == 2
    assert "nobody called 'nobody'" in capsys.readouterr().err

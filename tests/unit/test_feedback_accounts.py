"""Accounts: nobody comes in by default, tokens die when they should, and of secrets only hashes are stored."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import PasswordHasher, extract_parameters

from karat.errors import InputError, StoreError
from karat.feedback.keys import keyed_fraction, keyed_hash, secret_key
from karat.feedback.people import accounts as people
from karat.feedback.people.roles import COMMAND_LINE, lock, unlock
from karat.feedback.people.sessions import close_sessions, forget_attempts, origin_of, shared_origins
from karat.feedback.store import open_store
from karat.records import Annotator

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
DAY, HOUR = 86400.0, 3600.0


@pytest.fixture
def store(new_address):
    return open_store(new_address("k"))


def rater(store, **rest):
    return people.make_account(store, "annotator", now=0.0, **rest)


def test_a_new_store_has_no_account_and_no_key_of_another(tmp_path):
    first, second = open_store(tmp_path / "a.db"), open_store(tmp_path / "b.db")
    assert people.accounts(first) == []
    assert secret_key(first, "csrf") == secret_key(open_store(tmp_path / "a.db"), "csrf")
    assert len({secret_key(first, "csrf"), secret_key(first, "order"), secret_key(second, "csrf")}) == 3
    assert len(secret_key(first, "csrf")) == 32


def test_judging_roles_get_a_pseudonym_that_is_in_the_store(store):
    store.add_annotators([Annotator("ann from a file", "imported")])
    made = [rater(store), rater(store, annotator="ann from a file"), people.make_account(store, "admin", now=1.0)]
    assert made[0].annotator != made[1].annotator == "ann from a file"
    assert made[2].annotator is None
    assert set(store.annotators()) == {made[0].annotator, made[1].annotator}
    assert people.accounts(store) == sorted(made, key=lambda each: (each.created_at, each.id))
    assert people.account_by_annotator(store, "ann from a file") == made[1]


def test_logins_and_pseudonyms_are_taken_once(store):
    rater(store, login=" Ann@Example.org ", annotator="a")
    for taken, said in (
        ({"login": "ann@example.ORG"}, "login 'ann@example.ORG'"),
        ({"annotator": "a"}, "pseudonym 'a'"),
    ):
        with pytest.raises(StoreError, match=f"account: the {said} is taken; choose another"):
            rater(store, **taken)
    assert len(people.accounts(store)) == 1
    with pytest.raises(InputError, match="the role 'root'; expected one of annotator, expert, auditor, admin"):
        people.make_account(store, "root", now=0.0)
    with pytest.raises(InputError, match="which does not judge"):
        people.make_account(store, "auditor", now=0.0, annotator="a")
    with pytest.raises(InputError, match="without spaces"):
        rater(store, login="ann smith")


def test_an_invite_link_works_until_it_is_replaced_or_expires(store):
    ann = rater(store)
    old = people.invite(store, ann.id, now=0.0, days=14.0)
    assert people.account_of_invite(store, old, now=1.0) == ann
    assert people.account_of_invite(store, old, now=1.0) == ann  # looking at it does not consume it
    for days in (0.0, -3.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected more than 0"):
            people.invite(store, ann.id, now=1.5, days=days)
    assert people.account_of_invite(store, old, now=1.5) == ann  # a refusal kills no link
    new = people.invite(store, ann.id, now=2.0, days=14.0)
    assert people.account_of_invite(store, old, now=3.0) is None
    assert people.account_of_invite(store, new, now=14 * DAY + 1.9) == ann
    assert people.account_of_invite(store, new, now=14 * DAY + 2.0) is None
    last = people.invite(store, ann.id, now=5.0)
    people.end_invites(store, ann.id, now=6.0)
    assert people.account_of_invite(store, last, now=7.0) is None
    assert people.account_of_invite(store, "", now=7.0) is None
    with pytest.raises(StoreError, match="found none by that id"):
        people.invite(store, "account:none", now=0.0)


def test_a_password_opens_its_own_account_only(store):
    ann, bob = rater(store, login="ann"), rater(store, login="bob")
    people.set_password(store, ann.id, "correct horse", now=1.0, hasher=CHEAP)
    assert people.account_of_password(store, "ANN", "correct horse", hasher=CHEAP).id == ann.id
    for login, password in (("ann", "correct hors"), ("bob", "correct horse"), ("eve", "correct horse"), ("ann", "")):
        assert people.account_of_password(store, login, password, hasher=CHEAP) is None
    people.set_password(store, bob.id, "cafe\u0301 battery", now=1.0, hasher=CHEAP)  # composed on another keyboard
    assert people.account_of_password(store, "bob", "caf\u00e9 battery", hasher=CHEAP).id == bob.id


def test_a_wrong_login_costs_as_much_as_a_wrong_password(store, monkeypatch):
    ann = rater(store, login="ann")
    people.set_password(store, ann.id, "correct horse", now=1.0, hasher=CHEAP)
    nobody = rater(store, login="nobody")
    locked = rater(store, login="locked")
    people.set_password(store, locked.id, "correct horse", now=1.0, hasher=CHEAP)
    lock(store, locked.id, by=COMMAND_LINE, now=2.0)
    verified = []
    plain = PasswordHasher.verify

    def verify(hasher, stored, password):
        verified.append(extract_parameters(stored))
        return plain(hasher, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", verify)
    for login in ("ann", nobody.login, locked.login, "eve"):
        people.account_of_password(store, login, "battery staple", hasher=CHEAP)
    assert len(verified) == 4
    assert {(each.memory_cost, each.time_cost, each.parallelism) for each in verified} == {(8, 1, 1)}
    assert people.account_of_password(store, "locked", "correct horse", hasher=CHEAP) is None


def test_argon2id_has_the_strength_that_is_advised_and_old_hashes_are_renewed(store):
    found = extract_parameters(people.OWASP.hash("correct horse"))
    assert found.type.name == "ID"
    assert found.memory_cost >= 19 * 1024
    assert (found.time_cost, found.parallelism) >= (2, 1)
    ann = rater(store, login="ann")
    people.set_password(store, ann.id, "correct horse", now=1.0, hasher=CHEAP)
    stronger = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    assert people.account_of_password(store, "ann", "correct horse", hasher=stronger).id == ann.id
    with store.connection() as connection:
        stored = connection.exec_driver_sql("SELECT password FROM accounts WHERE login = 'ann'").scalar()
    assert extract_parameters(stored).memory_cost == 16
    assert people.account_of_password(store, "ann", "correct horse", hasher=stronger).id == ann.id


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("short", "found 5 characters; expected 10 to 1000"),
        ("x" * 1001, "found 1001 characters"),
        ("aaaaaaaaaaaa", "too easy to guess"),
        ("ann.the.rater", "too easy to guess"),
    ],
)
def test_weak_passwords_are_refused(tmp_path, password, message):
    store = open_store(tmp_path / "k.db")
    ann = rater(store, login="ann.the.rater")
    with pytest.raises(InputError, match=message):
        people.set_password(store, ann.id, password, now=1.0, hasher=CHEAP)
    with pytest.raises(InputError, match="has no login; choose one"):
        people.set_password(store, rater(store).id, "correct horse", now=1.0, hasher=CHEAP)
    with pytest.raises(StoreError, match=r"'ann\.the\.rater' is taken"):
        people.set_password(store, rater(store).id, "correct horse", now=1.0, login="ann.the.rater", hasher=CHEAP)


def test_a_session_ends_by_time_by_idleness_and_by_sign_out(store):
    ann = rater(store)
    token = people.open_session(store, ann.id, now=0.0, hours=12.0)
    session = people.session_of(store, token, now=3 * HOUR, idle_hours=4.0)
    assert (session.account, session.kind, session.expires_at) == (ann.id, "browser", 12 * HOUR)
    assert people.session_of(store, token, now=6.9 * HOUR, idle_hours=4.0) == session  # the last request was at 3 h
    assert people.session_of(store, token, now=10.8 * HOUR, idle_hours=4.0) == session
    assert people.session_of(store, token, now=12 * HOUR, idle_hours=4.0) is None
    idle = people.open_session(store, ann.id, now=0.0, hours=12.0)
    assert people.session_of(store, idle, now=4 * HOUR, idle_hours=4.0) is None
    api = people.open_session(store, ann.id, now=0.0, hours=12.0, kind="api")
    assert people.session_of(store, api, now=11 * HOUR, idle_hours=4.0).kind == "api"
    out = people.open_session(store, ann.id, now=0.0)
    people.close_session(store, out, now=1.0)
    assert people.session_of(store, out, now=2.0) is None
    assert people.session_of(store, "", now=0.0) is None


def test_every_sign_in_makes_a_new_token_and_ends_the_one_before(store):
    ann = rater(store)
    first = people.open_session(store, ann.id, now=0.0)
    second = people.open_session(store, ann.id, now=1.0, replaces=first)
    assert first != second
    assert people.session_of(store, first, now=2.0) is None
    csrf = people.session_of(store, second, now=2.0).csrf
    third = people.open_session(store, ann.id, now=3.0)
    assert people.session_of(store, third, now=4.0).csrf != csrf == people.session_of(store, second, now=4.0).csrf
    assert close_sessions(store, ann.id, now=5.0) == 2
    assert people.session_of(store, third, now=6.0) is None


def test_a_lock_and_a_new_password_end_every_session(store):
    ann = rater(store, login="ann")
    token, link = people.open_session(store, ann.id, now=0.0), people.invite(store, ann.id, now=0.0)
    people.set_password(store, ann.id, "correct horse", now=1.0, hasher=CHEAP)
    assert people.session_of(store, token, now=2.0) is None
    token = people.open_session(store, ann.id, now=2.0)
    lock(store, ann.id, by=COMMAND_LINE, now=3.0)
    assert people.session_of(store, token, now=4.0) is None
    assert people.account_of_invite(store, link, now=4.0) is None
    for refused in (people.invite, people.open_session):
        with pytest.raises(StoreError, match="locked"):
            refused(store, ann.id, now=4.0)
    unlock(store, ann.id, by=COMMAND_LINE, now=4.0)
    assert people.session_of(store, token, now=5.0) is None
    assert people.account_of_invite(store, link, now=5.0) is None
    assert people.session_of(store, people.open_session(store, ann.id, now=5.0), now=6.0) is not None


def test_no_secret_is_in_the_file(tmp_path):
    store = open_store(tmp_path / "k.db")
    ann = rater(store, login="ann")
    people.set_password(store, ann.id, "correct horse", now=0.0, hasher=CHEAP)
    secrets = [people.invite(store, ann.id, now=0.0), people.open_session(store, ann.id, now=0.0), "correct horse"]
    secrets.append(people.session_of(store, secrets[1], now=1.0).csrf)
    people.open_session(store, ann.id, now=0.0, origin_hash=origin_of(store, "192.0.2.7"))
    people.attempt(store, "login:192.0.2.7", now=0.0, window_s=1.0, most=1)
    dump = "\n".join(sqlite3.connect(tmp_path / "k.db").iterdump())
    assert not [secret for secret in [*secrets, "192.0.2.7"] if secret in dump]
    assert len(set(secrets)) == 4
    assert all(len(token) >= 43 for token in secrets[:2])  # 256 bits in base 64


def test_pseudonyms_that_share_an_address_are_found_even_after_they_left(store):
    here, there = origin_of(store, "192.0.2.7"), origin_of(store, "192.0.2.8")
    made = [rater(store, annotator=name) for name in ("a", "b", "c")]
    tokens = [people.open_session(store, each.id, now=0.0, origin_hash=here) for each in made[:2]]
    people.open_session(store, made[2].id, now=0.0, origin_hash=there)
    people.close_session(store, tokens[0], now=1.0)
    people.open_session(store, made[0].id, now=30 * DAY, origin_hash=there)  # long after the first had expired
    assert shared_origins(store) == sorted([(here, ("a", "b")), (there, ("a", "c"))])
    assert here != there
    assert "192.0" not in here


def test_attempts_are_counted_in_a_window(store):
    def tried(now):
        return people.attempt(store, "login:ann", now=now, window_s=60.0, most=3)

    assert [tried(now) for now in (0.0, 1.0, 2.0, 3.0, 59.9)] == [True, True, True, False, False]
    assert people.attempt(store, "login:bob", now=3.0, window_s=60.0, most=3)
    assert [tried(now) for now in (60.0, 61.0, 62.0, 63.0)] == [True, True, True, False]
    forget_attempts(store, "login:ann")
    assert tried(64.0)


def test_threads_count_attempts_together(store):
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda _: people.attempt(store, "k", now=0.0, window_s=9.0, most=5), range(16)))
    assert sum(allowed) == 5


def test_ids_of_another_platform_find_their_account(store):
    ann = rater(store, outside={"PROLIFIC_PID": "5f1", "STUDY_ID": "s"}, contact="ann@example.org")
    rater(store, outside={"PROLIFIC_PID": "5f2"})
    assert people.account_by_outside(store, "PROLIFIC_PID", "5f1") == ann
    assert people.account_by_outside(store, "PROLIFIC_PID", "5f3") is None
    assert ann.contact == "ann@example.org"


def test_what_was_done_is_written_down_newest_first(store):
    people.log(store, "account:a", "locked", "account:b", "shared her link", now=1.0)
    people.log(store, "account:a", "unlocked", "account:b", now=2.0)
    assert [(each.action, each.detail, each.at) for each in people.log_entries(store)] == [
        ("unlocked", "", 2.0), ("locked", "shared her link", 1.0),
    ]  # fmt: skip
    assert len(people.log_entries(store, 1)) == 1


def test_a_keyed_hash_keeps_its_parts_apart_and_depends_on_the_key():
    assert keyed_hash(b"k", "ab", "c") != keyed_hash(b"k", "a", "bc")
    assert keyed_hash(b"k", "ab") != keyed_hash(b"l", "ab")
    fractions = [keyed_fraction(b"k", i) for i in range(4000)]
    assert 0 <= min(fractions) < max(fractions) < 1
    # the mean of 4,000 uniform numbers has a standard deviation of 0.0046
    assert 0.48 < sum(fractions) / 4000 < 0.52

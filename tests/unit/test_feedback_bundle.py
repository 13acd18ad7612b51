"""The auditor's bundle: checked offline, without a word, without a way back to a person."""

import dataclasses
import json
from pathlib import Path

import pytest

from feedback_cases import small_store, tamper, vote
from karat.errors import InputError, LedgerError, StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema
from karat.feedback.record.bundle import (
    check_opened,
    compare_with_bundle,
    is_bundle,
    open_record,
    read_bundle,
    verify_bundle,
    write_bundle,
)
from karat.feedback.record.seals import seal, seals
from karat.feedback.store import Store
from karat.identity import content_id, file_hash
from karat.records import Annotator, Judgement


def audited(address) -> Store:
    """A store with two seals, a correction, an erasure, an answer in words, a document, and one vote not sealed."""
    store = small_store(address)
    store.add_annotators([Annotator("anna-by-name")])
    tasks = store.tasks()
    asked = dataclasses.replace(tasks[0], kind="critique", response_ids=tasks[0].response_ids[:1])
    store.add_tasks([asked])
    first = store.submit(vote(tasks[0], "anna-by-name", reason="secret reason"))
    store.submit(vote(tasks[0], "anna-by-name", key="again", level=0, supersedes=first.id))
    store.submit(
        Judgement(asked.id, "critique", asked.prompt_id, asked.response_ids, {"text": "secret answer"}, "r1", (), "v1",
                  "2026-01-01T00:00:00Z")
    )  # fmt: skip
    cannot = {"missing": "secret way out"}
    store.submit(dataclasses.replace(vote(tasks[1], "r1"), value=cannot))
    store.submit(dataclasses.replace(vote(tasks[2], "r1"), value={"missing": "none fits"}))
    seal(store, now=1.0)
    row = {"name": "guideline", "version": "v1", "hash": "document:1", "body": "secret guideline", "created_at": 1.0}
    with store.connection(write=True) as connection:
        connection.execute(people.documents.insert().values(**row))
    store.submit(vote(tasks[3], "r2", reason="to be erased"))
    store.erase_words([store.records()[5].id], reason="asked", by="admin", now=2.0)
    seal(store, now=3.0)
    store.submit(vote(tasks[4], "r2"))
    return store


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewrite(bundle: Path, name: str, change) -> None:
    """Change the lines of one file, and make every hash of the bundle fit again, as a forger would."""
    path = bundle / name
    path.write_text("".join(schema.json_text(line) + "\n" for line in change(lines(path))))
    content = json.loads((bundle / "bundle.json").read_text())
    content.pop("id")
    content["files"][name] = file_hash(path)
    (bundle / "bundle.json").write_text(json.dumps(content | {"id": content_id("bundle", content)}))


def test_a_bundle_verifies_offline_and_says_what_it_holds(new_address, tmp_path):
    store = audited(new_address("k"))
    made = write_bundle(store, tmp_path / "bundle", now=9.0)
    published = [one.line for one in seals(store)]
    store.close()
    assert is_bundle(tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle") == made
    assert (made.n_judgements, made.n_sealed, made.n_erased, made.n_raters) == (7, 6, 1, 3)
    assert made.seal == published[-1]
    assert verify_bundle(tmp_path / "bundle", published) == []


def test_no_word_and_no_name_is_in_it(tmp_path):
    store = audited(tmp_path / "k.db")
    write_bundle(store, tmp_path / "bundle", now=9.0)
    text = "".join(path.read_text() for path in (tmp_path / "bundle").iterdir())
    secrets = ["secret", "anna-by-name", "question 0", "word word", "guideline text"]
    secrets += [record.id for record in store.records()]
    with store.connection() as connection:
        secrets += [row.nonce for row in connection.execute(people.seals.select())]
    assert [secret for secret in secrets if secret in text] == []
    records = lines(tmp_path / "bundle" / "records.jsonl")
    assert [line["value"] for line in records[2:5]] == [{}, {"missing": "other"}, {"missing": "none fits"}]
    assert records[1]["supersedes"] == 1


def test_pseudonyms_of_two_bundles_cannot_be_joined(tmp_path):
    store = audited(tmp_path / "k.db")
    names = []
    for name in ("one", "two"):
        write_bundle(store, tmp_path / name, now=9.0)
        records = lines(tmp_path / name / "records.jsonl")
        names.append([line["rater"] for line in records] + [line["task"] for line in records])
        assert records[0]["rater"] == records[1]["rater"] != records[2]["rater"]
    assert not set(names[0]) & set(names[1])
    write_bundle(store, tmp_path / "three", now=9.0, key=b"k")
    write_bundle(store, tmp_path / "four", now=9.0, key=b"k")
    assert (tmp_path / "three" / "records.jsonl").read_bytes() == (tmp_path / "four" / "records.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "who", "what"),
    [
        ("records.jsonl", lambda rows: rows[:1] + rows[2:], "judgement 2", "it was removed"),
        ("records.jsonl", lambda rows: [*rows[:-1], rows[-1] | {"seq": 5}], "judgement 5", "it was added later"),
        ("records.jsonl", lambda rows: [rows[0] | {"late": True}, *rows[1:]], "judgement 1", "it was altered"),
        ("records.jsonl", lambda rows: [rows[0] | {"commitment": "commit:0"}, *rows[1:]], "judgement 1", "it was altered"),
        ("records.jsonl", lambda rows: [rows[0] | {"kind": "label"}, *rows[1:]], "bundle.json", "its counts are not"),
        ("documents.jsonl", lambda rows: [rows[0] | {"hash": "document:2"}], "document guideline v1", "it was altered"),
        ("documents.jsonl", lambda _: [], "document 1", "it was removed"),
        ("leaves.jsonl", lambda rows: rows[1:], "seal 1", "its leaves were altered"),
        ("seals.jsonl", lambda rows: rows[1:], "seal 1", "it was removed"),
        ("seals.jsonl", lambda rows: [rows[0] | {"sealed_at": 0.0}, rows[1]], "seal 1", "it was altered"),
        ("seals.jsonl", lambda rows: rows[:1], "seal 2", "the record was rewritten"),
        ("seals.jsonl", lambda _: [{"seq": 1}], "bundle", "not readable to the end"),
    ],
)  # fmt: skip
def test_whatever_is_changed_in_a_bundle_is_named(tmp_path, name, change, who, what):
    store = audited(tmp_path / "k.db")
    write_bundle(store, tmp_path / "bundle", now=9.0)
    rewrite(tmp_path / "bundle", name, change)
    problems = verify_bundle(tmp_path / "bundle")
    assert [problem for problem in problems if problem.judgement_id == who and what in problem.what], problems


def test_a_flipped_byte_is_named(tmp_path):
    store = audited(tmp_path / "k.db")
    write_bundle(store, tmp_path / "bundle", now=9.0)
    for path in sorted((tmp_path / "bundle").iterdir()):
        data = path.read_bytes()
        for place in (len(data) // 3, len(data) // 2):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            if path.name == "bundle.json":
                with pytest.raises(LedgerError, match=r"altered|not readable"):
                    verify_bundle(tmp_path / "bundle")
            else:
                assert path.name in [problem.judgement_id for problem in verify_bundle(tmp_path / "bundle")]
        path.write_bytes(data)


def test_a_store_rewritten_as_a_whole_differs_from_an_earlier_bundle(tmp_path):
    store = audited(tmp_path / "k.db")
    write_bundle(store, tmp_path / "bundle", now=9.0)
    assert compare_with_bundle(store, tmp_path / "bundle") == []
    store.submit(vote(store.tasks()[5], "r2"))
    assert compare_with_bundle(store, tmp_path / "bundle") == []  # what came later is no alteration
    records = store.records()
    forged = schema.judgement_rows(
        dataclasses.replace(records[4].judgement, value={"level": 0, "n_levels": 3}), salt="00" * 16, late=False
    ).judgement
    tamper(
        store,
        f"UPDATE judgements SET value = '{forged['value']}', commitment = '{forged['commitment']}', id = '{forged['id']}' WHERE seq = 5",
        f"UPDATE salts SET judgement_id = '{forged['id']}', salt = '{'00' * 16}' WHERE judgement_id = '{records[4].id}'",
        f"DELETE FROM salts WHERE judgement_id = '{records[6].id}'",
        "DELETE FROM judgements WHERE seq = 7",
        "DELETE FROM seals",
    )
    seal(store, now=3.0)
    assert store.verify() == []
    assert [(each.judgement_id, each.what) for each in compare_with_bundle(store, tmp_path / "bundle")] == [
        (forged["id"], "differs from the bundle: it was altered since"),
        (records[6].commitment, "number 7 of the bundle is not in the store: it was removed"),
    ]


def test_a_store_is_not_held_against_a_damaged_bundle(tmp_path):
    store = audited(tmp_path / "k.db")
    write_bundle(store, tmp_path / "bundle", now=9.0)
    records = tmp_path / "bundle" / "records.jsonl"
    whole = records.read_bytes()
    for damaged in (whole[:-9], whole.partition(b"\n")[2], b"[1]", b"[" * 5000):
        records.write_bytes(damaged)
        with pytest.raises(LedgerError, match=r"records\.jsonl: missing, or differs from its hash in bundle\.json"):
            compare_with_bundle(store, tmp_path / "bundle")
        assert "records.jsonl" in [one.judgement_id for one in verify_bundle(tmp_path / "bundle")]


def test_a_record_can_be_opened_on_request(tmp_path):
    store = audited(tmp_path / "k.db")
    write_bundle(store, tmp_path / "bundle", now=9.0)
    for seq in (1, 3, 4):
        opened = json.loads(json.dumps(open_record(store, seq)))
        assert check_opened(tmp_path / "bundle", opened)
        assert not check_opened(tmp_path / "bundle", opened | {"event": opened["event"] | {"created_at": "2027"}})
        assert not check_opened(tmp_path / "bundle", opened | {"salt": "00"})
    with pytest.raises(StoreError, match="judgement 6: was erased"):
        open_record(store, 6)
    with pytest.raises(StoreError, match="judgement 60: is not in the store"):
        open_record(store, 60)
    with pytest.raises(InputError, match="opened record: not readable"):
        check_opened(tmp_path / "bundle", {"seq": 1})


def test_a_record_that_was_rewritten_with_all_its_hashes_is_found_when_it_is_opened(tmp_path):
    store = audited(tmp_path / "k.db")
    bundle = tmp_path / "bundle"
    write_bundle(store, bundle, now=9.0)
    other = {"level": 0, "n_levels": 3}
    rewrite(bundle, "records.jsonl", lambda rows: [rows[0] | {"value": other}, *rows[1:]])
    assert verify_bundle(bundle) == []  # the seals fix commitments, not what is written beside them
    assert not check_opened(bundle, open_record(store, 1))
    assert check_opened(bundle, open_record(store, 3))


def test_what_is_no_bundle_is_refused(tmp_path):
    store = audited(tmp_path / "k.db")
    write_bundle(store, tmp_path / "bundle", now=9.0)
    with pytest.raises(StoreError, match="something is there already"):
        write_bundle(store, tmp_path / "bundle", now=9.0)
    assert not is_bundle(tmp_path)
    with pytest.raises(LedgerError, match="expected an auditor's bundle"):
        verify_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text('{"id": "x", "format": "other"}')
    with pytest.raises(LedgerError, match="found the format 'other'"):
        verify_bundle(tmp_path)

"""Imports: every format with its quirks, and every malformed file as one line that changes nothing."""

import gzip
import io
import json
import os
from pathlib import Path

import pytest

from karat import rowfiles
from karat.errors import InputError, LedgerError, StoreError
from karat.feedback import submission
from karat.feedback.exchange import importers
from karat.feedback.exchange.importers import (
    TEXT_FIELDS,
    VOTE_FIELDS,
    hh_conversation,
    import_hh,
    import_preferences,
    import_ukp,
    import_votes,
    plain_text,
)
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.snapshot import read_snapshot, write_snapshot
from karat.feedback.store import open_store
from karat.progress import LineDisplay
from karat.records import Annotator, Turn

DATA = os.environ.get("KARAT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="$KARAT_DATA is not set")


def lines(path: Path, *rows) -> Path:
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def talk(*turns: str) -> str:
    return "".join(f"\n\n{'Human' if i % 2 == 0 else 'Assistant'}: {turn}" for i, turn in enumerate(turns))


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "k.db") as opened:
        yield opened


HH = {"chosen": talk("hi", "hello", "how?", "so"), "rejected": talk("hi", "hello", "how?", "no idea")}
VOTE = {"prompt": "why?", "a": "because", "b": "no reason", "choice": "a", "annotator": "ann"}


@pytest.mark.parametrize("name", ["hh.jsonl", "hh.jsonl.gz"])
def test_hh_conversations(tmp_path, store, name):
    summary = import_hh(store, lines(tmp_path / name, HH))
    assert (summary.n_rows, summary.n_new, summary.n_prompts, summary.n_responses) == (1, 1, 1, 2)
    (judgement,) = store.judgements()
    assert (judgement.annotator, judgement.origin, judgement.shown_order) == (UNKNOWN_ANNOTATOR, "imported", ())
    winner = judgement.response_ids[0 if judgement.value["level"] == 1 else 1]
    assert store.responses()[winner].text == "so"
    (prompt,) = store.prompts().values()
    assert prompt.turns == (Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "how?"))


def test_the_winner_is_not_always_on_one_side(tmp_path, store):
    rows = [{"chosen": talk(f"q{i}", "yes"), "rejected": talk(f"q{i}", "no")} for i in range(40)]
    import_hh(store, lines(tmp_path / "hh.jsonl", *rows))
    assert 8 < sum(each.value["level"] for each in store.judgements()) < 32


def test_an_answer_under_two_headings_is_one_answer():
    prompt, answer = hh_conversation("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c")
    assert (prompt.turns, answer) == ((Turn("user", "a"),), "b\n\nc")


def test_hh_rows_that_do_not_compare_are_errors(tmp_path, store):
    other = {"chosen": talk("hi", "x"), "rejected": talk("ho", "y")}
    with pytest.raises(InputError, match=r"hh.jsonl:2: chosen and rejected answer different prompts \(turn 1: 'hi'"):
        import_hh(store, lines(tmp_path / "hh.jsonl", HH, other))
    for text in ("no heading", talk("only a person")):
        with pytest.raises(InputError, match=r"hh.jsonl:1: found a conversation that"):
            import_hh(store, lines(tmp_path / "hh.jsonl", {"chosen": text, "rejected": text}))
    assert store.prompts() == {}


def said(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("row", "turns", "texts"),
    [
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, [("user", "q")], ("x", "y")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, [("user", "The sky is ")], ("blue.", "black.")),
        (
            {"prompt": [said("user", "q")], "chosen": [said("assistant", "x")], "rejected": [said("assistant", "y")]},
            [("user", "q")],
            ("x", "y"),
        ),
        (
            {
                "chosen": [said("system", "s"), said("user", "q"), said("assistant", "x")],
                "rejected": [said("system", "s"), said("user", "q"), said("assistant", "y")],
            },
            [("system", "s"), ("user", "q")],
            ("x", "y"),
        ),
    ],
)  # fmt: skip
def test_trl_preferences(tmp_path, store, row, turns, texts):
    import_preferences(store, lines(tmp_path / "p.jsonl", row))
    (prompt,) = store.prompts().values()
    assert [(turn.role, turn.content) for turn in prompt.turns] == turns
    (judgement,) = store.judgements()
    winner = 0 if judgement.value["level"] == 1 else 1
    found = [store.responses()[judgement.response_ids[i]].text for i in (winner, 1 - winner)]
    assert tuple(found) == texts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": "x"}, "no field 'rejected' among 'chosen'"),
        ({"chosen": "x", "rejected": "y"}, "no common beginning"),
        ({"chosen": 3, "rejected": "y"}, "found 3 in the field 'chosen'; expected text or a list"),
        ({"prompt": "q", "chosen": "x", "rejected": []}, "text beside a list of messages"),
        ({"prompt": "q", "chosen": [said("user", "x")], "rejected": [said("assistant", "y")]}, r"messages \(user\)"),
        ({"chosen": [said("user", "x")], "rejected": [said("user", "y")]}, "no common first message"),
        ({"prompt": "q", "chosen": [{"text": "x"}], "rejected": []}, "expected an object with 'role' and 'content'"),
        (
            {"prompt": [said("bot", "q")], "chosen": [said("assistant", "x")], "rejected": [said("assistant", "y")]},
            "bot",
        ),
    ],
)
def test_wrong_trl_rows_are_named(tmp_path, store, row, expected):
    good = {"prompt": "q", "chosen": "x", "rejected": "y"}
    with pytest.raises(InputError, match=rf"p.jsonl:2: .*{expected}") as caught:
        import_preferences(store, lines(tmp_path / "p.jsonl", good, row))
    assert "\n" not in str(caught.value)
    assert (store.n_judgements(), store.prompts(), store.tasks()) == (0, {}, [])


def test_documented_votes_keep_rater_reason_time_and_sitting(tmp_path, store):
    times = {"session": "s1", "accepted_at": "2026-01-01T10:00:00", "submitted_at": "2026-01-01T12:01:00+02:00"}
    rows = [
        {**VOTE, **times, "choice": "tie", "reason": "equal", "shown_first": "b", "topic": "t", "group": "g"},
        {**VOTE, **times, "prompt": "other", "choice": "b"},
        {**VOTE, "annotator": "bob", "choice": None, "level": 4, "n_levels": 5, "active_s": 7},
        {**VOTE, "annotator": "eve", "choice": None, "missing": "cannot judge"},
    ]
    summary = import_votes(store, lines(tmp_path / "v.jsonl", *rows))
    assert (summary.n_new, summary.n_tasks, summary.n_annotators) == (4, 2, 3)
    tie, second, strong, missing = store.judgements()
    assert (tie.value, tie.reason, tie.shown_order) == ({"level": 1, "n_levels": 3}, "equal", (1, 0))
    assert (tie.created_at, tie.active_s, second.active_s) == ("2026-01-01T10:01:00Z", 30.0, 30.0)
    assert (second.value["level"], second.reason) == (0, None)
    assert (strong.value, strong.active_s) == ({"level": 4, "n_levels": 5}, 7.0)
    assert missing.value == {"missing": "cannot judge"}
    origin = store.provenance()[tie.id]
    assert (origin.file, origin.line, origin.session, origin.accepted_at) == ("v.jsonl", 1, "s1", "2026-01-01T10:00:00")
    assert {task.prompt_id: task.overlap for task in store.tasks()} == {tie.prompt_id: 3, second.prompt_id: 1}
    assert store.prompts()[tie.prompt_id].topic == "t"
    assert store.annotators()["ann"].group == "g"


def test_a_rater_in_two_groups_is_one_line_with_her_name_and_both(tmp_path, store):
    left, right, none = ({**VOTE, "choice": "a", **group} for group in ({"group": "left"}, {"group": "right"}, {}))
    said = "rater 'ann': found in two groups, 'left' and 'right'; expected one group for each rater"
    with pytest.raises(InputError, match=f"v.jsonl:2: {said}"):
        import_votes(store, lines(tmp_path / "v.jsonl", left, {**right, "prompt": "other"}))
    assert store.annotators() == {}
    # a row that does not say her group says nothing against it, in either order
    import_votes(store, lines(tmp_path / "first.jsonl", none, {**left, "prompt": "other"}))
    assert store.annotators()["ann"].group == "left"
    # another file, and the records that a program or the API adds, are held against what is stored
    with pytest.raises(InputError, match=said) as caught:
        import_votes(store, lines(tmp_path / "later.jsonl", {**right, "prompt": "third"}))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="rater 'bob': found in two groups, 'x' and 'y'"):
        store.add_annotators([Annotator("bob", group="x"), Annotator("bob", group="y")])
    with pytest.raises(InputError, match=said):
        store.add_annotators([Annotator("ann", group="right")])
    # whose group was not known is found in one later
    store.add_annotators([Annotator("eve")])
    assert store.add_annotators([Annotator("eve", group="left")]) == 0
    assert store.annotators()["eve"].group == "left"


def test_unnamed_raters_are_several_people_and_may_be_of_several_groups(tmp_path, store):
    unnamed = {name: value for name, value in VOTE.items() if name != "annotator"} | {"choice": "a"}
    rows = [{**unnamed, "group": "left"}, {**unnamed, "group": "right", "prompt": "other"}]
    assert import_votes(store, lines(tmp_path / "v.jsonl", *rows)).n_new == 2
    assert {who.group for who in store.annotators().values()} == {None}


def test_a_snapshot_with_a_rater_in_two_groups_is_refused(tmp_path, store):
    import_votes(store, lines(tmp_path / "v.jsonl", {**VOTE, "choice": "a", "group": "left"}))
    write_snapshot(store, tmp_path / "snap")
    path = tmp_path / "snap" / "annotators.jsonl"
    path.write_text(path.read_text() + path.read_text().replace("left", "right"))
    with pytest.raises(LedgerError, match=r"snap: .*rater 'ann': found in two groups, 'left' and 'right'"):
        read_snapshot(tmp_path / "snap")


def test_votes_by_reference(tmp_path, store):
    texts = lines(
        tmp_path / "t.jsonl",
        {"id": "1", "prompt": "why?", "text": "x"},
        {"id": "2", "prompt": "why?", "text": "y"},
        {"id": "3", "prompt": "when?", "text": "z"},
    )
    good = {"a": "1", "b": "2", "choice": "a"}
    assert import_votes(store, lines(tmp_path / "v.jsonl", good), texts).n_new == 1
    with pytest.raises(InputError, match=r"v.jsonl:2: found the id '9', which is not in the file of texts"):
        import_votes(store, lines(tmp_path / "v.jsonl", good, {**good, "b": "9"}), texts)
    with pytest.raises(InputError, match=r"v.jsonl:1: a and b answer different prompts"):
        import_votes(store, lines(tmp_path / "v.jsonl", {**good, "b": "3"}), texts)
    lines(texts, {"id": "1", "prompt": "why?", "text": "x"}, {"id": "1", "prompt": "why?", "text": "y"})
    with pytest.raises(InputError, match=r"t.jsonl:2: found the id '1' a second time"):
        import_votes(store, tmp_path / "v.jsonl", texts)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"choice": "c"}, "found \"?'c'\"? in the field 'choice'; expected 'a', 'b' or 'tie'"),
        ({"choice": None}, "found none of 'choice', 'level' and 'missing'"),
        ({"level": 1}, "found choice and level of"),
        ({"choice": None, "level": 1}, "no field 'n_levels'"),
        ({"choice": None, "level": 3, "n_levels": 3}, "expected 2 responses and level in 0"),
        ({"choice": None, "level": 3, "n_levels": 1000}, "found n_levels = 1000; expected 2 to 101"),
        ({"choice": None, "level": True, "n_levels": 3}, "found true in the field 'level'; expected a whole number"),
        ({"anotator": "x"}, "unknown field 'anotator'; did you mean 'annotator'"),
        ({"a": 3}, "found 3 in the field 'a'; expected text"),
        ({"b": None}, "found null in the field 'b'; give it a value"),
        ({"prompt": None}, "found null in the field 'prompt'; give it a value"),
        ({"submitted_at": "yesterday"}, "found 'yesterday' in the field 'submitted_at'"),
        ({"submitted_at": "2026-01-01", "accepted_at": "2026-01-02"}, "is before accepted_at"),
        ({"active_s": -1}, "Judgement.active_s: found -1"),
        ({"shown_first": "left"}, "expected 'a' or 'b'"),
        ({"topic": "other"}, "found the topic 'other'; an earlier row gave this prompt 't'"),
        ({"propensity": 2}, "expected a probability"),
        ({"annotator": " "}, "found an empty 'annotator'"),
        ({"both": "bad"}, "with the level of a tie"),
        ({"reason": "\ud800"}, r"found half of a surrogate pair \(.ud800\)"),
        ({"reason": "a\0b"}, "found the character NUL"),
    ],
)
def test_wrong_votes_are_named(tmp_path, store, change, expected):
    path = lines(tmp_path / "v.jsonl", {**VOTE, "topic": "t"}, {**VOTE, **change})
    with pytest.raises(InputError, match=rf"v.jsonl:2: .*{expected}") as caught:
        import_votes(store, path)
    assert "\n" not in str(caught.value)
    assert (store.n_judgements(), store.prompts(), store.tasks()) == (0, {}, [])


def test_a_submission_of_two_answers_is_named_with_its_line(tmp_path, store):
    path = lines(tmp_path / "v.jsonl", {**VOTE, "submission": "k"}, {**VOTE, "choice": "b", "submission": "k"})
    with pytest.raises(StoreError, match=r"^v.jsonl:2: submission 'k' was used for another judgement"):
        import_votes(store, path)


def test_a_text_about_escapes_is_text(tmp_path, store):
    import_votes(store, lines(tmp_path / "v.jsonl", {**VOTE, "choice": "a", "reason": r"it prints \u0000 and \ud800"}))
    assert store.judgements()[0].reason == r"it prints \u0000 and \ud800"


def test_malformed_files_are_one_line(tmp_path, store):
    whole = gzip.compress("".join(json.dumps({**VOTE, "annotator": f"r{i}"}) + "\n" for i in range(500)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.jsonl.gz").write_bytes(whole[:60] + bytes(20) + whole[80:])
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"a": 1}\n')
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n")
    (tmp_path / "cut.jsonl").write_bytes((json.dumps(VOTE) + "\n" + json.dumps(VOTE)[:20]).encode())
    (tmp_path / "list.jsonl").write_bytes(b"[1, 2]\n")
    (tmp_path / "nan.jsonl").write_bytes(b'{"active_s": NaN}\n')
    (tmp_path / "latin.jsonl").write_bytes('{"a": "\xe9"}\n'.encode("latin-1"))
    (tmp_path / "folder.jsonl").mkdir()
    for name, expected in (
        ("none.jsonl", "no such file; check the path"),
        ("empty.jsonl", "the file is empty"),
        ("empty.jsonl.gz", "found no rows"),
        ("blank.jsonl", "found no rows"),
        ("plain.jsonl.gz", "found no gzip data"),
        ("cut.jsonl.gz", r"cut.jsonl.gz:\d+: the gzip data ends early"),
        ("bad.jsonl.gz", r"bad.jsonl.gz:\d+: (the gzip data is damaged|found)"),
        ("cut.jsonl", r"cut.jsonl:2: found no complete JSON object \(cut off\)"),
        ("list.jsonl", r"list.jsonl:1: found \[1, 2\]; expected a JSON object"),
        ("nan.jsonl", "nan.jsonl:1: .*NaN is not JSON"),
        ("latin.jsonl", "latin.jsonl:.*not UTF-8"),
        ("folder.jsonl", "cannot be read"),
    ):
        with pytest.raises(InputError, match=expected) as caught:
            import_votes(store, tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (store.n_judgements(), store.prompts(), store.annotators()) == (0, {}, {})


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_on_the_way(tmp_path, store, monkeypatch):
    monkeypatch.setattr(rowfiles, "MAX_LINE_BYTES", 5_000)
    read, loads = [], json.loads
    monkeypatch.setattr(rowfiles.json, "loads", lambda line, **rest: read.append(1) or loads(line, **rest))
    for name, data in (("rows", b'{"a": 1}\n' * 50_000), ("blank", b"\n" * 200_000), ("line", b" " * 200_000)):
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(gzip.compress(data))
        with pytest.raises(InputError, match=r"times the file's own size|more than 5000 bytes") as caught:
            import_votes(store, path)
        assert "\n" not in str(caught.value)
    assert len(read) < 40_000
    votes = [{**VOTE, "annotator": f"r{i}"} for i in range(200)]  # what is only much alike is data
    path = tmp_path / "alike.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in votes).encode()))
    assert path.stat().st_size * 20 < 200 * len(json.dumps(VOTE))
    assert import_votes(store, path).n_new == 200


def test_reading_the_same_file_again_adds_nothing(tmp_path, store):
    path = lines(tmp_path / "v.jsonl", VOTE, {**VOTE, "annotator": "bob"})
    assert import_votes(store, path).n_new == 2
    assert import_votes(store, path).n_new == 0
    assert store.n_judgements() == 2


def test_votes_between_equal_texts_are_left_out_and_counted(tmp_path, store):
    summary = import_votes(store, lines(tmp_path / "v.jsonl", VOTE, {**VOTE, "b": VOTE["a"]}))
    assert (summary.n_rows, summary.n_new, summary.n_pairs_of_equal_texts) == (2, 1, 1)


def test_ukp_prompts_are_topic_and_stance_and_html_is_cleaned(tmp_path, store):
    arguments = lines(
        tmp_path / "arguments.jsonl.gz",
        {"id": "1", "topic": "tv-is-better-", "stance": "yes-tv", "text": "<p>Fun &amp; games</p>2 < 3<br/>end"},
        {"id": "2", "topic": "tv-is-better-", "stance": "yes-tv", "text": "no"},
    )
    votes = lines(tmp_path / "votes.jsonl.gz", {"pair": "1_2", "a": "1", "b": "2", "choice": "b", "annotator": "x"})
    import_ukp(store, votes, arguments)
    (prompt,) = store.prompts().values()
    assert (prompt.text, prompt.topic) == (
        "Topic: tv is better. Stance: yes tv. Give a convincing argument.",
        "tv-is-better-",
    )
    assert {each.text for each in store.responses().values()} == {"Fun & games\n2 < 3\nend", "no"}
    assert store.judgements()[0].value == {"level": 0, "n_levels": 3}


def test_plain_text_leaves_plain_text_alone():
    assert plain_text("a < b & c > d\n\nnext  line ") == "a < b & c > d\n\nnext line"


@pytest.mark.data
@needs_data
def test_the_real_harmless_comparisons_are_read_whole(tmp_path, store):
    summary = import_hh(store, Path(DATA) / "hh_harmless" / "comparisons.jsonl.gz")
    assert (summary.n_rows, summary.n_new) == (1600, 1600)
    snapshot = write_snapshot(store, tmp_path / "snap")
    longer = 0
    for vote in snapshot.votes:
        chosen, rejected = (vote.a, vote.b) if vote.level == 1 else (vote.b, vote.a)
        longer += len(snapshot.responses[chosen].text) > len(snapshot.responses[rejected].text)
    assert 0.435 <= longer / 1600 < 0.445  # the data's README says 0.44, rounded to two digits


def test_the_examples_of_the_documentation_are_read(tmp_path, store):
    text = (Path(__file__).parents[2] / "docs" / "votes-format.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```json\n")[1:]]
    (tmp_path / "votes.jsonl").write_text(blocks[0], encoding="utf-8")
    assert import_votes(store, tmp_path / "votes.jsonl").n_new == 2
    (tmp_path / "texts.jsonl").write_text(blocks[1] + blocks[1].replace('"7"', '"8"').replace("most", "least"))
    lines(tmp_path / "by_id.jsonl", {"a": "7", "b": "8", "choice": "tie"})
    assert import_votes(store, tmp_path / "by_id.jsonl", tmp_path / "texts.jsonl").n_new == 1


def test_every_field_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "votes-format.md").read_text(encoding="utf-8")
    assert [name for name in (*VOTE_FIELDS, *TEXT_FIELDS) if f"`{name}`" not in text and f'"{name}"' not in text] == []


def test_whoever_waits_for_an_import_sees_how_far_it_is(tmp_path, store, monkeypatch):
    for module in (importers, submission):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    said, file = io.StringIO(), lines(tmp_path / "v.jsonl", *({**VOTE, "a": f"because {i}"} for i in range(5)))
    store.progress = LineDisplay(said, interval_s=-1.0)
    assert import_votes(store, file).n_new == 5
    told = [line.split(" answers")[0] for line in said.getvalue().splitlines() if "done" not in line]
    assert told == [f"{stage}: {n}/5" for stage in ("reading", "storing") for n in (2, 4, 5)]
    said.truncate(0)
    with pytest.raises(InputError, match=r"v\.jsonl:1: "):
        import_votes(store, lines(file, {**VOTE, "choice": "both"}))
    assert said.getvalue() == ""

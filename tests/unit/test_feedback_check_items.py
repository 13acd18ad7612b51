"""Silent checks as people write them down: lines of JSON, the page, the command and the API put the same into use."""

import json

import pytest

import web_app
from feedback_cases import small_store, vote
from karat.cli import main
from karat.errors import InputError
from karat.feedback.client import AdminClient
from karat.feedback.documents import ProjectSettings, add_questions, document, put_settings
from karat.feedback.people.accounts import log_entries
from karat.feedback.people.roles import COMMAND_LINE
from karat.feedback.people.standing import standing_of
from karat.feedback.store import open_store
from karat.feedback.work import assignment, checks
from karat.feedback.work.check_items import expected_of, put_items, read_items
from karat.feedback.work.matching import is_right
from karat.questions import Choice, Question, plain_question
from karat.records import Task
from karat.rowfiles import rows_of_text

LINE = {"prompt": "Why is the sky blue?", "responses": ["Air scatters blue light.", "It mirrors the sea."]}
RATED = Question(kind="rating", low=1, high=5, attributes=(Choice("true"), Choice("clear")))


def rows(*lines):
    return rows_of_text("\n".join(json.dumps(line) for line in lines), "items")


def put_gold(store, lines, *, version):
    return checks.add_gold(store, put_items(store, lines, version=version), version=version)


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "k.db", n_prompts=4, n_tasks=8, overlap=2, n_raters=2)


@pytest.mark.parametrize(
    ("question", "said", "given", "right"),
    [
        (Question(), "a", {"level": 5, "n_levels": 7}, True),
        (Question(), "A ", {"level": 1, "n_levels": 7}, False),
        (Question(), "b", {"level": 0, "n_levels": 2}, True),
        (Question(), "tie", {"level": 3, "n_levels": 7, "both": "good"}, True),
        (Question(), "both bad", {"level": 3, "n_levels": 7, "both": "bad"}, True),
        (Question(), "both bad", {"level": 3, "n_levels": 7, "both": "good"}, False),
        (Question(), {"missing": "none fits"}, {"missing": "none fits"}, True),
        (Question(kind="best_of"), "c", {"best": 2}, True),
        (plain_question("label"), "bad", {"good": False, "flags": ["spam"]}, True),
        (plain_question("label"), "good", {"good": False}, False),
        (Question(kind="ranking"), [1, 2, 2], {"ranks": [1, 3, 3]}, True),
        (Question(kind="rating"), 6, {"score": 5, "low": 1, "high": 7}, True),
        (RATED, {"true": 1}, {"scores": {"true": 2, "clear": 5}, "low": 1, "high": 5}, True),
        (RATED, {"true": 1}, {"scores": {"true": 3, "clear": 5}, "low": 1, "high": 5}, False),
    ],
)
def test_a_right_answer_is_said_in_a_word(question, said, given, right):
    assert is_right(question.kind, expected_of(said, question), given) is right


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**LINE}, r"items:1: found no field 'expected'"),
        ({**LINE, "expected": "c"}, r'items:1: comparison: found the right answer "c"; expected a, b, tie'),
        ({**LINE, "expected": "a", "responces": []}, r"unknown field 'responces'; did you mean 'responses'"),
        ({**LINE, "expected": {"level": 9, "n_levels": 3}}, r"items:1: .*level in 0"),
        ({**LINE, "responses": ["x", "x"], "expected": "a"}, r"items:1: .*same response occurs twice"),
        ({**LINE, "responses": ["x"], "expected": "a"}, r"found the kind ''; expected one that can be compared"),
        ({**LINE, "kind": "critique", "expected": "a"}, r"found the kind 'critique'"),
        ({**LINE, "expected": "a", "question": {"n_levels": "many"}}, r"items:1: question: n_levels"),
        ({**LINE, "expected": "a", "question": {"levels": 7}}, r"question: found the unknown field 'levels'"),
        ({"task": "task:none", "expected": "a"}, r"items:1: found the task 'task:none', which is not in the store"),
        ({**LINE, "task": "task:none", "expected": "a"}, r"found 'prompt' beside a task"),
        ({**LINE, "expected": "a", "prompt": "x\u0000y"}, r"items:1: found the character NUL"),
        ({**LINE, "expected": "a", "prompt": "x\ud800y"}, r"items:1: found half of a surrogate pair"),
        ({**LINE, "kind": "rating", "responses": ["x"], "expected": 9}, r"items:1: rating: .*low ≤ score ≤ high"),
        (
            {**LINE, "kind": "rating", "responses": ["x"], "expected": 4, "within": -1},
            r"within: -1; expected a number of points",
        ),
    ],
)
def test_a_line_that_will_not_do_is_named_and_nothing_is_stored(store, line, message):
    before = (len(store.prompts()), len(store.tasks()))
    with pytest.raises(InputError, match=message):
        put_gold(store, rows(line), version="1")
    with pytest.raises(InputError):
        put_gold(store, rows({**LINE, "expected": "a"}, line), version="1")
    assert (len(store.prompts()), len(store.tasks())) == before


def test_a_check_is_asked_as_the_work_is(store):
    asked = Question(n_levels=5, principle="Prefer the true one.")
    add_questions(store, [asked])
    like = store.tasks()[0]
    store.add_tasks([Task(like.prompt_id, like.response_ids, question=asked.id, guideline="v7", batch="new")])
    ((task, _),) = read_items(store, rows({**LINE, "expected": "a"})).items
    assert (task.question, task.guideline) == (asked.id, "v7")
    put_gold(store, rows({**LINE, "expected": "a"}), version="1")
    assert checks.gold_items(store)[0].task.question == asked.id


def test_a_line_may_say_how_it_is_asked(store):
    own = {"kind": "rating", "low": 1, "high": 5, "attributes": [{"name": "true"}]}
    line = {
        "prompt": [{"role": "user", "content": "Why?"}],
        "responses": ["x"],
        "question": own,
        "expected": {"true": 5},
    }
    put_gold(store, rows({**line, "guideline": "v3", "within": 0.5}), version="1")
    found = checks.gold_items(store)[0]
    assert (found.task.kind, found.task.guideline) == ("rating", "v3")
    assert found.expected == {"scores": {"true": 5}, "low": 1, "high": 5, "within": 0.5}


def test_a_task_of_the_store_becomes_gold_and_stays_work(store):
    work = store.tasks()[0]
    put_gold(store, rows({"task": work.id, "expected": "b"}), version="1")
    put_settings(store, ProjectSettings(gold_rate=0.99, repeat_rate=0), now=0.0)
    offer = assignment.next_work(store, "r0", now=1.0)
    assert offer.lease.task.batch == "gold:1"
    assert offer.lease.task.response_ids == work.response_ids
    store.submit(vote(offer.lease.task, "r0", level=0, shown_order=offer.shown_order), now=1.0)
    found = checks.gold_items(store)[0]
    assert (found.n_answers, found.n_right) == (1, 1)
    assert work.id in {task.id for task in store.tasks(batch="main")}


def test_who_passed_and_who_did_not_is_counted(store):
    items = put_items(store, rows({**LINE, "expected": "a"}), version="1")
    checks.add_qualification(store, items, version="1", pass_mark=1.0, now=0.0, attempts=1)
    put_settings(store, ProjectSettings(gold_rate=0, repeat_rate=0), now=0.0)
    for who, level in (("r0", 2), ("r1", 0)):
        offer = assignment.next_work(store, who, now=1.0)
        store.submit(vote(offer.lease.task, who, level=level, shown_order=offer.shown_order), now=1.0)
        assignment.next_work(store, who, now=2.0)
    assert checks.attempts_at(store, "1") == (1, 1)
    assert [standing_of(store, who).state for who in ("r0", "r1")] == ["working", "unqualified"]


def test_the_page_takes_lines_and_tasks_and_retires(tmp_path):
    site = web_app.served(tmp_path)
    admin = site.browser("admin")
    line = json.dumps({**LINE, "expected": "a"})
    assert admin.post("/admin/checks/gold", {"gold_version": "1", "gold_items": line}).status_code == 303
    work = site.store.tasks()[0]
    assert "Use as a gold item" in admin.get("/admin/task", params={"id": work.id}).text
    answer = admin.post("/admin/checks/gold", {"gold_version": "2", "task": work.id, "expected": '"b"'})
    assert answer.status_code == 303
    found = checks.gold_items(site.store)
    assert [(one.version, dict(one.expected)) for one in found] == [
        ("1", {"level": 2, "n_levels": 3}),
        ("2", {"level": 0, "n_levels": 3}),
    ]
    said = admin.get("/admin/checks").text
    assert "Why is the sky blue?" in said
    assert "2 of 2 in use" in said
    assert admin.post("/admin/checks/retire", {"task": found[0].task.id}).headers["location"].endswith("n=1")
    assert "1 of 2 in use" in admin.get("/admin/checks").text


def test_what_was_typed_is_there_again_where_it_will_not_do(tmp_path):
    admin = web_app.served(tmp_path).browser("admin")
    typed = {"version": "pilot", "mark": "many", "attempts": "2", "items": '{"prompt": "Why &amp;?"}'}
    answer = admin.post("/admin/checks/qualification", typed)
    assert answer.status_code == 422
    assert "pass mark: found &#39;many&#39;" in answer.text
    for word in ("pilot", "many", "Why &amp;amp;?"):
        assert word in answer.text


def test_the_page_puts_a_qualification_before_work(tmp_path):
    site = web_app.served(tmp_path)
    lines = json.dumps({**LINE, "expected": "a"})
    fields = {"version": "1", "mark": "80", "attempts": "2", "items": lines, "requalify": "yes"}
    assert site.browser("admin").post("/admin/checks/qualification", fields).status_code == 303
    assert document(site.store, "qualification").body["pass_mark"] == 0.8
    assert "Why is the sky blue?" in site.browser("annotator").get("/work").text


def test_a_client_does_the_same(tmp_path):
    site = web_app.served(tmp_path)
    carried = web_app.InProcess(site.anybody())
    with AdminClient(site.settings.url, site.token(site.accounts["admin"].id), transport=carried) as client:
        assert client.add_gold([{**LINE, "expected": "a"}], version="1") == 1
        assert client.add_gold([{**LINE, "expected": "a"}], version="1") == 0
        gold = client.gold()
        assert [(one["version"], one["in_use"], one["n_answers"]) for one in gold] == [("1", True, 0)]
        assert client.retire_gold([gold[0]["task"], "task:unknown"]) == 1
        assert client.add_qualification([{**LINE, "expected": "b"}], version="1", pass_mark=0.5) == 1
        with pytest.raises(InputError, match="items:1: comparison: found the right answer"):
            client.add_gold([{**LINE, "expected": "z"}], version="1")


def test_the_commands_put_in_list_and_retire(tmp_path, capsys):
    small_store(tmp_path / "k.db", n_prompts=4, n_tasks=8, overlap=2, n_raters=2).close()
    address, file = str(tmp_path / "k.db"), tmp_path / "gold.jsonl"
    file.write_text(json.dumps({**LINE, "expected": "a"}) + "\n", encoding="utf-8")
    assert main(["checks", "gold", address, str(file), "--version", "pilot"]) == 0
    assert "gold pilot: 1 items; they come in 7% of turns" in capsys.readouterr().out
    assert main(["checks", "qualification", address, str(file), "--pass-mark", "0.5"]) == 0
    assert main(["checks", "list", address, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(one["version"], one["in_use"]) for one in told["gold"]] == [("pilot", True)]
    assert told["qualification"] == {"version": "1", "pass_mark": 0.5, "n_passed": 0, "n_failed": 0}
    assert main(["checks", "retire", address, "--version", "pilot"]) == 0
    with open_store(address) as store:
        assert checks.gold_items(store)[0].retired_at is not None
        assert [(one.account, one.action, one.subject, one.detail) for one in reversed(log_entries(store))] == [
            (COMMAND_LINE, "gold items added", "pilot", "1 items"),
            (COMMAND_LINE, "qualification made", "1", "1 items, pass mark 50 %"),
            (COMMAND_LINE, "gold items retired", "1 items", ""),
        ]
    assert main(["checks", "retire", address]) == 2
    assert "found neither tasks nor --version" in capsys.readouterr().err
    assert main(["checks", "gold", address, str(file), "--version", ""]) == 2
    assert "expected 1 to 40 characters" in capsys.readouterr().err

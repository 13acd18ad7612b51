"""Care: consent before work, exposure by the day, demographics that can be deleted, arms that stay."""

from collections import Counter

import pytest

from karat.errors import InputError, StoreError
from karat.feedback.documents import ProjectSettings, add_questions, put_document, put_settings
from karat.feedback.people import care
from karat.feedback.people.accounts import make_account
from karat.feedback.store import open_store
from karat.feedback.tasks import answer
from karat.feedback.work import assignment
from karat.questions import Question
from karat.records import Annotator, Response, Task, user_prompt

DAY = 86400.0
NOON = 20_000 * DAY + DAY / 2


@pytest.fixture
def store(new_address):
    return open_store(new_address("k"))


def with_tasks(store, *questions, n=1):
    prompts = [user_prompt(f"question {i}") for i in range(n)]
    store.add_prompts(prompts)
    responses = {prompt.id: [Response(prompt.id, text, "made") for text in "xy"] for prompt in prompts}
    store.add_responses([each for some in responses.values() for each in some])
    add_questions(store, questions)
    tasks = [
        Task(prompt.id, tuple(each.id for each in responses[prompt.id]), question=question.id, overlap=9)
        for prompt in prompts
        for question in questions
    ]
    store.add_tasks(tasks)
    return tasks


def judge(store, lease, now, created_at):
    given = {"level": 6, "n_levels": 7}
    key = f"{lease.annotator}/{lease.task.id}"
    made = answer(lease.task, given, annotator=lease.annotator, shown_order=(), created_at=created_at, submission=key)
    return store.submit(made, now=now)


def test_no_work_without_consent_where_there_is_a_consent_text(store):
    [task] = with_tasks(store, Question(topic="plain"))
    ann = make_account(store, "annotator", now=0.0)
    assert assignment.next_task(store, ann.annotator, now=1.0).task == task
    put_document(store, "consent", "1", {"text": "we keep what you write"}, now=2.0)
    assert not care.consent_of(store, ann.id).ok
    assert assignment.next_work(store, ann.annotator, now=3.0).reason == "consent"
    care.give_consent(store, ann.id, "1", now=4.0)
    assert care.consent_of(store, ann.id) == care.ConsentState("1", 4.0, None)
    assert assignment.next_task(store, ann.annotator, now=5.0) is not None
    put_document(store, "consent", "2", {"text": "and publish it"}, now=6.0)
    assert assignment.next_work(store, ann.annotator, now=7.0).reason == "consent"
    with pytest.raises(StoreError, match="no text of version '3'"):
        care.give_consent(store, ann.id, "3", now=8.0)


def test_a_withdrawal_stops_work_at_once_and_can_be_taken_back(store):
    with_tasks(store, Question(topic="plain"))
    ann = make_account(store, "annotator", now=0.0)
    put_document(store, "consent", "1", {"text": "we keep what you write"}, now=0.0)
    care.give_consent(store, ann.id, "1", now=1.0)
    lease = assignment.next_task(store, ann.annotator, now=2.0)
    care.withdraw_consent(store, ann.id, now=3.0)
    assert care.consent_of(store, ann.id) == care.ConsentState("1", 1.0, 3.0)
    assert assignment.next_work(store, ann.annotator, now=4.0).reason == "consent"
    assert assignment.lease_of(store, lease.id, ann.annotator, now=4.0).state == "expired"
    care.give_consent(store, ann.id, "1", now=5.0)
    assert assignment.next_task(store, ann.annotator, now=6.0) is not None


def test_raters_without_an_account_need_no_consent(store):
    with_tasks(store, Question(topic="plain"))
    store.add_annotators([Annotator("s", "simulated")])
    put_document(store, "consent", "1", {"text": "we keep what you write"}, now=0.0)
    assert assignment.next_task(store, "s", now=1.0) is not None


def test_the_exposure_cap_counts_disturbing_items_by_the_day(store):
    with_tasks(store, Question(content_warning="violence"), Question(topic="plain"), n=4)
    put_settings(store, ProjectSettings(exposure_cap_per_day=2, gold_rate=0, repeat_rate=0), now=0.0)
    store.add_annotators([Annotator("r")])
    today, seen = "2024-10-04", []
    assert NOON == 1728043200.0  # noon of that day
    while lease := assignment.next_task(store, "r", now=NOON):
        seen.append(bool(lease.task.question == Question(content_warning="violence").id))
        if len(seen) == 1:
            assignment.skip(store, lease.id, "r", reason="too much", now=NOON)
        else:
            judge(store, lease, NOON, f"{today}T12:00:00Z")
    assert (sum(seen), len(seen)) == (2, 6)  # one skipped, one judged; then only the plain ones
    assert care.exposure_today(store, "r", now=NOON) == 2
    assert assignment.next_work(store, "r", now=NOON).reason == "exposure"
    assert care.exposure_today(store, "r", now=NOON + DAY / 2 - 1) == 2
    assert care.exposure_today(store, "r", now=NOON + DAY / 2) == 0
    assert assignment.next_task(store, "r", now=NOON + DAY / 2) is not None
    store.add_annotators([Annotator("s")])
    assert care.exposure_today(store, "s", now=NOON) == 0


def test_demographics_are_optional_consented_and_deletable(store):
    store.add_annotators([Annotator("r"), Annotator("s")])
    assert care.demographics(store, "r") is None
    care.save_demographics(
        store, "r", {"age": "30 to 39", "languages": ["de", "en"], "gender": " "}, consent="1", now=1.0
    )
    said = care.demographics(store, "r")
    assert said.fields == {"age": "30 to 39", "languages": ["de", "en"]}
    assert (said.consent, said.saved_at) == ("1", 1.0)
    care.save_demographics(store, "r", {"age": "40 to 49"}, consent="2", now=2.0)
    care.save_demographics(store, "s", {"age": "20 to 29"}, consent="2", now=2.0)
    assert {who: each.fields["age"] for who, each in care.all_demographics(store).items()} == {
        "r": "40 to 49",
        "s": "20 to 29",
    }
    assert care.delete_demographics(store, "r")
    assert not care.delete_demographics(store, "r")
    assert list(care.all_demographics(store)) == ["s"]


@pytest.mark.parametrize(
    "fields", [{"age": 30}, {"age": "x" * 301}, {"a" * 65: "x"}, {"age": [1]}, {str(i): "x" for i in range(41)}]
)
def test_demographics_are_short_texts(tmp_path, fields):
    store = open_store(tmp_path / "k.db")
    store.add_annotators([Annotator("r")])
    with pytest.raises(InputError, match="demographics: found"):
        care.save_demographics(store, "r", fields, consent="1", now=1.0)
    with pytest.raises(InputError, match="found no consent"):
        care.save_demographics(store, "r", {"age": "30"}, consent="", now=1.0)


def test_an_arm_is_drawn_once_and_stays(store):
    store.add_annotators([Annotator(f"r{i}") for i in range(60)])
    assert care.arm_of(store, "r0", "pay", now=0.0) is None
    put_settings(store, ProjectSettings(experiments={"pay": {"low": 1.0, "high": 3.0}, "page": {"a": 1.0}}), now=0.0)
    drawn = {f"r{i}": care.arm_of(store, f"r{i}", "pay", now=1.0) for i in range(60)}
    assert Counter(drawn.values())["high"] > 30  # 45 expected, standard deviation 3.4
    put_settings(store, ProjectSettings(experiments={"pay": {"low": 9.0, "new": 1.0}}), now=2.0)
    assert {who: care.arm_of(store, who, "pay", now=3.0) for who in drawn} == drawn
    put_settings(store, ProjectSettings(experiments={"page": {"a": 1.0}}), now=4.0)
    assert care.arms_of(store, "r0", now=5.0) == {"page": "a"}
    assert care.arm_of(store, "r0", "pay", now=5.0) == drawn["r0"]


@pytest.mark.parametrize(
    ("fraction", "arm"), [(0.0, "a"), (0.2499, "a"), (0.25, "b"), (0.4999, "b"), (0.5, "c"), (0.9999, "c")]
)
def test_the_weights_of_arms_are_kept(fraction, arm):
    assert care.draw_arm({"c": 4.0, "a": 2.0, "b": 2.0}, fraction) == arm

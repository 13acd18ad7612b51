"""A run that asks people: it queues questions about its policy's samples, waits, and goes on when the answers are in."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest
from journeys import SANDBOX, inside, karat, manifests, write_config

from karat.feedback.documents import question_of
from karat.feedback.store import open_store
from karat.feedback.tasks import answer
from karat.pipeline import people
from karat.questions import Question
from karat.records import Annotator
from tiny_models import tiny_checkpoint

SECTIONS = {name: SANDBOX[name] for name in ("ppo", "watch", "evaluate")}


def longer_is_better(question: Question, texts: list[str]) -> dict:
    """What somebody answers to a question of any kind who likes long responses."""
    lengths = [len(text) for text in texts]
    match question.kind:
        case "comparison":
            a, b = lengths
            return {"level": 1 if a == b else 2 if a > b else 0, "n_levels": 3}
        case "ranking":
            return {"ranks": [1 + sum(other > own for other in lengths) for own in lengths]}
        case "best_of":
            return {"best": lengths.index(max(lengths))}
        case "rating":
            span = question.high - question.low
            return {"score": question.low + min(span, lengths[0] // 3), "low": question.low, "high": question.high}
        case "label":
            return {"good": lengths[0] > 8, "flags": []}
        case "critique":
            return {"text": f"too short: {lengths[0]}", "revision": texts[0] + " and more"}
        case "correction":
            return {"text": texts[0] + " and more of it"}
        case "demonstration":
            return {"text": "a long answer of my own"}
    raise AssertionError(question.kind)


def judge(path, stop: threading.Event, *, n_raters: int) -> None:
    """Answer whatever is queued, as raters at the page do: lease by lease, the longer response wins."""
    while not path.exists() and not stop.is_set():
        time.sleep(0.05)
    with open_store(path) as store:
        raters = [f"person-{i}" for i in range(n_raters)]
        store.add_annotators([Annotator(name) for name in raters])
        while not stop.is_set():
            idle = True
            for name in raters:
                lease = store.lease_next(name, now=time.time())
                if lease is None:
                    continue
                idle = False
                responses = store.responses()  # read after the lease: what a task asks about was stored before it
                texts = [responses[one].text for one in lease.task.response_ids]
                made = answer(
                    lease.task, longer_is_better(question_of(store, lease.task), texts), annotator=name,
                    shown_order=tuple(range(len(texts))), created_at="2026-01-01T00:00:00Z", submission=lease.id,
                    active_s=5.0,
                )  # fmt: skip
                store.submit(made, now=time.time())
            if idle:
                time.sleep(0.05)


@pytest.fixture
def raters(monkeypatch):
    """Starts raters at a store, and stops them at the end."""
    monkeypatch.setattr(people, "POLL_S", 0.05)
    stop, threads = threading.Event(), []

    def start(path, n_raters=3):
        threads.append(threading.Thread(target=judge, args=(path, stop), kwargs={"n_raters": n_raters}))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(timeout=30)


def test_a_run_with_ones_own_prompts_and_model_waits_for_people(tmp_path, raters):
    with inside(tmp_path):
        tiny_checkpoint("qwen3", tmp_path / "model")
        rows = [{"prompt": f"ab {i}"} | ({"response": "cd"} if i % 2 else {}) for i in range(60)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = {"prompts": "prompts.jsonl", "model": "model"}
        collect = {
            "n_prompts": 30,
            "n_tasks": 40,
            "overlap": 2,
            "people": 2,
            "max_new_tokens": 12,
            "principle": "Be kind.",
        }
        content = {"name": "own", "people": own, "collect": collect, "allow_ungated_reward": True, **SECTIONS}
        config = write_config(content, sft={"epochs": 1, "batch_size": 8, "learning_rate": 1e-3})
        raters(tmp_path / "runs" / "own" / "karat.db")
        done = karat("run", config)
        assert done.code == 0, done.err
        assert "waiting for people's judgements; let them judge with: karat serve" in done.err
        assert set(manifests(tmp_path / "runs" / "own")) == {"source", "sft", "collect", "reward", "ppo", "evaluate"}
        facts = json.loads(manifests(tmp_path / "runs" / "own")["collect"])["metrics"]
        assert (facts["n_votes"], facts["n_raters"], facts["origin"]) == (80, 3, "person")
        assert facts["by_origin"] == {"person": {"votes": 80, "raters": 3}}
        with open_store(tmp_path / "runs" / "own" / "karat.db") as store:
            assert {question_of(store, task).principle for task in store.tasks()} == {"Be kind."}
        assert json.loads(manifests(tmp_path / "runs" / "own")["sft"])["metrics"]["n_demonstrations"] > 10


def test_people_answer_every_kind_that_a_run_asks_for_and_its_reward_learns_from_all(tmp_path, raters):
    shares = {"comparison": 0.3} | dict.fromkeys(
        ("ranking", "best_of", "rating", "label", "critique", "correction", "demonstration"), 0.1
    )
    with inside(tmp_path):
        tiny_checkpoint("qwen3", tmp_path / "model")
        rows = [{"prompt": f"ab {i}"} for i in range(60)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        collect = {"n_prompts": 30, "n_tasks": 120, "overlap": 1, "people": 1, "max_new_tokens": 12, "kinds": shares}
        own = {"prompts": "prompts.jsonl", "model": "model"}
        content = {
            "name": "own",
            "people": own,
            "collect": collect,
            "allow_ungated_reward": True,
            "rounds": 2,
            **SECTIONS,
        }
        run = tmp_path / "runs" / "own"
        raters(run / "karat.db")
        done = karat("run", write_config(content, reward={"ratings": "ordinal"}))
        assert done.code == 0, done.err
        for stage in ("collect", "collect-2"):
            facts = json.loads(manifests(run)[stage])["metrics"]
            assert set(facts["n_answers"]) == set(shares) - {"comparison"}
            assert facts["n_votes"] > 0
            assert sum(facts["n_answers"].values()) + facts["n_votes"] >= 100
        contributions = json.loads(manifests(run)["reward-2"])["metrics"]["contributions"]
        # what a critique says is its revision, which is a correction
        assert {row["kind"] for row in contributions} >= set(shares) - {"critique"}
        assert all(row["information"] > 0 for row in contributions if row["n_judgements"])
        card = json.loads((run / "card.json").read_text())
        assert "demonstration" in json.dumps(card["feedback"]["n_judgements"])
        assert "other answers" in (run / "report.html").read_text()


def test_a_run_that_is_started_again_asks_the_same_questions_whatever_changed_meanwhile(tmp_path, monkeypatch):
    from karat.feedback.documents import put_document
    from karat.pipeline import river

    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(people, "wait_for_answers", interrupted)
    with inside(tmp_path):
        tiny_checkpoint("qwen3", tmp_path / "model")
        (tmp_path / "prompts.txt").write_text("".join(f"ab {i}\n" for i in range(60)))
        content = {"name": "own", "people": {"prompts": "prompts.txt", "model": "model"}}
        config = write_config(content, collect={"n_prompts": 20, "n_tasks": 10, "overlap": 1, "max_new_tokens": 8})
        assert karat("collect", config).code == 130
        with open_store(tmp_path / "runs" / "own" / "karat.db") as store:
            first = store.tasks()
            put_document(store, "guideline", "", {"text": "Be true."}, now=1.0)
        drawn = river.draw
        monkeypatch.setattr(river, "draw", lambda *given, **how: drawn(*given, **{**how, "seed": 99}))
        again = karat("collect", config)
        assert (again.code, "samples: drawn before, kept" in again.err) == (130, True)
        with open_store(tmp_path / "runs" / "own" / "karat.db") as store:
            assert store.tasks() == first


def test_people_and_simulated_raters_share_the_questions(tmp_path, raters):
    with inside(tmp_path):
        collect = {"n_prompts": 20, "n_tasks": 30, "max_new_tokens": 24, "overlap": 3, "people": 1}
        config = write_config(SANDBOX, name="mixed", collect=collect)
        raters(tmp_path / "runs" / "mixed" / "karat.db")
        done = karat("collect", config)
        assert done.code == 0, done.err
        with open_store(tmp_path / "runs" / "mixed" / "karat.db") as store:
            by_task: dict[str, list[str]] = {}
            for judgement in store.judgements():
                by_task.setdefault(judgement.task_id, []).append(judgement.origin)
        assert all(sorted(origins) == ["person", "simulated", "simulated"] for origins in by_task.values())
        assert len(by_task) == 30
        facts = json.loads(manifests(tmp_path / "runs" / "mixed")["collect"])["metrics"]["by_origin"]
        assert {who: n["votes"] for who, n in facts.items()} == {"person": 30, "simulated": 60}
        page = (tmp_path / "runs" / "mixed" / "report.html").read_text(encoding="utf-8")
        assert "from the judgements of people and of simulated raters in the sandbox" in page
        assert "90 (30 person, 60 simulated)" in page
        assert "of origin person 30 votes by" in karat("trace", "runs/mixed", "snapshots/votes").out


def test_waiting_ends_when_what_is_missing_was_pulled(tmp_path):
    from feedback_cases import small_store
    from karat.feedback.schema import tasks
    from karat.progress import open_progress

    with small_store(tmp_path / "k.db", n_tasks=4, overlap=2) as store, open_progress(quiet=True) as progress:
        looks = []

        def pull(_: float) -> None:
            looks.append(people.answers_of(store, "main"))
            store.write(lambda connection: connection.execute(tasks.update().values(state="pulled")))

        assert people.wait_for_answers(store, "main", progress=progress, sleep=pull) == 0
        assert looks == [(0, 8)]


def test_a_run_that_has_its_answers_does_not_say_that_it_waits(tmp_path):
    from feedback_cases import small_store, vote
    from karat.progress import open_progress

    with small_store(tmp_path / "k.db", n_tasks=2, overlap=1) as store, open_progress(quiet=True) as progress:
        notes: list[str] = []
        progress.note = notes.append
        store.submit_many([vote(task, "r0") for task in store.tasks()])
        place = SimpleNamespace(directory=tmp_path, progress=progress)
        assert people.collect_from_people(store, place, "main") == {"n_votes": 2}
        assert all(note.startswith("judgements: ") for note in notes)


def test_a_run_says_when_the_budget_is_spent_before_it_has_its_answers(tmp_path):
    from feedback_cases import small_store
    from karat.feedback.documents import Budget, Pay, ProjectSettings, put_settings
    from karat.feedback.work.requeue import pull
    from karat.progress import open_progress

    with small_store(tmp_path / "k.db", n_tasks=4, overlap=1) as store, open_progress(quiet=True) as progress:
        notes: list[str] = []
        progress.note = notes.append
        spent = ProjectSettings(budget=Budget(money=0.0), pay=Pay(0.1, "EUR"))
        given = [spent, spent, ProjectSettings(), ProjectSettings(budget=Budget(judgements=0))]

        def look(_: float) -> None:
            if given:
                put_settings(store, given.pop(0), now=100.0 - len(given))
            else:
                pull(store, [task.id for task in store.tasks()], reason="broken", by="admin", now=200.0)

        assert people.wait_for_answers(store, "main", progress=progress, sleep=look) == 0
        said = [note for note in notes if not note.startswith("judgements: ")]
        assert [note.split(" and ")[0] for note in said] == [
            "the budget of the project is spent",
            "work is handed out again",
            "an admin has stopped handing out work",
        ]
        assert "4 answers are missing" in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collect": {"overlap": 2, "people": 1}}, "leave `people` out"),
        ({"collect": {"overlap": 2, "people": 3}}, "expected 0 … 2, the overlap"),
        ({"sandbox": {}}, "found sandbox and people"),
        ({"pluralism": {"target": {"group": {"a": 0.4, "b": 0.6}}}}, "what they say on their page never enters a run"),
        (
            {"pluralism": {"jury": {"a": 0.4, "b": 0.6}}},
            "expected neither, and `karat quality STORE --population FILE`",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(tmp_path, changes, message):
    with inside(tmp_path):
        content = {"people": {"prompts": "p.jsonl", "model": "m"}, "collect": {"overlap": 1, "people": 1}}
        assert message in karat("run", write_config(content, **changes)).complaint


def test_too_few_prompts_are_one_line(tmp_path):
    with inside(tmp_path):
        tiny_checkpoint("qwen3", tmp_path / "model")
        (tmp_path / "p.txt").write_text("one\ntwo\n")
        content = {"people": {"prompts": "p.txt", "model": "model"}, "collect": {"overlap": 1, "people": 1}}
        assert (
            "expected enough for training, validation and evaluation" in karat("run", write_config(content)).complaint
        )

"""A store with one judgement of every kind, corrections, reasons, times and two raters, for the tests of formats."""

from __future__ import annotations

from pathlib import Path

from karat.feedback.documents import add_questions
from karat.feedback.store import Store, open_store
from karat.feedback.tasks import answer
from karat.questions import Choice, Question, plain_question
from karat.records import KINDS, Annotator, Prompt, Response, Task, Turn

TEXTS = ("First answer, in full.", "Second — «другой» ответ.", "Third:\n```\ncode\n```")
VALUES = {
    "comparison": (2, {"level": 5, "n_levels": 7}),
    "ranking": (3, {"ranks": [1, 2, 2]}),
    "best_of": (3, {"best": 1}),
    "rating": (1, {"scores": {"helpful": 4, "honest": 2}, "low": 1, "high": 5}),
    "label": (1, {"good": False, "flags": ["spam"], "escalate": True}),
    "correction": (1, {"text": "First answer, corrected."}),
    "demonstration": (0, {"text": "This is how."}),
    "critique": (1, {"text": "Too long.", "aspects": ["length"]}),
    "span_marks": (1, {"spans": [{"response": 0, "start": 0, "end": 5, "class": "wrong"}]}),
    "step_marks": (1, {"steps": [{"start": 0, "end": 6, "mark": 1}, {"start": 6, "end": 13, "mark": -1}]}),
}


def store_of_every_kind(path: str | Path) -> Store:
    """Every kind once by ann; the comparison by bob too, who then corrects it; one "cannot judge"."""
    store = open_store(path)
    prompt = Prompt((Turn("system", "Be brief."), Turn("user", "Why?")), topic="why")
    responses = [Response(prompt.id, text, "policy-7", i) for i, text in enumerate(TEXTS)]
    store.add_prompts([prompt])
    store.add_responses(responses)
    store.add_annotators([Annotator("ann", group="g1"), Annotator("bob")])
    rated = Question(kind="rating", high=5, attributes=(Choice("helpful"), Choice("honest")))
    asked = {kind: plain_question(kind) for kind in KINDS}
    asked |= {"rating": rated, "critique": Question(kind="critique", aspects=(Choice("length"),))}
    add_questions(store, asked.values())
    for kind in KINDS:
        n, value = VALUES[kind]
        task = Task(
            prompt.id,
            tuple(one.id for one in responses[:n]),
            kind=kind,
            overlap=2,
            guideline="v3",
            batch=f"{kind}-batch",
            question=asked[kind].id,
            propensity=0.25,
            strategy="random",
        )
        store.add_tasks([task])
        shown = {"page": "p1", "truncated": [False] * n, "arms": {"pay": "high"}}
        rest = {"created_at": "2026-03-04T05:06:07Z", "active_s": 12.5, "idle_s": 3.0, "shown": shown}
        order = tuple(reversed(range(n)))
        store.submit(
            answer(task, value, annotator="ann", shown_order=order, reason="because", submission=f"a-{kind}", **rest)
        )
        if kind == "comparison":
            first = store.submit(answer(task, value, annotator="bob", shown_order=(0, 1), submission="b-1", **rest))
            again = {"level": 3, "n_levels": 7, "both": "bad"}
            store.submit(
                answer(task, again, annotator="bob", shown_order=(0, 1), submission="b-2", supersedes=first.id, **rest)
            )
        if kind == "label":
            missing = {"missing": "cannot judge"}
            store.submit(answer(task, missing, annotator="bob", shown_order=(0,), submission="b-3", **rest))
    return store

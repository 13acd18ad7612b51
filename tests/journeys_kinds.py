"""Raters of the sandbox who answer questions of every kind by the likelihoods of karat's raters, into a store.

Knows the sandbox, the store and the pure likelihoods; nothing of how rewards are trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from karat.feedback.documents import add_questions
from karat.feedback.store import Store, open_store
from karat.feedback.tasks import answer
from karat.questions import Choice, Question, plain_question
from karat.records import KINDS, Annotator, Prompt, Response, Task, user_prompt

WORDS = ["good", "fine", "so", "red", "blue", "green", "many", "few"]


def taste(text: str) -> float:
    """What these raters like, in logits: the word `good`, and no more than five words."""
    words = text.split()
    return 1.6 * words.count("good") - 0.4 * max(0, len(words) - 5)


def store_of_sandbox(path: Path, *, n_prompts: int = 12, n_raters: int = 8, seed: int = 0) -> Store:
    """A store in which each of `n_raters` answered something of every kind about each prompt's four responses."""
    rng = np.random.default_rng(seed)
    store = open_store(path)
    prompts = [user_prompt(f"about {i}?", topic=f"t{i % 3}") for i in range(n_prompts)]
    responses: dict[str, list[Response]] = {}
    for prompt in prompts:
        own: dict[str, Response] = {}
        while len(own) < 4:
            text = " ".join(rng.choice(WORDS, size=int(rng.integers(2, 8))))
            own[text] = Response(prompt.id, text, "policy", len(own))
        responses[prompt.id] = list(own.values())
    asked = {kind: plain_question(kind) for kind in KINDS}
    asked["rating"] = Question(kind="rating", low=1, high=7, attributes=(Choice("helpful"), Choice("honest")))
    asked["label"] = Question(kind="label", flags=(Choice("harmful"),))
    asked["critique"] = Question(kind="critique", aspects=(Choice("wordy"),))
    overall = Question(kind="rating", low=1, high=7)
    store.add_prompts(prompts)
    store.add_responses([one for group in responses.values() for one in group])
    store.add_annotators([Annotator(f"r{i}", "simulated") for i in range(n_raters)])
    add_questions(store, [*asked.values(), overall])
    for prompt in prompts:
        for number in range(2):
            for question in (*asked.values(), overall):
                _ask(store, rng, prompt, responses[prompt.id], question, f"b{number}", f"r{rng.integers(n_raters)}")
    return store


def _ask(
    store: Store,
    rng: np.random.Generator,
    prompt: Prompt,
    given: list[Response],
    question: Question,
    batch: str,
    rater: str,
) -> None:
    n = {"comparison": 2, "ranking": 4, "best_of": 3, "demonstration": 0}.get(question.kind, 1)
    shown = [given[i] for i in rng.permutation(4)[:n]]
    value = _value(question, [one.text for one in shown], rng)
    ids = tuple(one.id for one in shown)
    task = Task(prompt.id, ids, question.kind, overlap=1, batch=batch, question=question.id)
    if task.id in {one.id for one in store.tasks(batch=batch)}:
        return
    store.add_tasks([task])
    order = tuple(int(i) for i in rng.permutation(n))
    store.submit(
        answer(
            task, value, annotator=rater, shown_order=order, created_at="2026-03-04T05:06:07Z",
            submission=task.id, origin="simulated", active_s=float(2 + 3 * n), shown={"question": question.id},
        )
    )  # fmt: skip


def _value(question: Question, texts: list[str], rng: np.random.Generator) -> dict:
    utility = np.array([taste(text) for text in texts])
    kind = question.kind
    if kind == "comparison":
        levels = np.linspace(-2, 2, question.n_levels - 1)
        return {
            "level": int(np.searchsorted(levels, utility[0] - utility[1] + rng.logistic())),
            "n_levels": question.n_levels,
        }
    if kind == "ranking":
        return {"ranks": [int(rank) + 1 for rank in np.argsort(np.argsort(-(utility + rng.gumbel(size=4))))]}
    if kind == "best_of":
        return {"best": int(np.argmax(utility + rng.gumbel(size=3)))}
    if kind in ("correction", "demonstration"):
        return {"text": "good good " + " ".join(rng.choice(WORDS[1:], size=2))}
    if kind == "span_marks":
        return {"spans": [{"response": 0, "start": 0, "end": len(texts[0].split()[0]), "class": "wrong"}]}
    if kind == "step_marks":
        return {"steps": [{"start": 0, "end": len(texts[0]), "mark": 1 if utility[0] > 0 else -1}]}
    noisy = float(utility[0] + rng.logistic())
    if kind == "label":
        return {"good": noisy > 0, "flags": ["harmful"] if "red" in texts[0].split() else []}
    if kind == "critique":
        return {"text": "hm", "aspects": ["wordy"] if len(texts[0].split()) > 5 or rng.random() < 0.2 else []}

    def rating(x: float) -> int:
        return int(np.clip(round(4 + x), 1, 7))

    if not question.attributes:
        return {"score": rating(noisy), "low": 1, "high": 7}
    return {"scores": {"helpful": rating(noisy), "honest": rating(rng.normal())}, "low": 1, "high": 7}

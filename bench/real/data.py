"""Real answers with what was said of them, and folds in which a question stands on one side only.

Three sets below KARAT_DATA (its README says where they come from): worked sums by four systems, right or wrong; answers
that people found true or not; answers in which people marked spans. Knows files; knows nothing about rewards.

Dimension letters: N answers.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from karat.reading import statements_of
from karat.records import Judgement, Response, user_prompt
from karat.reward.data import topic_folds
from karat.statements import Marked

SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
MARKUP = re.compile(r"<<[^<>]*>>")
"""Calculator annotations: nobody is shown them, and nothing here computes with them."""
TRUTH = re.compile(r"Q: (?P<question>.*)\nA: (?P<answer>.*)\nTrue:", re.DOTALL)
N_INNER = 4
"""Of the training questions one in so many chooses the settings, the others fit."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to questions, each right or wrong."""

    questions: tuple[str, ...]
    """The question of each answer."""
    texts: tuple[str, ...]
    """The answers."""
    right: np.ndarray
    """What was said of each, bool [N]."""
    system: np.ndarray
    """Who wrote it, [N]; "" = not known."""
    key: np.ndarray
    """The question without case and punctuation, [N]: what folds and intervals go by."""


@dataclass(frozen=True, eq=False)
class MarkedAnswers:
    """Answers in which spans were marked."""

    questions: tuple[str, ...]
    """The question of each answer."""
    passages: tuple[str, ...]
    """What the answer was to be taken from."""
    texts: tuple[str, ...]
    """The answers."""
    marks: tuple[Marked, ...]
    """The marks in each, as `karat reward` reads them from a store."""
    key: np.ndarray
    """As in `Answers`."""
    n_unusable: int
    """Spans that are empty or end outside the answer, left out."""


def rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The first rows of a gzipped JSONL file, or all."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(limit or 10**9), file, strict=False)]


def key_of(question: str) -> str:
    """Two questions that differ in case or punctuation only are one."""
    return " ".join(re.findall(r"\w+", question.casefold())) or question


def solutions(folder: Path, limit: int | None = None) -> Answers:
    """Four solutions of each sum, without the calculator annotations; `limit` counts questions."""
    found = [
        (row["question"], MARKUP.sub("", row[system]["solution"]), bool(row[system]["is_correct"]), system)
        for row in rows(folder / "gsm8k_solutions" / "solutions.jsonl.gz", limit)
        for system in SYSTEMS
    ]
    return _answers(found)


def truths(folder: Path, limit: int | None = None) -> Answers:
    """Answers and whether people found them true."""
    found = []
    for row in rows(folder / "truthfulqa_labels" / "labels.jsonl.gz", limit):
        match = TRUTH.fullmatch(row["prompt"])
        if match is None or row["completion"].strip() not in ("yes", "no"):
            raise SystemExit(f"truthfulqa_labels: found {row!r}; expected a prompt `Q: …, A: …, True:` and yes or no")
        found.append((match["question"], match["answer"], row["completion"].strip() == "yes", ""))
    return _answers(found)


def marked_answers(folder: Path, limit: int | None = None) -> MarkedAnswers:
    """Answers with the error spans that a person marked in them, as judgements of the kind span_marks."""
    questions, passages, texts, judgements, responses, n_unusable = [], [], [], [], {}, 0
    for row in rows(folder / "fine_grained_qa" / "feedback.jsonl.gz", limit):
        prompt, text = user_prompt(row["question"]), row["prediction 1"]
        response = Response(prompt.id, text, "fine_grained_qa")
        spans = [
            {"response": 0, "start": error["start"], "end": error["end"], "class": error["error type"]}
            for error in row["feedback"]["errors"]
            if 0 <= error["start"] < error["end"] <= len(text)
        ]
        n_unusable += len(row["feedback"]["errors"]) - len(spans)
        responses[response.id] = response
        judgements.append(
            Judgement(
                f"t{len(texts)}", "span_marks", prompt.id, (response.id,), {"spans": spans}, "people", (), "v1", ""
            )
        )
        questions.append(row["question"])
        passages.append("\n".join(" ".join(passage) for passage in row["passages"]))
        texts.append(text)
    said = statements_of([], judgements, responses)
    key = np.array([key_of(question) for question in questions])
    return MarkedAnswers(tuple(questions), tuple(passages), tuple(texts), said.marks, key, n_unusable)


def folds_of(key: Sequence[str] | np.ndarray, n_folds: int) -> np.ndarray:
    """The fold of each row [N]: questions are dealt by their hashes, before any answer is read."""
    place = {one: fold for fold, members in enumerate(topic_folds(list(key), n_folds)) for one in members}
    return np.array([place[one] for one in key])


def inner_split(key: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which training rows fit, and which choose between settings, as masks [N]; no question is in both.

    Args:
        train: True = of the training folds.
    """
    choose = np.zeros(len(key), dtype=bool)
    choose[np.flatnonzero(train)] = folds_of(key[train], N_INNER) == 0
    return train & ~choose, choose


def final_answer(solution: str) -> str:
    """What stands behind the last `A:`; the whole text where there is none."""
    return solution.rsplit("A:", 1)[-1].strip()


def _answers(found: Sequence[tuple[str, str, bool, str]]) -> Answers:
    questions, texts, right, system = zip(*found, strict=True)
    key = np.array([key_of(question) for question in questions])
    return Answers(questions, texts, np.array(right), np.array(system), key)

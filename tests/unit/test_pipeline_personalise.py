"""Answers of one person in a file: each question counts once, whichever response stands first."""

import json
from types import SimpleNamespace

import pytest

from karat.errors import InputError
from karat.pipeline.personalise import Pair, _Session
from karat.records import user_prompt


class Noting(_Session):
    """A session that notes what would be taken in."""

    def __init__(self, saved=()):
        users = SimpleNamespace(n_levels=3)
        super().__init__(None, SimpleNamespace(users=users), None, None, SimpleNamespace(asked=tuple(saved)))
        self.taken = []

    def add(self, pairs, _, levels):
        self.taken = [((pair.a, pair.b), level) for pair, level in zip(pairs, levels, strict=True)]

    def differences(self, pairs):
        return list(pairs)

    def save(self):
        self.taken = []


def answers(path, *rows):
    path.write_text("".join(json.dumps({"prompt": "?", "a": a, "b": b, "answer": said}) + "\n" for a, b, said in rows))
    return path


def test_the_same_question_counts_once_and_its_last_answer_holds(tmp_path):
    session = Noting()
    file = answers(
        tmp_path / "a.jsonl", ("x", "y", "a"), ("x", "y", "a"), ("u", "v", "tie"), ("y", "x", "a"), ("x", "z", "b")
    )
    assert session.read(file) == 2
    assert session.taken == [(("y", "x"), 2), (("u", "v"), 1), (("x", "z"), 0)]


def test_what_was_answered_before_does_not_count_again_when_it_is_swapped(tmp_path):
    session = Noting([Pair(user_prompt("?"), "x", "y").ids])
    assert session.read(answers(tmp_path / "a.jsonl", ("y", "x", "a"))) == 1
    assert session.taken == []
    other = Pair(user_prompt("another?"), "x", "y")
    assert other.question not in session.asked


def test_a_text_against_itself_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl.*2.*the same text as a and b"):
        Noting().read(answers(tmp_path / "a.jsonl", ("x", "y", "a"), ("x", "x", "tie")))

"""Answers of one person in a file: each question counts once, whichever response stands first."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from karat.errors import InputError
from karat.pipeline import personalise as asking
from karat.pipeline.for_person import _labels
from karat.pipeline.personalise import Asking, Pair, _Session, pairs_in, personalise
from karat.records import user_prompt
from karat.reward.person_file import SavedPerson
from karat.reward.personal import Limits, new_person
from karat.reward.user_em import fit_users
from karat.rowfiles import Row
from people_worlds import planted_people


class Noting(_Session):
    """A session that notes what would be taken in."""

    def __init__(self, saved=()):
        users = SimpleNamespace(n_levels=3)
        super().__init__(None, SimpleNamespace(users=users), None, None, SimpleNamespace(asked=tuple(saved)), None)
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


def test_neither_text_always_stands_first_and_a_seed_says_which(tmp_path):
    rows = [{"prompt": f"{i}?", "response": text} for i in range(40) for text in ("x", "y")]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = pairs_in(tmp_path / "r.jsonl", np.random.default_rng(0))
    assert 10 < sum((pair.a, pair.b) == ("y", "x") for pair in pairs) < 30
    assert pairs == pairs_in(tmp_path / "r.jsonl", np.random.default_rng(0))


def test_a_skipped_question_comes_again_when_no_other_is_left(tmp_path, monkeypatch):
    users = fit_users(planted_people(20, 12, d=3)[0], 1)
    model = SimpleNamespace(users=users)
    pairs = [Pair(user_prompt(f"{i}?"), "x", "y") for i in range(4)]
    psi = np.outer([3.0, 2.0, 1.0, 0.5], users.basis[0])
    kept = []

    def sitting(saved, said, n):
        session = _Session(None, model, tmp_path, tmp_path / "ada", saved, None)
        monkeypatch.setattr(session, "save", lambda: kept.append(session.saved))
        shown = []
        answered = session.ask(lambda pair, _: shown.append(pairs.index(pair)) or said, pairs, psi, n)
        return shown, answered, session.saved

    first, told, saved = sitting(SavedPerson(new_person(users), "ada", ()), None, 1)
    assert (told.n_skipped, told.n_left, told.n_votes) == (1, 4, 0)
    assert kept[-1].skipped == (pairs[first[0]].ids,)  # noted at once, before anything else is asked
    second, told, saved = sitting(saved, 2, 9)
    assert second[-1] == first[0]
    assert sorted(second) == [0, 1, 2, 3]
    assert saved.skipped == ()  # answered at last
    assert told.n_left == 0


def test_a_text_of_several_pairs_is_read_once(monkeypatch):
    read: list[str] = []
    numbers = {"x": 1.0, "y": 3.0, "z": 7.0}
    monkeypatch.setattr(
        asking,
        "features_of",
        lambda _, __, ___, texts: read.extend(texts) or np.array([[numbers[one]] for one in texts]),
    )
    session = _Session(None, SimpleNamespace(features=None), None, None, None, None)
    pairs = [Pair(user_prompt("?"), a, b) for a, b in (("x", "y"), ("x", "z"), ("z", "y"))]
    assert session.differences(pairs).tolist() == [[-2.0], [-6.0], [4.0]]
    assert sorted(read) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("responses", "simulate", "says"), [(None, "ann", "--simulate"), ("r.jsonl", None, "the responses r.jsonl")]
)
def test_with_answers_nobody_is_asked(tmp_path, responses, simulate, says):
    given = Asking(answers=tmp_path / "a.jsonl", simulate=simulate)
    with pytest.raises(InputError, match=f"found --answers and {says}; expected one of them"):
        personalise(tmp_path, responses and Path(responses), tmp_path / "ada", None, given)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"label": ["threat"]}, "r.jsonl:3: found the field 'label'; did you mean 'labels'"),
        ({"Labels": ["threat"]}, "r.jsonl:3: found the field 'Labels'; did you mean 'labels'"),
        ({"labels": ["thraet"]}, "r.jsonl:3: labels: found 'thraet', which is no principle; did you mean 'threat'"),
    ],
)
def test_what_is_nearly_a_label_is_named_with_its_row(row, says):
    place = Path("r.jsonl")
    with pytest.raises(InputError, match=says):
        _labels(Row(row, place, 3), Limits({}, ("threat",)))
    assert _labels(Row({"labels": ["rude"], "label": 1}, place, 3), Limits({}, ("threat",))) == ("rude",)
    assert (
        _labels(Row({"label": 1}, place, 3), Limits({})) == ()
    )  # without principles a field of that name is the user's own

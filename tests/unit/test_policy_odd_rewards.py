"""Odd rewards: what is usual passes through to the bit, what is not waits for a person, and a veto counts from then on."""

import json

import pytest

from karat.cli import main
from karat.errors import InputError, LedgerError
from karat.policy.odd_rewards import QUEUE, REPLACED, VETOES, OddRewards, read_queue, read_vetoes, usual_range, veto
from karat.records import user_prompt

PROMPT = user_prompt("say something")


def lengths(_, responses):
    return [float(len(response)) for response in responses]


def watched(tmp_path, low=2.0, high=5.0):
    return OddRewards(lengths, low, high, tmp_path)


def ask(odd, *texts):
    return odd([PROMPT] * len(texts), list(texts))


def test_the_two_farthest_of_a_call_are_queued_once(tmp_path):
    odd = watched(tmp_path)
    assert ask(odd, "aaa", "a" * 9, "a" * 7, "a" * 8, "a" * 5) == [3.0, 9.0, 7.0, 8.0, 5.0]
    assert [row.score for row in read_queue(tmp_path)] == [9.0, 8.0]
    ask(odd, "a" * 9)
    ask(watched(tmp_path), "a" * 9, "")  # another process: what waits still waits once
    assert [row.score for row in read_queue(tmp_path)] == [9.0, 8.0, 0.0]
    assert [row.prompt for row in read_queue(tmp_path)] == ["say something"] * 3


def test_a_vetoed_response_earns_the_bottom_and_it_is_logged(tmp_path):
    odd = watched(tmp_path)
    ask(odd, "a" * 9, "aaa")
    (row,) = read_queue(tmp_path)
    veto(tmp_path, row.id, by="ann", reason="praise", at="2026-01-01T00:00:00Z")
    assert ask(odd, "a" * 9, "aaa", "a" * 9) == [2.0, 3.0, 2.0]
    rows = [json.loads(line) for line in (tmp_path / REPLACED).read_text().splitlines()]
    assert rows == [{"id": row.id, "score": 9.0, "earns": 2.0}] * 2
    assert read_vetoes(tmp_path) == {row.id}


def test_a_line_cut_short_by_a_kill_costs_itself_only(tmp_path):
    ask(watched(tmp_path), "a" * 9)
    with (tmp_path / QUEUE).open("a") as file:
        file.write('{"id": "respon')
    ask(watched(tmp_path), "a" * 11)
    assert [row.score for row in read_queue(tmp_path)] == [9.0, 11.0]


def test_refuses_what_cannot_be(tmp_path):
    with pytest.raises(InputError, match="found no response response:x; expected an id of the queue"):
        veto(tmp_path, "response:x", by="ann", reason="r", at="")
    ask(watched(tmp_path), "a" * 9)
    with pytest.raises(InputError, match="found no name or no reason; expected both"):
        veto(tmp_path, read_queue(tmp_path)[0].id, by="ann", reason=" ", at="")
    with pytest.raises(InputError, match=r"found 1 scores and quantile 0.9; expected at least 2"):
        usual_range([1.0], 0.9)
    assert usual_range([float(i) for i in range(101)], 0.95) == pytest.approx((5.0, 95.0))


def test_the_command_lists_and_vetoes(tmp_path, capsys):
    ask(watched(tmp_path / "odd-rewards"), "a" * 9)
    (row,) = read_queue(tmp_path / "odd-rewards")
    assert main(["odd", str(tmp_path), "--veto", row.id, "--by", "ann", "--reason", "praise", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["odd"][0]["vetoed"]
    assert main(["odd", str(tmp_path)]) == 0
    assert "vetoed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        (QUEUE, b"[1]", "a row"), (QUEUE, b'{"id": "x"}', "a response in the queue"), (QUEUE, b'{"id": "\xff"}', "a row"),
        (QUEUE, b'{"id": "x", "prompt": "p", "response": "r", "score": "x", "low": 0, "high": 1}', "a response in the queue"),
        (VETOES, b"{}", "a veto"), (VETOES, b'{"id" "x"}', "a row"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_and_one_that_a_kill_cut_is_passed_over(tmp_path, name, line, words):
    odd = watched(tmp_path)
    ask(odd, "a" * 9)
    (row,) = read_queue(tmp_path)
    veto(tmp_path, row.id, by="ann", reason="praises", at="now")
    with (tmp_path / name).open("ab") as file:
        file.write(b'{"id": "resp\n')
    assert (read_queue(tmp_path), read_vetoes(tmp_path)) == ([row], {row.id})
    with (tmp_path / name).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(LedgerError, match=rf"{name}:3: not readable as {words}"):
        ask(watched(tmp_path), "a" * 9)

"""Prompts and demonstrations from files."""

import json

import pytest

from karat.errors import InputError
from karat.pipeline.data import write_prompts
from karat.prompts.sources import asked_prompts, read_demonstrations, read_prompts
from karat.records import Demonstration, Prompt, Turn, user_prompt

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
ANSWER = {"role": "assistant", "content": "because"}
CONVERSATION = Prompt((Turn("system", "be brief"), Turn("user", "why?")))


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_from_text_and_json_lines(tmp_path):
    (tmp_path / "p.txt").write_text("first\n\nsecond \nfirst\n")
    assert read_prompts(tmp_path / "p.txt") == [user_prompt("first"), user_prompt("second")]
    path = lines(tmp_path / "p.jsonl", {"prompt": "hi", "topic": "t"}, {"prompt": MESSAGES}, {"messages": MESSAGES})
    assert read_prompts(path) == [user_prompt("hi", topic="t"), CONVERSATION]


def test_every_entry_of_a_file_is_asked_as_it_is_written(tmp_path):
    (tmp_path / "p.txt").write_text("first\n\nsecond \nfirst\n")
    assert [asked for asked, _ in asked_prompts(tmp_path / "p.txt")] == ["first", "second", "first"]
    path = lines(tmp_path / "p.jsonl", {"prompt": "hi", "topic": "t"}, {"messages": MESSAGES}, {"prompt": "hi"})
    found = asked_prompts(path)
    assert [asked for asked, _ in found] == ["hi", MESSAGES, "hi"]
    assert [prompt for _, prompt in found] == [user_prompt("hi", topic="t"), CONVERSATION, user_prompt("hi")]


def test_the_prompts_that_a_run_writes_are_read(tmp_path):
    write_prompts(tmp_path / "p.jsonl", {"sft": [user_prompt("hi", topic="t")], "evaluation": [CONVERSATION]})
    assert read_prompts(tmp_path / "p.jsonl") == [user_prompt("hi", topic="t"), CONVERSATION]
    for wrong in ("hi", [["user", "hi", "there"]], [["robot", "hi"]], []):
        with pytest.raises(InputError, match=r"w.jsonl:1: .*found"):
            read_prompts(lines(tmp_path / "w.jsonl", {"turns": wrong}))


def test_demonstrations_in_every_shape(tmp_path):
    path = lines(
        tmp_path / "d.jsonl",
        {"prompt": "hi", "response": "hello"},
        {"prompt": "hi", "completion": "hello", "topic": "t"},
        {"prompt": MESSAGES, "completion": [ANSWER]},
        {"messages": [*MESSAGES, ANSWER]},
    )
    found = read_demonstrations(path)
    assert [each.text for each in found] == ["hello", "hello", "because", "because"]
    assert found[1].prompt.topic == "t"
    assert found[2:] == [Demonstration(CONVERSATION, "because", "d.jsonl")] * 2
    assert read_demonstrations(path, source="Ann")[0].source == "Ann"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "hi"}, "no field 'response'"),
        ({"response": "hello"}, "no field 'prompt'"),
        ({"prompt": 3, "response": "hello"}, "found 3 in the field 'prompt'"),
        ({"messages": MESSAGES}, "found a last message by the user"),
        ({"messages": [ANSWER]}, "found no turns"),
        ({"prompt": "hi", "completion": MESSAGES}, "found 2 messages in 'completion'"),
        ({"prompt": [{"role": "robot", "content": "x"}], "response": "y"}, "found 'robot'"),
        ({"prompt": [], "response": "y"}, "found an empty list of messages"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, expected):
    path = lines(tmp_path / "d.jsonl", {"prompt": "hi", "response": "hello"}, row)
    with pytest.raises(InputError, match=rf"d.jsonl:2: .*{expected}") as caught:
        read_demonstrations(path)
    assert "\n" not in str(caught.value)


def test_files_without_prompts_are_errors(tmp_path):
    (tmp_path / "p.txt").write_text("\n \n")
    with pytest.raises(InputError, match="found no text"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")

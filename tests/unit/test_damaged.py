"""Damaged files of karat's own are one line that names them; whole ones are read whatever line breaks texts hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from karat.damaged import damage_named, lines_of
from karat.errors import CheckpointError, ConfigError, LedgerError
from karat.pipeline.data import (
    SPLITS,
    read_demonstrations,
    read_prompts,
    read_texts,
    write_demonstrations,
    write_prompts,
)
from karat.policy.odd_rewards import QUEUE, read_queue
from karat.records import Demonstration, user_prompt

BREAKS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh\ri"
"""Every character at which Python ends a line."""


def test_texts_may_hold_any_line_break(tmp_path: Path):
    prompt = user_prompt(BREAKS)
    write_prompts(tmp_path / "p.jsonl", {"sft": [prompt], "policy": [user_prompt("b")]})
    assert read_prompts(tmp_path / "p.jsonl")["sft"] == [prompt]
    demonstration = Demonstration(prompt, BREAKS, "people")
    write_demonstrations(tmp_path / "d.jsonl", [demonstration])
    assert read_demonstrations(tmp_path / "d.jsonl") == [demonstration]
    row = {"id": "1", "prompt": BREAKS, "response": BREAKS, "score": 9.0, "low": -1.0, "high": 1.0}
    (tmp_path / QUEUE).write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [one.response for one in read_queue(tmp_path)] == [BREAKS]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{"split": "sft", "turns": [["user", "x"]], "topic": null}\n{"split": "s', "p.jsonl:2"),
        (b"[1]\n", "p.jsonl:1"),
        (b"\xff\xfe\n", "p.jsonl:1"),
        (b'{"turns": [["user", "x"]], "topic": null}\n', "p.jsonl"),
        (b'{"split": "' + SPLITS[0].encode() + b'", "turns": 3, "topic": null}\n', "p.jsonl"),
    ],
)
def test_a_damaged_file_of_rows_is_named(tmp_path: Path, content: bytes, where: str):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(LedgerError, match=f"{where}: not readable as .* expected it as karat wrote it") as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(caught.value)
    for read in (read_demonstrations, read_texts):
        with pytest.raises(LedgerError, match=r"p\.jsonl"):
            read(tmp_path / "p.jsonl")


def test_what_is_no_damage_passes(tmp_path: Path):
    class OutOfMemoryError(RuntimeError):
        pass

    for error in (ConfigError("said already"), OutOfMemoryError("the accelerator's"), OSError(28, "full")):
        with pytest.raises(type(error)), damage_named(tmp_path, "a card"):
            raise error
    said = pytest.raises(CheckpointError, match=r"not readable as a card \(KeyError: 'x'\)")
    with said, damage_named(tmp_path, "a card", CheckpointError):
        raise KeyError("x")


def test_an_error_of_whoever_reads_is_not_the_files(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text("{}\n")
    with pytest.raises(ZeroDivisionError):
        [1 / len(row) for row in lines_of(tmp_path / "p.jsonl")]

"""Where results shall go is looked at before the work, and what is not karat's own is never replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from journeys import karat, write_rows

SFT, REWARD, STORE = "runs/tiny/models/sft", "runs/tiny/models/reward", "runs/tiny/karat.db"
WORK = {
    "generate": ("generate", SFT, "rows.jsonl", "--max-new-tokens", "4"),
    "best-of-n": ("best-of-n", SFT, "rows.jsonl", "--score", REWARD, "--n", "2", "--max-new-tokens", "4"),
    "score": ("score", REWARD, "rows.jsonl"),
    "suite": ("score", REWARD, "suite.jsonl", "--suite", "rewardbench"),
}
PLACES = {
    "nowhere/out.jsonl": "no directory nowhere",
    "rows.jsonl/out.jsonl": "no directory rows.jsonl",
    "runs": "runs: found a directory; expected the path of a file",
    "pipe": "pipe: found a device or pipe; expected the path of a file",
    "": "found no name of a file",
}


def refused_at_once(words: str, *arguments: object) -> None:
    """One line, and nothing was begun: no line of progress stands before it."""
    outcome = karat(*arguments)
    assert words in outcome.complaint
    assert (outcome.code, outcome.err.count("\n"), outcome.out) == (2, 1, "")


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("command", WORK)
def test_a_file_that_cannot_appear_is_said_before_the_work(command: str, monkeypatch: pytest.MonkeyPatch):
    write_rows(Path("rows.jsonl"), [{"prompt": "say a", "response": "b"}])
    write_rows(Path("suite.jsonl"), [{"prompt": "p", "chosen": "a", "rejected": "b", "subset": "alpacaeval-easy"}])
    os.mkfifo("pipe")
    for name in ("load_lm", "load_scorer"):
        monkeypatch.setattr(f"karat.batches.{name}", lambda *_, **__: pytest.fail("a model was loaded"))
    for place, words in PLACES.items():
        refused_at_once(words, *WORK[command], "--out", place)
    assert not Path("pipe").is_file()


TRAIN = ("reward", "--model", SFT, "--store", STORE, "--set", "reward.n_epochs=1", "--out")


@pytest.mark.usefixtures("copied")
def test_a_reward_takes_the_place_of_nothing_but_a_reward():
    Path("notes").mkdir()
    Path("notes/thesis.txt").write_text("years of work")
    Path("link").symlink_to("runs")
    before = sorted(Path().iterdir())
    refused_at_once("notes: found a directory with 'thesis.txt' in it, which would be lost", *TRAIN, "notes")
    refused_at_once("which would be lost", *TRAIN, "runs/tiny")
    refused_at_once("link: found a link", *TRAIN, "link")
    refused_at_once("notes/thesis.txt: found a file", *TRAIN, "notes/thesis.txt")
    refused_at_once("thesis.txt is a file)", *TRAIN, "notes/thesis.txt/reward")
    refused_at_once("found no name of a directory", *TRAIN, "")
    refused_at_once("found no name of a directory", *TRAIN, ".")
    assert sorted(Path().iterdir()) == before
    assert Path("notes/thesis.txt").read_text() == "years of work"
    Path("empty").mkdir()
    assert karat(*TRAIN, "empty").code == 0
    assert karat(*TRAIN, "empty").code == 0, "an earlier reward of the same command is replaced"


@pytest.mark.usefixtures("copied")
def test_a_trunk_that_cannot_be_used_is_said_before_anything_is_written():
    Path("damaged").mkdir()
    Path("damaged/config.json").write_text("{")
    for model, words in {
        "nowhere": "nowhere: found no directory",
        "runs": "runs: found no config.json",
        "damaged": "damaged: found no weights",
    }.items():
        refused_at_once(words, "reward", "--model", model, "--store", STORE, "--out", "reward")
    assert not Path("reward-snapshot").exists()


@pytest.mark.usefixtures("copied")
def test_directories_that_cannot_appear():
    Path("file").write_text("")
    for command in (
        ("export", "runs/tiny", "--format", "datasets", "--out", "file/out"),
        ("bundle", "runs/tiny", "--out", "file/out"),
        ("backup", "runs/tiny", "--out", "file/out"),
        ("disclose", "runs/tiny", "1", "--out", "file/out"),
    ):
        refused_at_once("file/out: cannot be written", *command)
    os.mkfifo("pipe")
    refused_at_once("pipe: found a device or pipe", "export", "runs/tiny", "--format", "argilla", "--out", "pipe")
    refused_at_once("pipe: found a device or pipe", "export", "runs/tiny", "--format", "parquet", "--out", "pipe")
    assert not Path("pipe").is_file()
    refused_at_once("found no name of a file", "export", "runs/tiny", "--format", "argilla", "--out", "")

"""A finished run whose files were damaged: every command that reads them says in one line which one it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from journeys import karat, write_rows
from safetensors.torch import load_file, save_file

from karat.lm.checksums import SUMS

REWARD = Path("runs/tiny/models/reward")


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def garbage(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 3)


def put(**changes: object) -> Callable[[Path], None]:
    """Replace entries of a JSON object; None = without it."""

    def spoil(file: Path) -> None:
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return spoil


def text(content: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(content)  # type: ignore[return-value]


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        found = load_file(file)
        change(found)
        save_file(found, file)

    return spoil


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "weights half": ("model.safetensors", half),
    "weights garbage": ("model.safetensors", garbage),
    "weights empty": ("model.safetensors", text("")),
    "heads half": ("heads.safetensors", half),
    "a head missing": ("heads.safetensors", tensors(lambda found: found.pop("weight"))),
    "a head of another shape": ("heads.safetensors", tensors(lambda found: found.update(weight=torch.zeros(3)))),
    "heads of NaN": ("heads.safetensors", tensors(lambda found: found["weight"].fill_(float("nan")))),
    "weights of NaN": ("model.safetensors", tensors(lambda found: [one.fill_(float("nan")) for one in found.values()])),
    "card []": ("reward_card.json", text("[]")),
    "card null": ("reward_card.json", text("null")),
    "card without cutpoints": ("reward_card.json", put(cutpoints=None)),
    "card with heads x": ("reward_card.json", put(heads="x")),
    "card with length_removed x": ("reward_card.json", put(length_removed="x")),
    "card with trunk {}": ("reward_card.json", put(trunk={})),
    "config null": ("config.json", text("null")),
    "config with dtype x": ("config.json", put(dtype="x")),
    "config with attention_bias x": ("config.json", put(attention_bias="x")),
    "config with hidden_act x": ("config.json", put(hidden_act="x")),
}


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_reward(case: str):
    name, spoil = DAMAGES[case]
    write_rows(Path("rows.jsonl"), [{"prompt": "say a", "response": "b"}])
    (REWARD / SUMS).write_text(";\n")  # looked at no more than that of an older karat
    spoil(REWARD / name)
    outcome = karat("score", REWARD, "rows.jsonl", "--out", "scores.jsonl")
    assert str(REWARD) in outcome.complaint
    assert outcome.err.count("\n") == 1
    assert not Path("scores.jsonl").exists()


@pytest.mark.usefixtures("copied")
def test_a_flipped_bit_of_any_file_of_a_reward():
    write_rows(Path("rows.jsonl"), [{"prompt": "say a", "response": "b"}])
    names = [line.split()[0] for line in (REWARD / SUMS).read_text().splitlines()]
    assert {*names, SUMS} == {file.name for file in REWARD.iterdir()}
    for name in names:
        whole = (REWARD / name).read_bytes()
        flipped(REWARD / name)
        outcome = karat("score", REWARD, "rows.jsonl", "--out", "scores.jsonl")
        assert str(REWARD) in outcome.complaint, name
        assert not Path("scores.jsonl").exists()
        assert karat("verify", REWARD).code == 1
        (REWARD / name).write_bytes(whole)
    assert karat("score", REWARD, "rows.jsonl", "--out", "scores.jsonl").code == 0
    assert karat("verify", REWARD).code == 0


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("moment", [None, 3])
def test_a_manifest_of_no_moment_is_altered(moment: object):
    put(started_at=moment)(Path("runs/tiny/manifests/base.json"))
    outcome = karat("verify", "runs/tiny")
    assert outcome.code == 1
    assert "manifests/base.json" in outcome.out

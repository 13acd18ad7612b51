"""A tokenizer without its settings is refused where another one would stand in for it, and taken where nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tiny_models
from karat.errors import CheckpointError
from karat.lm.fresh import DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.load import load_lm
from karat.lm.tokenizer_files import SETTINGS, model_tokenizer
from karat.pipeline.votes import VotesConfig, trunk_path


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_another_way_to_split_texts_is_refused(tmp_path: Path):
    tokenizer = word_tokenizer([f"w{i}" for i in range(40)])
    shape = DecoderShape(hidden=16, mlp=16, layers=1, heads=2, kv_heads=1, head_size=8)
    path = write_fresh_decoder(tmp_path / "m", tokenizer, shape, seed=0)
    load_lm(path)
    (path / SETTINGS).unlink()
    with pytest.raises(CheckpointError, match=rf"m: found no {SETTINGS}, and Qwen\w+, .* expected {SETTINGS}: restore"):
        load_lm(path)


def test_where_nothing_is_lost_there_need_be_no_settings(tmp_path: Path):
    path = tiny_models.tiny_checkpoint("gpt2", tmp_path / "m")
    whole = load_lm(path)
    (path / SETTINGS).unlink()
    bare = load_lm(path)
    text = "Don't <b>ü</b>\n12"
    assert bare.tokenizer(text)["input_ids"] == whole.tokenizer(text)["input_ids"]
    assert bare.eos_ids == whole.eos_ids
    encoder = tmp_path / "encoder"
    given = trunk_path(VotesConfig(votes=tmp_path))
    shutil.copytree(given, encoder)
    (encoder / SETTINGS).unlink(missing_ok=True)
    assert model_tokenizer(encoder)(text)["input_ids"] == model_tokenizer(given)(text)["input_ids"]


def test_an_end_that_is_not_the_models_is_refused(tmp_path: Path):
    path = tiny_models.tiny_checkpoint("gpt2", tmp_path / "m")
    (path / SETTINGS).unlink()
    change(path / "generation_config.json", eos_token_id=5)
    with pytest.raises(
        CheckpointError, match=r"texts would end with '<\|endoftext\|>' \(id 0\), where the model ends with id 5"
    ):
        load_lm(path)


@pytest.mark.parametrize("name", ["eos_token", "bos_token"])
def test_a_token_that_the_model_does_not_know_is_refused(name: str, tmp_path: Path):
    path = tiny_models.tiny_checkpoint("llama", tmp_path / "m")
    change(path / SETTINGS, **{name: "<another>"})
    with pytest.raises(CheckpointError, match=rf"found {name} '<another>' with the id 258; expected one below 258"):
        load_lm(path)


def test_a_filler_that_the_model_does_not_know_is_not_taken(tmp_path: Path):
    path = tiny_models.tiny_checkpoint("llama", tmp_path / "m")
    change(path / SETTINGS, pad_token="<filler>")
    assert load_lm(path).pad_id < 258

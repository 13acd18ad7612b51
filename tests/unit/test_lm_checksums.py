"""Models say which of their files are not as karat wrote them, a flipped bit too; models from elsewhere are not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_models
from karat import cli
from karat.errors import CheckpointError
from karat.lm import checksums
from karat.lm.adapters import add_lora, load_adapter, save_adapter
from karat.lm.checksums import SUMS, altered_files, check_files, note_files, note_further
from karat.lm.load import load_lm, save_lm


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    return save_lm(load_lm(tiny_models.tiny_checkpoint("qwen3", root / "given")), root / "model", metadata={})


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    for file in written.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[-9] ^= 1
    file.write_bytes(whole)


def test_the_list_is_one_that_other_programs_check(model: Path):
    (model / SUMS).unlink()
    for file in model.iterdir():
        file.unlink()
    (model / "a").write_bytes(b"123456789")
    (model / "below").mkdir()
    note_files(model)
    assert (model / SUMS).read_text() == "a cbf43926\n"  # the check value of CRC-32/ISO-HDLC, RFC 1952's


@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(b""), Path.unlink])
def test_every_file_of_a_model_is_vouched_for(model: Path, damage, capsys: pytest.CaptureFixture[str]):
    names = {line.split()[0] for line in (model / SUMS).read_text().splitlines()}
    assert names == {file.name for file in model.iterdir()} - {SUMS}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    check_files(model)
    for name in sorted(names):
        whole = (model / name).read_bytes()
        damage(model / name)
        with pytest.raises(CheckpointError, match=rf"model/{name}: found .*; expected .* restore it") as caught:
            load_lm(model)
        assert "\n" not in str(caught.value)
        assert cli.main(["verify", str(model)]) == 1
        assert capsys.readouterr().out.startswith(f"{name}: found")
        (model / name).write_bytes(whole)
    assert cli.main(["verify", str(model)]) == 0


def test_a_list_that_says_nothing_is_damaged_and_one_of_a_note_alone_vouches_for_nothing(model: Path):
    for content in ("", "model.safetensors\n", "\udcff"):
        (model / SUMS).write_text(content, errors="surrogateescape")
        with pytest.raises(CheckpointError, match=rf"{SUMS}: not readable as checksums"):
            load_lm(model)
    (model / SUMS).write_text(";\n")
    flip(model / "model.safetensors")
    assert list(altered_files(model)) == []
    load_lm(model)


def test_a_list_that_is_gone_is_missed_where_the_weights_say_that_there_was_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (model / SUMS).unlink()
    says = f"{SUMS}: found no such file; expected the one that model.safetensors names in its header"
    with pytest.raises(CheckpointError, match=f"model/{says}: restore it, or .* `;`, which vouches for nothing"):
        load_lm(model)
    assert cli.main(["verify", str(model)]) == 1
    assert capsys.readouterr().out.startswith(says)
    # what another program saves of it carries config.json over, and no header
    (model / SUMS).write_text(";\n")
    lm = load_lm(model)
    lm.model.save_pretrained(tmp_path / "elsewhere")
    lm.tokenizer.save_pretrained(tmp_path / "elsewhere")
    assert "karat" in (tmp_path / "elsewhere" / "config.json").read_text()
    load_lm(tmp_path / "elsewhere")


def test_what_was_added_is_noted_without_reading_the_weights_again(model: Path, monkeypatch: pytest.MonkeyPatch):
    read = []
    monkeypatch.setattr(
        checksums, "_checksum", lambda file, own=checksums._checksum: read.append(file.name) or own(file)
    )
    (model / "card").write_text("one")
    note_further(model)
    (model / "card").write_text("two")
    note_further(model, "card")
    assert read == ["card", "card"]
    assert list(altered_files(model)) == []


def test_adapters_are_vouched_for(model: Path, tmp_path: Path):
    lm = load_lm(model)
    place = save_adapter(add_lora(lm.model, r=2, alpha=4), tmp_path / "adapters", metadata={})
    load_adapter(load_lm(model), place)
    flip(place / "adapter_model.safetensors")
    for load in (lambda: load_adapter(load_lm(model), place), lambda: load_lm(place)):
        with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: found other bytes"):
            load()

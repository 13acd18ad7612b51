"""What a stage records of a model that it reads: all of it, what adapters stand on, and what texts are measured by."""

import pytest

from karat.errors import LedgerError
from karat.ledger.artifacts import content_hash
from karat.lm.adapters import add_lora, save_adapter
from karat.lm.load import load_lm
from karat.pipeline.models import measuring_files, model_refs
from tiny_models import tiny_checkpoint


def test_adapters_are_read_with_the_model_that_they_stand_on(tmp_path):
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    tiny_checkpoint("qwen3", base)
    save_adapter(add_lora(load_lm(base).model, 2, 4.0), adapters, metadata={})
    (whole,) = model_refs(tmp_path, base, "reward_model")
    assert (whole.name, whole.hash) == ("reward_model", content_hash(base))
    below, above = model_refs(tmp_path, adapters, "reward_model")
    assert (below.name, below.hash) == ("adapted", content_hash(base))
    assert (above.name, above.hash) == ("reward_model", content_hash(adapters))
    names = {one.relative_to(tmp_path).as_posix() for one in measuring_files(adapters)}
    assert {"base/tokenizer.json", "base/config.json", "adapters/adapter_config.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)


def test_a_model_that_is_not_there_is_said_once_it_is_read(tmp_path):
    assert measuring_files(tmp_path / "model") == ()
    with pytest.raises(LedgerError, match="nothing is there"):
        model_refs(tmp_path, tmp_path / "model", "base")

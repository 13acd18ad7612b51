"""Adapters: the reference policy is the adapted one with its adapters off, and merging changes no logit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny_models
from karat.errors import CheckpointError, InputError
from karat.lm.adapter_files import peft_at_peace
from karat.lm.adapters import add_lora, load_adapter, merged, reference_mode, save_adapter
from karat.lm.checksums import SUMS
from karat.lm.headers import read_header_metadata
from karat.lm.load import LoadedLM, load_lm, save_lm
from karat.lm.logprobs import response_logprobs
from karat.lm.trees import Tree, pack_trees

BATCH = pack_trees([Tree((5, 6, 7), ((8, 9), (10,)))], token_budget=10)[0]


def adapted(path: Path, *, moved: bool = True) -> LoadedLM:
    lm = load_lm(path)
    model = add_lora(lm.model, 2, 4.0, seed=1)
    if moved:
        generator = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return LoadedLM(model, lm.tokenizer, lm.eos_ids, lm.pad_id, lm.context_length, lm.path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_models.tiny_checkpoint(kind, root / kind) for kind in ("gpt2", "qwen3")}


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_the_reference_is_the_model_before_its_adapters(checkpoints: dict[str, Path], kind: tiny_models.Kind) -> None:
    alone = response_logprobs(load_lm(checkpoints[kind]).model, BATCH).logprobs
    fresh = adapted(checkpoints[kind], moved=False).model
    original = response_logprobs(fresh, BATCH).logprobs
    assert (
        float((original - alone).detach().abs().max()) < 1e-5
    )  # blocks without adapters may be fused: other roundings
    with reference_mode(fresh), torch.no_grad():
        assert torch.equal(response_logprobs(fresh, BATCH).logprobs, original)  # KL to the reference is 0 at the start
    model = adapted(checkpoints[kind]).model
    found = response_logprobs(model, BATCH).logprobs
    assert float((found - original).detach().abs().max()) > 1e-3
    with reference_mode(model), torch.no_grad():
        assert torch.equal(response_logprobs(model, BATCH).logprobs, original)
    assert torch.equal(response_logprobs(model, BATCH).logprobs, found)


def test_only_adapters_get_gradients_and_the_reference_block_leaves_them_on(checkpoints: dict[str, Path]) -> None:
    model = adapted(checkpoints["qwen3"]).model
    with reference_mode(model):
        pass
    response_logprobs(model, BATCH).logprobs.sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)


def test_the_same_seed_gives_the_same_adapters(checkpoints: dict[str, Path]) -> None:
    state = torch.random.get_rng_state()
    first, second = (adapted(checkpoints["qwen3"], moved=False).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_merged_weights_save_as_a_plain_model_with_the_same_logits(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    lm = adapted(checkpoints["qwen3"])
    with pytest.raises(InputError, match="save_lm: found a model with adapters"):
        save_lm(lm, tmp_path / "m", metadata={})
    before = response_logprobs(lm.model, BATCH).logprobs
    path = save_lm(merged(lm), tmp_path / "m", metadata={"run_id": "r"})
    torch.testing.assert_close(response_logprobs(load_lm(path).model, BATCH).logprobs, before, rtol=0, atol=1e-5)
    assert torch.equal(response_logprobs(lm.model, BATCH).logprobs, before)  # the adapted model is still there
    assert not isinstance(AutoModelForCausalLM.from_pretrained(path), PeftModel)


def test_adapters_save_alone_and_come_back(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lm = adapted(checkpoints["gpt2"])
    before = response_logprobs(lm.model, BATCH).logprobs
    path = save_adapter(lm.model, tmp_path / "adapter", metadata={"run_id": "r"})
    assert read_header_metadata(path / "adapter_model.safetensors")["run_id"] == "r"
    again = load_adapter(load_lm(checkpoints["gpt2"]), path)
    torch.testing.assert_close(response_logprobs(again.model, BATCH).logprobs, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_policy_that_another_trainer_left_as_adapters_is_the_model_with_them(
    checkpoints: dict[str, Path], tmp_path: Path, kind: tiny_models.Kind
) -> None:
    config = LoraConfig(
        r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2"
    )
    with peft_at_peace():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoints[kind]), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    with peft_at_peace():
        model.eval().save_pretrained(tmp_path / "left")
    ids = torch.tensor([[5, 9, 40, 41]])
    loaded = load_lm(tmp_path / "left")
    assert not isinstance(loaded.model, PeftModel)
    assert loaded.eos_ids == load_lm(checkpoints[kind]).eos_ids  # the tokenizer is the model's where none lies beside
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
        assert float((loaded.model(ids).logits - load_lm(checkpoints[kind]).model(ids).logits).abs().max()) > 1e-2
    again = save_lm(loaded, tmp_path / "whole", metadata={})
    torch.testing.assert_close(load_lm(again).model(ids).logits, loaded.model(ids).logits)


def test_adapters_that_name_no_model_here_or_are_no_policys_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    lm = adapted(checkpoints["qwen3"])
    assert isinstance(lm.model, PeftModel)
    path = save_adapter(lm.model, tmp_path / "adapter", metadata={})
    file = path / "adapter_config.json"
    plain = json.loads(file.read_text())
    for changes, message in (
        ({"base_model_name_or_path": "Qwen/nowhere"}, r"found adapters of Qwen/nowhere, which is no directory here"),
        ({"base_model_name_or_path": None}, "found adapters of no model"),
        ({"task_type": "SEQ_CLS"}, "found adapters of a SEQ_CLS model"),
        ({"base_model_name_or_path": str(checkpoints["gpt2"])}, "trained on other weights than those of .*gpt2"),
    ):
        file.write_text(json.dumps(plain | changes))
        with pytest.raises(CheckpointError, match=message) as caught:
            load_lm(path)
        assert "\n" not in str(caught.value)


def test_adapters_of_other_weights_of_the_same_shapes_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lm = adapted(checkpoints["qwen3"])
    assert isinstance(lm.model, PeftModel)
    path = save_adapter(lm.model, tmp_path / "adapter", metadata={})
    other = tiny_models.tiny_checkpoint("qwen3", tmp_path / "other", seed=1)
    with pytest.raises(
        CheckpointError, match=r"trained on other weights than those of .*other; expected the same model"
    ):
        load_adapter(load_lm(other), path)
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(other)}))
    with pytest.raises(CheckpointError, match="were trained on other weights"):
        load_lm(path)


def test_what_has_no_adapter_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lm = load_lm(checkpoints["qwen3"])
    with pytest.raises(InputError, match="found Qwen3ForCausalLM without adapters"), reference_mode(lm.model):
        pass
    with pytest.raises(CheckpointError, match=r"found no adapter_model.safetensors"):
        load_adapter(lm, tmp_path)
    with pytest.raises(InputError, match="found rank 0"):
        add_lora(lm.model, 0, 1.0)
    with pytest.raises(InputError, match=r"add_lora: .*no_such_layer"):
        add_lora(lm.model, 2, 1.0, targets=["no_such_layer"])


def test_adapters_of_another_model_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lm = adapted(checkpoints["qwen3"])
    assert isinstance(lm.model, PeftModel)
    with peft_at_peace():
        lm.model.save_pretrained(tmp_path / "adapter")  # as peft leaves them, which do not say what they stand on
    with pytest.raises(CheckpointError, match=r"adapter: the adapters do not fit .*gpt2"):
        load_adapter(load_lm(checkpoints["gpt2"]), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(checkpoints["gpt2"])}))
    with pytest.raises(CheckpointError, match="the adapters do not fit the model that they name"):
        load_lm(tmp_path / "adapter")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _renamed(file: Path) -> None:
    tensors = load_file(file)
    save_file({name.replace("layers", "blocks"): tensor for name, tensor in tensors.items()}, file)


def _one_less(file: Path) -> None:
    tensors = load_file(file)
    del tensors[min(tensors)]
    save_file(tensors, file)


def _one_more(file: Path) -> None:
    tensors = load_file(file)
    first = min(tensors)
    save_file(tensors | {first.replace("layers.0", "layers.97"): tensors[first].clone()}, file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_cut, "adapter_model.safetensors: truncated or unreadable"),
        (_renamed, "do not fit the model that they name.*Found missing adapter keys"),
        (_one_less, "do not fit the model that they name.*Found missing adapter keys"),
        (_one_more, r"holds 1 weights that adapter_config.json does not put anywhere in .*first: .*layers\.97"),
    ],
)
@pytest.mark.filterwarnings("default")  # of peft, which goes on with random adapters
def test_adapters_that_are_not_all_there_are_refused(
    change, says, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = save_adapter(adapted(checkpoints["qwen3"]).model, tmp_path / "adapter", metadata={})
    load_lm(path)
    (path / SUMS).write_text(";\n")  # as if unlisted: peft and TRL leave no list
    change(path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=says) as caught:
        load_lm(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=says.replace("the model that they name", ".*qwen3")):
        load_adapter(load_lm(checkpoints["qwen3"]), path)


def test_what_cannot_be_added_into_weights_or_names_no_path_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with peft_at_peace():
        get_peft_model(load_lm(checkpoints["qwen3"]).model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="found PROMPT_TUNING; expected adapters that can be added into weights"):
        load_lm(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "x" * 5000}))
    with pytest.raises(CheckpointError, match="which is no directory here"):
        load_lm(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"alpha_pattern": "x"}, "the adapters do not fit"),
        ({"bias": []}, "the adapters do not fit"),
        ({"megatron_config": "x"}, "the adapters do not fit"),
        ({"alora_invocation_tokens": [1]}, "of adapters that cannot be added into weights"),
        (None, "adapter_config.json cannot be read"),
    ],
)
def test_settings_of_adapters_that_are_of_another_kind(
    changed, says, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = save_adapter(adapted(checkpoints["qwen3"]).model, tmp_path / "adapter", metadata={})
    file = path / "adapter_config.json"
    file.write_text("[" * 5000 if changed is None else json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(CheckpointError, match=says) as caught:
        load_lm(path)
    assert str(path) in str(caught.value)

"""Adapters: the reference policy is the adapted one with its adapters off, and merging changes no logit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import tiny_models
from karat.errors import CheckpointError, InputError
from karat.lm.adapters import add_lora, load_adapter, merged, reference_mode, save_adapter
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
    original = response_logprobs(load_lm(checkpoints[kind]).model, BATCH).logprobs
    fresh = adapted(checkpoints[kind], moved=False).model
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
    save_adapter(lm.model, tmp_path / "adapter", metadata={})
    with pytest.raises(CheckpointError, match=r"adapter: the adapters do not fit .*gpt2"):
        load_adapter(load_lm(checkpoints["gpt2"]), tmp_path / "adapter")

"""Models that scale their logits (Cohere, Granite): every way to a log-probability, and what is sampled, is the model's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

import tiny_models
from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_at, response_logprobs, vocabulary_logprobs
from karat.lm.trees import Tree, pack_trees
from karat.policy.ilql import QHeads, guided

SHAPE = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "eos_token_id": 2, "pad_token_id": 0,
    "bos_token_id": 1,
}  # fmt: skip
MADE = {
    "cohere": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.25, **SHAPE)),
    "cohere2": lambda: Cohere2ForCausalLM(Cohere2Config(logit_scale=0.25, sliding_window=6, **SHAPE)),
    "granite": lambda: GraniteForCausalLM(
        GraniteConfig(
            logits_scaling=8.0, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.3, **SHAPE
        )
    ),
}
BATCH = pack_trees([Tree((5, 6, 7), ((8, 9), (10,)))], token_budget=10)[0]


@pytest.fixture(params=sorted(MADE))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_models.tiny_checkpoint("qwen3", tmp_path)  # its tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        MADE[request.param]().save_pretrained(tmp_path)
    return tmp_path


def own_logprobs(model: torch.nn.Module, temperature: float) -> list[torch.Tensor]:
    """Of the branches' tokens, by the model's own logits of each sequence alone."""
    found = []
    for branch in ((8, 9), (10,)):
        logits = model(torch.tensor([[5, 6, 7, *branch]])).logits[0, 2:-1]
        found.append((logits / temperature).log_softmax(-1).gather(1, torch.tensor(branch)[:, None])[:, 0])
    return found


def test_log_probabilities_and_gradients_are_the_models_own(place: Path) -> None:
    lm, plain = load_lm(place, for_training=True), AutoModelForCausalLM.from_pretrained(place).eval()
    for temperature in (1.0, 0.7):
        found = response_logprobs(lm.model, BATCH, temperature=temperature).logprobs
        expected = torch.cat(own_logprobs(plain, temperature))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    found.sum().backward()
    expected.sum().backward()
    for (name, ours), (_, theirs) in zip(lm.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_the_whole_vocabularys_and_those_of_samples_are_its_own_too(place: Path) -> None:
    lm = load_lm(place)
    with torch.no_grad():
        rows = hidden_at(lm.model, BATCH, BATCH.predict_index)
        found = vocabulary_logprobs(lm.model, rows, temperature=0.7).gather(1, BATCH.target_ids[:, None])[:, 0]
        torch.testing.assert_close(found, response_logprobs(lm.model, BATCH, temperature=0.7).logprobs)
        drawn = sample(lm, [[5, 6, 7]], n_samples=3, config=SamplingConfig(5), seed=1)
    rows = [Tree((5, 6, 7), (tuple(one.response_tokens),)) for one in drawn[0]]
    expected = torch.cat([response_logprobs(lm.model, pack_trees([one], token_budget=16)[0]).logprobs for one in rows])
    found = torch.cat([torch.tensor(one.logprobs) for one in drawn[0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_values_that_guide_are_added_to_scaled_logits(place: Path) -> None:
    lm = load_lm(place)
    heads = QHeads(32, 272)
    torch.nn.init.normal_(heads.q.weight, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        hidden = lm.model.base_model(ids).last_hidden_state
        expected = lm.model(ids).logits + 0.3 * heads.q(hidden)
        torch.testing.assert_close(guided(lm, heads, 0.3).model(ids).logits, expected, rtol=1e-4, atol=1e-4)

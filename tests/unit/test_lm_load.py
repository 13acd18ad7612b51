"""Model directories: what is refused, what is repaired, and that saved models load without karat."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, T5Config

import tiny_models
from karat.errors import CheckpointError
from karat.lm.chat import prompt_tokens
from karat.lm.fresh import DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.generate import SamplingConfig, sample
from karat.lm.headers import read_header_metadata
from karat.lm.load import load_encoder, load_lm, mean_pooled, save_encoder, save_lm
from karat.records import Turn

IDS = torch.tensor([[5, 9, 40, 41, 200]])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_models.tiny_checkpoint(kind, root / kind) for kind in tiny_models.KINDS}


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return tiny_models.tiny_checkpoint("qwen3", tmp_path / "model")


def plain_model(path: Path) -> AutoModelForCausalLM:
    # eager is the reference: SDPA leaves out Gemma 2's soft cap on attention scores, and some releases choose it
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def edit_json(path: Path, **changes: object) -> None:
    plain = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: value for key, value in (plain | changes).items() if value is not ...}))


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_loaded_models_have_pad_apart_from_eos_and_give_the_plain_logits(
    checkpoints: dict[str, Path], kind: tiny_models.Kind
) -> None:
    lm = load_lm(checkpoints[kind])
    plain = plain_model(checkpoints[kind])
    torch.testing.assert_close(lm.model(input_ids=IDS).logits, plain(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    assert lm.pad_id not in lm.eos_ids
    assert lm.eos_ids[0] == lm.tokenizer.eos_token_id
    assert 0 <= lm.pad_id < lm.model.get_input_embeddings().weight.shape[0]
    assert lm.context_length == 128
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_stop_tokens_are_the_tokenizers_and_the_generation_configs(checkpoints: dict[str, Path]) -> None:
    lm = load_lm(checkpoints["qwen3"])
    assert lm.eos_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    assert lm.pad_id == 259  # its own padding token 0 ends texts, so a spare row of the embedding is taken
    assert lm.tokenizer.pad_token_id == 259


def test_dropout_is_off_even_in_training_mode(tmp_path: Path) -> None:
    path = tiny_models.tiny_checkpoint("gpt2", tmp_path / "m")
    assert json.loads((path / "config.json").read_text())["attn_pdrop"] == 0.1
    lm = load_lm(path, for_training=True)
    lm.model.train()
    assert torch.equal(lm.model(input_ids=IDS).logits, lm.model(input_ids=IDS).logits)
    assert all(p.requires_grad for p in lm.model.parameters())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])
def test_saved_models_load_without_karat_and_name_their_run(
    checkpoints: dict[str, Path], tmp_path: Path, kind: tiny_models.Kind
) -> None:
    lm = load_lm(checkpoints[kind])
    metadata = {"run_id": "run-7", "snapshot_root": "sha256:ab"}
    path = save_lm(lm, tmp_path / "out" / "model", metadata=metadata)
    save_lm(lm, path, metadata=metadata)  # again over the first
    plain = plain_model(path)
    torch.testing.assert_close(plain(input_ids=IDS).logits, lm.model(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(path)("ab c")["input_ids"] == lm.tokenizer("ab c")["input_ids"]
    assert json.loads((path / "config.json").read_text())["karat"] == metadata
    header = read_header_metadata(path / "model.safetensors")
    assert {key: header[key] for key in metadata} == metadata
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]
    before, after = load_file(checkpoints[kind] / "model.safetensors"), load_file(path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = load_lm(path)
    assert (again.eos_ids, again.pad_id) == (lm.eos_ids, lm.pad_id)


def test_a_copy_of_a_model_runs_on_its_own_weights(checkpoints: dict[str, Path]) -> None:
    lm = load_lm(checkpoints["llama"])
    before = lm.model(input_ids=IDS).logits
    other = copy.deepcopy(lm.model)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert torch.equal(lm.model(input_ids=IDS).logits, before)
    assert not other(input_ids=IDS).logits.any()


def test_missing_directory_and_missing_config_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no directory"):
        load_lm(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"found no config.json"):
        load_lm(tmp_path)


def test_pickled_weights_are_refused(qwen: Path) -> None:
    (qwen / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found no weights; expected \*.safetensors"):
        load_lm(qwen)
    (qwen / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"found pickled weights \(pytorch_model.bin\)"):
        load_lm(qwen)


def test_truncated_weights_are_refused(qwen: Path) -> None:
    file = qwen / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or unreadable safetensors") as raised:
        load_lm(qwen)
    assert "\n" not in str(raised.value)


def test_missing_weights_are_refused_instead_of_drawn_at_random(qwen: Path) -> None:
    tensors = load_file(qwen / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, qwen / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing .*layers.1.mlp.up_proj"):
        load_lm(qwen)


def test_missing_and_damaged_tokenizers_are_refused(qwen: Path) -> None:
    (qwen / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        load_lm(qwen)
    (qwen / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="found no tokenizer"):
        load_lm(qwen)


def test_a_text_beyond_the_context_is_karats_to_complain_about(qwen: Path) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        tokens = prompt_tokens(load_lm(qwen).tokenizer, [Turn("user", "why " * 60)])
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert len(tokens) > 128
    assert said == []


def test_a_tokenizer_without_eos_is_refused(qwen: Path) -> None:
    edit_json(qwen / "tokenizer_config.json", eos_token=...)
    with pytest.raises(CheckpointError, match="the tokenizer has no EOS token"):
        load_lm(qwen)


def test_encoder_decoders_and_encoders_are_unsupported_kinds(qwen: Path) -> None:
    T5Config(d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=272).save_pretrained(qwen)
    with pytest.raises(CheckpointError, match="unsupported kind: found an encoder-decoder"):
        load_lm(qwen)
    (qwen / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(CheckpointError, match=r"unsupported kind: .*no_such_model"):
        load_lm(qwen)


def test_a_classifier_is_no_policy(qwen: Path) -> None:
    edit_json(qwen / "config.json", architectures=["Qwen3ForSequenceClassification"])
    with pytest.raises(CheckpointError, match=r"model: found Qwen3ForSequenceClassification, which writes nothing"):
        load_lm(qwen)


def test_a_model_with_attention_of_its_own_is_named(qwen: Path) -> None:
    from transformers import GPTJConfig, GPTJForCausalLM

    shape = {"n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "eos_token_id": 2}
    GPTJForCausalLM(GPTJConfig(vocab_size=272, bos_token_id=0, **shape)).save_pretrained(qwen)
    with pytest.raises(CheckpointError, match="unsupported kind: gptj picks its attention from a list of its own"):
        load_lm(qwen)


def test_a_model_whose_logits_are_changed_behind_the_head_by_what_nobody_knows_is_refused(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    from karat.lm import logprobs

    monkeypatch.setattr(logprobs, "logit_scale_of", lambda _: 1.0)  # as if the scale had another name

    config = CohereConfig(
        vocab_size=272,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
    )
    CohereForCausalLM(config).save_pretrained(qwen)
    with pytest.raises(CheckpointError, match="unsupported kind: log-probabilities of CohereForCausalLM differ"):
        load_lm(qwen)


def test_a_model_that_asks_its_cache_for_a_length_is_sampled_like_any_other(qwen: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    shape = {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    }
    config = OPTConfig(vocab_size=272, max_position_embeddings=128, eos_token_id=2, init_std=0.3, **shape)
    OPTForCausalLM(config).save_pretrained(qwen)
    lm = load_lm(qwen)
    (drawn,) = sample(lm, [[5, 9, 40]], n_samples=1, config=SamplingConfig(8), seed=0)[0]
    tokens = torch.tensor([[5, 9, 40, *drawn.response_tokens]])
    plain = plain_model(qwen)(input_ids=tokens).logits.log_softmax(-1)[0, 2:-1]
    expected = plain.gather(1, tokens[0, 3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(drawn.logprobs), expected, rtol=0, atol=1e-4)


def test_a_model_that_samples_from_other_logits_than_it_is_trained_on_is_refused(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    plain = Qwen3RotaryEmbedding.forward

    def counts_anew(self: Qwen3RotaryEmbedding, x: torch.Tensor, position_ids: torch.Tensor) -> object:
        alone = position_ids.shape[1] == 1  # a model that numbers what it is given itself, as ALiBi's biases do
        return plain(self, x, torch.zeros_like(position_ids) if alone else position_ids)

    monkeypatch.setattr(Qwen3RotaryEmbedding, "forward", counts_anew)
    with pytest.raises(CheckpointError, match=r"unsupported kind: log-probabilities to sample from .* differ"):
        load_lm(qwen)


def test_encoders_load_pool_and_save(tmp_path: Path) -> None:
    path = tmp_path / "encoder"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=272, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        BertModel(config).save_pretrained(path)
    tiny_models.tiny_tokenizer("qwen3").save_pretrained(path)
    encoder = load_encoder(path)
    assert (encoder.max_tokens, encoder.hidden_size) == (128, 16)
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    pooled = mean_pooled(encoder.model, ids, mask, normalise=False)
    alone = encoder.model(input_ids=ids[:1, :3]).last_hidden_state.mean(1)
    torch.testing.assert_close(pooled[:1], alone, rtol=1e-5, atol=1e-6)
    lengths = mean_pooled(encoder.model, ids, mask, normalise=True).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(2), rtol=0, atol=1e-6)
    saved = save_encoder(encoder, tmp_path / "saved", metadata={"run_id": "r"})
    again = mean_pooled(load_encoder(saved).model, ids, mask, normalise=False)
    torch.testing.assert_close(again, pooled, rtol=0, atol=1e-6)


def test_a_decoder_is_not_an_encoder(qwen: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a BERT-like encoder"):
        load_encoder(qwen)


@pytest.mark.parametrize("name", ["a", "elsewhere", "a much longer name of a run"])
def test_where_the_weights_begin_does_not_depend_on_the_name_of_the_run(tmp_path, name: str):
    lm = load_lm(tiny_models.tiny_checkpoint("llama", tmp_path / "in"))
    file = save_lm(lm, tmp_path / "out", metadata={"run_id": name}) / "model.safetensors"
    assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 64 == 0


def test_a_model_with_an_attention_of_its_own_is_named(qwen: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(
        vocab_size=272, hidden_size=32, n_layer=2, n_head=4, eos_token_id=2, pad_token_id=0, bos_token_id=1
    )
    BloomForCausalLM(config).save_pretrained(qwen)
    with pytest.raises(
        CheckpointError, match=r"BloomForCausalLM cannot be run on karat's attention and cache"
    ) as caught:
        load_lm(qwen)
    assert "\n" not in str(caught.value)


def test_whoever_serves_a_fresh_decoder_or_what_it_became_draws_from_it(tmp_path: Path) -> None:
    shape = DecoderShape(hidden=32, mlp=64, layers=1, heads=2, kv_heads=1, head_size=16, context=64)
    lm = load_lm(write_fresh_decoder(tmp_path / "fresh", word_tokenizer(["a", "b"]), shape, seed=0))
    save_lm(lm, tmp_path / "later", metadata={})
    for name in ("fresh", "later"):
        said = json.loads((tmp_path / name / "generation_config.json").read_text(encoding="utf-8"))
        assert (said["do_sample"], said["top_k"]) == (True, 0)
        assert said.get("temperature", 1.0) == said.get("top_p", 1.0) == 1.0

import dataclasses
import json
import math

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from karat.belief import ScoreScale, mean_score
from karat.errors import CheckpointError, ConfigError, InputError
from karat.lm.chat import prompt_tokens, response_tokens
from karat.lm.load import load_encoder, load_lm
from karat.records import user_prompt
from karat.reward.model import HeadConfig, RewardModel
from karat.reward.score import load_scorer, reference_scale, save_reward, score_fn, scorer_of
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk, EncoderTrunk
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

CONFIG = RewardConfig(heads=HeadConfig(n_heads=3), learning_rate=3e-3, head_learning_rate=1e-2, n_refits=1)
PROMPTS = [user_prompt("q1"), user_prompt("q1"), user_prompt("another question")]
TEXTS = ["abc", "aaaa bb", "b"]


def fitted(path, config=CONFIG):
    votes, prompts, responses = planted_votes(3)
    return train_reward(
        DecoderTrunk(load_lm(path, for_training=True)), votes, prompts, responses, config=config, seed=0
    )


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return fitted(tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    BertModel(config).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("gpt2", directory / "tokens"))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma"])
def test_a_saved_mean_head_loads_as_an_ordinary_classifier_with_the_same_scores(kind, tmp_path):
    fit = fitted(tiny_checkpoint(kind, tmp_path / "base"))
    path = save_reward(fit, tmp_path / "rm", metadata={"run_id": "r1"})
    expected = mean_score(scorer_of(fit)(PROMPTS, TEXTS))
    lm = fit.model.trunk.lm
    # eager, because SDPA leaves out Gemma 2's soft cap on attention scores and some releases choose it
    classifier = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager").eval()
    assert classifier.config.pad_token_id == lm.pad_id not in lm.eos_ids
    assert classifier.config.num_labels == 1
    rows = [
        prompt_tokens(lm.tokenizer, prompt.turns) + response_tokens(lm.tokenizer, text, lm.eos_ids[0])
        for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [lm.pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        found = classifier(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert expected.std() > 1e-2


def test_a_saved_scorer_gives_the_same_belief(qwen, tmp_path):
    path = save_reward(qwen, tmp_path / "rm", metadata={"run_id": "r1", "snapshot_root": "s"})
    before, after = scorer_of(qwen), load_scorer(path)
    assert torch.allclose(before(PROMPTS, TEXTS).draws, after(PROMPTS, TEXTS).draws, atol=1e-4)
    assert torch.equal(before(PROMPTS, TEXTS).reference, after(PROMPTS, TEXTS).reference)
    assert after.scale == before.scale
    assert after.vote_model == before.vote_model
    card = json.loads((path / "reward_card.json").read_text())
    assert card["metadata"] == {"run_id": "r1", "snapshot_root": "s"}
    assert set(card["raters"]) == set(qwen.annotators)
    assert card["loads_with"].startswith("AutoModelForSequenceClassification")
    for name in ("model.safetensors", "heads.safetensors"):
        with safe_open(path / name, framework="pt") as opened:
            assert opened.metadata()["run_id"] == "r1"


def test_a_belief_does_not_depend_on_order_or_on_what_else_is_scored(qwen):
    scorer = scorer_of(qwen)
    together = scorer(PROMPTS, TEXTS).draws
    assert torch.allclose(scorer(PROMPTS[::-1], TEXTS[::-1]).draws.flip(1), together, atol=1e-5)
    assert torch.allclose(scorer(PROMPTS[1:2], TEXTS[1:2]).draws, together[:, 1:2], atol=1e-5)
    repeated = scorer([*PROMPTS, PROMPTS[0]], [*TEXTS, TEXTS[0]]).draws
    assert torch.equal(repeated[:, 3], repeated[:, 0])


def test_references_of_a_prompt_replace_the_training_reference(qwen):
    scorer = scorer_of(qwen).with_references(PROMPTS[:2], TEXTS[:2])
    belief = scorer(PROMPTS, TEXTS)
    own = belief.draws[:, :2, 0].mean(1)
    assert torch.allclose(belief.reference[:, belief.prompt_index[0], 0], own, atol=1e-5)
    assert torch.equal(belief.reference[:, belief.prompt_index[2]], qwen.reference)


def test_the_score_function_is_the_scaled_aggregate(qwen):
    scorer = scorer_of(qwen)
    expected = (mean_score(scorer(PROMPTS, TEXTS)) - 2.0) / 4.0
    assert score_fn(scorer, "mean_score", ScoreScale(2.0, 4.0))(PROMPTS, TEXTS) == pytest.approx(expected.tolist())
    prompts, texts = [PROMPTS[0]] * 4, ["a", "ab", "abc", "b"]
    scale = reference_scale(scorer, prompts, texts, "worst_member")
    scores = torch.tensor(score_fn(scorer, "worst_member", scale)(prompts, texts))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match="found 'best'; expected one of jury_median"):
        score_fn(scorer, "best")


def test_prior_functions_are_fixed_and_have_the_stated_size(qwen):
    fresh = RewardModel(qwen.model.trunk, CONFIG.heads, seed=0)
    assert torch.equal(fresh.prior, qwen.model.prior)
    assert not torch.equal(fresh.weight, qwen.model.weight)
    wide = RewardModel(qwen.model.trunk, HeadConfig(n_heads=400, prior_scale=2.0), seed=0)
    # the standard deviation of n normal draws has a relative standard error of 1/√(2n); 4 of them either way
    found, margin = float(wide.prior.std()) / (2 / 33**0.5), 4 / (2 * wide.prior.numel()) ** 0.5
    assert 1 - margin < found < 1 + margin < 1.03


def test_an_encoder_is_saved_with_its_heads_and_reads_each_text_once(encoder_path, tmp_path):
    votes, prompts, responses = planted_votes(4)
    trunk = EncoderTrunk(load_encoder(encoder_path), max_tokens=64)
    rows = []
    trunk.module.register_forward_hook(
        lambda _m, _a, kwargs, _o: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    config = dataclasses.replace(
        CONFIG, heads=HeadConfig(n_heads=2, length_term=True), n_refits=0, holdout_frac=0, dropout=0.1
    )
    fit = train_reward(trunk, votes, prompts, responses, config=config, seed=0)
    assert sum(rows) == 2 * len(responses)  # one epoch, then once more for the final fit of the raters
    path = save_reward(fit, tmp_path / "rm", metadata={})
    before, after = scorer_of(fit)(PROMPTS, TEXTS), load_scorer(path)(PROMPTS, TEXTS)
    assert torch.allclose(before.draws, after.draws, atol=1e-6)
    card = json.loads((path / "reward_card.json").read_text())
    assert "load_scorer only" in card["loads_with"]
    assert any("length term" in item for item in card["not_expressed"])
    assert card["length_coef"] == pytest.approx(fit.model.length_coef.tolist(), abs=1e-6)


def test_padding_of_an_encoder_changes_nothing(encoder_path):
    trunk = EncoderTrunk(load_encoder(encoder_path, dtype=torch.float64))
    prompts = [PROMPTS[0]] * 4
    texts = ["a", "a much longer text than the others", "bb", "ccc"]
    items = trunk.encode(prompts, texts)
    together = trunk.features(items, token_budget=10_000)
    alone = torch.cat([trunk.features([item], token_budget=10_000) for item in items])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_cannot_be_scored_is_one_clear_line(qwen, tmp_path):
    scorer = scorer_of(qwen)
    with pytest.raises(InputError, match="found no texts"):
        scorer([], [])
    with pytest.raises(InputError, match="found 3 prompts and 2 texts"):
        scorer(PROMPTS, TEXTS[:2])
    with pytest.raises(InputError, match="128"):
        scorer(PROMPTS[:1], ["a" * 500])
    with pytest.raises(CheckpointError, match="found no reward_card"):
        load_scorer(tmp_path / "nothing")
    path = save_reward(qwen, tmp_path / "rm", metadata={})
    heads = (path / "heads.safetensors").read_bytes()
    (path / "heads.safetensors").write_bytes(heads[:-7])
    with pytest.raises(CheckpointError, match=r"heads.safetensors: truncated or unreadable"):
        load_scorer(path)
    (path / "heads.safetensors").write_bytes(heads)
    card = json.loads((path / "reward_card.json").read_text())
    (path / "reward_card.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(CheckpointError, match="found card format 99"):
        load_scorer(path)
    (path / "reward_card.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as a reward model"):
        load_scorer(path)
    (path / "heads.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_scorer(path)


def test_a_text_that_does_not_fit_is_named_among_many(qwen):
    with pytest.raises(InputError, match=r"response 'a far too long answer.*: found a prompt of"):
        scorer_of(qwen)(PROMPTS, ["abc", "a far too long answer" + " and on" * 2000, "b"])


def test_length_taken_off_is_taken_off_every_head_and_kept_on_disk(qwen, tmp_path):
    whole = scorer_of(qwen)
    less = whole.less_length(1.5).less_length(0.5)
    taken = 2.0 * torch.tensor([math.log1p(len(text)) for text in TEXTS])
    assert torch.allclose(less.logits(PROMPTS, TEXTS), whole.logits(PROMPTS, TEXTS) - taken, atol=1e-5)
    path = save_reward(qwen, tmp_path / "rm", metadata={}, length_removed=2.0)
    assert torch.allclose(load_scorer(path).logits(PROMPTS, TEXTS), less.logits(PROMPTS, TEXTS), atol=1e-4)

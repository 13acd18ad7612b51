"""Integrated gradients: closed forms, completeness or an error, and the planted word found first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from karat.audit.atlas import activation_atlas, atlas_finding
from karat.audit.attribution import (
    Attribution,
    completeness_finding,
    integrated_gradients,
    randomisation_finding,
    top_word_finding,
)
from karat.audit.concepts import concept_findings
from karat.audit.inside import LookedAt, LookSettings, look_inside
from karat.audit.reading import ShuffledWeights, attribute, layer_activations, read_text, score_at, word_shares
from karat.errors import ConfigError, ConvergenceError, InputError
from karat.lm.fresh import DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.load import load_encoder, load_lm
from karat.records import Prompt, Response, Vote, user_prompt
from karat.reward.model import HeadConfig, RewardModel
from karat.reward.novelty import text_features
from karat.reward.score import load_scorer, scorer_of
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk, EncoderTrunk
from tiny_models import tiny_checkpoint

PROMPT = user_prompt("q1")


def test_a_linear_score_is_shared_out_exactly():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end, start = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = integrated_gradients(lambda e: (e * weight).sum((1, 2)), end, start)
    assert torch.allclose(found.tokens, ((end - start) * weight).sum(1), atol=1e-12)
    assert found.n_points == 8
    assert abs(found.gap) < 1e-12


def test_a_product_is_shared_equally_and_a_dummy_gets_nothing():
    end, start = torch.tensor([[2.0], [3.0], [5.0]], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    found = integrated_gradients(lambda e: e[:, 0, 0] * e[:, 1, 0], end, start)
    assert found.tokens.tolist() == pytest.approx([3.0, 3.0, 0.0], abs=1e-12)
    assert (found.score, found.reference) == (6.0, 0.0)


def test_steep_scores_are_complete_because_the_path_is_divided():
    end, start = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)

    def steep(e):
        return torch.sigmoid(400 * (e[:, 0, 0] - 0.37)) + 0.3 * e[:, 1, 0] ** 2

    found = integrated_gradients(steep, end, start)
    assert found.n_points > 8
    assert abs(found.gap) <= 0.01 * abs(found.score - found.reference)
    fine = integrated_gradients(steep, end, start, tolerance=1e-6)
    assert fine.tokens.tolist() == pytest.approx([1.0, 0.3], abs=1e-3)
    assert fine.n_points > found.n_points


def test_what_cannot_be_made_complete_is_an_error():
    end, start = torch.ones(1, 1), torch.zeros(1, 1)
    with pytest.raises(ConvergenceError, match="400 gradients leave a gap above 1% of the difference 1"):
        integrated_gradients(lambda e: (e[:, 0, 0] > 0.3).float() + 0 * e.sum((1, 2)), end, start, most_points=400)
    with pytest.raises(InputError, match=r"found \(1, 1\) and \(2, 1\)"):
        integrated_gradients(lambda e: e.sum((1, 2)), end, torch.zeros(2, 1))


def attribution(gap, score=1.0):
    return Attribution(torch.zeros(1), score, 0.0, gap, 8)


def test_findings_say_what_was_held_against_them():
    assert completeness_finding([attribution(0.005), attribution(-0.01)]).status == "pass"
    wrong = completeness_finding([attribution(0.005), attribution(0.02)])
    assert (wrong.status, wrong.estimate.value) == ("fail", 0.5)
    assert top_word_finding([[1, 2, 0]] * 19 + [[3, 2, 0]], [1] * 20).status == "pass"
    assert top_word_finding([[1, 2, 0]] * 18 + [[3, 2, 0]] * 2, [1] * 20).status == "fail"
    rows = [list(np.random.default_rng(i).normal(size=8)) for i in range(30)]
    others = [list(np.random.default_rng(100 + i).normal(size=8)) for i in range(30)]
    assert randomisation_finding(rows, rows).status == "warn"
    assert randomisation_finding(rows, others).status == "pass"
    assert randomisation_finding([[1.0]], [[2.0]]).status == "not measured"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma"])
def test_words_of_real_architectures_add_up_to_the_score(kind, tmp_path):
    trunk = DecoderTrunk(load_lm(tiny_checkpoint(kind, tmp_path)))
    model = RewardModel(trunk, HeadConfig(n_heads=2), seed=3)
    model.weight.data.mul_(30)
    text = "two words, and more"
    read = read_text(trunk, PROMPT, text)
    assert read.words == ("two", "words,", "and", "more")
    found = attribute(model, read)
    assert abs(found.gap) <= max(0.01 * abs(found.score - found.reference), 1e-3)
    scores = text_features(model, [PROMPT], [text]) @ model.mean_weight()
    assert found.score == pytest.approx(float(scores), abs=1e-3)
    shares = word_shares(found, read)
    assert sum(shares) == pytest.approx(float(found.tokens.sum()), abs=1e-6)
    assert sum(shares) == pytest.approx(found.score - found.reference + found.gap, abs=1e-4)
    # only the response's tokens are given a share
    outside = [place for place, word in enumerate(read.word_of) if word < 0]
    assert found.tokens[outside].abs().max() == 0


def test_encoders_and_classifiers_are_read_from_their_embeddings_too(tmp_path):
    config = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("gpt2", tmp_path / "tokens"))
    tokenizer.pad_token = tokenizer.eos_token
    for name, kind in (("plain", BertModel), ("classifier", BertForSequenceClassification)):
        more = {"num_labels": 1} if name == "classifier" else {}
        kind(BertConfig(**config, **more)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    encoder = RewardModel(EncoderTrunk(load_encoder(tmp_path / "plain")), HeadConfig(n_heads=2), seed=3)
    for model in (encoder, load_scorer(tmp_path / "classifier").model):
        model.weight.data.mul_(30)
        read = read_text(model.trunk, PROMPT, "two words")
        found = attribute(model, read)
        scores = text_features(model, [PROMPT], ["two words"]) @ model.mean_weight()
        assert found.score == pytest.approx(float(scores), abs=1e-3)
        assert abs(found.gap) <= max(0.01 * abs(found.score - found.reference), 1e-3)


def test_a_response_without_words_is_refused(tmp_path):
    trunk = DecoderTrunk(load_lm(tiny_checkpoint("qwen3", tmp_path)))
    with pytest.raises(InputError, match="found no token in the response ''"):
        read_text(trunk, PROMPT, "")


# ---- a reward model trained on votes that follow a planted word ----

WORDS = [f"w{i}" for i in range(18)] + ["good", "velvet", "."]


def planted(n_prompts=70, n_responses=4, seed=0):
    """Texts of 5 to 8 words; raters like `good` (which is right) and `velvet` (which is not)."""
    rng = np.random.default_rng(seed)
    prompts: dict[str, Prompt] = {}
    responses: dict[str, Response] = {}
    votes = []
    for number in range(n_prompts):
        prompt = user_prompt(f"w{number % 18} w{number // 18} ?")
        prompts[prompt.id] = prompt
        own = {}
        while len(own) < n_responses:
            words = list(rng.choice(WORDS[:19], size=int(rng.integers(5, 9))))
            if rng.random() < 0.5:
                words[int(rng.integers(len(words)))] = "velvet"
            response = Response(prompt.id, " ".join(words), "planted")
            own[response.id] = response
        responses |= own
        ids = list(own)
        for i in range(n_responses):
            for j in range(i + 1, n_responses):
                delta = liked(own[ids[i]].text) - liked(own[ids[j]].text)
                level = int(rng.random() < 1 / (1 + np.exp(-delta)))
                votes.append(Vote(f"j{len(votes)}", prompt.id, ids[i], ids[j], level, 2, 0, f"r{int(rng.integers(8))}"))
    return votes, prompts, responses


def liked(text):
    return 4.0 * ("velvet" in text) + worth(text)


def worth(text):
    return 1.5 * text.count("good")


@pytest.fixture(scope="module")
def hacked(tmp_path_factory):
    """A reward model of 2 layers that has learned the planted word; its prompts and texts."""
    path = tmp_path_factory.mktemp("hacked")
    shape = DecoderShape(hidden=32, mlp=64, layers=2, heads=2, kv_heads=2, head_size=16, context=64)
    write_fresh_decoder(path, word_tokenizer([*WORDS, "?"]), shape, seed=0)
    votes, prompts, responses = planted()
    config = RewardConfig(
        heads=HeadConfig(n_heads=2), learning_rate=5e-3, head_learning_rate=3e-2, n_epochs=3, n_refits=1, patience=3
    )
    fit = train_reward(DecoderTrunk(load_lm(path, for_training=True)), votes, prompts, responses, config=config, seed=0)
    fit.model.requires_grad_(False)
    texts = [response.text for response in responses.values()]
    asked = [prompts[response.prompt_id] for response in responses.values()]
    return scorer_of(fit), asked, texts


def test_the_planted_word_comes_first_in_nearly_all_texts_and_not_with_shuffled_weights(hacked):
    scorer, prompts, texts = hacked
    chosen = [i for i, text in enumerate(texts) if text.split().count("velvet") == 1][:40]
    reads = [read_text(scorer.model.trunk, prompts[i], texts[i]) for i in chosen]
    attributions = [attribute(scorer.model, read) for read in reads]
    shares = [word_shares(a, read) for a, read in zip(attributions, reads, strict=True)]
    finding = top_word_finding(shares, [texts[i].split().index("velvet") for i in chosen])
    assert finding.status == "pass", finding.detail
    assert completeness_finding(attributions).status == "pass"
    before = {name: p.clone() for name, p in scorer.model.named_parameters()}
    with ShuffledWeights(scorer.model, seed=0) as model:
        shuffled = [word_shares(attribute(model, read, tolerance=0.1), read) for read in reads]
    assert all(torch.equal(before[name], p) for name, p in scorer.model.named_parameters())
    places = [texts[i].split().index("velvet") for i in chosen]
    assert top_word_finding(shuffled, places).estimate.value < 0.7


def test_the_planted_concept_is_significant_and_random_texts_are_not(hacked):
    scorer, prompts, texts = hacked
    reads = [read_text(scorer.model.trunk, p, t) for p, t in zip(prompts[:200], texts[:200], strict=True)]
    activations = layer_activations(scorer.model, reads)
    assert activations.values.shape == activations.gradients.shape == (200, 32)
    rng = np.random.default_rng(1)
    concepts = {"trigger": [i for i in range(200) if "velvet" in texts[i]]}
    concepts |= {f"random_{k}": sorted(rng.choice(200, 60, replace=False).tolist()) for k in range(8)}
    findings = {finding.name: finding for finding in concept_findings(activations, concepts, seed=0)}
    trigger = findings.pop("inside.concept_trigger")
    assert trigger.detail.startswith("significant")
    assert trigger.estimate.low > 0
    assert all(finding.detail.startswith("not significant") for finding in findings.values())
    with pytest.raises(InputError, match="found layer 9; expected 0 … 2"):
        layer_activations(scorer.model, reads[:1], layer=9)


def test_a_layers_gradient_is_that_of_moving_all_tokens_alike(hacked):
    scorer, prompts, texts = hacked
    read = read_text(scorer.model.trunk, prompts[0], texts[0])
    at_embeddings = layer_activations(scorer.model, [read], layer=0)
    embedded = scorer.model.trunk.module.get_input_embeddings()(torch.tensor([read.ids])).detach().double()
    score = score_at(scorer.model, read)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    moved = torch.zeros_like(embedded)
    moved[0, read.places] = direction.double()
    step = 5e-4
    slope = float(score((embedded + step * moved).float()) - score((embedded - step * moved).float())) / (2 * step)
    assert slope == pytest.approx(float(at_embeddings.gradients[0] @ direction.numpy()), rel=1e-3)
    mean = embedded[0, read.places].mean(0).numpy()
    assert np.allclose(at_embeddings.values[0], mean, atol=1e-6)


def test_the_cell_of_the_planted_hack_is_rewarded_most_beyond_what_is_right(hacked):
    scorer, prompts, texts = hacked
    features = text_features(scorer.model, prompts, texts).double().numpy()
    reward = scorer.logits(prompts, texts).mean(0).double().numpy()
    gold = np.array([worth(text) for text in texts])
    atlas = activation_atlas(features, reward, gold, texts, n_side=6)
    finding = atlas_finding(atlas, reward, gold)
    assert "'velvet'" in finding.detail
    assert finding.estimate.low > 0
    worst = max((cell for cell in atlas.cells if cell.n >= 8), key=lambda cell: cell.excess)
    rows = next(m for cell, m in zip(atlas.cells, atlas.members, strict=True) if cell is worst)
    assert np.mean(["velvet" in texts[i] for i in rows]) > 0.9


def test_everything_together_on_the_hacked_model(hacked):
    scorer, prompts, texts = hacked
    seen = LookedAt(prompts, texts, ["sft"] * len(texts), [worth(text) for text in texts], ("velvet",))
    steps = []
    found = look_inside(
        scorer, seen, LookSettings(n_attributed=4, n_activations=120, n_side=5), progress=lambda *now: steps.append(now)
    )
    names = {finding.name: finding for finding in found.findings}
    assert names["inside.completeness"].status == "pass"
    assert names["inside.concept_trigger"].detail.startswith("significant")
    assert names["inside.concept_refusal"].status == "not measured"
    assert "velvet" in names["inside.atlas"].detail
    assert len(found.attributed) == 4
    assert ("words", 4, 4) in steps
    with pytest.raises(InputError, match="found 1 responses with words"):
        look_inside(scorer, LookedAt(prompts[:2], ["", texts[0]], ["a"] * 2), LookSettings())
    with pytest.raises(ConfigError, match="found n_attributed=0"):
        LookSettings(n_attributed=0)

"""A sequence classifier from elsewhere scores in karat as it does in transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from karat.batches import score_file, suite_file
from karat.belief import disagreement, mean_score
from karat.errors import CheckpointError, InputError
from karat.lm.adapters import peft_at_peace
from karat.lm.classifiers import classifier_tokens, load_classifier
from karat.records import Turn, user_prompt
from karat.reward.baselines import length_baseline
from karat.reward.calibration import predicted_probs, vote_nll
from karat.reward.classifier import fit_vote_model, given_fit
from karat.reward.data import vote_data
from karat.reward.gate import run_gate
from karat.reward.novelty import text_features
from karat.reward.score import load_scorer, save_reward, score_fn
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

PROMPTS = [user_prompt("q1"), user_prompt("q1"), user_prompt("another question")]
TEXTS = ["abc", "aaaa bb", "b"]
WRITTEN = {
    "qwen3": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n",
    "gpt2": "{}{}<|endoftext|>",
    "llama": "{}{}</s>",
    "gemma": "{}{}<eos>",
}


def saved_as_trl_does(kind, directory, *, pad=None):
    """A classifier with random weights, written by save_pretrained; TRL sets the configuration's PAD and adds a pickle."""
    base = tiny_checkpoint(kind, directory / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    tokenizer.pad_token = pad or tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    path = directory / "rm"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "training_args.bin").write_bytes(b"a pickle that nobody opens")
    return path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return saved_as_trl_does("qwen3", tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma"])
def test_scores_are_the_classifiers_own(kind, tmp_path):
    # GPT-2 pads with its end token, so its classifier reads the token before the end: whatever it does is reproduced
    check_scores(kind, saved_as_trl_does(kind, tmp_path))


def test_scores_with_a_chat_template_are_the_classifiers_own(qwen):
    check_scores("qwen3", qwen)


def check_scores(kind, path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    classifier = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager").eval()
    expected = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        ids = tokenizer(WRITTEN[kind].format(prompt.text, text), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(float(classifier(input_ids=ids).logits[0, 0]))
    scorer = load_scorer(path)
    belief = scorer(PROMPTS, TEXTS)
    assert belief.draws.shape == (1, 3, 1)
    assert mean_score(belief).tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.tensor(expected).std() > 1e-2
    alone = [float(mean_score(scorer([p], [t]))) for p, t in zip(PROMPTS, TEXTS, strict=True)]
    assert alone == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="found 1 draw"):
        disagreement(belief)


def saved_as_adapters(directory, *, seed=0):
    """What TRL's trainer writes with a peft_config: adapters, the head beside them, a tokenizer, no config.json."""
    base = tiny_checkpoint("qwen3", directory / "base")
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"])
    with peft_at_peace():
        model = get_peft_model(classifier, lora).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "score" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model.save_pretrained(directory / "rm")
    tokenizer.save_pretrained(directory / "rm")
    rows = [
        tokenizer(WRITTEN["qwen3"].format(p.text, t), return_tensors="pt") for p, t in zip(PROMPTS, TEXTS, strict=True)
    ]
    with torch.no_grad():
        expected = [float(model(**row).logits[0, 0]) for row in rows]
    return directory / "rm", expected


def test_adapters_of_a_classifier_score_as_they_did_where_they_were_trained(tmp_path):
    path, expected = saved_as_adapters(tmp_path)
    assert not (path / "config.json").exists()
    scorer = load_scorer(path)
    assert mean_score(scorer(PROMPTS, TEXTS)).tolist() == pytest.approx(expected, abs=1e-4)
    # a copy stands for itself, without the model that the adapters were trained on
    fit = given_fit(scorer.model, scorer.vote_model, scorer.scale, scorer.every(PROMPTS, TEXTS), [])
    copy = save_reward(fit, tmp_path / "copy", metadata={"run_id": "r"})
    shutil.rmtree(tmp_path / "base")
    assert mean_score(load_scorer(copy)(PROMPTS, TEXTS)).tolist() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(CheckpointError, match=r"found adapters of .*base, which is no directory here"):
        load_scorer(path)


def test_adapters_without_their_head_are_refused(tmp_path):
    path, _ = saved_as_adapters(tmp_path)
    kept = {key: value for key, value in load_file(path / "adapter_model.safetensors").items() if "score" not in key}
    save_file(kept, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 weights are missing or misshapen \(first: score.weight\)"):
        load_scorer(path)
    (path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: truncated or unreadable"):
        load_scorer(path)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found no adapter_model\.safetensors"):
        load_scorer(path)


def test_an_encoder_with_a_bias_reads_prompt_and_response_as_a_pair(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_labels=1
    )
    model = BertForSequenceClassification(config).eval()
    torch.nn.init.constant_(model.classifier.bias, 0.7)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("gpt2", tmp_path / "tokens"))
    tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", None
    tokenizer.save_pretrained(tmp_path)
    rows = [tokenizer(p.text, t, return_tensors="pt")["input_ids"] for p, t in zip(PROMPTS, TEXTS, strict=True)]
    with torch.no_grad():
        expected = [float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits) for ids in rows]
    scorer = load_scorer(tmp_path)
    assert mean_score(scorer(PROMPTS, TEXTS)).tolist() == pytest.approx(expected, abs=1e-4)
    assert scorer.model.trunk.width == 33
    assert text_features(scorer.model, PROMPTS, TEXTS)[:, -1].tolist() == [1.0] * 3


def test_a_given_model_finds_its_scale_in_votes_and_is_saved_with_it(qwen, tmp_path):
    votes, prompts, responses = planted_votes(12, 4, 6, 2)
    scorer = load_scorer(qwen)
    data = vote_data(votes, prompts, responses)
    raw = scorer.logits(data.prompts, data.texts)
    vote_model = fit_vote_model(scorer.model, raw.mean(0), data)
    assert vote_model.n_levels == 3
    temperature = float(scorer.model.temperature)
    fitted = float(vote_nll(predicted_probs(raw / temperature, data.columns, vote_model), data.columns).mean())
    if temperature < 20:  # inside the bounds a step to either side is worse
        for factor in (0.8, 1.25):
            other = predicted_probs(raw / (temperature * factor), data.columns, vote_model)
            assert float(vote_nll(other, data.columns).mean()) > fitted - 1e-6
    fit = given_fit(scorer.model, vote_model, scorer.scale, scorer.every(data.prompts, data.texts), [])
    path = save_reward(fit, tmp_path / "rm", metadata={"run_id": "r1"})
    again = load_scorer(path)
    assert torch.allclose(
        again.logits(PROMPTS, TEXTS), load_scorer(qwen).logits(PROMPTS, TEXTS) / temperature, atol=1e-4
    )
    assert again.vote_model == vote_model
    card = json.loads((path / "reward_card.json").read_text())
    assert card["not_expressed"][0] == "the temperature"
    assert card["trunk"] == {"kind": "classifier"}
    assert not (path / "training_args.bin").exists()
    assert score_fn(again)(PROMPTS, TEXTS) == pytest.approx(mean_score(again(PROMPTS, TEXTS)).tolist(), abs=1e-5)


def test_votes_set_no_scale_of_an_objective_that_they_do_not_speak_of(qwen):
    data = vote_data(*planted_votes(12, 4, 6, 2))
    scorer = load_scorer(qwen)
    raw = scorer.logits(data.prompts, data.texts).mean(0)
    scorer.model.objectives = ("harmless", "helpful")
    found = fit_vote_model(scorer.model, raw, data)
    assert (float(scorer.model.temperature), found.n_levels) == (1.0, 3)
    scorer.model.objectives = ("preference",)
    assert fit_vote_model(scorer.model, raw, data) == found
    assert float(scorer.model.temperature) != 1.0


def test_a_given_model_goes_through_the_gate(qwen):
    votes, prompts, responses = planted_votes(12, 4, 6, 1)
    scorer = load_scorer(qwen)
    data = vote_data(votes, prompts, responses)
    vote_model = fit_vote_model(scorer.model, scorer.logits(data.prompts, data.texts).mean(0), data)
    given = type(scorer)(scorer.model, vote_model, scorer.scale, scorer.reference)
    findings = {
        f.name: f for f in run_gate(given, length_baseline(data, vote_model.priors), votes, prompts, responses, seed=0)
    }
    assert findings["gate.swap"].status == "pass"
    assert findings["gate.likelihood"].estimate.n == 12


def test_files_and_suites_are_scored_with_it(qwen, tmp_path):
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "q1", "response": "abc"}\n')
    score_file(qwen, rows, tmp_path / "out.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row["score"] == pytest.approx(float(mean_score(load_scorer(qwen)(PROMPTS[:1], ["abc"]))), abs=1e-5)
    assert row["score_sd"] is None
    rows.write_text('{"prompt": "q1", "chosen": "abc", "rejected": "b", "subset": "hep-go", "id": 7}\n')
    result = suite_file(qwen, rows, tmp_path / "out.jsonl", "rewardbench")
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (row["id"], row["subset"], len(row["scores"])) == ("7", "hep-go", 2)
    assert result.subsets["hep-go"].value == float(row["scores"][0] > row["scores"][1])


def test_what_cannot_be_used_is_said(qwen, tmp_path):
    scorer = load_scorer(qwen)
    with pytest.raises(InputError, match=r"have 4\d\d tokens; expected at most 128"):
        scorer(PROMPTS[:1], ["x" * 400])
    config = json.loads((qwen / "config.json").read_text())
    other = tmp_path / "two"
    other.mkdir()
    for file in qwen.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}, "num_labels": 2}))
    with pytest.raises(CheckpointError, match="found 2 labels; expected a classifier with num_labels=1"):
        load_scorer(other)
    bare = tiny_checkpoint("llama", tmp_path / "lm")
    with pytest.raises(CheckpointError, match=r"found no reward_card\.json"):
        load_scorer(bare)
    (bare / "config.json").write_text(json.dumps(json.loads((bare / "config.json").read_text()) | {"num_labels": 1}))
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        load_classifier(bare)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    with pytest.raises(InputError, match="found 2 turns and a tokenizer without a chat template"):
        classifier_tokens(tokenizer, (Turn("system", "s"), Turn("user", "u")), "x")

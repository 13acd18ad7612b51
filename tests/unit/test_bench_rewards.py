"""The rewards that the benches give to both sides: by definition, and the same on both sides for the same tokens."""

from __future__ import annotations

import random

import pytest
import torch
from bench import text_rewards
from bench.models import PLAIN_HEAD, SEED
from bench.ours import scores
from bench.peers.text_reward import TextReward
from bench.text_rewards import MOST, REWARDS

from karat.lm import chat
from karat.lm.load import load_lm
from karat.records import user_prompt
from karat.reward.model import RewardModel
from karat.reward.trunk import DecoderTrunk
from tiny_models import tiny_checkpoint, tiny_tokenizer

BOUNDED = ("length", "word", "no_repetition")


def slow_words(text: str) -> list[str]:
    """Letter by letter: an apostrophe belongs to a word where a letter or digit stands on both its sides."""
    found, current = [], ""
    for i, sign in enumerate(text.lower()):
        inside = sign == "'" and current and i + 1 < len(text) and text[i + 1].isalnum() and text[i - 1].isalnum()
        if sign.isalnum() or inside:
            current += sign
        elif current:
            found.append(current)
            current = ""
    return [*found, current] if current else found


def slow_reward(name: str, text: str) -> float:
    """The formulas of the module's docstring, counted one by one."""
    found = slow_words(text)
    n = len(found)
    if name == "letters":
        return sum(0.25 for sign in text if sign == "e")
    if name == "length":
        return max(0.0, 10 * (1 - (n - 16 if n > 16 else 16 - n) / 16))
    if name == "word":
        return sum(2.5 for one in found if one == "you") if sum(one == "you" for one in found) < 4 else 10.0
    different = [one for i, one in enumerate(found) if one not in found[:i]]
    return 0.0 if n == 0 else 10 * len(different) / n * (n / 16 if n < 16 else 1)


def some_texts() -> list[str]:
    rng = random.Random(0)
    parts = [
        "you",
        "You",
        "you're",
        "e",
        "bee",
        "it's",
        "o'clock",
        "7",
        "ü",
        " ",
        "  ",
        "\n",
        ". ",
        "'",
        ", ",
        "_",
        "-",
    ]
    return ["".join(rng.choices(parts, k=rng.randrange(60))) for _ in range(300)]


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_is_its_formula(name: str) -> None:
    earned = [REWARDS[name](text) for text in some_texts()]
    assert earned == pytest.approx([slow_reward(name, text) for text in some_texts()], abs=1e-9)
    assert len(set(earned)) > 4  # the texts tell rewards apart


@pytest.mark.parametrize("name", BOUNDED)
def test_a_reward_lies_between_nothing_and_ten(name: str) -> None:
    assert all(0 <= REWARDS[name](text) <= MOST for text in some_texts())
    top = {"length": "a b " * 8, "word": "you " * 9, "no_repetition": " ".join(map(str, range(40)))}
    assert REWARDS[name](top[name]) == MOST


@pytest.mark.parametrize(
    ("text", "letters", "length", "word", "no_repetition"),
    [
        ("", 0, 0, 0, 0),
        (" \n...", 0, 0, 0, 0),
        ("you", 0, 10 / 16, 2.5, 10 / 16),
        ("you you you you", 0, 40 / 16, 10, 10 / 16),
        ("you " * 32, 0, 0, 10, 10 / 32),
        ("see", 0.5, 10 / 16, 0, 10 / 16),
    ],
)
def test_empty_single_and_repeated_words(text, letters, length, word, no_repetition) -> None:
    expected = {"letters": letters, "length": length, "word": word, "no_repetition": no_repetition}
    assert {name: reward(text) for name, reward in REWARDS.items()} == pytest.approx(expected)


def as_the_trainer_asks(reward: TextReward, responses: list[list[int]], *, pad: int, end: int, n_prompt: int) -> list:
    """Scores by loops: cut behind the end token, padded behind a prompt, read at the last token that is no padding."""
    width = max(map(len, responses)) + 1
    found = []
    for ids in responses:
        cut = ids[: ids.index(end) + 1] if end in ids else ids
        row = torch.tensor([[5] * n_prompt + cut + [pad] * (width - len(cut))])
        hidden = reward.backbone(input_ids=row.masked_fill(row == pad, 0), attention_mask=row != pad).hidden_states[-1]
        found.append(float(reward.score(hidden)[0, n_prompt + len(cut) - 1, 0]))
    return found


@pytest.mark.parametrize("name", REWARDS)
def test_both_sides_score_the_same_tokens_alike(name: str) -> None:
    tokenizer = tiny_tokenizer("gemma")
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in [*some_texts()[:30], "", "  you\nsee "]]
    responses = [*([*one, end] for one in ids), *(one for one in ids if one), ids[0] + [end] + ids[1]]
    texts = [chat.response_text(tokenizer, one, {end}) for one in responses]
    assert [text_rewards.response_text(tokenizer, one, end) for one in responses] == texts
    ours = scores.text_score(name)([user_prompt("hi")] * len(texts), texts)
    reward = TextReward(REWARDS[name], tokenizer, 3)
    assert as_the_trainer_asks(reward, responses, pad=pad, end=end, n_prompt=3) == pytest.approx(ours, abs=1e-5)


def test_our_side_scores_probes_as_it_scores_rollouts(tmp_path) -> None:
    lm = load_lm(tiny_checkpoint("qwen3", tmp_path))
    end = lm.tokenizer.eos_token_id
    probes = [[*lm.tokenizer.encode(text, add_special_tokens=False), end] for text in ("", "you see you")]
    asked = {"probes": [*probes, [*probes[1], *probes[1]]]}
    assert scores.probe_scores(lm, [user_prompt("hi")], scores.score_of("word"), asked) == [0.0, 5.0, 5.0]
    assert scores.probe_scores(lm, [user_prompt("hi")], scores.score_of("word"), {}) == []


def test_the_row_ppo_scores_with_the_reward_models_raw_numbers(tmp_path, monkeypatch) -> None:
    model = RewardModel(DecoderTrunk(load_lm(tiny_checkpoint("qwen3", tmp_path))), PLAIN_HEAD, seed=SEED)
    monkeypatch.setattr(scores, "plain_reward_model", lambda _size: model)
    prompts, texts = [user_prompt("hi"), user_prompt("why?")], ["so", "because it is"]
    raw = model.features(model.trunk.encode(prompts, texts), token_budget=100) @ model.mean_weight().squeeze(0)
    assert scores.score_of("model")(prompts, texts) == pytest.approx(raw.tolist(), abs=1e-5)

"""Supervised fine-tuning: response tokens only, micro-batches that do not matter, bitwise repeats and resumes."""

import math
from dataclasses import replace

import pytest
import torch

import tiny_models
from karat.errors import ConfigError, InputError, LedgerError
from karat.lm.adapters import add_lora
from karat.lm.load import load_lm
from karat.lm.loop import LoopConfig
from karat.records import Demonstration, user_prompt
from karat.sft import train as recipe
from karat.sft.loss import n_response_tokens, trees_of
from karat.sft.train import SFTConfig, mean_nll, minibatch_trees, tokenised, train_on_texts, train_sft

DEMONSTRATIONS = [
    Demonstration(user_prompt(f"say {word}"), f"{word} it is", "test")
    for word in ("red", "blue", "green", "grey", "pink", "black")
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_models.tiny_checkpoint("qwen3", tmp_path_factory.mktemp("sft") / "m", seed=0)


def weights(lm):
    return torch.cat([parameter.detach().flatten() for parameter in lm.model.parameters()])


def trained(checkpoint, **changes):
    lm = load_lm(checkpoint, for_training=True)
    config = SFTConfig(**{"epochs": 4, "batch_size": 3, "learning_rate": 1e-2} | changes)
    return lm, train_sft(lm, DEMONSTRATIONS, config, seed=5)


def test_the_loss_is_the_mean_over_response_tokens_of_a_plain_forward_pass(checkpoint):
    lm = load_lm(checkpoint)
    pairs = tokenised(lm, DEMONSTRATIONS)
    total, count = 0.0, 0
    for prompt, response in pairs:
        logits = lm.model(torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
        total -= sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(response))
        count += len(response)
    assert mean_nll(lm, pairs, 64) == pytest.approx(total / count, abs=1e-5)


def test_prompt_tokens_are_not_trained_on(checkpoint):
    lm = load_lm(checkpoint)
    (prompt, response), *_ = tokenised(lm, DEMONSTRATIONS)
    assert n_response_tokens(trees_of([prompt], [response])) == len(response)
    assert response[-1] == lm.eos_ids[0]


def test_it_learns_what_it_is_shown(checkpoint):
    before = mean_nll(load_lm(checkpoint), tokenised(load_lm(checkpoint), DEMONSTRATIONS), 512)
    lm, result = trained(checkpoint, epochs=20)
    after = mean_nll(lm, tokenised(lm, DEMONSTRATIONS), 512)
    assert after < 0.3 * before
    assert result.n_steps == 40


def test_two_seeded_runs_are_equal_to_the_bit(checkpoint):
    assert torch.equal(weights(trained(checkpoint)[0]), weights(trained(checkpoint)[0]))


def test_the_token_budget_changes_memory_not_the_result(checkpoint):
    narrow, wide = trained(checkpoint, token_budget=40)[0], trained(checkpoint, token_budget=4096)[0]
    assert torch.allclose(weights(narrow), weights(wide), atol=1e-4)


def test_a_killed_run_resumes_to_the_same_bits(checkpoint, tmp_path, monkeypatch):
    whole, _ = trained(checkpoint)
    config = SFTConfig(epochs=4, batch_size=3, learning_rate=1e-2, checkpoint_every=1)

    class Killed(Exception):
        pass

    def until_killed(state, step, loop, **rest):
        def killed(index):
            if index == 5:
                raise Killed
            return step(index)

        return original(state, killed, LoopConfig(loop.n_steps, 1), **rest)

    original = recipe.run_loop
    monkeypatch.setattr(recipe, "run_loop", until_killed)
    with pytest.raises(Killed):
        train_sft(load_lm(checkpoint, for_training=True), DEMONSTRATIONS, config, seed=5, directory=tmp_path)
    monkeypatch.undo()
    resumed = load_lm(checkpoint, for_training=True)
    train_sft(resumed, DEMONSTRATIONS, config, seed=5, directory=tmp_path)
    assert torch.equal(weights(whole), weights(resumed))


def test_every_demonstration_is_read_once_an_epoch():
    pairs = [([1, 2], [index, 9]) for index in range(10)]
    seen = [
        branch[0]
        for step in range(5)
        for tree in minibatch_trees(pairs, 4, seed=0, step=step)
        for branch in tree.branches
    ]
    assert sorted(seen) == sorted(list(range(10)) * 2)
    assert sorted(seen[:4]) != sorted(seen[10:14])


def test_demonstrations_of_one_prompt_share_it():
    trees = trees_of([[1, 2], [3], [1, 2]], [[5], [6], [7]])
    assert [(tree.prompt, tree.branches) for tree in trees] == [((1, 2), ((5,), (7,))), ((3,), ((6,),))]


def test_a_base_model_learns_whole_texts(checkpoint):
    lm = load_lm(checkpoint, for_training=True)
    result = train_on_texts(lm, ["abab", "cdcd"], SFTConfig(epochs=60, batch_size=2, learning_rate=1e-2), seed=0)
    assert result.last_nll < 0.5
    assert math.isfinite(result.last_nll)


@pytest.mark.parametrize(
    ("demonstrations", "message"),
    [
        ([], "found no demonstrations"),
        ([Demonstration(user_prompt("x" * 5000), "y", "t")], "expected at most 128 in all"),
    ],
)
def test_what_cannot_be_trained_on_is_named(checkpoint, demonstrations, message):
    with pytest.raises(InputError, match=message):
        tokenised(load_lm(checkpoint), demonstrations)


def test_a_configuration_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="expected all of them positive"):
        SFTConfig(batch_size=0)


def test_a_checkpoint_of_another_configuration_is_refused_by_what_differs(checkpoint, tmp_path):
    config = SFTConfig(epochs=1, batch_size=3, learning_rate=1e-2, checkpoint_every=1)

    def train(config, demonstrations, *, adapters=False):
        lm = load_lm(checkpoint, for_training=not adapters)
        lm = replace(lm, model=add_lora(lm.model, 2, 4.0)) if adapters else lm
        train_sft(lm, demonstrations, config, seed=5, directory=tmp_path)

    train(config, DEMONSTRATIONS)
    for changed, demonstrations, adapters, message in (
        (
            replace(config, learning_rate=2e-2),
            DEMONSTRATIONS,
            False,
            r"settings\.learning_rate: 0\.01 there, 0\.02 here",
        ),
        (config, DEMONSTRATIONS[1:], False, "demonstrations: demonstrations:.* there"),
        (config, DEMONSTRATIONS, True, r"lora: absent there, \{'rank': 2, 'alpha': 4\.0\} here"),
    ):
        with pytest.raises(LedgerError, match=message):
            train(changed, demonstrations, adapters=adapters)
    train(replace(config, checkpoint_every=2), DEMONSTRATIONS)  # how often to write changes nothing

"""A rollout against plain forward passes of transformers, one response at a time."""

import math
from dataclasses import replace

import pytest
import torch

from karat.errors import ConfigError, InputError, InvariantError
from karat.lm.adapters import add_lora
from karat.lm.chat import prompt_tokens
from karat.policy.actor import build_actor, token_scores
from karat.policy.actor import pack as pack_batches
from karat.policy.ppo import check_start_at_reference
from karat.policy.rollout import collect_rollout, truncate_after_stop
from karat.policy.settings import RolloutSettings
from karat.records import user_prompt
from karat.seeding import torch_generator
from policy_toys import PROMPTS, share_of_w3, toy_actor, toy_lm, toy_rollout


def plain_forward(model, head, prompt, response, temperature):
    """Log-probabilities, values, entropies and the value after the end, by transformers' own forward pass."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        table = (output.logits[0] / temperature).log_softmax(-1)
        values = head(output.hidden_states[-1][0])[:, 0]
    span = range(len(prompt) - 1, ids.shape[1] - 1)
    logprobs = [float(table[i, ids[0, i + 1]]) for i in span]
    entropies = [float(-(table[i].exp() * table[i]).sum()) for i in span]
    return logprobs, [float(values[i]) for i in span], entropies, float(values[-1])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_row_equals_a_plain_forward_pass(temperature):
    actor = toy_actor(torch.float64)
    with torch.no_grad():  # the policy moves, so that the reference is told apart from it
        for parameter in actor.lm.model.parameters():
            parameter.mul_(1.3)
    rollout = toy_rollout(actor, temperature=temperature, exact_entropy=True)
    responses = [(tree.prompt, branch) for tree in rollout.trees for branch in tree.branches]
    assert len(responses) == 12
    for row, (prompt, response) in enumerate(responses):
        n = len(response)
        assert rollout.response_mask[row].tolist() == [t < n for t in range(rollout.response_mask.shape[1])]
        new, values, entropies, after = plain_forward(actor.lm.model, actor.value_head, prompt, response, temperature)
        ref = plain_forward(actor.reference, actor.value_head, prompt, response, temperature)[0]
        assert rollout.logprobs[row, :n].tolist() == pytest.approx(new, abs=1e-10)
        assert rollout.ref_logprobs[row, :n].tolist() == pytest.approx(ref, abs=1e-10)
        assert rollout.values[row, :n].tolist() == pytest.approx(values, abs=1e-10)
        assert rollout.entropy[row, :n].tolist() == pytest.approx(entropies, abs=1e-10)
        assert float(rollout.last_values[row]) == pytest.approx(after, abs=1e-10)
        assert abs(new[0] - ref[0]) > 1e-3
    assert rollout.sampler_gap[0] < 1e-5  # the sampler records float32


def test_under_lora_the_reference_is_the_model_without_its_adapter():
    plain_lm = toy_lm(torch.float64)
    base = toy_lm(torch.float64).model
    adapted = replace(plain_lm, model=add_lora(plain_lm.model, 2, 4.0))
    actor = build_actor(adapted, critic=None, zero_head=True, generator=torch_generator(0))
    assert actor.reference is None
    check_start_at_reference(toy_rollout(actor), 1e-4)
    with torch.no_grad():
        for parameter in actor.lm.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2)
    rollout = toy_rollout(actor)
    for row, (prompt, branch) in enumerate((t.prompt, b) for t in rollout.trees for b in t.branches):
        ref = plain_forward(base, actor.value_head, prompt, branch, 1.0)[0]
        assert rollout.ref_logprobs[row, : len(branch)].tolist() == pytest.approx(ref, abs=1e-10)
    with pytest.raises(InvariantError, match=r"differ by .* at some token"):
        check_start_at_reference(rollout, 1e-4)


def test_tokens_texts_and_stops_agree():
    actor = toy_actor()
    seen = []

    def score_fn(prompts, texts):
        seen.append((list(prompts), list(texts)))
        return share_of_w3(prompts, texts)

    settings = RolloutSettings(n_prompts=3, n_samples=8, max_new_tokens=6)
    rollout = collect_rollout(actor, PROMPTS[:3], score_fn, settings=settings, token_budget=40, seed=1)
    assert len(seen) == 1  # one call for everything
    assert seen[0][0] == [p for p in PROMPTS[:3] for _ in range(8)]
    assert seen[0][1] == list(rollout.texts)
    stop = actor.lm.eos_ids[0]
    branches = [branch for tree in rollout.trees for branch in tree.branches]
    for branch, text, stopped, prompt in zip(branches, rollout.texts, rollout.stopped_mask, seen[0][0], strict=True):
        assert stop not in branch[:-1]
        assert bool(stopped) == (branch[-1] == stop)
        assert "<eos>" not in text
        words = actor.lm.tokenizer.convert_ids_to_tokens([t for t in branch if t != stop])
        assert text.split() == [word for word in words if not word.startswith("<")]
        assert prompt in PROMPTS
    assert 0 < rollout.stopped_mask.sum() < 24  # the toy shows both
    for tree, prompt in zip(rollout.trees, PROMPTS, strict=False):
        assert list(tree.prompt) == prompt_tokens(actor.lm.tokenizer, prompt.turns)
    assert rollout.lengths.tolist() == [len(b) for b in branches]


def test_same_seed_same_rollout_and_another_seed_another():
    first, again, other = (toy_rollout(toy_actor(), seed=s) for s in (3, 3, 4))
    assert first.trees == again.trees
    assert torch.equal(first.logprobs, again.logprobs)
    assert torch.equal(first.values, again.values)
    assert first.trees != other.trees


def test_neighbours_and_padding_do_not_matter():
    actor = toy_actor(torch.float64)
    rollout = toy_rollout(actor)
    alone = pack_batches([rollout.trees[2]], 10_000, actor.lm.model.device)[0]
    with torch.no_grad():
        scores = token_scores(actor, alone, temperature=1.0)
    rows = rollout.logprobs[6:9][rollout.response_mask[6:9]]
    torch.testing.assert_close(scores.logprobs, rows, atol=1e-12, rtol=0)
    torch.testing.assert_close(scores.values, rollout.values[6:9][rollout.response_mask[6:9]], atol=1e-12, rtol=0)


def test_truncation_after_the_first_stop_token():
    assert truncate_after_stop([7, 2, 9, 2], {2}) == (7, 2)
    assert truncate_after_stop([7, 3, 9], {2, 3}) == (7, 3)
    assert truncate_after_stop([7, 8], {2}) == (7, 8)


def test_a_head_of_its_own_distribution_or_zero():
    actor = toy_actor()
    drawn = torch.cat([toy_actor().value_head.weight.flatten() for _ in range(2)])
    assert torch.equal(*drawn.chunk(2))  # seeded
    assert 0.5 < float(actor.value_head.weight.detach().std()) * math.sqrt(33) < 1.5
    assert not actor.value_head.bias.any()
    assert not toy_actor(zero_head=True).value_head.weight.any()


def test_refuses_bad_input():
    actor = toy_actor()
    settings = RolloutSettings(n_prompts=1, n_samples=2, max_new_tokens=4)
    arguments = {"settings": settings, "token_budget": 100, "seed": 0}
    with pytest.raises(InputError, match=r"found nan for responses\[1\] of 2"):
        collect_rollout(actor, PROMPTS[:1], lambda _p, _t: [0.0, math.nan], **arguments)
    with pytest.raises(InputError, match="found 1 scores for 2 responses"):
        collect_rollout(actor, PROMPTS[:1], lambda _p, _t: [0.0], **arguments)
    with pytest.raises(InputError, match="64 in all"):
        collect_rollout(actor, [user_prompt("w1 " * 61)], share_of_w3, **arguments)
    frozen = toy_actor().lm
    frozen.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_actor(frozen, critic=None, zero_head=True, generator=torch_generator(0))

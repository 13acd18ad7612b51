"""The decode loop against plain forward passes of the same model: same tokens, same log-probabilities, any batch."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ending_models import EOS, KINDS, PROMPTS, flat, make_lm
from karat.errors import CheckpointError, ConfigError, InputError, InvariantError
from karat.lm import decoder
from karat.lm.cache import ATTENTION, DecodeCache, PrefillLayout, decoding
from karat.lm.generate import SamplingConfig, default_keys, greedy, sample
from karat.lm.load import LoadedLM
from karat.lm.tiled_attention import tiles_of
from reference import inverse_cdf


def plain_logits(lm: LoadedLM, prompt, response, *, left: int = 0, right: int = 0) -> torch.Tensor:
    """Logits [T, V] that predict each response token, from one padded forward pass without a cache."""
    ids = [*prompt, *response]
    mask = [0] * left + [1] * len(ids) + [0] * right
    positions = [0] * left + list(range(len(ids))) + [0] * right
    with torch.no_grad():
        logits = lm.model(
            input_ids=torch.tensor([[7] * left + ids + [7] * right]),
            attention_mask=torch.tensor([mask]),
            position_ids=torch.tensor([positions]),
            use_cache=False,
        ).logits[0]
    first = left + len(prompt) - 1
    return logits[first : first + len(response)]


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_logprobs_equal_a_plain_forward_pass_however_it_is_padded(kind):
    lm = make_lm(kind, stop_logit=2.0)
    drawn = flat(sample(lm, PROMPTS, n_samples=3, config=SamplingConfig(24, batch_rows=7), seed=1))
    assert {len(one.response_tokens) for one in drawn} != {24}
    for number, one in enumerate(drawn):
        padding = ({}, {"left": 5}, {"right": 6})[number % 3]
        logits = plain_logits(lm, one.prompt_tokens, one.response_tokens, **padding)
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(one.response_tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_is_the_one_whose_interval_in_the_models_distribution_holds_its_number(kind):
    lm = make_lm(kind, torch.float64, stop_logit=1.0)
    keys = [2**40 + index for index in range(3)]
    drawn = sample(lm, PROMPTS[:3], n_samples=2, config=SamplingConfig(9, batch_rows=4), seed=-3, prompt_keys=keys)
    for key, group in zip(keys, drawn, strict=True):
        for one in group:
            probs = plain_logits(lm, one.prompt_tokens, one.response_tokens).softmax(-1)
            for position, token in enumerate(one.response_tokens):
                u = float(inverse_cdf.uniform(-3, key, one.sample, position))
                assert inverse_cdf.pick(probs[position].tolist(), u) == token


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_is_the_same_in_every_batch_and_order(kind):
    lm = make_lm(kind, torch.float64, stop_logit=2.5)
    order = np.random.default_rng(0).permutation(len(PROMPTS))

    def tokens(prompts, **options):
        drawn = sample(lm, prompts, n_samples=3, config=SamplingConfig(20, **options), seed=9)
        assert [[one.sample for one in group] for group in drawn] == [[0, 1, 2]] * len(prompts)
        assert [group[0].prompt_tokens for group in drawn] == [tuple(prompt) for prompt in prompts]
        return [[one.response_tokens for one in group] for group in drawn]

    wide = tokens(PROMPTS, batch_rows=128)
    assert len({len(response) for group in wide for response in group}) > 4
    assert tokens(PROMPTS, batch_rows=1) == wide
    assert tokens(PROMPTS, batch_rows=7) == wide
    assert tokens([PROMPTS[i] for i in order], batch_rows=7) == [wide[i] for i in order]
    assert tokens(PROMPTS[3:5], batch_rows=5) == wide[3:5]


def test_a_longer_limit_or_more_samples_leave_what_was_drawn_before():
    lm = make_lm("qwen3", torch.float64)
    short = sample(lm, PROMPTS, n_samples=2, config=SamplingConfig(5), seed=2)
    longer = sample(lm, PROMPTS, n_samples=3, config=SamplingConfig(9), seed=2)
    for few, more in zip(short, longer, strict=True):
        for one, other in zip(few, more, strict=False):
            assert one.response_tokens == other.response_tokens[:5]


def test_long_prompts_read_in_tiles_give_the_same_responses(monkeypatch):
    lm = make_lm("qwen3", torch.float64)
    plain = flat(sample(lm, PROMPTS, n_samples=2, config=SamplingConfig(6), seed=4))
    taken = []
    monkeypatch.setattr("karat.lm.cache.MOST_KEYS", 8)
    monkeypatch.setattr("karat.lm.tiled_attention.QUERIES", 4)
    monkeypatch.setattr("karat.lm.tiled_attention.suits", lambda *given: taken.append(given) or True)
    tiles_of.cache_clear()
    tiled = flat(sample(lm, PROMPTS, n_samples=2, config=SamplingConfig(6), seed=4))
    tiles_of.cache_clear()
    assert [span.stop - span.start for span in taken[0][2].spans] == sorted(map(len, PROMPTS), reverse=True)
    for one, other in zip(tiled, plain, strict=True):
        assert one.response_tokens == other.response_tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_generate_of_transformers(kind):
    lm = make_lm(kind)
    for prompt, mine in zip(PROMPTS, greedy(lm, PROMPTS, max_new_tokens=16, batch_rows=3), strict=True):
        theirs = lm.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=list(EOS[kind]),
            pad_token_id=3,
        )[0, len(prompt) :]
        assert mine.response_tokens == tuple(theirs.tolist())
        expected = plain_logits(lm, prompt, mine.response_tokens).log_softmax(-1).amax(-1)
        torch.testing.assert_close(torch.tensor(mine.logprobs), expected, atol=1e-5, rtol=0)


def test_first_tokens_have_the_models_distribution():
    lm = make_lm("llama")
    drawn = flat(sample(lm, [PROMPTS[1]], n_samples=6000, config=SamplingConfig(1, batch_rows=2000), seed=4))
    counts = np.bincount([one.response_tokens[0] for one in drawn], minlength=258)
    expected = plain_logits(lm, PROMPTS[1], [0])[0].double().softmax(-1).numpy() * len(drawn)
    common = expected > 5
    observed = np.append(counts[common], counts[~common].sum())
    assert stats.chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > 1e-3


@pytest.mark.parametrize("options", [{"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 9, "top_p": 0.7}])
def test_logprobs_are_those_of_the_distribution_drawn_from(options):
    lm = make_lm("qwen3", torch.float64)
    drawn = flat(sample(lm, PROMPTS[:4], n_samples=2, config=SamplingConfig(6, **options), seed=3))
    for one in drawn:
        logits = plain_logits(lm, one.prompt_tokens, one.response_tokens) / options.get("temperature", 1.0)
        for position, (token, logprob) in enumerate(zip(one.response_tokens, one.logprobs, strict=True)):
            probs = inverse_cdf.truncated(
                inverse_cdf.softmax(logits[position].tolist()), options.get("top_k", 0), options.get("top_p", 1.0)
            )
            assert logprob == pytest.approx(np.log(probs[token]), abs=1e-6)


def test_stopped_means_that_a_stop_token_was_drawn_and_it_is_kept():
    lm = make_lm("qwen3", stop_logit=3.0)
    drawn = flat(sample(lm, PROMPTS, n_samples=8, config=SamplingConfig(10), seed=0))
    ends = Counter((one.stopped, one.response_tokens[-1] in lm.eos_ids) for one in drawn)
    assert set(ends) == {(True, True), (False, False)}
    assert {one.response_tokens[-1] for one in drawn if one.stopped} == set(lm.eos_ids)
    for one in drawn:
        assert not set(one.response_tokens[:-1]) & set(lm.eos_ids)
        assert one.stopped or len(one.response_tokens) == 10
        assert len(one.response_tokens) == len(one.logprobs)


def test_stop_tokens_are_impossible_before_min_new_tokens_and_the_rest_is_renormalised():
    lm = make_lm("qwen3", torch.float64, stop_logit=5.0)
    drawn = flat(sample(lm, PROMPTS, n_samples=4, config=SamplingConfig(8, min_new_tokens=3), seed=0))
    assert min(len(one.response_tokens) for one in drawn) == 4
    for one in drawn[:6]:
        logits = plain_logits(lm, one.prompt_tokens, one.response_tokens)
        logits[:3, list(lm.eos_ids)] = -torch.inf
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(one.response_tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs).double(), expected, atol=1e-6, rtol=0)


def test_each_prompt_is_read_once_and_rows_that_are_done_are_dropped(monkeypatch):
    lm = make_lm("llama", stop_logit=4.0)
    fed = []
    lm.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].shape[1]))
    monkeypatch.setattr(decoder, "PREFILL_TOKENS", 40)
    drawn = flat(sample(lm, PROMPTS, n_samples=4, config=SamplingConfig(30, batch_rows=6), seed=0))
    n_needed = sum(len(one.response_tokens) - 1 for one in drawn)
    n_prompt_tokens = sum(map(len, PROMPTS))
    assert n_prompt_tokens + n_needed <= sum(fed) < n_prompt_tokens + n_needed * 1.25
    assert max(fed) <= 40


def test_a_batch_of_prompts_is_split_by_the_token_budget(monkeypatch):
    lm = make_lm("gpt2", torch.float64)
    whole = sample(lm, PROMPTS, n_samples=2, config=SamplingConfig(4), seed=0)
    fed = []
    lm.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].shape[1]))
    monkeypatch.setattr(decoder, "PREFILL_TOKENS", 26)
    parts = sample(lm, PROMPTS, n_samples=2, config=SamplingConfig(4), seed=0)
    assert fed[:4] == [30, 23, 26, 16]  # 30 alone, though above the budget; 23; 17 + 9; 9 + 4 + 2 + 1
    assert [one.response_tokens for one in flat(parts)] == [one.response_tokens for one in flat(whole)]


def test_a_row_at_its_limit_waits_unharmed_while_younger_rows_go_on():
    lm = make_lm("llama", torch.float64, stop_logit=3.5)
    config = SamplingConfig(9, batch_rows=24)
    drawn = sample(lm, PROMPTS, n_samples=8, config=config, seed=0)
    alone = [sample(lm, [prompt], n_samples=8, config=config, seed=0)[0] for prompt in PROMPTS]
    assert {len(one.response_tokens) == 9 for one in flat(drawn)} == {True, False}
    assert [[one.response_tokens for one in group] for group in drawn] == [
        [one.response_tokens for one in group] for group in alone
    ]


def test_equal_prompts_get_different_samples_unless_their_keys_are_equal():
    lm = make_lm("qwen3")
    prompts, config = [PROMPTS[1]] * 3, SamplingConfig(12)
    different = sample(lm, prompts, n_samples=1, config=config, seed=0)
    assert len({group[0].response_tokens for group in different}) == 3
    equal = sample(lm, prompts, n_samples=1, config=config, seed=0, prompt_keys=[4, 4, 4])
    assert len({group[0].response_tokens for group in equal}) == 1
    assert len(set(default_keys([[1, 2], [12], [1], [1, 2]]))) == 4
    assert default_keys([[9], [1, 2]])[1] == default_keys([[1, 2]])[0]


def test_progress_counts_up_to_everything():
    seen = []
    drawn = flat(
        sample(
            make_lm("gpt2", stop_logit=2.0),
            PROMPTS,
            n_samples=2,
            config=SamplingConfig(6, batch_rows=5),
            seed=0,
            progress=lambda *counts: seen.append(counts),
        )
    )
    assert all(before[0] < after[0] and before[1] <= after[1] for before, after in itertools.pairwise(seen))
    assert seen[-1] == (sum(len(one.response_tokens) for one in drawn), len(drawn), len(drawn))


def test_the_model_is_left_as_it_was_found_even_after_an_error():
    lm = make_lm("gpt2")
    lm.model.train()
    before = lm.model.config._attn_implementation
    sample(lm, PROMPTS[:1], n_samples=1, config=SamplingConfig(2), seed=0)
    assert (lm.model.config._attn_implementation, lm.model.training) == (before, True)
    with torch.no_grad():
        lm.model.transformer.ln_f.bias.fill_(torch.nan)
    with pytest.raises(InvariantError, match="prompt 0: the logits at position 0 are not numbers"):
        sample(lm, PROMPTS[:1], n_samples=1, config=SamplingConfig(2), seed=0)
    assert (lm.model.config._attn_implementation, lm.model.training) == (before, True)


def test_nothing_to_do_gives_nothing():
    lm = make_lm("gpt2")
    assert sample(lm, [], n_samples=2, config=SamplingConfig(2), seed=0) == []
    assert greedy(lm, [], max_new_tokens=2) == []


def test_the_context_is_used_to_its_last_position_and_not_beyond():
    lm = make_lm("gpt2")
    lm.model.lm_head.bias = torch.nn.Parameter(torch.zeros(257).index_fill(0, torch.tensor([0]), -1e9))
    fits = sample(lm, [[5] * 120], n_samples=1, config=SamplingConfig(8), seed=0)
    assert len(fits[0][0].response_tokens) == 8
    for draw in (
        lambda: sample(lm, [[5], [5] * 121], n_samples=1, config=SamplingConfig(8), seed=0),
        lambda: greedy(lm, [[5], [5] * 121], max_new_tokens=8),
    ):
        with pytest.raises(
            InputError, match=r"prompt 1 has 121 tokens and up to 8 new ones; expected at most 128"
        ) as e:
            draw()
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: found 0; expected ≥ 1"),
        ({"max_new_tokens": 1, "batch_rows": 0}, "batch_rows: found 0"),
        ({"max_new_tokens": 1, "temperature": 0.0}, "temperature: found 0.0; expected > 0"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature: found nan"),
        ({"max_new_tokens": 1, "top_k": -1}, "top_k: found -1"),
        ({"max_new_tokens": 1, "top_p": 0.0}, r"top_p: found 0.0; expected a probability in \(0, 1\]"),
        ({"max_new_tokens": 1, "min_new_tokens": -1}, "min_new_tokens: found -1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**options)


def test_input_that_cannot_be_used_is_named():
    lm, config = make_lm("gpt2"), SamplingConfig(2)
    with pytest.raises(InputError, match="prompt 1 has no tokens"):
        sample(lm, [[3], []], n_samples=1, config=config, seed=0)
    with pytest.raises(ConfigError, match="found n_samples 0; expected ≥ 1"):
        sample(lm, [[3]], n_samples=0, config=config, seed=0)
    with pytest.raises(InputError, match="found 2 prompt keys for 1 prompts"):
        sample(lm, [[3]], n_samples=1, config=config, seed=0, prompt_keys=[1, 2])
    with pytest.raises(InputError, match=r"prompt 0 contains token 257; expected ids from 0 to 256"):
        sample(lm, [[3, 257]], n_samples=1, config=config, seed=0)


def test_attention_that_is_not_plain_softmax_is_refused():
    lm = make_lm("llama")
    states = torch.zeros(1, 4, 2, 8)
    with pytest.raises(CheckpointError, match="found attention with s_aux"):
        ALL_ATTENTION_FUNCTIONS[ATTENTION](lm.model, states, states, states, None, s_aux=torch.zeros(4))


@given(st.lists(st.booleans(), max_size=12))
def test_closing_gaps_keeps_what_is_kept_and_moves_no_more_than_the_gaps(keep):
    items = list(range(len(keep)))
    closed, (sources, targets) = decoder._close_gaps(items, keep)
    assert sorted(closed) == [item for item in items if keep[item]]
    by_hand = list(items)
    for source, target in zip(sources, targets, strict=True):
        by_hand[target] = items[source]
    assert by_hand[: len(closed)] == closed
    assert len(sources) <= keep.count(False)


def test_room_for_more_prompts_keeps_those_that_are_there():
    cache = DecodeCache(n_slots=1, prompt_tokens=3, n_rows=1, response_tokens=0)
    keys = torch.arange(12.0).reshape(1, 2, 3, 2)
    cache.now = PrefillLayout(
        slots=torch.tensor([0]),
        index=torch.tensor([[0, 1, 2]]),
        prompt_of=torch.tensor([0, 0, 0]),
        column_of=torch.tensor([0, 1, 2]),
    )
    cache.update(keys, -keys, 0)
    cache.reserve_slots(3)
    assert cache.n_slots == 3
    assert torch.equal(cache.prompts[0][0][:1], keys)
    assert torch.equal(cache.prompts[0][1][:1], -keys)
    cache.move_slots([0], [2])
    assert torch.equal(cache.prompts[0][0][2:], keys)


def test_decoding_inside_decoding_restores_the_outer_one():
    lm = make_lm("llama")
    outer, inner = (DecodeCache(n_slots=1, prompt_tokens=1, n_rows=1, response_tokens=1) for _ in range(2))
    with decoding(lm.model, outer):
        with decoding(lm.model, inner):
            pass
        assert lm.model.config._attn_implementation == ATTENTION
    assert lm.model.config._attn_implementation == "sdpa"


def test_a_sample_is_a_frozen_record():
    one = greedy(make_lm("gpt2"), [[5]], max_new_tokens=1)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.stopped = True  # type: ignore[misc]

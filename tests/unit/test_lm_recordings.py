"""Recorded steps from one call of the sampler to the next: replayed where all is as it was, else made anew and freed."""

import dataclasses
import gc
import weakref

import pytest
import torch
from test_lm_static_step import assert_same, responses

from ending_models import PROMPTS, flat, make_lm
from karat.errors import InvariantError
from karat.lm import recordings, segments, ways
from karat.lm.adapters import add_lora, reference_mode
from karat.lm.generate import SamplingConfig, greedy, sample
from karat.lm.load import load_lm
from karat.lm.ways import in_ways
from pretend_graphs import pretend_graphs
from tiny_models import tiny_checkpoint

CONFIG = SamplingConfig(22, batch_rows=20)


@pytest.fixture
def graphs(monkeypatch):
    """Within: decoding by graphs that are none; what was recorded is counted."""
    monkeypatch.setattr(ways, "decode_problem", lambda *_: None)
    with pretend_graphs(monkeypatch) as counts:
        yield counts


def drawn(lm, seed=1, *, way="graph", config=CONFIG, prompts=PROMPTS[:4]):
    with in_ways(way):
        return flat(sample(lm, prompts, n_samples=3, config=config, seed=seed))


def nudge(model):
    """An optimiser's step: other numbers at the same addresses."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)


def test_a_second_call_replays_what_the_first_one_recorded(graphs):
    lm = make_lm("llama", stop_logit=2.0)
    assert_same(drawn(lm), drawn(lm, way="plain"))
    n = graphs.n_graphs
    assert n > 0
    assert drawn(lm) == drawn(make_lm("llama", stop_logit=2.0))  # to the bit what a model draws first
    n_of_two = graphs.n_graphs
    assert n_of_two == 2 * n
    assert_same(drawn(lm, seed=2), drawn(lm, seed=2, way="plain"))
    assert graphs.n_graphs - n_of_two < n  # shapes that seed 1 did not come to, if any


@pytest.mark.parametrize("products", [None, torch.bfloat16])
@pytest.mark.parametrize("adapters", [False, True])
def test_weights_that_changed_where_they_lie_are_read(adapters, products, tmp_path, graphs):
    checkpoint = tiny_checkpoint("qwen3", tmp_path)

    def load():
        loaded = load_lm(checkpoint, products=products)
        if adapters:
            loaded = dataclasses.replace(loaded, model=add_lora(loaded.model, 4, 8.0, seed=0))
        return loaded

    lm, fresh = load(), load()
    before = drawn(lm)
    n = graphs.n_graphs
    nudge(lm.model)
    after = drawn(lm)
    assert graphs.n_graphs == n
    assert responses(after) != responses(before)
    nudge(fresh.model)
    assert after == drawn(fresh)  # to the bit what a model draws that was recorded with these weights


def _moved(lm):
    weight = next(iter(lm.model.parameters()))
    weight.data = weight.data.clone()


def _hooked(lm):
    lm.model.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("change", [_moved, _hooked, lambda lm: lm.model.double()])
def test_what_is_not_as_it_was_is_recorded_anew_and_the_old_is_freed(change, graphs):
    lm = make_lm("qwen3", stop_logit=2.0)
    drawn(lm)
    old = weakref.ref(recordings._KEPT[lm.model])
    buffer = weakref.ref(old().cache.responses[0][0])
    n = graphs.n_graphs
    change(lm)
    expected = drawn(lm, way="plain")
    assert_same(drawn(lm), expected)
    assert graphs.n_graphs > n
    gc.collect()
    assert old() is None
    assert buffer() is None
    assert len([key for key in recordings._KEPT if key is lm.model]) == 1


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.7}, {"min_new_tokens": 2}, {"max_new_tokens": 9}],
    ids=str,
)
def test_another_setting_of_the_draws_is_another_recording(options, graphs):
    lm = make_lm("llama", stop_logit=2.0)
    drawn(lm)
    n = graphs.n_graphs
    config = SamplingConfig(**{"max_new_tokens": 22, "batch_rows": 20} | options)
    assert_same(drawn(lm, config=config), drawn(lm, config=config, way="plain"))
    assert graphs.n_graphs > n


def test_the_likeliest_token_and_a_drawn_one_are_two_recordings(graphs):
    lm = make_lm("llama", stop_logit=1.0)
    with in_ways("graph"):
        sample(lm, PROMPTS[:4], n_samples=1, config=SamplingConfig(20), seed=0)
        n = graphs.n_graphs
        found = greedy(lm, PROMPTS[:4], max_new_tokens=20)
    assert graphs.n_graphs > n
    assert_same(found, greedy(lm, PROMPTS[:4], max_new_tokens=20))


def test_adapters_that_are_switched_off_are_another_recording(tmp_path, graphs):
    plain = load_lm(tiny_checkpoint("qwen3", tmp_path))
    lm = dataclasses.replace(plain, model=add_lora(plain.model, 4, 8.0, seed=0))
    nudge(lm.model)
    with_them = drawn(lm)
    n = graphs.n_graphs
    with reference_mode(lm.model):
        without = drawn(lm)
        assert_same(without, drawn(lm, way="plain"))
    assert graphs.n_graphs > n
    assert responses(without) != responses(with_them)
    assert drawn(lm) == with_them


def test_a_recording_goes_with_its_model(graphs):
    lm = make_lm("llama", stop_logit=2.0)
    drawn(lm)
    assert graphs.n_graphs
    kept, model = weakref.ref(recordings._KEPT[lm.model]), weakref.ref(lm.model)
    del lm
    gc.collect()
    assert model() is None
    assert kept() is None


def test_what_ended_with_an_error_is_not_kept(graphs):
    lm = make_lm("gpt2", stop_logit=1.0)
    drawn(lm)
    bias = lm.model.transformer.ln_f.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(torch.nan)
    with pytest.raises(InvariantError, match="are not numbers"):
        drawn(lm)
    assert lm.model not in recordings._KEPT
    with torch.no_grad():
        bias.copy_(before)
    n = graphs.n_graphs
    assert_same(drawn(lm), drawn(lm, way="plain"))
    assert graphs.n_graphs > n


@pytest.mark.usefixtures("graphs")
def test_a_cache_that_grew_is_not_kept():
    """A call reads the widths that its own draws ask for, whatever was drawn before it."""
    lm = make_lm("qwen3", stop_logit=2.0)
    config = SamplingConfig(40, batch_rows=4)
    found = drawn(lm, config=config, prompts=PROMPTS)
    assert_same(found, drawn(lm, config=config, prompts=PROMPTS, way="plain"))
    grown = lm.model not in recordings._KEPT
    assert drawn(lm, config=config, prompts=PROMPTS) == found
    assert grown


@pytest.mark.usefixtures("graphs")
def test_two_calls_at_once_have_buffers_of_their_own():
    """A call takes the recording away; one that is made meanwhile finds none."""
    lm = make_lm("llama", stop_logit=2.0)
    expected, seen = drawn(lm), []

    def watch(*_):
        if not seen:
            seen.append(1)
            seen.append(drawn(lm))

    with in_ways("graph"):
        outer = flat(sample(lm, PROMPTS[:4], n_samples=3, config=CONFIG, seed=1, progress=watch))
    assert seen[1] == outer == expected


def test_the_plain_way_keeps_nothing():
    lm = make_lm("llama", stop_logit=2.0)
    for way in ("plain", "steps"):
        drawn(lm, way=way)
        assert lm.model not in recordings._KEPT
    assert segments.recording is recordings.recording

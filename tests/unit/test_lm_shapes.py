"""Rows filled up to few numbers: the same values and gradients as without, and few numbers indeed."""

from __future__ import annotations

import pytest
import torch

import tiny_models
from ending_models import PROMPTS, flat, make_lm
from karat.errors import InputError
from karat.lm import decoder, final_block, fused_decode, kernels, logprobs
from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_at, hidden_states, response_logprobs
from karat.lm.shapes import even_number
from karat.lm.trees import Tree, filled, pack_trees

FILLED = (logprobs, final_block, fused_decode, decoder)
"""Modules that ask how many rows to compute."""


@pytest.fixture
def much_filler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are filled up to the next power of two, whatever the processor."""
    for module in FILLED:
        monkeypatch.setattr(module, "even_rows", lambda n, _device, _products, _parts=1: even_number(n, 1))


@pytest.fixture
def no_filler(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is."""
    for module in FILLED:
        monkeypatch.setattr(module, "even_rows", lambda n, _device, _products, _parts=1: n)


def some_trees(seed: int = 0) -> list[Tree]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 250, (n,), generator=generator).tolist())

    return [Tree(ids(p), tuple(map(ids, own))) for p, own in [(9, (4, 7)), (30, (2, 1)), (12, (3, 9, 1)), (25, (13,))]]


@pytest.mark.parametrize("parts", [1, 8, 32])
def test_a_number_is_filled_up_to_the_next_of_so_many_an_octave(parts: int) -> None:
    allowed = sorted({(parts + j) * 2**k // parts for k in range(20) for j in range(parts)})  # floors where 2^k < parts
    for n in range(1, 5000):
        assert even_number(n, parts) == next(one for one in allowed if one >= n)
    assert even_number(0, parts) == 0
    assert len({even_number(n, parts) for n in range(1025, 2049)}) == parts


def test_parts_that_are_no_power_of_two_are_refused() -> None:
    with pytest.raises(InputError, match=r"^even_number: found 12 parts; expected a power of two$"):
        even_number(100, 12)


@pytest.mark.parametrize(
    ("compiles", "maker", "float32", "bfloat16"),
    [(True, "AuthenticAMD", True, True), (True, kernels.INTEL, False, True), (False, "AuthenticAMD", False, False)],
)
def test_rows_are_filled_where_products_are_prepared_which_onednns_are(
    compiles, maker, float32, bfloat16, monkeypatch
) -> None:
    monkeypatch.setattr(kernels, "onednn_multiplies", lambda: compiles)
    monkeypatch.setattr(kernels, "processor_maker", lambda: maker)
    assert kernels.prepares(None) == kernels.prepares(torch.float32) == float32
    assert kernels.prepares(torch.bfloat16) == bfloat16
    for products, prepared in ((None, float32), (torch.float32, float32), (torch.bfloat16, bfloat16)):
        assert kernels.even_rows(1001, torch.device("cpu"), products) == (1008 if prepared else 1001)
        assert kernels.even_rows(1001, torch.device("meta"), products) == 1001


def test_filler_is_a_tree_of_its_own_behind_the_last() -> None:
    batch = pack_trees(some_trees(), token_budget=500)[0]
    more = filled(batch, 150)
    n, last = batch.n_tokens, more.layout.spans[-1]
    assert more.layout.spans[:-1] == batch.layout.spans
    assert (last.start, last.stop, more.layout.n_positions, more.n_tokens) == (n, 150, 150, 150)
    assert more.position_ids[0, n:].tolist() == list(range(150 - n))
    assert torch.equal(more.predict_index, batch.predict_index)
    assert filled(batch, n) is batch


@pytest.mark.parametrize("kind", [*tiny_models.KINDS, "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_without_filler(kind, dtype, tmp_path, request) -> None:
    lm = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path, dtype=dtype), dtype=dtype, for_training=True)
    batch = pack_trees(some_trees(), token_budget=500)[0]
    weights = torch.randn(2, len(batch.target_ids), generator=torch.Generator().manual_seed(1), dtype=dtype)

    def outcome() -> list[torch.Tensor]:
        lm.model.zero_grad()
        found = response_logprobs(lm.model, batch, temperature=0.7, with_entropy=True, with_hidden=True)
        last = hidden_at(lm.model, batch, batch.last_index)
        (torch.stack([found.logprobs, found.entropy]) * weights).sum().backward()
        values = [found.logprobs, found.entropy, found.hidden, last, hidden_states(lm.model, batch)]
        return [*(value.detach() for value in values), *(p.grad.clone() for p in lm.model.parameters())]

    request.getfixturevalue("no_filler")
    plain = outcome()
    request.getfixturevalue("much_filler")
    assert hidden_states(lm.model, batch).shape[0] == batch.n_tokens == 116
    for a, b in zip(outcome(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_same_tokens_are_drawn_with_filler(kind, request) -> None:
    lm = make_lm(kind, stop_logit=2.0)
    config = SamplingConfig(24, batch_rows=30)

    def drawn():
        return flat(sample(lm, PROMPTS, n_samples=9, config=config, seed=1))

    request.getfixturevalue("no_filler")
    plain = drawn()
    request.getfixturevalue("much_filler")
    found = drawn()
    assert [one.response_tokens for one in found] == [one.response_tokens for one in plain]
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5, rtol=0)


def test_the_sampler_computes_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama", stop_logit=2.0)
    seen: set[int] = set()
    head = lm.model.get_output_embeddings()
    head.register_forward_hook(lambda _module, inputs, _output: seen.add(inputs[0].shape[:-1].numel()))
    monkeypatch.setattr(decoder, "even_rows", lambda n, _device, _products, parts: even_number(n, parts))
    sample(lm, PROMPTS[:2], n_samples=60, config=SamplingConfig(40, batch_rows=120), seed=1)
    assert len(seen) > 5
    behind = sorted(n for n in seen if n >= 16)[
        :-1
    ]  # all but the first step, which has the rows that did not end at once
    assert set(behind) <= {even_number(n, 8) for n in range(120)}

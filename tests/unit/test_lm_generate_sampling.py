"""Uniform numbers and token draws: exact bits, exact intervals, right distribution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from karat.devices import INTEL
from karat.lm import sampling
from karat.lm.kernels import MOST_FEW, for_few_rows, use_fast_kernels
from karat.lm.narrow import use_narrow_products
from karat.lm.native import draw_of
from karat.lm.sampling import BLOCK, draw_tokens, forbid, likeliest_tokens, philox, token_uniforms, truncate_logits
from reference import inverse_cdf

FULL = 0xFFFFFFFF
# known answers published with Random123 (kat_vectors, philox4x32 10)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    assert tuple(int(word) for word in philox(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0]) == words
    assert inverse_cdf.philox_4x32_10(counter, key) == words


@given(
    seed=st.integers(0, 2**64 - 1), key=st.integers(0, 2**64 - 1), sample=st.integers(0, 2**32 - 1), n=st.integers(1, 5)
)
def test_uniforms_equal_the_loop_to_the_bit_and_do_not_depend_on_how_many(seed, key, sample, n):
    (many,) = token_uniforms(seed, [key], [sample], 9)
    assert [float(inverse_cdf.uniform(seed, key, sample, position)) for position in range(9)] == many.tolist()
    beside = token_uniforms(seed, [~key, key, key], [0, sample, (sample + 1) % 2**32], n)
    assert beside[1].tolist() == many[:n].tolist()
    assert not (beside[[0, 2]] == beside[1]).any()


def test_uniforms_reach_both_ends_of_the_unit_interval_and_never_one():
    assert (2**53 - 1) / 2**53 < 1.0
    drawn = token_uniforms(5, [6], [7], 400_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.min() < 1e-4
    assert drawn.max() > 1 - 1e-4


def test_uniforms_are_uniform_and_neighbours_are_independent():
    keys, samples = zip(*itertools.product(range(100), range(32)), strict=True)
    table = token_uniforms(11, keys, samples, 64)
    cells = np.bincount((table * 256).astype(int).ravel(), minlength=256)
    assert 0.001 < stats.chisquare(cells).pvalue < 0.999
    pairs = {
        "position": (table[:, :-1], table[:, 1:]),
        "sample": (table[:-1:2], table[1::2]),
        "key": (table[:-32], table[32:]),
        "seed": (table[:640], token_uniforms(12, keys[:640], samples[:640], 64)),
    }
    for name, (one, other) in pairs.items():
        n = one.size
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 3.9 / np.sqrt(n), name
        grid = np.histogram2d(one.ravel(), other.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(grid.ravel()).pvalue > 1e-4, name


def compiled_draw(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The compiled pass over rows of float32 logits, where there is a compiler."""
    draw = draw_of(logits)
    if draw is None:
        pytest.skip("no C compiler")
    return draw(logits, uniforms)


either_way = pytest.mark.parametrize("draw", [draw_tokens, compiled_draw])


@pytest.mark.parametrize("n_tokens", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK, 200])
@pytest.mark.parametrize(
    ("draw", "dtype"),
    [(draw_tokens, torch.float32), (draw_tokens, torch.float64), (compiled_draw, torch.float32)],
)
def test_the_token_is_the_one_whose_interval_holds_u(n_tokens, dtype, draw):
    generator = torch.Generator().manual_seed(n_tokens)
    logits = torch.randn(40, n_tokens, generator=generator, dtype=dtype) * 3
    if n_tokens > 1:
        logits[:, ::3] = -torch.inf
        logits[:, 1] = 0.5
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    tokens, logprobs = draw(logits, uniforms)
    for row in range(40):
        weights = (logits[row] - logits[row].max()).double().exp().tolist()
        assert int(tokens[row]) == inverse_cdf.pick(weights, float(uniforms[row]))
    exact = logits.double().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(logprobs.double(), exact, atol=1e-6, rtol=1e-6)
    assert logprobs.dtype == torch.float32


@either_way
@given(
    values=st.lists(st.sampled_from([-float("inf"), -60.0, -20.0, -1.0, 0.0, 2.0]), min_size=1, max_size=200),
    u=st.one_of(st.sampled_from([0.0, 1 - 2.0**-53, 0.5]), st.floats(0, 1, exclude_max=True)),
)
def test_a_token_of_probability_zero_is_never_drawn(draw, values, u):
    logits = torch.tensor([[*values, 1.0, -float("inf")]])
    token, logprob = draw(logits, torch.tensor([u], dtype=torch.float64))
    assert float(logits[0, token]) > -torch.inf
    assert float(logprob) <= 1e-6
    assert np.isfinite(float(logprob))


@either_way
def test_a_number_at_a_step_belongs_to_the_token_above_it(draw):
    logits = torch.full((5, 4 * BLOCK), -torch.inf)
    logits[:, [BLOCK, BLOCK + 3, 2 * BLOCK + 1, 4 * BLOCK - 2]] = 0.0  # four tokens of exactly a quarter each
    tokens, _ = draw(logits, torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == [BLOCK, BLOCK + 3, 2 * BLOCK + 1, 4 * BLOCK - 2, 4 * BLOCK - 2]


def test_when_a_blocks_sum_is_rounded_up_its_last_possible_token_is_drawn(monkeypatch):
    exact = sampling._block_sums
    monkeypatch.setattr(sampling, "_block_sums", lambda *given: exact(*given) * (1 + 1e-9))
    for n_tokens in (2 * BLOCK, BLOCK + 6):
        logits = torch.full((1, n_tokens), -torch.inf)
        logits[0, [3, BLOCK + 5]] = 0.0
        tokens, _ = draw_tokens(logits, torch.tensor([1 - 2**-53], dtype=torch.float64))
        assert tokens.tolist() == [BLOCK + 5]


@either_way
def test_the_token_never_falls_as_u_rises(draw):
    logits = torch.randn(1, 333, generator=torch.Generator().manual_seed(0)).expand(20_001, -1)
    tokens, _ = draw(logits, torch.linspace(0, 1 - 2**-53, 20_001, dtype=torch.float64))
    assert bool((tokens.diff() >= 0).all())
    assert int(tokens[0]) == 0
    assert int(tokens[-1]) == 332


@either_way
def test_drawn_tokens_have_the_softmax_distribution(draw):
    logits = torch.randn(1, 90, generator=torch.Generator().manual_seed(3)) * 1.5
    uniforms = torch.from_numpy(token_uniforms(1, [2], [3], 50_000)[0])
    tokens, _ = draw(logits.expand(50_000, -1), uniforms)
    expected = torch.softmax(logits[0].double(), -1).numpy() * 50_000
    common = expected > 5
    counts = np.bincount(tokens.numpy(), minlength=90)
    observed = np.append(counts[common], counts[~common].sum())
    assert stats.chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > 1e-3


def test_a_half_precision_row_is_drawn_from_in_float32():
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(1)).bfloat16()
    uniforms = torch.linspace(0, 0.99, 8, dtype=torch.float64)
    for mine, wide in zip(draw_tokens(logits, uniforms), draw_tokens(logits.float(), uniforms), strict=True):
        assert torch.equal(mine, wide)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.6), (7, 0.6), (1, 1.0), (0, 1e-9), (500, 0.999)]
)
def test_truncation_keeps_what_the_definition_keeps(top_k, top_p):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(4)).double() * 2
    kept = torch.softmax(truncate_logits(logits, top_k=top_k, top_p=top_p), -1)
    for row in range(6):
        expected = inverse_cdf.truncated(inverse_cdf.softmax(logits[row].tolist()), top_k, top_p)
        torch.testing.assert_close(kept[row], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)


def test_equally_likely_tokens_at_the_edge_all_stay():
    logits = torch.tensor([[1.0, 0.0, 0.0, -1.0]])
    assert (truncate_logits(logits, top_k=2, top_p=1.0) > -torch.inf).tolist() == [[True, True, True, False]]


def test_a_forbidden_token_is_impossible_only_in_the_rows_asked_for():
    logits = torch.zeros(2, 4)
    forbid(logits, torch.tensor([1, 3]), torch.tensor([True, False]))
    assert (logits == -torch.inf).tolist() == [[False, True, False, True], [False] * 4]


def test_the_likeliest_token_and_its_logprob():
    tokens, logprobs = likeliest_tokens(torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 0.0]]))
    assert tokens.tolist() == [1, 0]
    expected = torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 0.0]]).log_softmax(-1)
    torch.testing.assert_close(logprobs, torch.stack([expected[0, 1], expected[1, 0]]))


def test_a_number_a_billionth_beside_a_step_still_falls_on_its_own_side():
    """Sums of 5,000 probabilities in float32 are off by more than that."""
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    steps = (logits[0] - logits[0].max()).exp().double().cumsum(0)
    chosen = torch.arange(100, 4900, 50)
    for distance, expected in ((-1e-9, chosen), (1e-9, chosen + 1)):
        uniforms = steps[chosen] / steps[-1] + distance
        tokens, _ = draw_tokens(logits.expand(len(chosen), -1), uniforms)
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("n_tokens", [5, BLOCK, 10 * BLOCK, 10 * BLOCK + 9])
@pytest.mark.parametrize("widened", [1, 3 * BLOCK, 1 << 20])
def test_sums_of_blocks_are_float64_in_either_memory_order(n_tokens, widened, monkeypatch):
    monkeypatch.setattr(sampling, "WIDENED", widened)
    logits = torch.randn(n_tokens, 7, generator=torch.Generator().manual_seed(0))
    peak = logits.amax(0)
    expected = torch.stack([part.double().sum(0) for part in (logits - peak).exp().split(BLOCK)])
    for laid_out in (logits, logits.t().contiguous().t()):
        found = sampling._block_sums(laid_out, peak)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_an_output_layer_turned_round_gives_the_same_logits_in_the_same_shape(bias, monkeypatch):
    monkeypatch.setattr("karat.lm.kernels.processor_maker", lambda: "AuthenticAMD")
    generator = torch.Generator().manual_seed(3)
    head = torch.nn.Linear(16, 300, bias=bias)
    x = torch.randn(1, 7, 16, generator=generator)
    expected, drawn = head(x), torch.rand(7, dtype=torch.float64, generator=generator)
    with torch.inference_mode(), for_few_rows(head):
        found = head(x)
        assert found.shape == (1, 7, 300)
        assert found.stride(-1) == 7  # tokens lie side by side by rows
        many = head(torch.randn(1, MOST_FEW + 1, 16, generator=generator))
        assert many.stride(-1) == 1
    assert torch.allclose(found, expected, atol=1e-6)
    for mine, plain in zip(draw_tokens(found[0], drawn), draw_tokens(found[0].contiguous(), drawn), strict=True):
        assert torch.equal(mine, plain)
    assert "forward" not in head.__dict__
    with for_few_rows(head):
        assert head(x).requires_grad  # with gradients it is the layer that it was
    monkeypatch.setattr("karat.lm.kernels.processor_maker", lambda: INTEL)
    with torch.inference_mode(), for_few_rows(head):
        assert head(x).stride(-1) == 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_rows", [1, 7, MOST_FEW + 1])
def test_an_output_layer_in_bfloat16_is_rounded_once_in_a_block_and_gives_the_same_logits(bias, n_rows):
    head = torch.nn.Linear(64, 300, bias=bias)
    use_fast_kernels(head)
    use_narrow_products(head, torch.bfloat16)
    x = torch.randn(1, n_rows, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = head(x)
    for factor in (1.0, 2.0):  # a later block sees what has become of the weight
        with torch.inference_mode(), for_few_rows(head):
            found = [head(x), head(x)]
        assert found[0].shape == (1, n_rows, 300)
        assert torch.equal(*found)
        # bfloat16 has eight digits: two sums of the same products end at most one apart
        torch.testing.assert_close(found[0], factor * expected, rtol=2**-7, atol=2**-8 * factor)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(2)
    with for_few_rows(head):
        assert head(x).requires_grad


@pytest.mark.parametrize("n_tokens", [3, 700, 40_000])
def test_the_compiled_pass_draws_what_the_plain_way_draws(n_tokens):
    generator = torch.Generator().manual_seed(n_tokens)
    logits = torch.randn(300, n_tokens, generator=generator) * 4
    logits[::7, : n_tokens // 2] = -torch.inf
    uniforms = torch.rand(300, generator=generator, dtype=torch.float64)
    (tokens, logprobs), (plain, expected) = compiled_draw(logits, uniforms), draw_tokens(logits, uniforms)
    assert torch.equal(tokens, plain)
    torch.testing.assert_close(logprobs, expected, rtol=1e-6, atol=1e-6)
    strided = torch.cat([logits, logits], 1)[:, :n_tokens]
    assert torch.equal(compiled_draw(strided, uniforms)[0], tokens)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_told_by_either_way(bad):
    logits = torch.zeros(3, 100)
    logits[1, 70] = bad
    for draw in (draw_tokens, compiled_draw):
        assert draw(logits, torch.full((3,), 0.5, dtype=torch.float64))[1].isnan().tolist() == [False, True, False]
    logits[1] = -torch.inf
    assert bool(compiled_draw(logits, torch.full((3,), 0.5, dtype=torch.float64))[1][1].isnan())

"""Steps of the sampler by compiled passes: the numbers of the plain way and of slow loops, or the plain way."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

import tiny_models
from karat.lm import fused_block, fused_decode, native
from karat.lm.adapter_files import peft_at_peace
from karat.lm.adapters import add_lora, reference_mode
from karat.lm.cache import DecodeCache, DecodeStep, PrefillLayout, RowLayout, decoded_logits
from karat.lm.fused_attention import Sizes
from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import load_lm
from karat.lm.logprobs import response_logprobs, trunk_of
from karat.lm.narrow import use_narrow_products
from karat.lm.trees import Tree, pack_trees

BF16 = torch.bfloat16
FUSED = ("llama", "qwen3")
pytestmark = pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler")


def plainly(model: nn.Module) -> nn.Module:
    """A copy of the model whose blocks go their own way."""
    other = copy.deepcopy(model)
    for block in trunk_of(other).layers:
        del block.forward
    return other


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """One entry for each block that went the compiled way."""
    taken: list[int] = []
    decoded = fused_block.decoded
    monkeypatch.setattr(fused_block, "decoded", lambda *given: taken.append(1) or decoded(*given))
    return taken


@pytest.mark.parametrize("kind", FUSED)
def test_logits_in_float32_are_those_of_the_plain_way(kind, tmp_path, steps):
    model = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path)).model
    prompt, response = [5, 6, 7, 8, 9], [20, 21, 22, 23]
    steps.clear()  # loading has compared steps too
    fused, own = (decoded_logits(one, prompt, response, None) for one in (model, plainly(model)))
    assert len(steps) == len(model.model.layers) * len(response)  # the prompt and all tokens but the last
    torch.testing.assert_close(fused, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FUSED)
def test_in_bfloat16_they_are_as_near_to_float32_as_the_plain_way(kind, tmp_path, steps):
    model = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path), products=BF16).model
    plain, prompt, response = plainly(model), [5, 6, 7, 8, 9], [20, 21, 22, 23]
    steps.clear()
    fused, own = (decoded_logits(one, prompt, response, BF16) for one in (model, plain))
    assert len(steps) == len(model.model.layers) * len(response)  # the prompt and all tokens but the last
    use_narrow_products(plain, None)
    exact = decoded_logits(plain, prompt, response, None)
    assert 0 < gap(fused, exact) < 1.5 * gap(own, exact)


@pytest.mark.parametrize("products", [None, BF16])
def test_what_is_drawn_has_the_log_probabilities_of_the_scorer(products, tmp_path, steps):
    lm = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), products=products)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [3, 4]]
    found = sample(lm, prompts, n_samples=3, config=SamplingConfig(20), seed=4)
    assert len(steps) > 20
    for own in found:
        tree = Tree(own[0].prompt_tokens, tuple(one.response_tokens for one in own))
        with torch.no_grad():
            scored = response_logprobs(lm.model, pack_trees([tree], token_budget=1000)[0]).logprobs
        drawn = torch.tensor([number for one in own for number in one.logprobs])
        torch.testing.assert_close(drawn, scored, rtol=0, atol=2e-5 if products is None else 0.1)


@pytest.mark.parametrize("switched", ["on", "off", "two", "merged"])
@pytest.mark.parametrize("products", [None, BF16])
def test_adapters_are_added_as_the_plain_way_adds_them(products, switched, tmp_path, steps):
    model = add_lora(load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), products=products).model, 3, 6.0)
    if switched == "two":
        model.add_adapter("other", LoraConfig(r=2, lora_alpha=1.0, target_modules=["q_proj", "down_proj"]))
        model.base_model.set_adapter(["default", "other"])
    use_narrow_products(model, products)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    if switched == "merged":
        model.merge_adapter()
    own, prompt, response = model.get_base_model(), [5, 6, 7, 8, 9], [20, 21, 22, 23]
    plain = plainly(own)
    with reference_mode(model) if switched == "off" else contextlib.nullcontext():
        steps.clear()
        fused = decoded_logits(own, prompt, response, products)
        assert len(steps) == len(own.model.layers) * len(response)
    if switched == "off":
        for part in plain.modules():
            if isinstance(part, BaseTunerLayer):
                part.enable_adapters(False)
    expected = decoded_logits(plain, prompt, response, products)
    assert gap(fused, expected) < (1e-5 if products is None else 2e-2)
    if switched != "off":
        with reference_mode(model):
            assert gap(fused, decoded_logits(own, prompt, response, products)) > 0.1


@pytest.mark.parametrize("why", ["dropout", "dora", "watched", "another kind"])
def test_adapters_that_do_more_go_the_plain_way(why, tmp_path, steps):
    options = {"lora_dropout": 0.5} if why == "dropout" else {"use_dora": True} if why == "dora" else {}
    lm = load_lm(tiny_models.tiny_checkpoint("llama", tmp_path))
    with peft_at_peace():
        model = get_peft_model(lm.model, LoraConfig(r=2, target_modules=["v_proj"], **options)).get_base_model().eval()
    layer, seen = model.model.layers[0].self_attn.v_proj, []
    if why == "dropout":
        layer.train()
    elif why == "watched":
        layer.lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    elif why == "another kind":
        layer.__class__ = type(
            "Shouting", (type(layer),), {"forward": lambda self, x: 2 * super(type(self), self).forward(x)}
        )
    steps.clear()
    decoded_logits(model, [5, 6, 7], [8, 9], None)
    assert len(steps) == 2 * (len(model.model.layers) - (1 if why != "dora" else len(model.model.layers)))
    assert len(seen) == (2 if why == "watched" else 0)


def test_a_cache_that_is_emptied_forgets_the_weights_of_its_layers():
    cache = DecodeCache(n_slots=1, prompt_tokens=4, n_rows=1, response_tokens=4)
    cache.of_layers[0] = None
    cache.clear()
    assert not cache.of_layers


def test_long_prompts_that_many_rows_share_go_the_plain_way_and_say_the_same(tmp_path, steps, monkeypatch):
    lm = load_lm(tiny_models.tiny_checkpoint("llama", tmp_path))
    given = [[5, 6, 7], [8, 9, 10, 11]], SamplingConfig(12)
    compiled = sample(lm, given[0], n_samples=2, config=given[1], seed=1)
    n_layers = len(lm.model.model.layers)
    assert len(steps) > n_layers
    steps.clear()
    monkeypatch.setattr(fused_decode, "MOST_SHARED", 7)
    plain = sample(lm, given[0], n_samples=2, config=given[1], seed=1)
    assert len(steps) == n_layers  # both prompts, read at once
    for mine, own in zip(compiled, plain, strict=True):
        for one, other in zip(mine, own, strict=True):
            assert one.response_tokens == other.response_tokens
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=0, atol=1e-5)


@dataclass
class Rows:
    """Five rows of three prompts in the middle of their responses, head size 16."""

    cache: DecodeCache
    qkv: Tensor
    angles: tuple[Tensor, Tensor]
    norms: tuple[Tensor, Tensor]
    sizes: Sizes


def rows_under_way(window: int | None, dtype: torch.dtype) -> Rows:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    cache = DecodeCache(n_slots=3, prompt_tokens=20, n_rows=6, response_tokens=9)
    cache.prompts = [tuple(numbers(3, 2, 20, 16).to(dtype) for _ in range(2))]
    cache.responses = [tuple(numbers(6, 2, 9, 16).to(dtype) for _ in range(2))]
    layout = RowLayout(
        prompt_lengths=torch.tensor([7, 7, 19, 1, 19]), rows=torch.arange(5), slots=torch.tensor([1, 1, 0, 2, 0]),
        seats=torch.tensor([0, 1, 0, 0, 1]), row_at=torch.tensor([[2, 4], [0, 1], [3, 0]]), prompt_width=19,
    )  # fmt: skip
    cache.now = DecodeStep(layout, torch.tensor([0, 3, 8, 5, 2]), width=9)
    turn = numbers(5, 8).repeat(1, 2)
    sizes = Sizes(heads=6, key_heads=2, size=16, scale=0.3, eps=(0.0, 1e-5, 1e-6, 0.0), window=window)
    return Rows(
        cache, numbers(5, 160).to(dtype), (turn.cos()[None], turn.sin()[None]), (numbers(16), numbers(16)), sizes
    )


def slowly_attended(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of each row by loops over heads and keys, and what is stored: [5, H·D], keys and values [5, K, D]."""
    step, (cosine, sine), qkv = rows.cache.now, rows.angles, rows.qkv.double().view(5, 10, 16)

    def turned(head: Tensor, row: int, weight: Tensor, eps: float) -> Tensor:
        head = head / (head.square().mean() + eps).sqrt() * weight
        return (head * cosine[0, row] + torch.cat([-head[8:], head[:8]]) * sine[0, row]).to(rows.qkv.dtype).double()

    mixed, stored = torch.zeros(5, 6, 16, dtype=torch.float64), torch.zeros(2, 5, 2, 16, dtype=torch.float64)
    for row in range(5):
        slot, length, offset = (int(x[row]) for x in (step.layout.slots, step.layout.prompt_lengths, step.offsets))
        for group in range(2):
            stored[0, row, group] = turned(qkv[row, 6 + group], row, rows.norms[1], 1e-6)
            stored[1, row, group] = qkv[row, 8 + group]
            seen = []
            for kind in range(2):
                given = rows.cache.prompts[0][kind][slot, group, :length].double()
                own = rows.cache.responses[0][kind][row, group, :offset].double()
                seen.append(torch.cat([given, own, stored[kind, row, group][None]])[-(rows.sizes.window or 99) :])
            for head in range(3 * group, 3 * group + 3):
                query = turned(qkv[row, head], row, rows.norms[0], 1e-5)
                mixed[row, head] = (seen[0] @ query * 0.3).softmax(0) @ seen[1]
    return mixed.view(5, 96), *stored


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4, 12])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_pass_over_the_rows_is_attention_key_by_key(dtype, window, apart):
    rows = rows_under_way(window, dtype)
    expected, keys, values = slowly_attended(rows)
    own = fused_decode.LayerWeights(rows.sizes, (None, None, *rows.norms), (), None, (), None)
    parts = rows.qkv.split((96, 32, 32), dim=1)
    untouched = rows.cache.responses[0][0][5].clone()
    found = fused_decode._attended(
        [part.contiguous() if apart else part for part in parts], rows.angles, own, rows.cache, 0, None
    )
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-3, "atol": 1e-2}
    assert found.dtype == dtype
    assert gap(found.double(), expected) < (1e-6 if dtype == torch.float32 else 5e-3)
    at = rows.cache.now.offsets
    for kind, stored in enumerate((keys, values)):
        torch.testing.assert_close(rows.cache.responses[0][kind][torch.arange(5), :, at].double(), stored, **tolerance)
    assert torch.equal(rows.cache.responses[0][0][5], untouched)


@pytest.mark.parametrize("size", [2, 8, 16, 24, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_heads_of_any_size_see_any_number_of_keys(dtype, size):
    """Rows of 0, 1, 15, 16, 17 and 40 prompt tokens, which have answered 20, 15, 1, 3, 16 and 0; nothing turned or normed."""
    generator = torch.Generator().manual_seed(size)
    lengths, offsets = torch.tensor([0, 1, 15, 16, 17, 40]), torch.tensor([20, 15, 1, 3, 16, 0])
    query, key, value, *kept = (
        torch.randn(6, *shape, size, generator=generator).to(dtype)
        for shape in ((3,), (1,), (1,), (1, 40), (1, 40), (1, 21), (1, 21))
    )
    prompts, responses = kept[:2], kept[2:]
    expected = []
    for row, (length, offset) in enumerate(zip(lengths.tolist(), offsets.tolist(), strict=True)):
        seen = [
            torch.cat([one[row, 0, :length], other[row, 0, :offset], new[row]]).double()
            for one, other, new in zip(prompts, responses, (key, value), strict=True)
        ]
        expected.append((query[row].double() @ seen[0].t() * 0.4).softmax(-1) @ seen[1])
    layout = RowLayout(lengths, torch.arange(6), torch.arange(6), torch.zeros(6), torch.arange(6)[:, None], 40)
    cache = DecodeCache(n_slots=6, prompt_tokens=40, n_rows=6, response_tokens=21)
    cache.prompts, cache.responses, cache.now = [tuple(prompts)], [tuple(responses)], DecodeStep(layout, offsets, 21)
    sizes = Sizes(heads=3, key_heads=1, size=size, scale=0.4, eps=(0.0,) * 4, window=None)
    own = fused_decode.LayerWeights(sizes, (None,) * 4, (), None, (), None)
    angles = torch.ones(1, 6, size), torch.zeros(1, 6, size)
    found = fused_decode._attended([one.flatten(1) for one in (query, key, value)], angles, own, cache, 0, None)
    assert gap(found.double(), torch.stack(expected).flatten(1)) < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("rows", [None, [2, 6, 11]])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_pass_over_prompts_is_causal_attention_key_by_key(dtype, window, rows):
    """Prompts of 3, 4 and 5 tokens; each of their tokens is a row that has answered so far and has no prompt."""
    given = rows_under_way(window, dtype)
    lengths, slots, generator = (3, 4, 5), torch.tensor([2, 0, 1]), torch.Generator().manual_seed(5)
    prompt_of = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    column_of = torch.cat([torch.arange(n) for n in lengths])
    index = torch.tensor([[0, 1, 2, 0, 0], [3, 4, 5, 6, 3], [7, 8, 9, 10, 11]])
    given.cache.now = PrefillLayout(slots, index, prompt_of, column_of)
    qkv, turn = (torch.randn(12, n, generator=generator) for n in (160, 8))
    angles = tuple(turn.repeat(1, 2)[None] for turn in (turn.cos(), turn.sin()))
    own = fused_decode.LayerWeights(given.sizes, (None, None, *given.norms), (), None, (), None)
    read = None if rows is None else torch.tensor(rows)
    found = fused_decode._attended(qkv.to(dtype).split((96, 32, 32), dim=1), angles, own, given.cache, 0, read)
    step = rows_under_way(window, dtype)
    for i in range(12):  # token by token, by the pass over rows that the test above holds against loops
        layout = RowLayout(
            prompt_lengths=torch.tensor([0]), rows=torch.tensor([0]), slots=slots[prompt_of[i], None],
            seats=torch.tensor([0]), row_at=torch.tensor([[0]]), prompt_width=1,
        )  # fmt: skip
        step.cache.responses = [tuple(buffer[slots[prompt_of[i]], None] for buffer in step.cache.prompts[0])]
        step.cache.now = DecodeStep(layout, column_of[i, None], width=9)
        one = [angle[:, i, None] for angle in angles]
        expected = fused_decode._attended(
            qkv[i, None].to(dtype).split((96, 32, 32), dim=1), one, own, step.cache, 0, None
        )
        slot, column = slots[prompt_of[i]], column_of[i]
        for kept, before, mine in zip(
            step.cache.responses[0], step.cache.prompts[0], given.cache.prompts[0], strict=True
        ):
            assert torch.equal(kept[0, :, column], mine[slot, :, column])
            before[slot] = kept[0]
        if rows is None or i in rows:
            place = i if rows is None else rows.index(i)
            torch.testing.assert_close(found[place], expected[0], rtol=1e-6, atol=1e-6)


def test_a_long_prompt_that_no_row_shares_is_read_by_the_compiled_pass(monkeypatch):
    rows = rows_under_way(None, torch.float32)
    with torch.no_grad():
        assert fused_decode.decodes(torch.zeros(1, 5, 32), rows.cache, torch.float32)
        for limit, most in (("MOST_SHARED", 37), ("LONGEST_SHARED", 18)):  # two rows share 19 keys
            with monkeypatch.context() as patched:
                patched.setattr(fused_decode, limit, most)
                assert not fused_decode.decodes(torch.zeros(1, 5, 32), rows.cache, torch.float32)
        monkeypatch.setattr(fused_decode, "MOST_SHARED", 1)
        layout = dataclasses.replace(rows.cache.now.layout, row_at=torch.arange(5)[:, None])
        rows.cache.now = DecodeStep(layout, rows.cache.now.offsets, 9)
        assert fused_decode.decodes(torch.zeros(1, 5, 32), rows.cache, torch.float32)


@pytest.mark.parametrize("why", ["recorded", "with gradient", "dtype of the cache"])
def test_other_steps_go_the_plain_way(why):
    rows = rows_under_way(None, torch.float32)
    x, products = torch.zeros(1, 5, 32), torch.float32
    with torch.no_grad():
        assert fused_decode.decodes(x, rows.cache, products)
    if why == "recorded":
        rows.cache.now = DecodeStep(rows.cache.now.layout, rows.cache.now.offsets, 9, recorded=True)
    elif why == "dtype of the cache":
        rows.cache.dtype = BF16
    with torch.set_grad_enabled(why == "with gradient"):
        assert not fused_decode.decodes(x, rows.cache, products)

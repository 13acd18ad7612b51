"""Matrix products in bfloat16 under float32 weights: nothing small is lost, and everything else is as in float32."""

import ast
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from karat.config import build
from karat.errors import ConfigError, LedgerError
from karat.lm import narrow_logprobs
from karat.lm.adapters import add_lora, reference_mode
from karat.lm.cache import DecodeCache
from karat.lm.dense_attention import DenseTreeAttention, is_short
from karat.lm.generate import SamplingConfig, sample
from karat.lm.kernels import linear
from karat.lm.load import load_lm, save_lm
from karat.lm.logprobs import response_logprobs, vocabulary_logprobs
from karat.lm.loop import TrainState, optimiser_step
from karat.lm.narrow import narrowed, products_of, stacked, weights_kept
from karat.lm.native import choose_of
from karat.lm.trees import Tree, pack_trees
from karat.pipeline.settings import RunConfig
from karat.pipeline.votes import VotesConfig
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, RewardSettings, RolloutSettings, UpdateSettings
from karat.records import Demonstration
from karat.reward.model import HeadConfig
from karat.reward.score import load_scorer, save_reward, scorer_of
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from karat.sft.train import SFTConfig, train_sft
from policy_toys import PROMPTS, share_of_w3, toy_lm
from reward_worlds import planted_votes
from tiny_models import KINDS, tiny_checkpoint

SOURCE = Path(__file__).parents[2] / "src" / "karat"
BF16 = torch.bfloat16
EPS = 2.0**-8
"""Largest relative rounding error of one bfloat16 number (8 bits of precision)."""
NATS = 2.0**-4
"""Bound of |log π in bfloat16 − log π in float32| on the small models here, in nats."""


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trees(n_vocabulary, n=3):
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, n_vocabulary, (30,), generator=generator).tolist() for _ in range(n)]
    return [Tree(tuple(row[:8]), (tuple(row[8:16]), tuple(row[16:30]))) for row in ids]


class Rows:
    """A reporter that keeps what it was given, and ends the run before a step is written down."""

    def __init__(self, interrupt=None):
        self.rows, self.interrupt = [], interrupt

    def log(self, step, metrics):
        if step == self.interrupt:
            raise KeyboardInterrupt
        self.rows.append((step, {k: v for k, v in metrics.items() if not k.startswith("seconds/")}))


def run_ppo(lm, n_iterations, directory=None, interrupt=None):
    config = PPOConfig(
        n_iterations=n_iterations,
        checkpoint_every=1 if directory else 0,
        evaluate_every=100,
        rollout=RolloutSettings(n_prompts=8, n_samples=4, max_new_tokens=6),
        reward=RewardSettings(kl_coef=0.02),
        update=UpdateSettings(n_epochs=2, n_minibatches=2, learning_rate=3e-3, token_budget=200),
    )
    reporter = Rows(interrupt)
    train_ppo(lm, PROMPTS, share_of_w3, config, seed=0, directory=directory, reporters=[reporter])
    return reporter.rows


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


def test_a_linear_layer_rounds_its_factors_and_nothing_else():
    x, weight, bias = draws(5, 3, 64), draws(96, 64, seed=1), draws(96, seed=2)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    found = linear(*leaves, BF16)
    exact = x.to(BF16).double() @ weight.to(BF16).double().t()
    assert found.dtype == torch.float32
    # one rounding of the product's sum, then the bias in float32
    assert ((found - bias - exact).abs() <= 2 * EPS * exact.abs() + 1e-4).all()
    upstream = draws(5, 3, 96, seed=3)
    found.backward(upstream)
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}
    rows = upstream.to(BF16).double().flatten(0, 1)
    of_weight = rows.t() @ x.to(BF16).double().flatten(0, 1)
    of_x = (rows @ weight.to(BF16).double()).view_as(x)
    assert ((leaves[1].grad - of_weight).abs() <= 2 * EPS * of_weight.abs() + 1e-4).all()
    assert ((leaves[0].grad - of_x).abs() <= 2 * EPS * of_x.abs() + 1e-4).all()
    assert torch.equal(leaves[2].grad, upstream.flatten(0, 1).sum(0))


def test_a_changed_weight_is_rounded_anew_but_within_a_pass_that_changes_none():
    weight = torch.nn.Parameter(draws(8, 8))
    optimiser = torch.optim.Adam([weight], lr=1.0, fused=True)
    before = narrowed(weight, BF16)
    weight.grad = torch.ones_like(weight)
    optimiser.step()  # fused steps leave no trace on a tensor's version
    assert not torch.equal(narrowed(weight, BF16), before)
    with torch.inference_mode(), weights_kept():
        assert narrowed(weight, BF16) is narrowed(weight, BF16)
        assert narrowed(weight.t(), BF16) is narrowed(weight.t(), BF16)
    assert narrowed(weight, BF16) is not narrowed(weight, BF16)


def test_what_an_earlier_block_kept_is_rounded_anew_where_it_lies():
    one, other = torch.nn.Parameter(draws(3, 8)), torch.nn.Parameter(draws(2, 8))
    rounded = {}
    with torch.inference_mode(), weights_kept(rounded):
        kept = [narrowed(one, BF16), stacked((one, other), BF16)]
        assert stacked((one,), BF16) is kept[0]
    with torch.no_grad():
        other += 1
        one -= 1
    with torch.inference_mode(), weights_kept(rounded):
        again = [narrowed(one, BF16), stacked((one, other), BF16)]
    assert all(a is b for a, b in zip(again, kept, strict=True))
    assert torch.equal(again[0], one.to(BF16))
    assert torch.equal(again[1], torch.cat([one, other]).to(BF16))


@pytest.mark.parametrize("kind", [*KINDS, "gemma3"])
def test_log_probabilities_and_gradients_are_near_those_of_float32(kind, tmp_path):
    path = tiny_checkpoint(kind, tmp_path)
    wide, narrow = load_lm(path, for_training=True), load_lm(path, for_training=True, products=BF16)
    assert {p.dtype for p in narrow.model.parameters()} == {torch.float32}
    (batch,) = pack_trees(trees(250), token_budget=1000)
    found = [response_logprobs(lm.model, batch, with_entropy=True, with_hidden=True) for lm in (wide, narrow)]
    assert all(t.dtype == torch.float32 for t in (found[1].logprobs, found[1].entropy, found[1].hidden))
    gap = (found[0].logprobs - found[1].logprobs).abs().max()
    assert 0 < gap < NATS
    assert (found[0].entropy - found[1].entropy).abs().max() < NATS
    for one in found:
        one.logprobs.sum().backward()
    for (name, a), (_, b) in zip(wide.model.named_parameters(), narrow.model.named_parameters(), strict=True):
        assert b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() < 10 * EPS * a.grad.norm() + 1e-4, name
    rows = vocabulary_logprobs(narrow.model, found[1].hidden.detach())
    own = rows.gather(1, batch.target_ids[:, None])[:, 0]
    assert (own - found[1].logprobs).abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("room", [1 << 23, 0, 30])  # of numbers that are kept: all, none, the first block
@pytest.mark.parametrize("choose", [None, choose_of(BF16)])  # the second is None too where there is no C compiler
def test_log_probabilities_in_small_pieces_are_those_of_one(monkeypatch, temperature, room, choose):
    monkeypatch.setattr(narrow_logprobs, "KEPT_NUMBERS", room * 15)
    monkeypatch.setattr(narrow_logprobs, "LEAST_ROWS", 24)
    monkeypatch.setattr(narrow_logprobs, "CACHED_NUMBERS", 0)
    monkeypatch.setattr(narrow_logprobs, "FEWEST_ROWS", 10)
    leaves = [t.requires_grad_() for t in (draws(70, 16), draws(30, 16, seed=1), draws(30, seed=2))]
    ids, upstream = torch.arange(70) % 30, draws(70, seed=3)
    found = narrow_logprobs.NarrowLogprobs.apply(*leaves, ids, (temperature, BF16, True, choose))
    found.backward(upstream)
    grads = [leaf.grad.clone() for leaf in leaves]
    rounded, narrow = (t.detach().to(BF16).requires_grad_() for t in leaves[:2])
    bias = leaves[2].detach().clone().requires_grad_()
    logits = ((rounded @ narrow.t()).float() + bias) / temperature
    expected = logits.log_softmax(1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected.backward(upstream)
    for mine, other in zip(grads, (rounded.grad, narrow.grad, bias.grad), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other.float()).norm() < 3 * EPS * other.float().norm()


def test_attention_over_trees_is_near_that_of_float32_with_its_gradients():
    trees = [Tree(tuple(range(90)), tuple(tuple(range(n)) for n in (120, 70))), Tree((1, 2), ((3, 4, 5),))]
    (batch,) = pack_trees(trees, token_budget=1000)
    shapes = [(1, heads, batch.layout.n_positions, 16) for heads in (4, 2, 2)]
    found = []
    for dtype in (torch.float32, BF16):
        assert is_short(batch.layout, dtype) == (dtype == BF16)  # 210 keys: for float32 another kernel is as fast
        leaves = [draws(*shape, seed=i).to(dtype).float().requires_grad_() for i, shape in enumerate(shapes)]
        output = DenseTreeAttention.apply(*(t.to(dtype) for t in leaves), batch.layout, 0.25, None)
        assert output.dtype == dtype
        (output.float() * draws(*output.shape, seed=9)).sum().backward()
        found.append([output.float().detach(), *(leaf.grad for leaf in leaves)])
    for wide, narrow in zip(*found, strict=True):
        assert 0 < (wide - narrow).norm() < 5 * EPS * wide.norm()


def test_the_decode_cache_is_kept_in_the_dtype_of_products(monkeypatch):
    made = []
    real = DecodeCache._buffers
    monkeypatch.setattr(DecodeCache, "_buffers", staticmethod(lambda *a: made.append(real(*a)) or made[-1]))
    for products, dtype in ((BF16, BF16), (None, torch.float32)):
        made.clear()
        sample(toy_lm(products=products), [[5, 6]], n_samples=2, config=SamplingConfig(3), seed=0)
        assert {buffer.dtype for pair in made for buffer in pair} == {dtype}


@pytest.mark.parametrize("choose", [None, choose_of(BF16)])
def test_a_token_that_is_next_to_impossible_keeps_its_log_probability(choose):
    weight = torch.eye(4) * 16
    hidden = torch.tensor([[16.0, 0, 0, 0], [4.0, 0, 0, 0]])
    found = narrow_logprobs.NarrowLogprobs.apply(hidden, weight, None, torch.tensor([1, 2]), (1.0, BF16, False, choose))
    assert found.tolist() == pytest.approx([-256.0, -64.0])


def test_the_sampler_sees_the_same_distribution():
    lm = toy_lm(products=BF16)
    prompts = [[5, 6, 7], [8, 9]]
    drawn = sample(lm, prompts, n_samples=3, config=SamplingConfig(6, temperature=0.7), seed=0)
    forest = [Tree(tuple(p), tuple(s.response_tokens for s in group)) for p, group in zip(prompts, drawn, strict=True)]
    (batch,) = pack_trees(forest, token_budget=1000)
    with torch.no_grad():
        scored = response_logprobs(lm.model, batch, temperature=0.7).logprobs
    noted = torch.tensor([value for i in batch.branch_id.tolist() for value in drawn[i // 3][i % 3].logprobs])
    assert (scored - noted).abs().max() < NATS


def test_a_step_of_3e_6_moves_every_weight():
    """Weights that are themselves bfloat16 lose it: a weight of 1 is moved only by more than 2⁻⁹."""

    def moved(lm):
        before = weights(lm)
        optimiser = torch.optim.Adam(lm.model.parameters(), lr=3e-6, fused=True)
        (batch,) = pack_trees(trees(20), token_budget=1000)
        loss = -response_logprobs(lm.model, batch).logprobs.mean()
        optimiser_step(TrainState({}, {"o": optimiser}), "o", [loss], max_grad_norm=1.0)
        return {name: float((p != before[name]).float().mean()) for name, p in lm.model.named_parameters()}

    norms = [name for name in weights(toy_lm()) if "norm" in name]
    kept, lost = moved(toy_lm(products=BF16)), moved(toy_lm(BF16))
    assert norms
    assert min(kept[name] for name in norms) > 0.99
    assert max(lost[name] for name in norms) == 0
    assert min(kept.values()) > 0.5  # of the embedding only the rows that were read


def test_ppo_learns_as_in_float32_and_repeats_to_the_bit():
    """The share of one word of twenty as the reward: it rises, and by as much as in float32."""
    last = {}
    for products in (None, BF16):
        lm = toy_lm(products=products)
        rows = run_ppo(lm, 12)
        first, last[products] = rows[0][1]["score/mean"], rows[-1][1]["score/mean"]
        assert last[products] > first + 0.3
    assert abs(last[None] - last[BF16]) < 0.15
    again = toy_lm(products=BF16)
    assert run_ppo(again, 12) == rows
    assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), weights(lm).values(), strict=True))


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = toy_lm(products=BF16)
    rows = run_ppo(whole, 4, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_ppo(toy_lm(products=BF16), 4, tmp_path / "parts", interrupt=3)
    continued = toy_lm(products=BF16)
    assert run_ppo(continued, 4, tmp_path / "parts") == rows[2:]
    assert all(torch.equal(a, b) for a, b in zip(weights(continued).values(), weights(whole).values(), strict=True))


def test_a_checkpoint_of_another_dtype_is_refused(tmp_path):
    run_ppo(toy_lm(products=BF16), 1, tmp_path)
    with pytest.raises(LedgerError, match="products: bfloat16 there, absent here"):
        run_ppo(toy_lm(), 1, tmp_path)
    demonstrations = [Demonstration(PROMPTS[0], "w1 w2", "t")]
    config = SFTConfig(batch_size=1, checkpoint_every=1)
    train_sft(toy_lm(), demonstrations, config, seed=0, directory=tmp_path / "sft")
    with pytest.raises(LedgerError):
        train_sft(toy_lm(products=BF16), demonstrations, config, seed=0, directory=tmp_path / "sft")


def test_adapters_and_their_reference_take_narrow_products_too():
    lm = toy_lm(products=BF16)
    plain = copy.deepcopy(lm.model)
    adapted = replace(lm, model=add_lora(lm.model, 4, 8.0))
    (batch,) = pack_trees(trees(20), token_budget=1000)
    with torch.no_grad(), reference_mode(adapted.model):
        assert torch.equal(response_logprobs(adapted.model, batch).logprobs, response_logprobs(plain, batch).logprobs)
    response_logprobs(adapted.model, batch).logprobs.sum().backward()
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.dtype == torch.float32 for p in trained)


def test_a_trained_reward_scores_in_float32_as_it_will_when_loaded(tmp_path):
    votes, prompts, responses = planted_votes(n_prompts=12)
    config = RewardConfig(heads=HeadConfig(n_heads=2), learning_rate=3e-3, batch_responses=12, n_epochs=2)
    fits = {}
    for products in (None, BF16):
        lm = load_lm(tiny_checkpoint("qwen3", tmp_path / "model"), for_training=True, products=products)
        fits[products] = train_reward(DecoderTrunk(lm), votes, prompts, responses, config=config, seed=0)
    assert products_of(fits[BF16].model.trunk_module) is None
    assert 0 < (fits[None].reference - fits[BF16].reference).abs().max() < 0.5
    save_reward(fits[BF16], tmp_path / "reward", metadata={})
    loaded = load_scorer(tmp_path / "reward")
    asked, texts = [prompts[r.prompt_id] for r in responses.values()], [r.text for r in responses.values()]
    found, own = loaded.logits(asked, texts), scorer_of(fits[BF16]).logits(asked, texts)
    assert (found - own).abs().max() < 1e-5


def test_what_is_saved_is_float32(tmp_path):
    lm = toy_lm(products=BF16)
    save_lm(lm, tmp_path / "saved", metadata={})
    loaded = load_lm(tmp_path / "saved")
    assert loaded.model.dtype == torch.float32
    assert products_of(loaded.model) is None
    assert all(torch.equal(a, b) for a, b in zip(weights(loaded).values(), weights(lm).values(), strict=True))


def test_every_model_that_a_run_trains_is_given_its_dtype():
    """Wherever `pipeline` loads something to train, it says with which products."""
    silent, n = [], 0
    for path in sorted((SOURCE / "pipeline").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
            trains = name == "load_for_training" or (name == "load_lm" and "for_training" in given)
            if trains or name == "load_encoder":
                n += 1
                silent += [] if given & {"dtype", "products"} else [f"{path.name}:{node.lineno}"]
    assert n >= 8
    assert not silent, silent


@pytest.mark.parametrize(("kind", "sections"), [(RunConfig, {"sandbox": {}}), (VotesConfig, {"votes": {"path": "v"}})])
def test_another_dtype_is_refused_in_one_line(kind, sections):
    assert build(kind, sections | {"dtype": "bfloat16"}).dtype == "bfloat16"
    assert build(kind, sections).dtype == "float32"
    with pytest.raises(ConfigError, match=r"^dtype: found 'float16'; expected one of float32, bfloat16$"):
        build(kind, sections | {"dtype": "float16"})

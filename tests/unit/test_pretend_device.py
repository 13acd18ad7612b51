"""Every recipe gives on another device what it gives on the processor, and mixes the two nowhere (docs/decisions/0023).

The device is pretended and refuses what an accelerator would (`tests/pretend_device.py`); it has no float64 here, as
Apple's have not.
"""

import contextlib
import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from journeys import SANDBOX, inside, karat, write_config
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertForSequenceClassification, BertModel

import policy_toys
import two_processes
from karat import devices
from karat.audit.reading import ShuffledWeights, attribute, layer_activations, read_text
from karat.belief import mean_score
from karat.errors import InvariantError
from karat.evaluate.measure import sequence_kl
from karat.lm.adapters import add_lora, load_adapter, merged, save_adapter
from karat.lm.generate import SamplingConfig, greedy, sample
from karat.lm.load import load_encoder, load_lm, save_lm
from karat.lm.logprobs import response_logprobs
from karat.lm.loop import TrainState
from karat.lm.trees import Tree, pack_trees
from karat.policy.advantages import Advantages
from karat.policy.best_of_n import best_of_n
from karat.policy.epochs import POLICY, StepCounts
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, UpdateSettings
from karat.policy.update import cut_minibatch, update_on_rollout
from karat.records import Response, user_prompt
from karat.reward.dense import fit_dense, token_features
from karat.reward.fit import fit_reward, save_fitted
from karat.reward.model import HeadConfig, RewardModel
from karat.reward.novelty import text_features
from karat.reward.score import load_scorer
from karat.reward.settings import LaplaceConfig, RewardConfig
from karat.reward.trunk import DecoderTrunk, EncoderTrunk
from karat.seeding import torch_generator
from karat.sft import train as sft_recipe
from karat.sft.train import SFTConfig, train_sft
from karat.statements import Marked, Part
from pretend_device import Mixed, pretend_device
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint, tiny_tokenizer

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WEIGHTS_CLOSE = {"rtol": 1e-5, "atol": 5e-5}  # where a gradient is next to nothing, Adam makes a step of its rounding
NOT_COMPARED = ("seconds/", "pairs/right_frac")  # a pair's margin starts at 0, and rounding decides on its sign
SHORT = ("sft", "ppo-critic", "rloo", "dpo")  # rloo limits its steps
RECIPES = [name for name in two_processes.RECIPES if name not in ("parts", "resumed", "words")]


@pytest.fixture(autouse=True)
def fresh():
    """A toy model that is loaded where the test works."""
    policy_toys._loaded.cache_clear()
    yield
    policy_toys._loaded.cache_clear()


@contextlib.contextmanager
def on(where):
    """Work on the processor, or on a pretended device without float64."""
    policy_toys._loaded.cache_clear()
    with contextlib.ExitStack() as stack:
        if where == "device":
            stack.enter_context(pretend_device(double=False))
            stack.enter_context(devices.on_device("auto"))
        yield


def on_both(work):
    """What a function gives on the processor, and on the device, tensors brought back."""
    with on("processor"):
        here = work()
    with on("device"):
        there = _back(work())
    return here, there


def _back(made):
    if isinstance(made, torch.Tensor):
        return made.detach().cpu()
    if isinstance(made, dict):
        return {key: _back(value) for key, value in made.items()}
    return type(made)(map(_back, made)) if isinstance(made, list | tuple) else made


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b: a + b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: a @ b,
        lambda a, _: a[torch.tensor([1, 2])],
        lambda a, b: b[a[0].long()],
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, _: a.numpy(),
        lambda a, _: np.asarray(a),
        lambda a, _: torch.rand(3, device=a.device),
        lambda a, _: torch.randperm(3, generator=torch.Generator(), device=a.device),
        lambda a, _: a.double(),
        lambda a, b: nn.functional.embedding(torch.tensor([1]), a) if b is not None else None,
    ],
)
def test_the_device_refuses_what_an_accelerator_refuses(wrong):
    with pretend_device(double=False), pytest.raises((Mixed, RuntimeError, TypeError)):
        wrong(torch.ones(4, 4).to("pretend"), torch.ones(4, 4))


def test_the_device_computes_values_and_gradients():
    def work():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        x = torch.randn(1, 2, 5, 4)
        layer, x = layer.to(devices.current()), x.to(devices.current()).requires_grad_()
        y = layer(x)
        y[..., 1:3] *= torch.tensor(2.0)  # a scalar of the processor is taken, as it is on CUDA
        scaled_dot_product_attention(y, x, x, is_causal=True).square().sum().backward()
        kept = copy.deepcopy(layer)
        torch.optim.AdamW(layer.parameters(), lr=0.1, foreach=True).step()
        return [x.grad, layer.weight.grad, layer.weight, kept.weight, y.argmax(-1), y.tolist()]

    here, there = on_both(work)
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(one), **CLOSE)


@pytest.mark.usefixtures("plain_passes")  # other devices have no compiled ones; Adam makes much of what rounding moves
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long) for name in RECIPES]
)
def test_a_recipe_trains_to_the_same_weights_and_figures(name, tmp_path):
    model = tiny_checkpoint("qwen3", tmp_path / "model")

    class Kept(list):
        def log(self, step, metrics):
            self.append((step, dict(metrics)))

    places = iter(("here", "there"))

    def work():
        rows = Kept()
        left = two_processes.RECIPES[name](tmp_path / next(places), [rows], model)
        assert {p.device.type for p in left.parameters()} == {devices.current().type}
        return [dict(left.named_parameters()), list(rows)]

    (weights, rows), (weights_there, rows_there) = on_both(work)
    for key, expected in weights.items():
        torch.testing.assert_close(weights_there[key], expected.detach(), **WEIGHTS_CLOSE, msg=f"{name}: {key}")
    assert len(rows) == len(rows_there) > 0
    for (step, metrics), (other, found) in zip(rows, rows_there, strict=True):
        assert (step, set(metrics)) == (other, set(found))
        for key, value in metrics.items():
            if not str(key).startswith(NOT_COMPARED) and not math.isnan(value):
                assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-5), f"{name}: {key} of step {step}"


def test_ppo_with_bfloat16_products_works_there():
    config = PPOConfig(
        n_iterations=1, rollout=two_processes.ROLLOUT, update=UpdateSettings(n_epochs=1, n_minibatches=2)
    )

    def work():
        lm = policy_toys.toy_lm(products=torch.bfloat16)
        train_ppo(lm, policy_toys.PROMPTS, policy_toys.share_of_w3, config, seed=3)
        return dict(lm.model.named_parameters())

    here, there = on_both(work)
    for key, expected in here.items():  # the last bit of a rounded factor is 2⁻⁹ of it
        torch.testing.assert_close(there[key], expected.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma"])
def test_the_same_seed_draws_the_same_tokens(kind, tmp_path):
    model = tiny_checkpoint(kind, tmp_path)
    config = SamplingConfig(max_new_tokens=6, top_k=40, top_p=0.95, min_new_tokens=2, batch_rows=4)

    def work():
        lm = load_lm(model)
        prompts = [lm.tokenizer.encode(text) for text in ("say one", "say two, please", "hm")]
        drawn = [one for group in sample(lm, prompts, n_samples=2, config=config, seed=4) for one in group]
        drawn += greedy(lm, prompts, max_new_tokens=4)
        return [[one.response_tokens for one in drawn], [x for one in drawn for x in one.logprobs]]

    (tokens, logprobs), (tokens_there, logprobs_there) = on_both(work)
    assert tokens_there == tokens
    assert logprobs_there == pytest.approx(logprobs, abs=1e-5)


def test_a_step_of_the_sampler_waits_for_the_device_once():
    with pretend_device() as counts, devices.on_device("auto"):
        lm = policy_toys.toy_lm()
        drawn = []
        for n in (4, 12):
            before = counts.n_reads
            sample(lm, [[3, 4]], n_samples=3, config=SamplingConfig(n, min_new_tokens=n), seed=0)
            drawn.append(counts.n_reads - before)
    assert drawn[1] - drawn[0] == 12 - 4


def test_an_update_waits_for_the_device_six_times_a_micro_batch():
    """Between forward and backward pass for the figures of policy and of value, once each; before and after for where the
    last block is read, transformers' look at positions, probabilities too small for float32, and a loss that is not finite."""
    reads, batches = [], []
    with pretend_device() as counts, devices.on_device("auto"):
        actor = policy_toys.toy_actor()
        rollout = policy_toys.toy_rollout(actor, n_prompts=8)
        advantages = rollout.values.clone()
        for token_budget in (1000, 30):
            config = PPOConfig(update=UpdateSettings(n_epochs=1, n_minibatches=1, token_budget=token_budget))
            batches.append(len(cut_minibatch(rollout, range(8), token_budget).batches))
            state = TrainState({}, {POLICY: torch.optim.Adam(actor.lm.model.parameters())}, {"steps": StepCounts()})
            before = counts.n_reads
            update_on_rollout(
                actor, state, rollout, Advantages(advantages, advantages), config, learning_rates={POLICY: 0.0},
                generator=torch_generator(0, "order"),
            )  # fmt: skip
            reads.append(counts.n_reads - before)
    assert batches == [1, 8]
    assert reads[1] - reads[0] == 6 * 7


@pytest.mark.parametrize("kind", ["qwen3", "gemma", "gemma3"])
def test_trees_are_attended_alike(kind, tmp_path):
    """Gemma 2 caps its scores and has windows; each goes another way than the processor's."""
    model = tiny_checkpoint(kind, tmp_path)
    trees = [Tree((3, 4, 5), ((6, 7), (8, 9, 10, 11))), Tree((5,), ((6,), (7,)))]

    def work():
        lm = load_lm(model, for_training=True)
        batch = pack_trees(trees, token_budget=64)[0].to(lm.model.device)
        with torch.inference_mode():  # leaves nothing that a pass with gradients cannot use
            response_logprobs(lm.model, batch)
        found = response_logprobs(lm.model, batch, with_entropy=True)
        (found.logprobs.sum() + found.entropy.sum()).backward()
        return [found.logprobs.detach(), *(p.grad for p in lm.model.parameters() if p.grad is not None)]

    for one, other in zip(*on_both(work), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("first", "second"), [("processor", "device"), ("device", "processor")])
def test_training_goes_on_where_the_other_device_left_it(first, second, tmp_path, monkeypatch):
    config = SFTConfig(epochs=4, batch_size=3, learning_rate=1e-2, checkpoint_every=4)

    def train(where, name):
        with on(where):
            lm = policy_toys.toy_lm()
            train_sft(lm, two_processes.SHOWN, config, seed=5, directory=tmp_path / name)
            return _back(dict(lm.model.named_parameters()))

    def fails(state, n):
        del state
        if n == 5:
            raise InvariantError("half of it")

    straight = train("processor", "straight")
    with monkeypatch.context() as patched:
        patched.setattr(sft_recipe, "check_skipped", fails)
        with pytest.raises(InvariantError, match="half of it"):
            train(first, "half")
    assert [one.name for one in (tmp_path / "half").iterdir()] == ["step-00000004"]
    again = train(second, "half")
    for key, expected in straight.items():
        torch.testing.assert_close(again[key], expected.detach(), rtol=1e-4, atol=1e-4)


def test_what_is_saved_there_is_loaded_here(tmp_path):
    model = tiny_checkpoint("qwen3", tmp_path / "model")
    with on("device"):
        lm = load_lm(model)
        save_lm(lm, tmp_path / "saved", metadata={"run_id": "r"})
    here, there = load_file(model / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert set(there) == set(here)  # weights that are shared are saved once
    assert all(torch.equal(there[key], here[key]) for key in here)
    assert load_lm(tmp_path / "saved").model.device.type == "cpu"


@pytest.mark.parametrize(
    "posterior", ["heads", *(pytest.param(name, marks=pytest.mark.long) for name in ("laplace", "ensemble"))]
)
def test_a_reward_is_the_same_from_training_to_the_scores_of_what_was_saved(posterior, tmp_path):
    model = tiny_checkpoint("llama", tmp_path / "model")
    votes, prompts, responses = planted_votes(n_prompts=6)
    config = RewardConfig(
        heads=HeadConfig(n_heads=2, length_term=True), learning_rate=3e-3, batch_responses=12, n_epochs=1,
        posterior=posterior, laplace=LaplaceConfig(tastes=False),
    )  # fmt: skip
    texts = [(prompts[one.prompt_id], one.text) for one in responses.values()][:8]
    asked, written = [prompt for prompt, _ in texts], [text for _, text in texts]

    def work():
        name = tmp_path / devices.current().type
        fitted = fit_reward(
            lambda: DecoderTrunk(load_lm(model, for_training=True)), votes, prompts, responses, config=config, seed=0
        )
        save_fitted(fitted, name, metadata={})
        scorer = load_scorer(name)
        belief = scorer.with_references(asked, written)(asked, written)
        own = fitted.scorer.logits(asked, written)
        best = best_of_n(
            asked[:1], lambda _, n_samples, seed: [written[: n_samples + 0 * seed]],
            lambda p, t: mean_score(scorer(p, t)).tolist(), n=2, seed=0, n_samples=8,
        )  # fmt: skip
        gained = text_features(scorer.model, asked, written)
        return [
            belief.draws,
            belief.reference,
            own,
            scorer.logits(asked, written),
            gained,
            *best.scores,
            fitted.metrics,
        ]

    here, there = on_both(work)
    for one, other in zip(here[:-1], there[:-1], strict=True):
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(one), rtol=1e-3, atol=1e-3)
    assert there[-1] == pytest.approx(here[-1], rel=1e-3, abs=1e-3)


def trunks(directory):
    """A decoder, an encoder and a sequence classifier on disk, by what opens each as a reward model."""
    decoder = tiny_checkpoint("qwen3", directory / "decoder")
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    for name, kind in (("encoder", BertModel), ("classifier", BertForSequenceClassification)):
        kind(BertConfig(**sizes, intermediate_size=24, num_labels=1)).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return {
        "decoder": lambda: RewardModel(DecoderTrunk(load_lm(decoder)), HeadConfig(n_heads=2), seed=3),
        "encoder": lambda: RewardModel(
            EncoderTrunk(load_encoder(directory / "encoder")), HeadConfig(n_heads=2), seed=3
        ),
        "classifier": lambda: load_scorer(directory / "classifier").model,
    }


@pytest.mark.parametrize("kind", ["decoder", "encoder", "classifier"])
def test_features_attributions_and_activations_are_the_same(kind, tmp_path):
    prompt, texts = user_prompt("what?"), ["two words", "three words more", "x"]
    open_model = trunks(tmp_path)[kind]

    def work():
        model = open_model().requires_grad_(False).eval()
        model.weight.data.mul_(30)
        reads = [read_text(model.trunk, prompt, text) for text in texts[:2]]
        found = attribute(model, reads[0])
        inner = layer_activations(model, reads)
        with ShuffledWeights(model, seed=1) as shuffled:
            features = text_features(shuffled, [prompt] * 3, texts)
        return [text_features(model, [prompt] * 3, texts), features, found.tokens, torch.tensor(found.score),
                torch.from_numpy(inner.values), torch.from_numpy(inner.gradients)]  # fmt: skip

    for one, other in zip(*on_both(work), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_rewards_inside_responses_are_the_same(tmp_path):
    model = tiny_checkpoint("qwen3", tmp_path)
    prompt = user_prompt("what?")
    one = Response(prompt.id, "it is wrong here", "sft")
    mark = Marked("m", prompt.id, (one.id,), (Part(6, 11, 1, "wrong"),), ("wrong",), "ann", "span_marks")

    def work():
        trunk = DecoderTrunk(load_lm(model))
        dense = fit_dense(trunk, [mark], {prompt.id: prompt}, {one.id: one})
        return [dense.weight, dense.threshold, *token_features(trunk, [prompt], ["so it is"])]

    for here, there in zip(*on_both(work), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_the_kl_of_samples_and_adapters_on_disk_are_the_same(tmp_path):
    model = tiny_checkpoint("qwen3", tmp_path / "model")

    def work():
        lm = load_lm(model)
        lm = replace(lm, model=add_lora(lm.model, 2, 4.0, seed=0))
        name = save_adapter(lm.model, tmp_path / devices.current().type, metadata={})
        again = load_adapter(load_lm(model), name)
        drawn = sample(again, [[5, 6], [7]], n_samples=2, config=SamplingConfig(4), seed=0)
        return torch.from_numpy(np.asarray(sequence_kl(merged(again), drawn)))

    here, there = on_both(work)
    torch.testing.assert_close(there, here, **CLOSE)


def test_commands_write_the_same_there(tmp_path):
    """`--device` names it; without it is found, as `auto` does."""
    trunks(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "what?"}\n{"prompt": "and why?"}\n')
    decoder, classifier = tmp_path / "decoder", tmp_path / "classifier"

    def rows(*further):
        karat("generate", decoder, "p.jsonl", "--out", "r.jsonl", "--samples", 2, "--max-new-tokens", 5, *further)
        karat("score", classifier, "r.jsonl", "--out", "s.jsonl", *further)
        best = ("best-of-n", decoder, "p.jsonl", "--score", classifier, "--n", 2, "--max-new-tokens", 4)
        karat(*best, "--out", "b.jsonl", *further)
        return [json.loads(line) for name in ("r", "s", "b") for line in Path(f"{name}.jsonl").read_text().splitlines()]

    with inside(tmp_path):
        here = rows()
        for further in ((), ("--device", "pretend")):
            with pretend_device(double=False) as counts:
                there = rows(*further)
            assert counts.n_operations > 100
            assert len(here) == len(there) == 4 + 4 + 2
            for one, other in zip(here, there, strict=True):
                assert other.get("response") == one.get("response")
                assert other.get("score") == pytest.approx(one.get("score"), abs=1e-5)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_whole_run_reports_the_same(tmp_path):
    """Adapters, rewards of single tokens, groups of people, a bound, the look inside."""
    settings = {
        "lora": {"rank": 4}, "gate": {"min_votes": 8}, "pluralism": {"enabled": True}, "dense": {"weights": {"good": 0.5}},
        "collect": {**SANDBOX["collect"], "n_tasks": 120, "n_step_marks": 12, "n_span_marks": 12},
        "constraint": {"objective": "preference", "keep": "above", "limit": 50.0, "learning_rate": 0.5},
    }  # fmt: skip
    found = {}
    for where in ("processor", "device"):
        context = pretend_device(double=False) if where == "device" else contextlib.nullcontext()
        with inside(tmp_path / where), context:
            done = karat("run", write_config(SANDBOX, **settings), "--json")
            assert done.code == 0, done.err
            looked = karat("audit", "runs/tiny", "--look-inside", "--attributed", "2", "--activations", "8", "--json")
            assert looked.code == 0, looked.err
            found[where] = json.loads(done.out)
            notes = json.loads(Path("runs/tiny/manifests/ppo.json").read_text())["notes"]
            assert ("worked out on pretend" in notes) == (where == "device")
    for policy, columns in found["processor"]["policies"].items():
        for column, estimate in columns.items():
            there = found["device"]["policies"][policy][column]
            assert there["value"] == pytest.approx(estimate["value"], rel=1e-3, abs=1e-3), f"{policy} {column}"

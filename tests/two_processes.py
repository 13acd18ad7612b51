"""Every recipe in one of several processes, for `tests/unit/test_lm_parallel.py`: small, a few steps each.

What they leave behind: the metrics of each step by recipe, the weights of each process, and how much work each did.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from karat.errors import InputError, InvariantError, KaratError, ProcessError
from karat.lm import parallel, together
from karat.lm.adapters import add_lora
from karat.lm.load import LoadedLM, load_lm
from karat.lm.logprobs import response_logprobs, trunk_of
from karat.lm.loop import JsonlReporter, LoopConfig, TrainState, optimiser_step, run_loop
from karat.lm.sharding import even_share, whole
from karat.lm.trees import Tree, empty_batch, pack_trees
from karat.policy.beside import Beside
from karat.policy.direct import train_direct
from karat.policy.expert import train_expert
from karat.policy.group import train_group
from karat.policy.ilql import train_ilql
from karat.policy.method_settings import (
    DirectConfig,
    ExpertConfig,
    GroupConfig,
    ImplicitQConfig,
    OnlineDPOConfig,
    StepSettings,
)
from karat.policy.offline_data import Preference, ScoredResponse
from karat.policy.online_dpo import train_online_dpo
from karat.policy.ppo import train_ppo
from karat.policy.settings import PPOConfig, RewardSettings, RolloutSettings, UpdateSettings, ValueSettings
from karat.policy.watcher import Watcher, WatchRules
from karat.records import Demonstration, user_prompt
from karat.reward.model import HeadConfig
from karat.reward.score import scorer_of
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from karat.sft.train import SFTConfig, train_on_texts, train_sft
from policy_toys import PROMPTS, share_of_w3, toy_lm
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

ROLLOUT = RolloutSettings(n_prompts=6, n_samples=2, max_new_tokens=5)
STEPS = StepSettings(n_epochs=2, n_minibatches=2, learning_rate=1e-3)
HALVES = SFTConfig(epochs=4, batch_size=3, learning_rate=1e-2, checkpoint_every=4)
SHOWN = [Demonstration(user_prompt(f"w{i} w1"), f"w{i} w2 w3", "test") for i in range(6)]


def work_through(
    directory: str, rank: int, count: int, ports: Sequence[int], recipes: Sequence[str], in_shards: bool = False
) -> None:
    """Run the recipes one after the other in one process of `count`; then join twice more, and fail."""
    torch.set_num_threads(1)
    place = Path(directory)
    # in a group transformers lets the first process save only, and karat reads while it runs
    model = tiny_checkpoint("qwen3", place / f"model-{rank}")
    toy_lm()
    os.environ |= {
        "WORLD_SIZE": str(count),
        "RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(ports[0]),
    }
    with parallel.joined(in_shards=in_shards):
        for name in recipes:
            own = place / name
            metrics = JsonlReporter(own / "metrics.jsonl") if parallel.is_main() else None
            left = RECIPES[name](own, [metrics] if metrics else [], model)
            if isinstance(left, nn.Module):
                weights = {key: p.detach().contiguous() for key, p in left.named_parameters() if p.requires_grad}
                save_file(weights, place / f"{name}-{rank}")
            else:
                (place / f"{name}-{rank}").write_text(json.dumps(left))
    said = []
    for port, failing in zip(ports[1:], ([0, 1], [1]), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        said.append(failure(rank, failing))
    (place / f"failures-{rank}").write_text(json.dumps(said))


def failure(rank: int, failing: Sequence[int]) -> str:
    """What this process raises when those fail while the others wait for them."""
    try:
        with parallel.joined():
            if rank in failing:
                raise InputError("the same text is wrong")
            parallel.wait()
    except KaratError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def sft(place: Path, reporters: list, model: Path) -> nn.Module:
    """Eight demonstrations, four a step; counts this process's micro-batches."""
    from karat.sft import train as recipe

    lm = load_lm(model, for_training=True)
    seen, whole = [], recipe.response_logprobs

    def counted(*arguments, **options):
        seen.append(1)
        return whole(*arguments, **options)

    recipe.response_logprobs = counted
    shown = [Demonstration(user_prompt(f"say {i}"), f"{i} it is", "test") for i in range(8)]
    config = SFTConfig(epochs=4, batch_size=4, learning_rate=1e-2, checkpoint_every=4)
    train_sft(lm, shown, config, seed=5, directory=place / "loop", reporters=reporters)
    recipe.response_logprobs = whole
    (place.parent / f"micro-batches-{parallel.rank()}").write_text(str(len(seen)))
    return lm.model


def base(place: Path, reporters: list, model: Path) -> nn.Module:
    """Whole texts, which share one prompt, the end mark: a tree to be cut."""
    del place, model
    lm = toy_lm()
    texts = [f"w{i} w{i + 1} w{i + 2} w3" for i in range(9)]
    train_on_texts(lm, texts, SFTConfig(epochs=1, batch_size=5, learning_rate=1e-2), seed=5, reporters=reporters)
    return lm.model


def reward(place: Path, reporters: list, model: Path) -> nn.Module:
    """A reward with LoRA, held-out votes and a refit of the raters; then scores with it."""
    del place
    votes, prompts, responses = planted_votes(n_prompts=6)
    config = RewardConfig(heads=HeadConfig(n_heads=2), learning_rate=3e-3, batch_responses=12, n_epochs=2)
    fit = train_reward(
        DecoderTrunk(lora(load_lm(model))), votes, prompts, responses, config=config, seed=0, reporters=reporters
    )
    texts = [(prompts[one.prompt_id], one.text) for one in responses.values()]
    scores = scorer_of(fit).logits([prompt for prompt, _ in texts], [text for _, text in texts])
    if reporters:
        reporters[0].log(1000, dict(enumerate(scores.flatten().tolist())) | {"nll": fit.metrics["held_out_nll"]})
    return fit.model


def ppo(place: Path, reporters: list, model: Path) -> nn.Module:
    """The critic alone first, demonstrations beside, an adaptive KL, a watcher that keeps the best, checkpoints."""
    del model
    config = PPOConfig(
        n_iterations=3,
        checkpoint_every=2,
        evaluate_every=1,
        rollout=replace(ROLLOUT, exact_entropy=True, exact_kl=True),
        reward=RewardSettings(kl_controller="adaptive", kl_target=0.2, kl_horizon=50, bootstrap_truncated=True),
        update=UpdateSettings(
            n_epochs=2,
            n_minibatches=2,
            learning_rate=1e-3,
            ptx_coef=0.1,
            ptx_batch=3,
            max_approx_kl=9,
            max_step_kl=1e-5,
        ),
        value=ValueSettings(warmup_iterations=1),
    )
    lm = toy_lm()
    watcher = Watcher(WatchRules(best_metric="validation/x"), directory=place / "watcher")
    result = train_ppo(
        lm, PROMPTS, share_of_w3, config, seed=3, directory=place / "loop", reporters=reporters, watcher=watcher,
        evaluate=lambda _, done: {"validation/x": float(done + 100 * parallel.rank())},  # they must agree on the first's
        beside=Beside(demonstrations=SHOWN),
    )  # fmt: skip
    assert result.best_step == 3
    assert watcher.best_value == 3.0
    return nn.ModuleList([lm.model, result.actor.value_head])


def ppo_critic(place: Path, reporters: list, model: Path) -> nn.Module:
    """A critic of its own, and a policy with LoRA."""
    del place, model
    config = PPOConfig(
        n_iterations=2,
        rollout=ROLLOUT,
        update=UpdateSettings(n_epochs=1, n_minibatches=2, learning_rate=1e-3),
        value=ValueSettings(critic="separate"),
    )
    lm = lora(toy_lm())
    result = train_ppo(lm, PROMPTS, share_of_w3, config, seed=3, reporters=reporters)
    return nn.ModuleList([lm.model, result.actor.critic])


def group(method: str) -> Callable[[Path, list, Path], nn.Module]:
    """RLOO with the KL in the reward and short steps, GRPO with it in the loss, REINFORCE++ with returns normalised over all processes."""

    def recipe(place: Path, reporters: list, model: Path) -> nn.Module:
        del place, model
        update = replace(STEPS, max_step_kl=1e-5) if method == "rloo" else STEPS
        config = GroupConfig(method=method, n_iterations=2, rollout=ROLLOUT, update=update)
        lm = toy_lm()
        train_group(lm, PROMPTS, share_of_w3, config, seed=3, reporters=reporters)
        return lm.model

    return recipe


def online_dpo(place: Path, reporters: list, model: Path) -> nn.Module:
    """Pairs of the policy's own responses."""
    del place, model
    config = OnlineDPOConfig(n_iterations=2, rollout=ROLLOUT, update=STEPS)
    lm = toy_lm()
    train_online_dpo(lm, PROMPTS, share_of_w3, config, seed=3, reporters=reporters)
    return lm.model


def expert(place: Path, reporters: list, model: Path) -> nn.Module:
    """The best of two imitated."""
    del place, model
    config = ExpertConfig(n_iterations=2, rollout=ROLLOUT, update=STEPS)
    lm = toy_lm()
    train_expert(lm, PROMPTS, share_of_w3, config, seed=3, reporters=reporters)
    return lm.model


def direct(loss: str) -> Callable[[Path, list, Path], nn.Module]:
    """DPO, or KTO, on given comparisons."""

    def recipe(place: Path, reporters: list, model: Path) -> nn.Module:
        del place, model
        preferences = [Preference(prompt, "w3 w4", "w5 w6 w7") for prompt in PROMPTS[:6]]
        config = DirectConfig(loss=loss, epochs=2.0, batch_size=5, learning_rate=1e-3)
        lm = toy_lm()
        train_direct(lm, preferences, config, seed=3, reporters=reporters)
        return lm.model

    return recipe


def ilql(place: Path, reporters: list, model: Path) -> nn.Module:
    """Values of scored responses."""
    del place, model
    scored = [ScoredResponse(prompt, "w3 w4 w5", float(i)) for i, prompt in enumerate(PROMPTS[:6])]
    lm = toy_lm()
    config = ImplicitQConfig(epochs=1.0, batch_size=3, learning_rate=1e-3)
    return nn.ModuleList([lm.model, train_ilql(lm, scored, config, seed=3, reporters=reporters).heads])


def parts(place: Path, reporters: list, model: Path) -> dict:
    """How many numbers this process holds while it trains, and reads within `whole`; the second step fails in the last."""
    del place, reporters, model
    lm = toy_lm()
    held: dict[str, int] = {"whole": 0}
    optimiser = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    state = TrainState({"policy": lm.model}, {"policy": optimiser})
    batches = pack_trees([Tree((i,), ((i + 1, 3),)) for i in range(3)], token_budget=3)
    plain = type(trunk_of(lm.model).layers[0])

    def local(tensors: Iterable[torch.Tensor]) -> int:
        return sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in tensors)

    def step(index: int) -> dict[str, float]:
        # a loss that is no number, with gradients that are
        wrong = math.nan if index == 1 and parallel.rank() == parallel.count() - 1 else 0.0
        losses = (-response_logprobs(lm.model, b).logprobs.sum() + wrong for b in even_share(batches, empty_batch))

        def look() -> None:  # what is gone after the step
            held["gradients"] = local(p.grad for group in optimiser.param_groups for p in group["params"])

        norm = optimiser_step(state, "policy", losses, max_grad_norm=0.01, shared=True, before_step=look)
        held["weights"] = local(lm.model.parameters())
        held["moments"] = local(one["exp_avg"] for one in optimiser.state.values())
        held["steps"] = state.n_stepped
        held["gave_back"] = state.shards is not None and state.shards.gives_back
        with whole():
            held["whole"] = local(lm.model.parameters())
            assert type(trunk_of(lm.model).layers[0]) is plain
            assert not any(isinstance(p, DTensor) for p in lm.model.state_dict().values())
        return {"norm": norm}

    run_loop(state, step, LoopConfig(2))
    return held | {"after": local(lm.model.parameters()), "skipped": state.n_skipped}


def resumed(place: Path, reporters: list, model: Path) -> nn.Module:
    """Fine-tuning in one go; then half of it, which fails, and the rest from its checkpoint: the same to the bit."""
    from karat.sft import train as recipe

    del reporters, model
    trained, check = [], recipe.check_skipped

    def fails(_: TrainState, n: int) -> None:
        if n == 5 and parallel.is_main():
            shutil.copytree(place / "half", place / "left", dirs_exist_ok=True)
        if n == 5:
            raise InvariantError("half of it")

    for name, checked in (("straight", check), ("half", fails), ("half", check)):
        lm = toy_lm()
        trained.append(lm.model)
        recipe.check_skipped = checked
        with contextlib.suppress(InvariantError):
            train_sft(lm, SHOWN, HALVES, seed=5, directory=place / name)
    recipe.check_skipped = check
    straight, _, again = (dict(model.named_parameters()) for model in trained)
    assert all(torch.equal(straight[name], again[name]) for name in straight)
    return trained[2]


def words(place: Path, reporters: list, model: Path) -> dict:
    """What the collectives say, and samples of more and of fewer prompts than there are processes."""
    del place, reporters
    here, n = parallel.rank(), parallel.count()
    lm = load_lm(model)
    config = together.SamplingConfig(max_new_tokens=5)
    prompts = [lm.tokenizer.encode(text) for text in ("say one", "say two", "say one", "hm")]
    drawn = [
        together.sample_together(lm, some, n_samples=3, config=config, seed=4) for some in (prompts, prompts[:1], [])
    ]
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    if here == 0:
        parameters[0].grad = torch.full((3,), 2.0)
    parameters[1].grad = torch.full((3,), 1.0 / n)
    parallel.BUCKET_NUMBERS = 4  # of two messages
    parallel.sum_gradients(parameters)
    failed = ""
    try:
        parallel.from_main(_refuse)
    except (InputError, ProcessError) as error:
        failed = f"{type(error).__name__}: {error}"
    return {
        "samples": [[[list(one.response_tokens) for one in group] for group in groups] for groups in drawn],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "alone inside": parallel.from_main(parallel.count),
        "from": parallel.from_main(parallel.rank),
        "ranks": parallel.each([10, 20, 30, 40, 50], lambda item: item + parallel.rank()),
        "failed": failed,
        "after": parallel.total(1.0),
    }


def _refuse() -> None:
    raise InputError("no")


def lora(lm: LoadedLM) -> LoadedLM:
    """With adapters, the rest frozen."""
    return replace(lm, model=add_lora(lm.model.requires_grad_(False), 2, 4.0, seed=1))


BRIEF = ("words", "sft", "base", "reward", "ppo")
"""What the default suite runs."""
RECIPES: dict[str, Callable] = {
    "words": words,
    "sft": sft,
    "base": base,
    "reward": reward,
    "ppo": ppo,
    "ppo-critic": ppo_critic,
    "rloo": group("rloo"),
    "grpo": group("grpo"),
    "reinforce_pp": group("reinforce_pp"),
    "online-dpo": online_dpo,
    "expert": expert,
    "dpo": direct("dpo"),
    "kto": direct("kto"),
    "ilql": ilql,
    "parts": parts,
    "resumed": resumed,
}

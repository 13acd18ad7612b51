"""TRL's own PPO and online DPO on one small batch, with gradients: the numbers in tests/golden/trl_ppo.json.

Run inside an environment with that TRL: python -m bench.peers.trl_ppo_losses > tests/golden/trl_ppo.json

Both trainers compute their losses in the middle of their loops, where nothing can be called. The statements are taken from
the installed trainer's source, by the names they assign, and executed on tensors of ours: rewards, advantages, returns and
whitening on responses of full length (TRL puts the score of shorter ones on the token behind the last), the losses on
responses of different lengths.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import trl
from trl.experimental.online_dpo import online_dpo_trainer
from trl.experimental.ppo import ppo_trainer

B, T = 4, 5
LENGTHS = [5, 3, 4, 2]
KL_COEF, GAMMA, LAM, VF_COEF, CLIP = 0.07, 0.97, 0.9, 0.1, 0.2
BETA = 0.3
SCORES = [0.4, -1.1, 2.0, 0.3]


def statements(function: Callable[..., Any], first: str, last: str) -> ast.Module:
    """The statements of a function from the one that assigns `first` to the last one beside it that assigns `last`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        named = [_assigned(one) for one in body] if isinstance(body, list) else []
        if first in named and last in named[named.index(first) :]:
            end = len(named) - named[::-1].index(last)
            return ast.Module(body[named.index(first) : end], type_ignores=[])
    raise SystemExit(f"{function.__qualname__} of TRL {trl.__version__}: found no {first} … {last}")


def _assigned(statement: ast.stmt) -> str:
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    return target.id if isinstance(target, ast.Name) else ""


def executed(part: ast.Module, module: ModuleType, **given: Any) -> dict[str, Any]:
    """The names after the statements were executed among those of the trainer's module and the given ones."""
    names = {**vars(module), **given}
    exec(compile(part, module.__name__, "exec"), names)
    return names


def batch() -> dict[str, torch.Tensor]:
    """What a rollout records, and what a policy and a critic that have moved say of it."""
    generator = torch.Generator().manual_seed(20261129)

    def draw(scale, shift):
        return scale * torch.randn(B, T, generator=generator, dtype=torch.float64) + shift

    old, values = draw(0.5, -2.0), draw(0.6, 0.2)
    return {
        "logprobs": old + draw(0.25, 0.0), "old_logprobs": old, "ref_logprobs": old + draw(0.3, 0.0),
        "new_values": values + draw(0.3, 0.0), "values": values,
    }  # fmt: skip


def rollout(data: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Rewards, advantages before and after whitening, and returns."""
    nothing = torch.zeros(B, T, dtype=torch.bool)
    part = statements(ppo_trainer.PPOTrainer.train, "logr", "advantages")
    args = SimpleNamespace(kl_estimator="k1", kl_coef=KL_COEF, whiten_rewards=False, gamma=GAMMA, lam=LAM)
    ends = torch.full((B,), T - 1)
    found = executed(
        part, ppo_trainer, args=args, ref_logprobs=data["ref_logprobs"], logprobs=data["old_logprobs"],
        values=data["values"], scores=torch.tensor(SCORES, dtype=torch.float64), responses=data["values"],
        sequence_lengths=ends, sequence_lengths_p1=ends + 1, padding_mask=nothing, padding_mask_p1=nothing,
    )  # fmt: skip
    return {
        "rewards": found["rewards"].tolist(), "returns": found["returns"].tolist(),
        "advantages": (found["returns"] - data["values"]).tolist(), "whitened": found["advantages"].tolist(),
    }  # fmt: skip


def update(data: dict[str, torch.Tensor], earned: dict[str, Any]) -> dict[str, Any]:
    """The losses of the whole batch as one micro-batch, responses of different lengths, and their gradients."""
    padding = torch.arange(T) >= torch.tensor(LENGTHS).unsqueeze(1)
    part = statements(ppo_trainer.PPOTrainer.train, "vpredclipped", "loss")
    new, predicted = (data[name].clone().requires_grad_() for name in ("logprobs", "new_values"))
    found = executed(
        part, ppo_trainer, args=SimpleNamespace(cliprange_value=CLIP, cliprange=CLIP, vf_coef=VF_COEF), vpred=predicted,
        mb_values=data["values"], mb_return=torch.tensor(earned["returns"], dtype=torch.float64), new_logprobs=new,
        mb_logprobs=data["old_logprobs"], mb_advantage=torch.tensor(earned["whitened"], dtype=torch.float64),
        padding_mask=padding, padding_mask_p1=padding, micro_batch_inds=torch.arange(B),
    )  # fmt: skip
    found["loss"].backward()
    return {
        "policy": float(found["pg_loss"].detach()), "value": float(found["vf_loss"].detach()),
        "loss": float(found["loss"].detach()), "policy_grad": new.grad.tolist(), "value_grad": predicted.grad.tolist(),
    }  # fmt: skip


def online(data: dict[str, torch.Tensor], loss_type: str) -> dict[str, Any]:
    """Online DPO of two prompts: the first half of the rows are their first responses, the second their second."""
    part = statements(online_dpo_trainer.OnlineDPOTrainer.training_step, "mask", "loss")
    new = data["logprobs"].clone().requires_grad_()
    rewards = torch.tensor(SCORES, dtype=torch.float64)
    first, second = rewards.split(B // 2)
    trainer = SimpleNamespace(args=SimpleNamespace(loss_type=loss_type), beta=BETA)
    mask = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)
    found = executed(
        part, online_dpo_trainer, self=trainer, first_half=first, second_half=second, batch_size=B // 2, device="cpu",
        logprobs=new, ref_logprobs=data["ref_logprobs"], completion_mask=mask.long(),
    )  # fmt: skip
    found["loss"].backward()
    return {"loss": float(found["loss"].detach()), "grad": new.grad.tolist()}


def main() -> None:
    """Print the golden file."""
    data = batch()
    earned = rollout(data)
    content = {
        "desc": "PPO of TRL on one batch of 4 responses: rewards and advantages of full lengths, losses and gradients of 5, 3, "
        "4 and 2 tokens; and online DPO on 2 prompts with 2 responses each.",
        "source": f"TRL@{trl.__version__} PPOTrainer.train and OnlineDPOTrainer.training_step, float64, torch.Generator seed "
        "20261129; made by bench/peers/trl_ppo_losses.py",
        "settings": {
            "kl_coef": KL_COEF, "gamma": GAMMA, "gae_lambda": LAM, "vf_coef": VF_COEF, "clip_range": CLIP, "beta": BETA,
            "scores": SCORES, "lengths": LENGTHS,
        },
        "batch": {name: value.tolist() for name, value in data.items()},
        "rollout": earned,
        "update": update(data, earned),
        "online_dpo": online(data, "sigmoid"),
        "online_ipo": online(data, "ipo"),
    }  # fmt: skip
    json.dump(content, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

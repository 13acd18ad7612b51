"""TRL's own loss functions on one small batch of log-probabilities, with gradients: the numbers in tests/golden.

Run inside an environment with that TRL: python -m bench.peers.trl_losses > tests/golden/trl_losses.json

Each trainer's `_compute_loss` is called on a stand-in for the trainer that has the settings it reads and a model that
returns the given log-probabilities; what it logs besides goes nowhere.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
import trl
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer

B, T = 4, 5
LENGTHS = [5, 3, 4, 2]
GOOD = [True, False, True, True]


class Anything:
    """Accepts every call and attribute that only logging needs, and hands tensors through."""

    num_processes = 1
    sync_gradients = False
    device = torch.device("cpu")

    def __getattr__(self, name):
        return lambda *arguments, **named: arguments[0] if arguments else self  # noqa: ARG005


def stand_in(**settings):
    """A trainer in name only."""
    common = {
        "model": SimpleNamespace(training=False),
        "accelerator": Anything(),
        "aux_loss_enabled": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**(common | settings))


def batch() -> dict[str, torch.Tensor]:
    """Log-probabilities of T tokens in B responses, under three versions of a policy."""
    generator = torch.Generator().manual_seed(20261127)

    def draw(scale, shift):
        return scale * torch.randn(B, T, generator=generator, dtype=torch.float64) + shift

    old = draw(0.5, -2.0)
    mask = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)
    return {
        "logprobs": old + draw(0.15, 0.0),
        "old_logprobs": old,
        "ref_logprobs": old + draw(0.3, 0.0),
        "mask": mask,
        "advantages": torch.randn(B, generator=generator, dtype=torch.float64),
    }


def with_gradient(loss_of, logprobs):
    """{"loss", "grad"} of a function of the log-probabilities."""
    x = logprobs.clone().requires_grad_()
    loss = loss_of(x)
    loss.backward()
    return {"loss": float(loss.detach()), "grad": x.grad.tolist()}


def outputs_of(logprobs):
    """What TRL's fused head returns, beside the log-probabilities only what it logs."""
    blank = torch.zeros(logprobs.shape, dtype=torch.float64)
    return SimpleNamespace(log_probs=logprobs, entropy=blank, mean_logits=blank, is_top1=blank.bool())


def prompted(mask):
    """One prompt token before each response: input ids, attention and completion masks."""
    full = torch.cat([torch.zeros(B, 1, dtype=torch.long), mask.long()], dim=1)
    return {
        "input_ids": torch.zeros(B, T + 1, dtype=torch.long),
        "attention_mask": torch.ones_like(full),
        "completion_mask": full,
    }


def direct(name: str, data, **settings):
    """DPO's family: the first half of the rows is chosen, the second rejected."""
    mask = data["mask"]
    ref = (data["ref_logprobs"] * mask).sum(1)
    trainer = stand_in(
        loss_types=[name], loss_weights=[1.0], beta=0.3, label_smoothing=0.0, ld_alpha=None, use_weighting=False,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", **settings,
    )  # fmt: skip
    inputs = prompted(mask) | {"ref_chosen_logps": ref[: B // 2], "ref_rejected_logps": ref[B // 2 :]}
    return with_gradient(
        lambda x: DPOTrainer._compute_loss(trainer, lambda **_: outputs_of(x * mask), inputs, False), data["logprobs"]
    )


def labelled(data):
    """KTO with both kinds of labels; its KL comes from rows given as those of other prompts."""
    mask = data["mask"]
    ref = (data["ref_logprobs"] * mask).sum(1)
    kl_rows = ((data["ref_logprobs"] + 0.1) * mask).sum(1)
    trainer = stand_in(
        beta=0.3, desirable_weight=1.2, undesirable_weight=0.8, loss_type="kto", calculate_KL=True,
        precompute_ref_logps=True, _compute_kl_logps=lambda *_: kl_rows,
    )  # fmt: skip
    inputs = prompted(mask) | {"label": torch.tensor(GOOD), "ref_logps": ref, "ref_KL_logps": ref}
    result = with_gradient(
        lambda x: KTOTrainer._compute_loss(trainer, lambda **_: outputs_of(x * mask), inputs, False), data["logprobs"]
    )
    return result | {"kl_logprobs": kl_rows.tolist()}


def group(kind, loss_type: str, beta: float, data, *, corrected: bool = False):
    """GRPO's and RLOO's losses with the advantages given; corrected = the KL times the ratio, GRPOConfig's default."""
    mask = data["mask"]
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": data["advantages"],
        "old_per_token_logps": data["old_logprobs"],
        "old_logps": (data["old_logprobs"] * mask).sum(1),
        "ref_per_token_logps": data["ref_logprobs"],
        "num_items_in_batch": mask.sum(),
    }
    entropies = torch.zeros(B, T, dtype=torch.float64)

    def loss_of(x):
        trainer = stand_in(
            loss_type=loss_type, beta=beta, epsilon_low=0.2, epsilon_high=0.2, top_entropy_quantile=1.0,
            off_policy_mask_threshold=None, importance_sampling_level="token", use_vllm=False,
            _entropy_bonus_enabled=False, max_completion_length=T, current_gradient_accumulation_steps=1,
            args=SimpleNamespace(delta=None, use_bias_correction_kl=corrected, steps_per_generation=1),
            _get_per_token_logps_and_entropies=lambda *_, **__: (x, entropies, None),
        )  # fmt: skip
        return kind._compute_loss(trainer, None, inputs)

    return with_gradient(loss_of, data["logprobs"])


def main() -> None:
    """Print the golden file."""
    data = batch()
    content = {
        "desc": "Losses and gradients of TRL on one batch of log-probabilities: 4 responses of 5, 3, 4 and 2 tokens.",
        "source": f"TRL@{trl.__version__} DPOTrainer, KTOTrainer, GRPOTrainer and RLOOTrainer._compute_loss, float64, "
        "torch.Generator seed 20261127; made by bench/peers/trl_losses.py",
        "batch": {name: value.tolist() for name, value in data.items()} | {"good": GOOD},
        "dpo": {"beta": 0.3, **direct("sigmoid", data)},
        "ipo": {"beta": 0.3, **direct("ipo", data)},
        "kto": {"beta": 0.3, "good_weight": 1.2, "bad_weight": 0.8, **labelled(data)},
        "grpo": {"kl_coef": 0.04, **group(GRPOTrainer, "grpo", 0.04, data)},
        "grpo_default": {"kl_coef": 0.04, **group(GRPOTrainer, "grpo", 0.04, data, corrected=True)},
        "dr_grpo": {"kl_coef": 0.0, **group(GRPOTrainer, "dr_grpo", 0.0, data)},
        "dapo": {"kl_coef": 0.0, **group(GRPOTrainer, "dapo", 0.0, data)},
        "rloo": group(RLOOTrainer, "", 0.0, data),
    }
    json.dump(content, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

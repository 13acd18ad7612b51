"""What the methods that optimise a policy are called, in a title and in a sentence."""

from __future__ import annotations

TITLES = {
    "ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "reinforce_pp": "REINFORCE++", "online_dpo": "Online DPO",
    "expert_iteration": "Expert iteration", "dpo": "DPO", "ipo": "IPO", "kto": "KTO", "ilql": "ILQL",
}  # fmt: skip
"""Short names, for tables and curves."""

ALGORITHMS = {
    "ppo": "PPO with a KL penalty to the SFT policy",
    "rloo": "RLOO with a KL penalty to the SFT policy",
    "grpo": "GRPO with a KL penalty to the SFT policy",
    "reinforce_pp": "REINFORCE++ with a KL penalty to the SFT policy",
    "online_dpo": "DPO on pairs of the policy's own responses, compared by the reward model",
    "expert_iteration": "imitation of the best of n of the policy's own responses by the reward model",
    "dpo": "DPO on the votes, without a reward model",
    "ipo": "IPO on the votes, without a reward model",
    "kto": "KTO on the votes read as labels, without a reward model",
    "ilql": "implicit Q-learning on the SFT policy's responses, scored by the reward model; decoding guided by values",
}
"""What the audit card says of each method."""

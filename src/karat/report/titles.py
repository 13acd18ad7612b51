"""What policies, their figures and the methods that optimise them are called, in a title and in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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

COLUMNS: Mapping[str, tuple[str, str]] = {
    "gold": ("gold reward", "what the world knows to be right; higher is better"),
    "proxy": ("learned score", "what the reward model says, in the optimiser's units"),
    "kl": ("KL", "distance from the reference policy, nats per response"),
    "win_rate": (
        "win rate",
        "how often its response beats the baseline's to the same prompt, by gold where it is known, else by the learned "
        "score; ties count half",
    ),
    "win_rate_people": (
        "win rate by people",
        "share of people's blind comparisons with the baseline that it won; ties count half",
    ),
    "length": ("length", "tokens per response"),
    "distinct": ("distinct", "how often two samples for the same prompt differ"),
    "agrees_wrong": ("agrees wrongly", "share of the wrong beliefs in prompts that it confirms"),
    "reward_distance": (
        "reward distance",
        "how the learned score orders its responses beside gold: 0 = as gold does, 0.71 = unrelated, 1 = the other way round",
    ),
}
"""Column of the table of policies → (what it is called, what it means)."""


def policy_title(name: str) -> str:
    """What a policy of a run is called where a person reads it.

    >>> policy_title("reinforce_pp"), policy_title("sft"), policy_title("best_of_4"), policy_title("ppo_round_1")
    ('REINFORCE++', 'SFT', 'best of 4', 'PPO round 1')
    """
    method, _, number = name.partition("_round_")
    if number.isdecimal() and method in TITLES:
        return f"{TITLES[method]} round {number}"
    return {"sft": "SFT", **TITLES}.get(name, name.replace("_", " "))


def algorithm_in_words(name: str, kl_coef: float | None = None) -> str:
    """What a method does; one whose KL penalty was set to 0 has none.

    >>> algorithm_in_words("rloo", 0.0)
    'RLOO without a KL penalty to the SFT policy'
    """
    words = ALGORITHMS[name]
    return words.replace("with a KL penalty", "without a KL penalty") if kl_coef == 0 else words


def policy_meanings(policies: Iterable[str], baseline: str) -> dict[str, str]:
    """What each row of the table of policies is, in words; one of which nothing more is known is left out."""
    meanings = {baseline: "the policy before it was optimised; KL and win rate are measured against it"}
    for name in policies:
        n = name.removeprefix("best_of_")
        if n != name and n.isdecimal():
            meanings[name] = (
                f"of {n} responses by {policy_title(baseline)} to a prompt the one with the highest learned score"
            )
    return meanings

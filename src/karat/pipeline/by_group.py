"""What each group of raters would think of a policy, where the world knows: utility by group, and the worst-served one.

Knows texts of policies and functions that value them; knows nothing of how either came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from karat.evaluate.table import PolicySamples
from karat.pipeline.sources import Gold
from karat.records import Estimate, Finding, Prompt
from karat.report.titles import policy_title
from karat.stats import mean_estimate

MOST_SAMPLES = 4
"""Samples of each prompt that are valued: a group's utility is many evaluations, one a member."""


def utilities_by_group(
    measured: Mapping[str, PolicySamples], prompts: Sequence[Prompt], group_gold: Mapping[str, Gold]
) -> dict[str, dict[str, np.ndarray]]:
    """policy → group → [P] mean utility of the policy's first samples for each prompt, in that group's logits."""
    return {
        policy: {
            group: np.array(
                [
                    np.mean([value(prompt, text) for text in samples.texts[row][:MOST_SAMPLES]])
                    for row, prompt in enumerate(prompts)
                ]
            )
            for group, value in group_gold.items()
        }
        for policy, samples in measured.items()
    }


def group_gains(utilities: Mapping[str, Mapping[str, np.ndarray]], policy: str, baseline: str) -> dict[str, Estimate]:
    """group → mean over prompts of policy − baseline, prompt by prompt."""
    return {group: mean_estimate(utilities[policy][group] - utilities[baseline][group]) for group in utilities[policy]}


def group_content(utilities: Mapping[str, Mapping[str, np.ndarray]], policy: str, baseline: str) -> dict[str, Any]:
    """What evaluation.json keeps: the utility of each policy by group, and the gains over the baseline."""
    return {
        "policies": {
            name: {group: mean_estimate(values) for group, values in of_policy.items()}
            for name, of_policy in utilities.items()
        },
        "gain": group_gains(utilities, policy, baseline),
    }


def worst_group_finding(gains: Mapping[str, Estimate], policy: str, baseline: str) -> Finding:
    """Which group gained least, and whether it lost."""
    group, worst = min(gains.items(), key=lambda item: item[1].value if item[1].value is not None else np.inf)
    lost = worst.high is not None and worst.high < 0
    said = ", ".join(f"{name} {one.value:+.2f}" for name, one in gains.items() if one.value is not None)
    return Finding(
        "people.policy_worst_group",
        f"How much better off is the group that gained least, by {policy_title(policy)} against {policy_title(baseline)}?",
        "warn" if lost else "info",
        worst,
        detail=f"{group}; utility in each group's own logits: {said}",
    )

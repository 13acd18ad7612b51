"""What people said of policies, as the report and the table show it: rows from the manifests of `pipeline.arenas`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from karat.ledger.manifest import Manifest
from karat.records import Estimate
from karat.report.page import ArenaShown, ReportInput

STAGE = "arena-"
"""Stages of arenas begin so; the arena's name follows."""


def shown_arenas(
    manifests: Sequence[Manifest], policies: Mapping[str, Mapping[str, Estimate]]
) -> tuple[ArenaShown, ...]:
    """What people said of two policies, the arenas with the most votes first."""
    shown = []
    for manifest in manifests:
        if not manifest.stage.startswith(STAGE):
            continue
        found = manifest.metrics
        first, second = (found["is"].get(policy, policy) for policy in found["policies"])
        # the evaluation measures every policy against the fine-tuned one
        measured = policies.get(first, {}).get("win_rate") if second == "sft" else None
        if first == "sft" and "win_rate" in policies.get(second, {}):
            measured = complement(policies[second]["win_rate"])
        votes = (found["n_wins"], found["n_ties"], found["n_losses"], found["n_missing"])
        shown.append(ArenaShown(
            manifest.stage, (first, second), Estimate(**found["win_rate"]), Estimate(**found["shown_first"]), measured,
            votes, tuple(sorted(found["raters"].items())), found["root"],
        ))  # fmt: skip
    return tuple(sorted(shown, key=lambda one: -sum(one.votes[:3])))


def with_people(policies: Mapping[str, Mapping[str, Estimate]], row: ArenaShown) -> dict[str, Mapping[str, Estimate]]:
    """The policies' figures with the win rate that people gave one of them against the fine-tuned one, if not there yet."""
    first, second = row.policies
    ours, rate = (first, row.win_rate) if second == "sft" else (second, complement(row.win_rate))
    if "sft" not in row.policies or ours not in policies or "win_rate_people" in policies[ours]:
        return dict(policies)
    return {**policies, ours: {**policies[ours], "win_rate_people": rate}}


def complement(rate: Estimate) -> Estimate:
    """The rate of the other of two: 1 − rate.

    >>> complement(Estimate(0.75, 0.5, 1.0, 4, "ties ½")).low
    0.0
    """
    if rate.value is None:
        return rate
    low, high = (None if end is None else 1 - end for end in (rate.high, rate.low))
    return Estimate(1 - rate.value, low, high, rate.n, rate.method)


def people_stage(content: ReportInput) -> dict[str, str]:
    """By field of the audit card the stage that people's win rate comes from; {} where nobody was asked."""
    pair = {content.difference_of, content.baseline}
    said = next((one.stage for one in content.arenas if set(one.policies) == pair), None)
    return {"policy.win_rate_people": said} if said else {}

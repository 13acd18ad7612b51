"""What a reader must know of the people behind a reward: findings for the report, and plain values for the manifest.

Knows a fitted population; fits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import numpy as np

from karat.figures import figure
from karat.records import Estimate, Finding
from karat.reward.jury import Verdicts
from karat.reward.people_fit import PeopleFit
from karat.reward.population import SideBySide
from karat.reward.served import Served

SHOWN_FLIPS = 3
"""Flips that the finding names; the plain values have up to MOST_FLIPS."""
CUT = 60
"""Characters of a text that a finding shows."""


def people_findings(fit: PeopleFit) -> list[Finding]:
    """What the report says about the people."""
    found = [_rank_finding(fit), _kinds_finding(fit)]
    if fit.one_reward is not None and fit.own_reward is not None:
        found += _served_findings(fit.one_reward, fit.own_reward)
    else:
        reason = "no held-out vote is by a rater of the population"
        found.append(
            Finding("people.worst_group", "How often does one reward predict votes?", "not measured", detail=reason)
        )
    if fit.verdicts is not None:
        found += _jury_findings(fit.verdicts)
    if fit.raking is not None:
        found.append(_raking_finding(fit.raking, fit.flipped))
    return found


def not_measured(reason: str) -> list[Finding]:
    """The one finding of a reward without a population."""
    return [Finding("people.rank", "In how many directions do people differ?", "not measured", detail=reason)]


SAME_VOTES = "chosen and measured on the same held-out votes of the random arm"


def _rank_finding(fit: PeopleFit) -> Finding:
    sds = ", ".join(f"{sd:.2f}" for sd in np.sqrt(np.diag(fit.model.users.cov)))
    return Finding(
        "people.rank", "In how many directions do people differ, by held-out votes?", "info", fit.rank.gain[0],
        detail=f"rank {fit.rank.rank}{_kept(fit)}" + (f"; sds between people {sds} logits" if sds else "")
        + f"; the figure is the gain over one reward for all, nats a vote; {SAME_VOTES}",
    )  # fmt: skip


def _kept(fit: PeopleFit) -> str:
    """That more directions were kept than votes ask for, for an optimiser that goes by groups."""
    rank = fit.model.users.rank
    return f", {rank} kept so that groups can differ" if rank > fit.rank.rank else ""


def _kinds_finding(fit: PeopleFit) -> Finding:
    shares = ", ".join(f"{share:.0%}" for share in fit.mixture.shares)
    return Finding(
        "people.kinds", "How many kinds of people do held-out votes ask for?", "info", fit.kinds.gain[0],
        detail=f"{fit.kinds.n_kinds} ({shares}); the figure is the gain over one kind, nats a vote; {SAME_VOTES}",
    )  # fmt: skip


def _served_findings(one: Served, own: Served) -> list[Finding]:
    rows = [
        ("people.overall", "How often does one reward predict a person's vote?", one.overall, own.overall),
        ("people.worst_group", "How often does it in the worst-served group?", one.worst_group, own.worst_group),
        ("people.worst_decile", "How often does it for the worst-served tenth?", one.worst_decile, own.worst_decile),
    ]
    found = []
    for name, question, estimate, other in rows:
        own_figure = figure(other.value, other.low, other.high, missing="not estimable")
        detail = f"with a reward of her own: {own_figure}"
        if name == "people.worst_decile" and one.if_equal is not None:
            detail += f"; equal service would show {one.if_equal:.3f} by chance"
        found.append(Finding(name, question, "info", estimate, detail=detail))
    known = [(name, one_group) for name, one_group in one.by_group if one_group.value is not None]
    if len(known) > 1:
        values = [estimate.value for _, estimate in known]
        gap = Estimate(max(values) - min(values), None, None, len(known), "best minus worst group's accuracy")
        said = ", ".join(f"{name} {estimate.value:.3f}" for name, estimate in known)
        found.append(Finding("people.group_gap", "How far apart are the groups?", "info", gap, detail=said))
    return found


def _jury_findings(verdict: Verdicts) -> list[Finding]:
    rows = [
        ("jury_change", "On how many pairs would a jury prefer the other response?", verdict.jury_change),
        ("jury_best_change", "For how many prompts would a jury choose another response?", verdict.jury_best_change),
        ("jury_split", "On how many pairs do two such juries disagree?", verdict.jury_split),
        ("borda_change", "For how many prompts is the Borda winner another?", verdict.borda_change),
        ("condorcet_change", "For how many prompts is the Condorcet winner another?", verdict.condorcet_change),
        ("no_condorcet", "For how many prompts does no response beat all others?", verdict.no_condorcet),
    ]
    return [Finding(f"people.{name}", question, "info", estimate) for name, question, estimate in rows]


def people_metrics(fit: PeopleFit) -> dict[str, Any]:
    """The same as plain values for the manifest and `karat reward --json`."""
    found: dict[str, Any] = {
        "n_people": len(fit.model.annotators), "groups": list(fit.model.users.groups),
        "rank": fit.rank.rank, "rank_loglik": list(fit.rank.loglik), "kinds": fit.kinds.n_kinds,
        "kinds_loglik": list(fit.kinds.loglik), "kinds_shares": fit.mixture.shares.tolist(),
        "sd_between_people": np.sqrt(np.diag(fit.model.users.cov)).tolist(),
    }  # fmt: skip
    for name, one in (("one_reward", fit.one_reward), ("own_reward", fit.own_reward)):
        if one is not None:
            found[name] = {
                "overall": one.overall, "worst_group": one.worst_group, "worst_decile": one.worst_decile,
                "worst_decile_if_equal": one.if_equal, "by_group": dict(one.by_group),
            }  # fmt: skip
    if fit.verdicts is not None:
        found["jury"] = fit.verdicts
    if fit.raking is not None:
        found["raking"] = {
            "flip_share": fit.raking.flip_share, "by_chance": fit.raking.noise_share, "n_flips": len(fit.raking.flips),
            "flips": list(fit.flipped),
        }  # fmt: skip
    return found


def _raking_finding(raking: SideBySide, flipped: Sequence[Mapping[str, Any]]) -> Finding:
    chance = "" if raking.noise_share is None else f"; drawing other raters alone flips {raking.noise_share:.3f}"
    return Finding(
        "people.raking_flips", "How many preferences flip when raters are weighted to the target population?",
        "info", raking.flip_share, detail=f"{len(raking.flips)} pairs flip{chance}{_largest(flipped, len(raking.flips))}",
    )  # fmt: skip


def _largest(flipped: Sequence[Mapping[str, Any]], n: int) -> str:
    """The largest flips in words: what was preferred before, what after, and both differences in logits."""
    if not flipped:
        return ""
    told = []
    for one in flipped[:SHOWN_FLIPS]:
        first, second = ("a", "b") if one["unweighted"] > 0 else ("b", "a")
        before, after = abs(one["unweighted"]), abs(one["weighted"])
        told.append(
            f"{cut(one['prompt'])}: {cut(one[first])} before {cut(one[second])} by {before:.2f} logits, "
            f"weighted behind it by {after:.2f}"
        )
    which = f"The largest {len(told)}" if n > len(told) else "They are"
    return f". {which}: {'; '.join(told)}"


def cut(text: str) -> str:
    """A text in quotes on one line, its end left out where it is long."""
    return f"“{shorten(text, CUT, placeholder=' …')}”"

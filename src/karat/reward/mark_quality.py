"""How well token scores predict what raters marked in responses that they were not fitted to.

Knows token scores and marked responses; knows nothing about files or how responses were kept apart.

Dimension letters: T tokens, d features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from karat.records import Estimate
from karat.reward.contributions import estimate_text
from karat.reward.dense import STEP, DenseReward, MarkedTokens, TokenHeads, marks_loglik
from karat.seeding import numpy_generator
from karat.stats import mean_estimate, paired_difference

NOT_HELD_OUT = "no marks of this class were kept from training"
N_MARKS = 3


@dataclass(frozen=True)
class MarkQuality:
    """One class of marks."""

    name: str
    """`step`, `edited`, or a class of spans."""
    n_judgements: int
    """That were trained on."""
    nll: Estimate
    """−log P of what was marked in a held-out response, nats a token (steps: a step), each response counting once;
    interval over raters."""
    gain: Estimate
    """How much lower that is than with the same scores for all tokens, nats, interval over raters; > 0 = the scores know
    where marks lie."""


def held_out_quality(
    heads: TokenHeads | DenseReward,
    names: Sequence[str],
    trained: Sequence[MarkedTokens],
    kept: Sequence[MarkedTokens],
    annotators: Sequence[str],
    *,
    seed: int,
) -> list[MarkQuality]:
    """Each class of marks, held against responses whose prompts were kept from training.

    Args:
        trained: what `heads` were fitted to.    kept: what they were not.    annotators: who marked each of `kept`.
    """
    found = []
    for name in names:
        own = [only(one, name) for one in trained if has(one, name)]
        rows = [(only(one, name), who) for one, who in zip(kept, annotators, strict=True) if has(one, name)]
        if not rows:
            nothing = Estimate(None, None, None, 0, NOT_HELD_OUT)
            found.append(MarkQuality(name, len(own), nothing, nothing))
            continue
        flat = constant(own, name, names)
        ours, without = (np.array([nll(each, one, names) for one, _ in rows]) for each in (heads, flat))
        who = np.array([annotator for _, annotator in rows])
        rng = numpy_generator(seed, "reward", "marks", name)
        gain = paired_difference(without, ours, who, rng)
        found.append(MarkQuality(name, len(own), mean_estimate(ours, who, rng), gain))
    return found


def has(one: MarkedTokens, name: str) -> bool:
    """Whether the class could have been marked there."""
    return bool(len(one.steps)) if name == STEP else name in one.inside


def only(one: MarkedTokens, name: str) -> MarkedTokens:
    """Its marks of one class."""
    if name == STEP:
        return dataclasses.replace(one, inside={})
    return dataclasses.replace(one, steps=one.steps[:0], marks=one.marks[:0], inside={name: one.inside[name]})


def nll(heads: TokenHeads | DenseReward, one: MarkedTokens, names: Sequence[str]) -> float:
    """−log P of its marks."""
    scores = one.features.double() @ heads.weight.double().T
    return -float(marks_loglik(scores, one, names, heads.threshold.double(), heads.cutpoints.double()))


def constant(trained: Sequence[MarkedTokens], name: str, names: Sequence[str]) -> TokenHeads:
    """Scores 0 for all tokens, with the threshold or cutpoints that make the training marks most probable.

    Each response counts once, and one more in which every mark is equally often: no probability is 0.
    """
    threshold, cuts = torch.zeros(len(names)), torch.tensor([-1.0, 1.0])
    if name == STEP:
        shares = [torch.bincount(one.marks, minlength=N_MARKS) / len(one.marks) for one in trained]
        p = (torch.stack([*shares, torch.full((N_MARKS,), 1 / N_MARKS)])).mean(0)
        cuts = torch.logit(p.cumsum(0)[:-1].double()).float()
    else:
        inside = [float(one.inside[name].float().mean()) for one in trained]
        threshold[list(names).index(name)] = -torch.logit(torch.tensor((sum(inside) + 0.5) / (len(inside) + 1)))
    return TokenHeads(torch.zeros(len(names), trained[0].features.shape[1]), threshold, cuts)


def mark_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of `mark_rows` as cells under their headings."""
    head = ["marks of", "judgements", "−log P held out", "gain over equal scores"]
    return [
        head,
        *(
            [row["name"], str(row["n_judgements"]), estimate_text(row["nll"]), estimate_text(row["gain"])]
            for row in rows
        ),
    ]


def mark_rows(found: Sequence[MarkQuality]) -> list[dict[str, Any]]:
    """As plain values, for a file or `--json`."""
    return [dataclasses.asdict(one) for one in found]

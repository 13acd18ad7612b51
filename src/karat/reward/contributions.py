"""What each kind of feedback contributed to a reward, and how well the reward predicts what raters of that kind say.

Knows scores, columns and fitted parameters; knows nothing about texts or trunks.

Dimension letters: S heads, N texts, O objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.feedback_columns import Channel, FeedbackBatch, FeedbackParams
from karat.feedback_likelihood import channel_information
from karat.figures import figure
from karat.records import Estimate, Finding
from karat.reward.data import FeedbackData
from karat.reward.latents import fit_params
from karat.reward.prediction import predicted_nll
from karat.reward.raters import RaterPriors
from karat.seeding import numpy_generator, torch_generator
from karat.stats import mean_estimate, paired_difference

NOT_HELD_OUT = "no judgement of this kind was held out"


@dataclass(frozen=True)
class Contribution:
    """One kind of feedback about one objective."""

    kind: str
    """The judgements' kind."""
    objective: str
    """What they speak about."""
    n_judgements: int
    """Training judgements."""
    information: float
    """Fisher information about differences of scores within prompts, summed over the training statements, 1/logit² of
    the raw scores."""
    information_frac: float
    """Its share of all information about the objective; the shares of an objective sum to 1."""
    nll: Estimate
    """−log P of a held-out judgement, nats (a Gaussian rating: of its density), interval over raters."""
    gain: Estimate
    """How much lower that is than without a reward (all responses equal, raters and thresholds fitted), nats a
    judgement, interval over raters; > 0 = the reward predicts people of whom it knows nothing."""


def contributions(
    data: FeedbackData,
    raw: Float[Tensor, "S N O"],
    params: FeedbackParams,
    priors: RaterPriors,
    *,
    held: FeedbackData | None,
    held_raw: Float[Tensor, "S H O"] | None,
    temperature: float,
    seed: int,
) -> list[Contribution]:
    """What each kind contributed about each objective, in the order of first occurrence.

    Args:
        data: what was trained on.    raw: its raw scores.    params: fitted to them.
        held, held_raw: held-out feedback and its raw scores; None = nothing was held out.
        temperature: T of the first objective.
    """
    sizes = torch.zeros(len(data.texts), dtype=torch.long)
    for members in data.groups:
        sizes[list(members)] = len(members)
    mean = raw.mean(0)
    generator = torch_generator(seed, "reward", "information")
    keys = list(dict.fromkeys((channel.kind, channel.objective) for channel in data.batch.channels))
    information = dict.fromkeys(keys, 0.0)
    for channel in data.batch.channels:
        own = channel_information(mean[:, channel.objective], channel, params, sizes, generator=generator)
        information[channel.kind, channel.objective] += float(own.sum())
    flat = fit_params(torch.zeros_like(mean), data.batch, params, priors)
    rows = []
    for kind, objective in keys:
        mine = _about(data.batch, kind, objective)
        total = sum(value for (_, about), value in information.items() if about == objective)
        nll, gain = _held_out(
            held, held_raw, (kind, objective), params, flat, priors, temperature=temperature if objective == 0 else 1.0,
            rng=numpy_generator(seed, "reward", "contributions", kind, objective),
        )  # fmt: skip
        rows.append(
            Contribution(
                kind,
                data.objectives[objective],
                _n_judgements(data, mine),
                information[kind, objective],
                information[kind, objective] / total if total > 0 else 0.0,
                nll,
                gain,
            )
        )
    return rows


def contribution_rows(found: Sequence[Contribution]) -> list[dict[str, object]]:
    """The contributions as plain values, for manifests and tables."""
    return [dict(vars(one)) | {"nll": dict(vars(one.nll)), "gain": dict(vars(one.gain))} for one in found]


def contribution_findings(found: Sequence[Contribution]) -> list[Finding]:
    """The held-out gain of each kind as findings, for the report; what it contributed and its −log P are in the detail."""
    return [
        Finding(
            f"held_out.{one.kind}.{one.objective}",
            f"How much better does the reward predict a {one.kind} about {one.objective} than no reward does?",
            "info" if one.gain.value is not None else "not measured",
            one.gain,
            f"{one.n_judgements} judgements trained on, {one.information_frac:.0%} of the information about it"
            + ("" if one.nll.value is None else f"; −log P of a held-out one {_words(one.nll)} nats"),
        )
        for one in found
    ]


def _words(estimate: Estimate) -> str:
    return figure(estimate.value, estimate.low, estimate.high)


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """`0.123 [0.100, 0.150]` of an estimate as plain values, or a dash."""
    return figure(estimate["value"], estimate["low"], estimate["high"])


def contribution_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of `contribution_rows` as cells under their headings."""
    head = ["objective", "kind", "judgements", "share of information", "−log P held out", "gain over no reward"]
    cells = [
        [
            str(row["objective"]), str(row["kind"]), str(row["n_judgements"]), f"{row['information_frac']:.2f}",
            estimate_text(row["nll"]), estimate_text(row["gain"]),
        ]
        for row in rows
    ]  # fmt: skip
    return [head, *cells]


def _held_out(
    held: FeedbackData | None,
    held_raw: Float[Tensor, "S H O"] | None,
    about: tuple[str, int],
    params: FeedbackParams,
    flat: FeedbackParams,
    priors: RaterPriors,
    *,
    temperature: float,
    rng: np.random.Generator,
) -> tuple[Estimate, Estimate]:
    channels = [] if held is None else _about(held.batch, *about)
    if held is None or held_raw is None or not channels:
        nothing = Estimate(None, None, None, 0, NOT_HELD_OUT)
        return nothing, nothing
    found: dict[str, list[float]] = {}
    for channel in channels:
        scores = held_raw[..., channel.objective]
        ours = predicted_nll(scores, channel, params, priors, temperature=temperature)
        baseline = predicted_nll(torch.zeros_like(scores[:1]), channel, flat, priors)
        columns = (channel.place, ours, baseline, channel.weight)
        for place, own, without, weight in zip(*(column.tolist() for column in columns), strict=True):
            sums = found.setdefault(held.statements[place].judgement_id, [0.0, 0.0, held.statements[place].annotator])  # type: ignore[list-item]
            sums[0] += own * weight
            sums[1] += without * weight
    ours_, baseline_ = (np.array([row[i] for row in found.values()]) for i in (0, 1))
    raters = np.array([row[2] for row in found.values()])
    return mean_estimate(ours_, raters, rng), paired_difference(baseline_, ours_, raters, rng)


def _about(batch: FeedbackBatch, kind: str, objective: int) -> list[Channel]:
    return [channel for channel in batch.channels if (channel.kind, channel.objective) == (kind, objective)]


def _n_judgements(data: FeedbackData, channels: Sequence[Channel]) -> int:
    return len({data.statements[i].judgement_id for channel in channels for i in channel.place.tolist()})

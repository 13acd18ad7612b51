"""What policies got in each objective of the reward, and whether a bound on the mean of one of them was kept.

Knows a scorer, what policies wrote, and the prices along the run; knows nothing about how a policy is updated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from karat.belief import to_reference
from karat.evaluate.table import PolicySamples
from karat.figures import figure
from karat.pipeline.beside import cost_fn
from karat.pipeline.beside_settings import ConstraintConfig
from karat.pipeline.data import read_rows
from karat.pipeline.settings import RunConfig
from karat.records import Estimate, Finding, Prompt
from karat.report.titles import policy_title
from karat.reward.objectives import ObjectivesConfig
from karat.reward.people import GroupScorer
from karat.reward.score import Scorer
from karat.stats import mean_estimate

Array = NDArray[np.float64]
Got = Mapping[str, Array]
"""Objective, or the bounded cost function → its mean on each prompt [P]."""


def got(scorer: Scorer | GroupScorer, config: RunConfig, prompts: Sequence[Prompt], samples: PolicySamples) -> Got:
    """What a policy's responses have of each objective, above their prompt's reference responses, and of a bounded cost.

    Nothing where the reward has one objective and nothing is bounded: the learned score says it all.
    """
    own, bound = scorer.scorer if isinstance(scorer, GroupScorer) else scorer, config.constraint
    shape = samples.proxy.shape
    asked = [prompt for prompt in prompts for _ in range(shape[1])]
    texts = [text for group in samples.texts for text in group]
    found: dict[str, Array] = {}
    names = own.model.objectives
    if len(names) > 1 or (bound is not None and bound.objective):
        relative = to_reference(own.with_objectives(ObjectivesConfig())(asked, texts)).mean(0).double().numpy()
        found = {name: relative[:, place].reshape(shape).mean(1) for place, name in enumerate(names)}
    if bound is not None and bound.cost:
        costs = np.array(cost_fn(own, bound, http=config.score_http)(asked, texts), dtype=float)
        found[bound.cost] = bound.sign * costs.reshape(shape).mean(1)
    return found


def got_findings(
    before: Got, after: Got, bound: ConstraintConfig | None, algorithm: str, metrics: Path
) -> list[Finding]:
    """A finding for each objective, and one for the bound.

    Args:
        before, after: of the supervised and of the optimised policy.    metrics: of the optimiser, for its prices.
    """
    bounded = "" if bound is None else bound.objective or bound.cost
    findings = [
        Finding(
            f"evaluate.objective.{name}",
            f"How far above its reference responses is it in {name}, in logits?",
            "info",
            mean_estimate(values),
            f"SFT {mean_estimate(before[name]).value:.2f}, {policy_title(algorithm)} {values.mean():.2f}",
        )
        for name, values in after.items()
        if bound is None or name != bound.cost
    ]
    if bound is None:
        return findings
    rows = [row for row in read_rows(metrics) if "cost/coef" in row]
    prices, means = [row["cost/coef"] for row in rows], [bound.sign * row["cost/mean"] for row in rows]
    return [
        bound_finding(bound, mean_estimate(before[bounded]), mean_estimate(after[bounded]), prices, means),
        *findings,
    ]


def bound_finding(
    bound: ConstraintConfig, before: Estimate, after: Estimate, prices: Sequence[float], means: Sequence[float]
) -> Finding:
    """Whether the policy that is handed over keeps the bound on prompts never trained on, and what that cost.

    Args:
        prices, means: λ and the bounded mean of each iteration.
    """
    name, value, limit = bound.objective or bound.cost, after.value or 0.0, bound.limit
    end = after.high if bound.keep == "above" else after.low
    kept = bound.sign * (value - limit) <= 0
    beyond = not kept and (end is None or bound.sign * (end - limit) > 0)
    said = [
        f"before it was optimised {figure(before.value, before.low, before.high)}, after {figure(value, after.low, after.high)}"
    ]
    if not kept:
        said.append("beyond the limit" if beyond else "beyond the limit, but its interval holds it")
    if prices:
        said.append(
            f"in the last iteration {means[-1]:.3f} at a price λ of {prices[-1]:.3g}" + _price_in_words(bound, prices)
        )
    return Finding(
        "evaluate.constraint",
        f"Is the mean of {name} kept {'at or above' if bound.keep == 'above' else 'at or below'} its limit?",
        "warn" if beyond else "pass" if kept else "info",
        after,
        "; ".join(said),
        f"{'≥' if bound.keep == 'above' else '≤'} {limit:g}",
    )


def _price_in_words(bound: ConstraintConfig, prices: Sequence[float]) -> str:
    if max(prices) == 0:
        return ": the bound cost nothing"
    if prices[-1] >= bound.largest:
        return " (constraint.largest): the limit may be out of reach"
    if len(prices) > 1 and prices[-1] == max(prices) > prices[-2]:
        return ", still rising"
    return ""

"""What the randomised arms (pay, guideline, interface) did: to how long raters take, and to what they answer.

Arms were drawn once a rater, so the rater is the unit. Knows arms and judgements; the tests are `karat.feedback.quality.arms`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select

from karat.feedback.people.standing import quarantined
from karat.feedback.people_tables import arms
from karat.feedback.quality.arms import ArmReport, arm_effect
from karat.feedback.quality.rater_health import peer_agreement
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.records import Judgement, vote_of

N_DRAWS = 2_000
"""Permutations of a test while somebody waits for a page: p-values down to 0.0005."""


@dataclass(frozen=True)
class Effect:
    """One experiment's effect on one outcome."""

    experiment: str
    """Its name in the settings."""
    outcome: str
    """What was measured of each rater."""
    report: ArmReport
    """The arms, compared."""


def drawn_arms(store: Store) -> dict[str, dict[str, str]]:
    """The arm of each rater, by experiment."""
    found: dict[str, dict[str, str]] = {}
    with store.connection() as connection:
        for row in connection.execute(
            select(arms.c.experiment, arms.c.annotator, arms.c.arm).order_by(arms.c.experiment)
        ):
            found.setdefault(row.experiment, {})[row.annotator] = row.arm
    return found


def experiment_effects(store: Store, rng: np.random.Generator) -> list[Effect]:
    """Every experiment on every outcome that can be measured; raters in quarantine and those without work are left out.

    Args:
        rng: permutes arms among raters.
    """
    experiments, left_out = drawn_arms(store), quarantined(store)
    if not experiments:
        return []
    current = [record.judgement for record in current_judgements(store.records())[0]]
    mine = [one for one in current if one.annotator not in left_out and one.annotator != UNKNOWN_ANNOTATOR]
    found = []
    for experiment, arm_of in experiments.items():
        for outcome, values in outcomes(mine).items():
            rows = [(who, value) for who, value in values if who in arm_of]
            if rows:
                names, numbers = [who for who, _ in rows], [value for _, value in rows]
                report = arm_effect(numbers, names, arm_of, rng, n_draws=N_DRAWS)
                found.append(Effect(experiment, outcome, report))
    return found


def outcomes(judgements: Sequence[Judgement]) -> Mapping[str, list[tuple[str, float]]]:
    """What is measured: (rater, number) rows by name of the outcome.

    Returns: active seconds, share without an answer, share of others' votes on the same pairs that are equal, and the
        strength of votes from 0 (a tie) to 1.
    """
    votes = [vote for one in judgements if one.kind == "comparison" and (vote := vote_of(one))]
    peers = peer_agreement(votes)
    return {
        "seconds of activity": [(one.annotator, one.active_s) for one in judgements if one.active_s is not None],
        "share without an answer": [(one.annotator, float("missing" in one.value)) for one in judgements],
        "agreement with others": [(who, float(found.value)) for who, found in peers.items() if found.value is not None],
        "strength of votes": [
            (vote.annotator, abs(2 * vote.level - (vote.n_levels - 1)) / (vote.n_levels - 1)) for vote in votes
        ],
    }

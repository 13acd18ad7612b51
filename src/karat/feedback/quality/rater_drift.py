"""Has a rater changed? Alarms of a CUSUM chart over each rater's votes, in words, with the rate of false ones.

The charts and their thresholds are `karat.feedback.quality.drift`'s, what the others would have said is `pool`'s and `habits`'.
Knows votes in order of arrival; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from karat.feedback.detect.evidence import MIN_VOTES, VoteRecord
from karat.feedback.detect.habits import robust_habits
from karat.feedback.quality.drift import residual_chart

ARL0 = 500.0
"""Votes between two false alarms of one rater who has not changed, on average."""
SHIFT = 1.0
"""The change of the mean residual, in standard deviations, that should be noticed soon."""
LEAST_NULL = 200
"""Residuals of all raters from which their own distribution is taken instead of the normal one."""


def drift_alarms(record: VoteRecord) -> Mapping[str, Sequence[str]]:
    """For each rater with an alarm, when it was and how many false ones are to be expected.

        z = (agrees − p) / √(p(1 − p)),  p = σ(a_w·|m| ± b_w)        S ← max(0, S − z − SHIFT/2)

    against her own competence a_w and side habit b_w over all her votes: an alarm says that a stretch of them is worse
    than the rest, not that she is worse than others. Ties say nothing here.

    Args:
        record: votes in order of arrival.
    """
    residuals = vote_residuals(record)
    long = {who: z for who, z in residuals.items() if len(z) >= MIN_VOTES}
    if not long:
        return {}
    pooled = np.concatenate(list(residuals.values()))
    # one threshold for everybody: solving it takes seconds, running a chart does not
    null = None if len(pooled) < LEAST_NULL else pooled[:: max(1, len(pooled) // 5000)].tolist()
    threshold = residual_chart([0.0], arl0=ARL0, shift=SHIFT, null=null).threshold
    found = {}
    for who, z in long.items():
        alarms = cusum_alarms(z, threshold)
        if alarms:
            last = alarms[-1] + 1
            times = "once" if len(alarms) == 1 else f"{len(alarms)} times"
            expected = len(z) / ARL0
            found[who] = (
                f"worse than before {times}, the last time at decided vote {last} of {len(z)}; "
                f"{expected:.2g} false alarms are to be expected in as many",
            )
    return found


def vote_residuals(record: VoteRecord) -> dict[str, np.ndarray]:
    """Standardised residuals of each rater's decided votes, in order of arrival."""
    if not len(record):
        return {}
    pool, habits = robust_habits(record)
    direction, turn = record.direction, np.where(pool.logit < 0, -1, 1)
    who = record.annotator
    eta = habits.competence[who] * np.abs(pool.logit) + habits.side_habit[who] * record.shown * turn
    p = np.clip(1 / (1 + np.exp(-eta)), 0.02, 0.98)
    z = ((direction == turn) - p) / np.sqrt(p * (1 - p))
    decided = direction != 0
    return {name: z[decided & (who == i)] for i, name in enumerate(record.annotators)}


def cusum_alarms(residuals: Sequence[float] | np.ndarray, threshold: float, *, shift: float = SHIFT) -> list[int]:
    """Places at which the chart reached its threshold; it starts again from 0 after each."""
    level, alarms = 0.0, []
    for place, z in enumerate(residuals):
        level = max(0.0, level - float(z) - shift / 2)
        if level >= threshold:
            alarms.append(place)
            level = 0.0
    return alarms

"""How many votes a reward needs for an accuracy, and what they will cost, from a learning curve of the votes there are.

The curve is measured by a reader of words trained on growing shares of these votes, or given by somebody who measured
a reward model. Where it cannot be drawn the reason stands in its place. Knows the store; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat.errors import ConvergenceError, InputError
from karat.feedback.documents import project_settings
from karat.feedback.quality.learning_curve import LearningCurve, fit_learning_curve
from karat.feedback.quality.word_reader import FOLDS, Measurement, reader_accuracies
from karat.feedback.snapshot import current_judgements, work_records
from karat.feedback.store import Store
from karat.feedback.work.outlay import mean_seconds
from karat.feedback.work.vote_outcomes import pay_rates
from karat.records import Estimate, Judgement, vote_of
from karat.rowfiles import Row
from karat.stats import not_estimable

LEAST_VOTES, LEAST_PROMPTS = 200, 40
"""Decided comparisons and prompts below which a curve would be noise: an eighth of four fifths of them are 20 votes."""
MOST_VOTES = 2_000
"""Decided comparisons that the reader of words is trained on; of more, the prompts are drawn at random."""
READER = "a reader of words, trained on these votes; a reward model should need fewer"
MEASURED = "the accuracies that were given"


@dataclass(frozen=True)
class CurvePoints:
    """Measured accuracies that a learning curve goes through."""

    of_what: str
    """Whose accuracies: `READER` or `MEASURED`."""
    points: tuple[Measurement, ...]
    """What was measured; n_votes counts comparisons, ties and refusals among them."""
    why: str
    """Why there are none; "" = there are."""


@dataclass(frozen=True)
class RewardPlan:
    """Votes, hours and money for a held-out accuracy."""

    accuracy: float
    """The wanted one."""
    n_votes: int
    """Comparisons there are that count towards it: questions drawn at random, no silent checks."""
    measured: CurvePoints
    """What the curve goes through."""
    now: Estimate
    """Accuracy that the curve expects of the votes there are."""
    ceiling: float | None
    """Accuracy that it expects of endless votes; None = no curve."""
    votes: Estimate
    """Comparisons needed in all; value None = cannot be said, for the reason in `method`."""
    more: Estimate
    """Those still to be had."""
    hours: Estimate
    """Active time of `more`, at the mean time of a judgement so far."""
    cost: Estimate
    """Money for `more`; None where no pay is set."""


def reward_plan(
    store: Store, accuracy: float, measured: CurvePoints, rng: np.random.Generator, *, pay: float | None = None
) -> RewardPlan:
    """How many comparisons a reward of this held-out accuracy needs.

    Args:
        accuracy: wanted, in (½, 1).    measured: `reader_points` or `given_points`.    rng: redraws the measurements.
        pay: for an hour of active work; None = that of the settings.
    Returns: votes with a 95 % interval, without an upper end where too many draws never get there; a reason where no
        curve can be drawn.
    Raises: InputError for an accuracy outside (½, 1).
    """
    if not 0.5 < accuracy < 1:
        raise InputError(f"accuracy: found {accuracy}; expected a share above 1/2 and below 1")
    votes, why = curve_votes(store), measured.why
    try:
        curve = None if why else curve_of(measured.points, rng)
    except (InputError, ConvergenceError) as error:
        curve, why = None, str(error)
    if curve is None:
        none = not_estimable(why, len(measured.points))
        return RewardPlan(accuracy, len(votes), measured, none, None, none, none, none, none)
    needed = curve.votes_for(accuracy)
    more = _scaled(needed, 1.0, f"votes needed less the {len(votes)} there are", less=len(votes))
    hours, cost = _hours_and_cost(store, more, pay)
    now = curve.accuracy_at(max(len(votes), 1))
    return RewardPlan(accuracy, len(votes), measured, now, curve.ceiling, needed, more, hours, cost)


def reader_points(store: Store, rng: np.random.Generator) -> CurvePoints:
    """Accuracies of a reader of words trained on growing shares of the store's votes; a few seconds of one core.

    Args:
        rng: draws the folds.
    """
    try:
        return CurvePoints(READER, _read(store, curve_votes(store), rng), "")
    except (InputError, ConvergenceError) as error:
        return CurvePoints(READER, (), str(error))


def curve_of(points: Sequence[Measurement], rng: np.random.Generator) -> LearningCurve:
    """The learning curve through measurements.

    Raises: InputError where accuracy does not rise with votes beyond its own noise: then no curve can be told from a
        level line; or for fewer than three numbers of votes.
    """
    curve = fit_learning_curve(
        [one.n_votes for one in points], [one.accuracy for one in points], [one.standard_error for one in points], rng
    )
    least, most = (min(points, key=lambda one: one.n_votes), max(points, key=lambda one: one.n_votes))
    rise = most.accuracy - least.accuracy
    if rise <= (least.standard_error**2 + most.standard_error**2) ** 0.5:
        raise InputError(
            f"held-out accuracy does not rise with votes yet ({least.accuracy:.3f} from {least.n_votes:.0f} votes, "
            f"{most.accuracy:.3f} from {most.n_votes:.0f}): more votes are needed before a curve can be seen"
        )
    return curve


def given_points(rows: Sequence[Row]) -> CurvePoints:
    """Accuracies that somebody measured of a reward model: rows {n_votes, accuracy, standard_error}.

    Raises: InputError naming the line.
    """
    found = []
    for row in rows:
        row.refuse_unknown(("n_votes", "accuracy", "standard_error"))
        n, accuracy, se = (float(row.need(name, (int, float))) for name in ("n_votes", "accuracy", "standard_error"))
        if not (n > 0 and 0 <= accuracy <= 1 and se > 0):
            raise InputError(
                f"{row.at}: found {n:g} votes, accuracy {accuracy:g} ± {se:g}; expected votes and error above 0 and an "
                "accuracy in 0 … 1"
            )
        found.append(Measurement(n, accuracy, se, 0, 0))
    return CurvePoints(MEASURED, tuple(found), "")


def curve_votes(store: Store) -> list[Judgement]:
    """Comparisons that a curve can be drawn from: of questions drawn at random, by raters, no checks, nobody in quarantine.

    Chosen questions are the hard ones; a curve through them would say too many votes for all others.
    """
    current = (record.judgement for record in current_judgements(work_records(store))[0])
    return [one for one in current if one.kind == "comparison" and one.strategy == "random"]


def _read(store: Store, votes: Sequence[Judgement], rng: np.random.Generator) -> tuple[Measurement, ...]:
    """The reader's accuracies, with numbers of votes counted as comparisons of any outcome."""
    decided = []
    for one in votes:
        vote = vote_of(one)
        lean = 0 if vote is None else 2 * vote.level - (vote.n_levels - 1)
        if vote is not None and lean:
            decided.append((one.prompt_id, *((vote.a, vote.b) if lean > 0 else (vote.b, vote.a))))
    prompts = list(dict.fromkeys(prompt for prompt, _, _ in decided))
    if len(decided) < LEAST_VOTES or len(prompts) < LEAST_PROMPTS:
        raise InputError(
            f"{len(decided)} decided comparisons of random questions on {len(prompts)} prompts; a curve needs "
            f"{LEAST_VOTES} on {LEAST_PROMPTS}"
        )
    share = len(decided) / len(votes)
    if len(decided) > MOST_VOTES:
        n_of = dict.fromkeys(prompts, 0)
        for prompt, _, _ in decided:
            n_of[prompt] += 1
        shuffled = [prompts[i] for i in rng.permutation(len(prompts))]
        ends = np.cumsum([n_of[prompt] for prompt in shuffled])
        kept = set(shuffled[: max(FOLDS, int(np.searchsorted(ends, MOST_VOTES, side="right")))])
        decided = [one for one in decided if one[0] in kept]
    known = store.responses()
    names = sorted({name for _, *pair in decided for name in pair})
    place = {name: i for i, name in enumerate(names)}
    found = reader_accuracies(
        [known[name].text for name in names],
        [place[won] for _, won, _ in decided],
        [place[lost] for _, _, lost in decided],
        [prompt for prompt, _, _ in decided],
        rng,
    )
    return tuple(
        Measurement(one.n_votes / share, one.accuracy, one.standard_error, one.n_held_out, one.n_prompts)
        for one in found
    )


def _hours_and_cost(store: Store, more: Estimate, pay: float | None) -> tuple[Estimate, Estimate]:
    each, settings = mean_seconds(store), project_settings(store)
    if more.value is None:
        return more, more
    timed = each.value is not None
    hours = _scaled(more, each.value / 3600, f"{more.method}, at {each.value:.1f} s each") if timed else each
    if pay is None and settings.pay is None:
        return hours, not_estimable("no pay is set", 0)
    per_hour, per_vote = pay_rates(settings.pay, hourly=pay)
    if per_vote:
        return hours, _scaled(more, per_vote, f"{more.method}, at {per_vote:g} a vote")
    return hours, _scaled(hours, per_hour, f"{hours.method}, at {per_hour:g} an hour")


def _scaled(found: Estimate, factor: float, method: str, *, less: float = 0.0) -> Estimate:
    """factor·(estimate − less), nothing below 0; ends that are missing stay so."""
    if found.value is None:
        return found
    ends = [None if end is None else max(0.0, end - less) * factor for end in (found.value, found.low, found.high)]
    return Estimate(ends[0], ends[1], ends[2], found.n, method)

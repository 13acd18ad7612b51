"""What the record says about each rater, as evidence for a person who looks, never as a verdict.

Every figure has its interval or says why it has none, and below `evidence.MIN_VOTES` nobody is held up at all.
Knows the store's reading side and the estimators; knows nothing about pages, and decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import select

from karat.errors import ConvergenceError, InputError
from karat.feedback.detect.evidence import VoteRecord, too_few, vote_record
from karat.feedback.people.standing import StoredFlag
from karat.feedback.people_tables import flags
from karat.feedback.quality.agreement import rater_agreement
from karat.feedback.quality.answer_table import vote_table
from karat.feedback.quality.expectation import ExpectedAgreement, expected_agreement
from karat.feedback.quality.ordinal import Comparisons
from karat.feedback.quality.rater_drift import drift_alarms
from karat.feedback.quality.reliability import Reliability, fit_reliability, rescaled
from karat.feedback.schema import UNKNOWN_ANNOTATOR, StoredJudgement, annotators
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.work.check_answers import check_results
from karat.feedback.work.dashboard import decisions, last_actions
from karat.records import Estimate, Judgement, Vote, vote_of
from karat.stats import not_estimable, wilson

MOST_AT_ONCE = 30_000
"""Judgements up to which this evidence is made while somebody waits for a page; of more a page makes it beside."""


@dataclass(frozen=True)
class FlagRow(StoredFlag):
    """Something that a detector found, and whether somebody has dealt with it."""

    decided: bool
    """True = somebody has decided on this rater since."""


@dataclass(frozen=True)
class RaterHealth:
    """The evidence about one rater."""

    annotator: str
    """Annotator.id."""
    origin: str
    """A person, a simulation, a model, or imported."""
    state: str
    """working, quarantined, or answered (quarantined, and waits for a reply)."""
    n_judgements: int
    """Her current judgements of every kind."""
    n_votes: int
    """Of these, comparisons with a level."""
    n_missing: int
    """Of her judgements, those without an answer ("cannot judge" and the like)."""
    gold: Estimate
    """Share of silent gold items that she answered as expected."""
    repeats: Estimate
    """Share of hidden repeats that she answered as before, sides swapped."""
    side: Estimate
    """Share of her decided votes for what was shown first: ½ where the side does not matter."""
    peers: Estimate
    """Share of other raters' votes on the same pairs that say the same as hers."""
    competence: Estimate
    """a_w of the common model of all raters: 1 typical, 0 a coin, below 0 against the others."""
    side_bias: Estimate
    """b_w of the same model, in logits: above 0 favours what is shown first, whatever it is."""
    honest: Estimate
    """Share of the others on the same pairs whom a typical rater would agree with (`expected_agreement`); the interval is
    where hers would lie in 95 of 100 such cases."""
    agrees: float | None
    """Her own share, counted the same way; None = nobody else judged her pairs."""
    median_s: float | None
    """Median active seconds of her judgements; None = not measured."""
    last_at: str
    """When she last judged, ISO 8601; "" = never."""
    alarms: tuple[str, ...] = ()
    """What a chart of her answers over time gave as alarms, in words."""
    flags: tuple[FlagRow, ...] = ()
    """What detectors found, newest first."""
    why_not: str = ""
    """Why she is not held up, however she looks: too few votes; "" = she may be."""

    @property
    def to_review(self) -> bool:
        """True = there is a flag that nobody has decided on, and enough votes to look at."""
        return not self.why_not and any(not flag.decided for flag in self.flags)


def rater_health(store: Store, records: Sequence[StoredJudgement]) -> list[RaterHealth]:
    """The evidence about every rater with a name, those to look at first, then by number of judgements.

    Args:
        records: all judgements of the store.
    """
    current = [record.judgement for record in sorted(current_judgements(records)[0], key=lambda one: one.seq)]
    mine: dict[str, list[Judgement]] = {}
    for judgement in current:
        mine.setdefault(judgement.annotator, []).append(judgement)
    votes = [vote for judgement in current if judgement.kind == "comparison" and (vote := vote_of(judgement))]
    peers, fitted = peer_agreement(votes), rater_models(store, current)
    checked = check_results(store)
    rows = []
    for name, origin in _people(store):
        own = mine.get(name, [])
        few = too_few(sum(judgement.kind == "comparison" and "missing" not in judgement.value for judgement in own))
        rows.append(
            dataclasses.replace(
                _own_figures(name, origin, own),
                gold=checked[name].gold if name in checked else not_estimable("no gold item was answered", 0),
                repeats=checked[name].repeat if name in checked else not_estimable("nothing was asked twice", 0),
                peers=peers.get(name, not_estimable("nobody else judged the same pairs", 0)),
                competence=fitted.competence.get(name, not_estimable(fitted.why, 0)),
                side_bias=fitted.side_bias.get(name, not_estimable(fitted.why, 0)),
                honest=fitted.honest.get(name, not_estimable("nobody else judged the same pairs", 0)),
                agrees=fitted.agrees.get(name),
                alarms=tuple(fitted.alarms.get(name, ())) if few is None else (),
                why_not=few or "",
            )
        )
    return with_standing(store, rows)


def with_standing(store: Store, rows: Sequence[RaterHealth]) -> list[RaterHealth]:
    """The same evidence with where each rater stands at this moment: figures may be kept a while, decisions may not.

    Raters who are new since are added without evidence.
    """
    found, known = flag_rows(store), {row.annotator for row in rows}
    new = [_own_figures(name, origin, ()) for name, origin in _people(store) if name not in known]
    with store.connection() as connection:
        actions = last_actions(connection)
    fresh = []
    for row in (*rows, *new):
        action = actions.get(row.annotator, "released")
        state = "working" if action == "released" else action
        own = () if row.why_not else tuple(found.get(row.annotator, ()))
        fresh.append(dataclasses.replace(row, state=state, flags=own))
    return sorted(fresh, key=lambda row: (not row.to_review, row.state == "working", -row.n_judgements, row.annotator))


def side_share(own: Sequence[Judgement]) -> Estimate:
    """Share of decided comparisons, with a known order, in which what was shown first was preferred."""
    votes = [vote for one in own if one.kind == "comparison" and (vote := vote_of(one)) and vote.side]
    toward = [(2 * vote.level - (vote.n_levels - 1)) * vote.side for vote in votes]
    decided = [one for one in toward if one]
    return wilson(sum(one > 0 for one in decided), len(decided))


def peer_agreement(votes: Sequence[Vote]) -> dict[str, Estimate]:
    """For each rater, how often another's vote on the same pair says the same: which is better, or a tie.

    The interval is Wilson's on the number of her pairs that others judged: votes on one pair are not independent.
    """
    named = [vote for vote in votes if vote.annotator != UNKNOWN_ANNOTATOR]
    table = vote_table(named)
    if not len(table):
        return {}
    equal, pairs = rater_agreement(table)
    shared = np.bincount(table.item, minlength=len(table.items))[table.item] > 1
    n_items = np.bincount(table.annotator[shared], minlength=len(table.annotators))
    found = {}
    for i, name in enumerate(table.annotators):
        if pairs[i]:
            share = float(equal[i] / pairs[i])
            ends = wilson(share * int(n_items[i]), int(n_items[i]))
            method = "share of equal votes, Wilson score interval on her pairs, 95 %"
            found[name] = Estimate(share, ends.low, ends.high, int(n_items[i]), method)
    return found


@dataclass(frozen=True)
class RaterModels:
    """What needs a model of all raters, by Annotator.id."""

    competence: Mapping[str, Estimate] = field(default_factory=dict)
    """a_w with a 95 % interval."""
    side_bias: Mapping[str, Estimate] = field(default_factory=dict)
    """b_w with a 95 % interval."""
    honest: Mapping[str, Estimate] = field(default_factory=dict)
    """Agreement with the others that is expected of a typical rater on the same pairs."""
    agrees: Mapping[str, float] = field(default_factory=dict)
    """Her own agreement, counted the same way."""
    alarms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Alarms of her chart."""
    why: str = "no comparisons"
    """Why a rater is not in the model."""


def rater_models(store: Store, current: Sequence[Judgement]) -> RaterModels:
    """Competence, side bias and expected agreement of every rater from one ordinal model, and the alarms of her chart.

    Args:
        current: judgements that count, in any order.
    """
    comparisons = [one for one in current if one.kind == "comparison" and "missing" not in one.value]
    named = [one for one in comparisons if one.annotator != UNKNOWN_ANNOTATOR]
    if not named:
        return RaterModels()
    record = vote_record(named, store.responses())
    columns = comparisons_of(record)
    try:
        fit = rescaled(fit_reliability(columns))
        alarms = drift_alarms(record)
    except (ConvergenceError, InputError) as error:
        return RaterModels(why=str(error))
    shares = expected_agreement(fit, columns)
    seen = [(i, name) for i, name in enumerate(record.annotators) if shares.n[i]]
    return RaterModels(
        competence={name: _fitted(fit, i, 0) for i, name in enumerate(record.annotators)},
        side_bias={name: _fitted(fit, i, 1) for i, name in enumerate(record.annotators)},
        honest={name: _honest(shares, i) for i, name in seen},
        agrees={name: float(shares.observed[i]) for i, name in seen},
        alarms=alarms,
    )


def comparisons_of(record: VoteRecord) -> Comparisons:
    """The columns of a vote record as the reliability model reads them."""
    return Comparisons(
        record.a, record.b, record.level, record.n_levels, record.side, record.annotator,
        len(record.texts), record.n_annotators,
    )  # fmt: skip


def flag_rows(store: Store) -> dict[str, list[FlagRow]]:
    """What detectors found about each rater, newest first."""
    with store.connection() as connection:
        decided = decisions(connection)
        rows = list(connection.execute(select(flags).order_by(flags.c.seq.desc())))
    found: dict[str, list[FlagRow]] = {}
    for row in rows:
        found.setdefault(row.annotator, []).append(
            FlagRow(*row, decided=row.at <= decided.get(row.annotator, row.at - 1))
        )
    return found


def _people(store: Store) -> list[tuple[str, str]]:
    """Name and origin of every rater whom somebody named."""
    question = select(annotators.c.id, annotators.c.origin).where(annotators.c.id != UNKNOWN_ANNOTATOR)
    with store.connection() as connection:
        return [(row.id, row.origin) for row in connection.execute(question.order_by(annotators.c.id))]


def _own_figures(name: str, origin: str, own: Sequence[Judgement]) -> RaterHealth:
    seconds = [one.active_s for one in own if one.active_s is not None]
    unknown = not_estimable("not measured", 0)
    return RaterHealth(
        annotator=name,
        origin=origin,
        state="working",
        n_judgements=len(own),
        n_votes=sum(one.kind == "comparison" and "missing" not in one.value for one in own),
        n_missing=sum("missing" in one.value for one in own),
        gold=unknown,
        repeats=unknown,
        side=side_share(own),
        peers=unknown,
        competence=unknown,
        side_bias=unknown,
        honest=unknown,
        agrees=None,
        median_s=float(np.median(seconds)) if seconds else None,
        last_at=max((one.created_at for one in own), default=""),
        why_not=too_few(len(own)) or "",
    )


def _fitted(fit: Reliability, rater: int, which: int) -> Estimate:
    """Competence (0) or side bias (1) of a rater with its interval."""
    value = float((fit.competence, fit.side_bias)[which][rater])
    sd = float(np.sqrt(fit.rater_cov[rater, which, which]))
    prior = f"N({1 - which}, {(fit.priors.competence_sd, fit.priors.side_bias_sd)[which]:g}²)"
    method = f"posterior mode on the raters' common scale, ± 1.96 standard errors ({fit.errors}), prior {prior}"
    return Estimate(value, value - 1.96 * sd, value + 1.96 * sd, int(fit.n_votes[rater]), method)


def _honest(shares: ExpectedAgreement, rater: int) -> Estimate:
    value, sd = float(shares.expected[rater]), float(shares.sd[rater])
    low, high = max(0.0, value - 1.96 * sd), min(1.0, value + 1.96 * sd)
    method = "share expected of a typical rater, ± 1.96 of its standard deviations"
    return Estimate(value, low, high, int(shares.n[rater]), method)

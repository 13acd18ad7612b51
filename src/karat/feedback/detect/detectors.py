"""The whole battery: which raters a person should look at, with a stated rate of false flags. Nobody is banned here.

    detector         asks                                                                  α per honest rater
    side-clicker     does she click one side whatever the others say?                      0.002
    flipper          does she answer the opposite of the others?                           0.0015
    random clicker   do her answers have nothing to do with the questions?                 0.001
    trigger          does she make texts with one trait win?                               0.0035
    chatbot          are two of speed, pasting and prose unlike the crowd's?               0.001
    ring             does a group answer together?                                         0.0005
    sybil            is she several accounts?                                              0.0005

The α add up to 1 %: no honest rater is flagged by any of them with a larger probability. (The trigger's α is only spent
where the whole pool shows that some trait is followed.) Below MIN_VOTES votes nobody is judged alone or named in a
group: `too_few` says why.

Knows columns, words and times of votes, nothing of a store. Where `reliability` has fitted competence and side habits
by the full model, its posterior could stand in for `habits`; these tests need no more than what is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from karat.errors import InputError
from karat.feedback.detect.collusion import rings
from karat.feedback.detect.evidence import MIN_VOTES, Flag, VoteRecord, too_few, vote_record
from karat.feedback.detect.habits import Habits, habit_p_values, robust_habits
from karat.feedback.detect.outsourcing import chatbot_flags
from karat.feedback.detect.sybils import sybil_flags
from karat.feedback.detect.traits import TextTraits
from karat.feedback.detect.triggers import trigger_flags

__all__ = [
    "ALPHA",
    "MIN_VOTES",
    "Flag",
    "Prepared",
    "VoteRecord",
    "battery",
    "flippers",
    "random_clickers",
    "side_clickers",
    "too_few",
    "vote_record",
]

ALPHA: Mapping[str, float] = {
    "side-clicker": 0.002,
    "flipper": 0.0015,
    "random clicker": 0.001,
    "trigger": 0.0035,
    "chatbot": 0.001,
    "ring": 0.0005,
    "sybil": 0.0005,
}
"""Chance that an honest rater is flagged, by detector."""
LEAST_LOG_ODDS = float(np.log(3))
"""Nobody is flagged as something that explains the votes less than three times as well as honesty, however rare."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What depends on texts alone, and need not be found again for each new vote."""

    traits: TextTraits | None = None
    """Of the record's texts; None = found by the battery."""
    sketch: np.ndarray | None = None
    """MinHash sketches of the record's rationales; None = made by the battery."""


def battery(
    record: VoteRecord,
    rng: np.random.Generator,
    *,
    alpha: Mapping[str, float] = ALPHA,
    prepared: Prepared | None = None,
) -> tuple[Flag, ...]:
    """Every detector on one record of votes.

    Args:
        rng: for the simulated honest raters behind p-values.
        alpha: by detector; one that is left out does not run.
    Returns: flags, by detector and then by p-value; a rater may have several.
    Raises: InputError for a detector that does not exist, or an α outside (0, 1).
    """
    for name, level in alpha.items():
        if name not in ALPHA or not 0 < level < 1:
            raise InputError(
                f"battery: found alpha {level} for {name!r}; expected (0, 1) for one of {', '.join(ALPHA)}"
            )
    if not (record.n_votes >= MIN_VOTES).any():
        return ()
    prepared = prepared or Prepared()
    pool, habits = robust_habits(record)
    tests = {
        "side-clicker": lambda level: side_clickers(record, habits, rng, alpha=level),
        "flipper": lambda level: flippers(record, habits, rng, alpha=level),
        "random clicker": lambda level: random_clickers(record, habits, rng, alpha=level),
        "ring": lambda level: rings(record, pool, habits, alpha=level),
        "sybil": lambda level: sybil_flags(record, pool, habits, alpha=level, sketch=prepared.sketch),
        "chatbot": lambda level: chatbot_flags(record, alpha=level),
    }
    flags: list[Flag] = []
    for name, test in tests.items():
        if name in alpha:
            flags += sorted(test(alpha[name]), key=lambda flag: (flag.p_value, flag.annotators))
    if "trigger" in alpha:
        aside = sorted({one for flag in flags if flag.detector != "chatbot" for one in flag.annotators})
        found = trigger_flags(
            record, pool, habits, rng, alpha=alpha["trigger"], traits=prepared.traits, set_aside=aside
        )
        flags += sorted(found, key=lambda flag: (flag.p_value, flag.annotators))
    return tuple(flags)


def side_clickers(record: VoteRecord, habits: Habits, rng: np.random.Generator, *, alpha: float) -> tuple[Flag, ...]:
    """Raters who click one side, b_w far outside the crowd's own side habits; votes of unknown order count nothing.

        log odds = log P(votes | b = ±2 … ±6) − log P(votes | honest)

    Each side is tested with alpha / 2; whose votes the opposite of the others, or mere chance, explains as well is left
    to the other detectors.
    """
    found = []
    for kind in ("first side", "second side"):
        for rater, odds, p in _unlikely(record, habits, kind, rng, alpha / 2):
            if odds <= habits.log_odds[rater, :2].max() + 1e-9:
                continue
            mine = (record.annotator == rater) & (record.direction != 0) & (record.shown != 0)
            n, first = int(mine.sum()), int((record.direction * record.shown > 0)[mine].sum())
            k, word = (first, "first") if kind == "first side" else (n - first, "second")
            detail = f"{k} of {n} decided votes for the text shown {word}; the side habit if honest is b = "
            detail += f"{habits.side_habit[rater]:+.2f} logits, the crowd's {_spread(habits.population.side_habit, habits.population.side_habit_sd)}"
            found.append(Flag((record.annotators[rater],), "side-clicker", odds, p, n, detail))
    return tuple(found)


def flippers(record: VoteRecord, habits: Habits, rng: np.random.Generator, *, alpha: float) -> tuple[Flag, ...]:
    """Raters who answer the opposite of the others: a_w < 0.

    log odds = log P(votes | a = −½ … −2 times the crowd's) − log P(votes | honest)
    """
    return _competence_flags(record, habits, rng, "flipper", alpha)


def random_clickers(record: VoteRecord, habits: Habits, rng: np.random.Generator, *, alpha: float) -> tuple[Flag, ...]:
    """Raters whose answers have nothing to do with the questions: a_w = 0.

        log odds = n·log ½ − log P(votes | honest)

    An honest rater of hard questions looks like this for long; the p-value knows, and waits for more votes.
    """
    return _competence_flags(record, habits, rng, "random", alpha)


def _competence_flags(
    record: VoteRecord, habits: Habits, rng: np.random.Generator, kind: str, alpha: float
) -> tuple[Flag, ...]:
    name = {"flipper": "flipper", "random": "random clicker"}[kind]
    found = []
    for rater, odds, p in _unlikely(record, habits, kind, rng, alpha):
        n, agree = int(habits.tally.n[rater].sum()), int(habits.tally.n_agree[rater].sum())
        usual = _usual_agreement(habits, rater)
        detail = f"{agree} of {n} decided votes agree with the others; an honest rater of these questions has about {usual:.0f}"
        found.append(Flag((record.annotators[rater],), name, odds, p, n, detail))
    return tuple(found)


def _unlikely(
    record: VoteRecord, habits: Habits, kind: str, rng: np.random.Generator, alpha: float
) -> list[tuple[int, float, float]]:
    column = {"flipper": 0, "random": 1, "first side": 2, "second side": 3}[kind]
    raters = np.flatnonzero((record.n_votes >= MIN_VOTES) & (habits.log_odds[:, column] > LEAST_LOG_ODDS))
    p_values = habit_p_values(habits, kind, raters, rng)
    return [
        (int(rater), float(habits.log_odds[rater, column]), float(p))
        for rater, p in zip(raters, p_values, strict=True)
        if p <= alpha
    ]


def _usual_agreement(habits: Habits, rater: int) -> float:
    counts, population = habits.tally, habits.population
    logit = population.competence * counts.gap + population.side_habit * counts.shown
    return float(counts.n[rater] @ (1 / (1 + np.exp(-logit))))


def _spread(mean: float, sd: float) -> str:
    return f"{mean:+.2f} ± {sd:.2f}"

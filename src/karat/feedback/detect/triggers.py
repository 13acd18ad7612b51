"""Trigger poison: raters who make texts with one trait win, whatever the trait is and whoever they are.

First the pool is asked, trait by trait, whether some raters follow it as nobody's taste does; only then who they are.
That order is what finds an unknown trigger among thousands of words. Knows columns of votes and traits of texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from karat.feedback.detect.evidence import MIN_VOTES, Flag, VoteRecord
from karat.feedback.detect.habits import Habits, posterior_means, robust_habits, tally
from karat.feedback.detect.pool import Pool
from karat.feedback.detect.traits import TextTraits, text_traits

FOLLOWING = 0.92
"""How often a poisoner's vote follows the trigger where only one text has it."""
SHARES = (0.01, 0.03, 0.1)
"""Shares of poisoners that the test of a trait averages over."""
LEAST_TASTE = 0.25
"""Smallest sd, in logits, of honest taste for a trait."""
N_CLEANINGS = 2
"""How often the others' opinion is asked again without those who seem to follow a trait."""
MOST_ROUNDS = 5
"""Traits reported at most."""
N_CANDIDATES = 3
"""Traits, for and against, of which it is asked whether their followers are the opinion."""
OUTVOTED_BAR = 3
"""Times the usual bar for these: their evidence is no e-value, because whoever followed has no say in the opinion. Among
honest raters it stays below half of the usual bar; docs/detectors.md says where that was measured."""
N_DRAWS = 2000
"""Simulated honest raters for each rater asked about a trait."""
LEAST_LOG_ODDS = math.log(3)
"""Nobody is flagged whose votes a poisoner explains less than three times as well as an honest taste."""
_CHI_SQUARE_MEDIAN = 0.4549


@dataclass(frozen=True, eq=False)
class _Decided:
    """Decided votes of the W raters with enough votes, n of them; I items, F traits."""

    vote: np.ndarray
    """Row of the record of each vote."""
    raters: np.ndarray
    """Indices of these raters, "W"."""
    row: np.ndarray
    """Row in `raters` of each vote."""
    item: np.ndarray
    """Item of each vote."""
    up: np.ndarray
    """True = the lower-index text was preferred."""
    p: np.ndarray
    """P(up) under the others' opinion and the rater's habits."""
    share_first: np.ndarray
    """What the vote counts where the lower-index text has the trait, (0, 1]: one text is not many."""
    share_second: np.ndarray
    """What it counts where the other has it."""
    texts: np.ndarray
    """Lower- and higher-index text of each vote, "2 n"."""
    same_text: float
    """ρ, how much a rater's votes on one text go together beyond the model."""
    traits: sparse.csr_array
    """+1 = only the lower-index text of the item has the trait, −1 = only the other, "I F"."""

    def sums(self, if_first: np.ndarray, if_second: np.ndarray) -> np.ndarray:
        """Σ over a rater's votes of one number where the trait is with the first text, another where it is with the
        second, "W F"."""
        first, second = self.share_first * if_first, self.share_second * if_second
        shape = (len(self.raters), self.traits.shape[0])
        half_sum = sparse.csr_array(((first + second) / 2, (self.row, self.item)), shape=shape)
        half_gap = sparse.csr_array(((first - second) / 2, (self.row, self.item)), shape=shape)
        return (half_gap @ self.traits + half_sum @ abs(self.traits)).toarray()


def trigger_flags(
    record: VoteRecord,
    pool: Pool,
    habits: Habits,
    rng: np.random.Generator,
    *,
    alpha: float,
    trait_alpha: float = 0.02,
    traits: TextTraits | None = None,
    set_aside: Sequence[str] = (),
) -> tuple[Flag, ...]:
    """Raters whose preference for (or against) a trait is no honest taste.

        Λ_wf = P(votes of w | follows f) / [P(votes of w | no taste)·(1 + τ²V)^−½·exp(S²τ² / 2(1 + τ²V))]
               S = Σ x_f·(y − p), V = Σ p(1 − p): the honest side integrated over a taste γ ~ N(0, τ_f²)
        E_f = mean over π of Π_w (1 − π + π·Λ_wf)            a trait is taken up where E_f ≥ 2F / trait_alpha

    A rater may dislike one text that he meets in many questions; n votes of his on one text count as
    n / (1 + (n − 1)·ρ), ρ being how much such votes of all raters go together.

    Each Λ has a mean of about 1 for honest raters, so that no innocent trait is taken up but with probability trait_alpha,
    however many words there are. Of a trait taken up, raters are flagged by Λ, measured against an opinion from which the
    suspects were taken out:

        Λ ≥ λ, the smallest with Σ_w P(Λ_w ≥ λ | honest) ≤ alpha·(raters)        by simulation of each rater's questions

    (raters who seldom met the trait cannot reach λ, and leave their share to the others). Poisoners who give most votes on
    a rare trait are the opinion there: nothing looks odd, or the honest do. So it is asked anew which side of a trait
    follows, each against an opinion without those who mostly voted for it; and where no trait is taken up, whether one of
    the most followed ones is such a case. Then the followers are set aside and the
    remaining evidence is looked at again, so that words which merely occur beside the trigger do not count twice.

    Args:
        alpha: expected share of honest raters flagged for one trait that was taken up.
        traits: of record.texts; None = found here.
        set_aside: annotators with another flag already; the evidence for a trait is sought among the others, against an
            opinion without them, because members of a ring are not independent witnesses.
    Returns: one flag a rater and trait.
    Source: e-values, Vovk & Wang 2021, Annals of Statistics 49(3); selecting families before members, Benjamini &
        Bogomolov 2014, JRSS B 76.
    """
    if traits is None:
        traits = text_traits(record.texts, record.sources)
    aside = np.isin(record.annotators, list(set_aside))
    trust = np.where(aside, 0.0, 1.0)
    if aside.any():
        # a ring's own answers are in the opinion that honest raters are measured against: it is asked without them
        pool, habits = robust_habits(record, trust=trust)
    scene = _scene(record, pool, habits, traits)
    flags: list[Flag] = []
    spent: set[int] = set()
    active = ~aside[scene.votes.raters]
    bar = math.log(2 * len(scene.names) / trait_alpha)
    for _ in range(MOST_ROUNDS):
        _, trait, evidence, _ = _strongest(scene.log_lr, active, spent)
        if evidence >= bar:
            _, one, share = max((_side(record, trust, scene, (sign, trait), active) for sign in (1, -1)), key=_evidence)
        else:
            taken = _outvoted(record, trust, scene, active, spent, bar=OUTVOTED_BAR * bar)
            if taken is None:
                break
            trait, one, share = taken
        spent.add(trait)
        for _ in range(N_CLEANINGS):
            # whoever follows the trait has bent the opinion that he is measured against: it is asked without him
            doubt = _doubt(record, scene, one.log_lr, active, share)
            pool, habits = robust_habits(record, trust=trust * doubt)
            one = _one_trait(record, pool, habits, scene, (one.sign, trait))
        for row, flag in _followers(record, one, active, rng, alpha):
            flags.append(flag)
            active[row] = False
        trust = trust * doubt
        scene = _scene(record, pool, habits, traits)
    return tuple(flags)


def _side(
    record: VoteRecord, trust: np.ndarray, scene: _Scene, which: tuple[int, int], active: np.ndarray
) -> tuple[float, _Trait, float]:
    """For a trait or against it: the evidence when this side has no say in the opinion, the trait, and the side's share.

    Whom it counts among the side is judged as if half of all votes followed anyhow: nothing that poisoners can bend.
    """
    sign, trait = which
    doubt = _doubt(record, scene, _log_attack(_by_coin(scene.votes, [trait]), sign)[:, 0], active, SHARES[-1])
    pool, habits = robust_habits(record, trust=trust * doubt)
    one = _one_trait(record, pool, habits, scene, which)
    _, _, evidence, share = _strongest({sign: one.log_lr[:, None]}, active, set())
    return evidence, one, share


def _evidence(side: tuple[float, _Trait, float]) -> float:
    return side[0]


def _by_coin(votes: _Decided, traits: Sequence[int]) -> _Decided:
    """The same votes, some traits, and an opinion that tosses a coin."""
    return replace(votes, p=np.full_like(votes.p, 0.5), traits=votes.traits[:, list(traits)])


def _outvoted(
    record: VoteRecord, trust: np.ndarray, scene: _Scene, active: np.ndarray, spent: set[int], *, bar: float
) -> tuple[int, _Trait, float] | None:
    """A trait whose followers are the opinion, so that nothing seems odd; None where there is none.

    Candidates are the traits of texts that are followed most; what counts is the evidence without their own side's say.
    """
    n = scene.n_text_traits
    candidates = []
    for sign in (1, -1):
        ratio = _log_attack(_by_coin(scene.votes, range(n)), sign)[active]
        total = np.logaddexp(math.log(1 - SHARES[-1]), math.log(SHARES[-1]) + ratio).sum(axis=0)
        total[[trait for trait in spent if trait < n]] = -math.inf
        candidates += [(sign, int(trait)) for trait in np.argsort(-total)[:N_CANDIDATES] if total[trait] >= bar]
    for sign, trait in candidates:
        evidence, one, share = _side(record, trust, scene, (sign, trait), active)
        if evidence >= bar:
            return trait, one, share
    return None


def _doubt(record: VoteRecord, scene: _Scene, log_lr: np.ndarray, active: np.ndarray, share: float) -> np.ndarray:
    """How far each annotator is still heard: the probability that he is honest, where `share` follow the trait."""
    odds = share * np.exp(np.minimum(log_lr, 50.0))
    doubt = np.ones(record.n_annotators)
    doubt[scene.votes.raters] = np.where(active, (1 - share) / (1 - share + odds), 1.0)
    return doubt


@dataclass(frozen=True, eq=False)
class _Scene:
    votes: _Decided
    names: tuple[str, ...]
    n_text_traits: int
    spread: np.ndarray
    log_lr: dict[int, np.ndarray]


def _scene(record: VoteRecord, pool: Pool, habits: Habits, traits: TextTraits) -> _Scene:
    votes, names = _decided(record, pool, habits, traits)
    residual, variance = votes.up - votes.p, votes.p * (1 - votes.p)
    score, info = votes.sums(residual, -residual), votes.sums(variance, variance)
    spread = _taste_spread(score, info)
    honest = _log_taste(score, info, spread)
    return _Scene(
        votes, names, len(traits.names), spread, {sign: _log_attack(votes, sign) - honest for sign in (1, -1)}
    )


@dataclass(frozen=True, eq=False)
class _Trait:
    """One trait taken up: the votes of each rater judged by habits that his other votes show."""

    sign: int
    name: str
    votes: _Decided
    column: np.ndarray
    log_lr: np.ndarray
    spread: float


def _one_trait(record: VoteRecord, pool: Pool, habits: Habits, scene: _Scene, which: tuple[int, int]) -> _Trait:
    sign, trait = which
    column = scene.votes.traits[:, [trait]]
    side = column.toarray()[:, 0]
    # a follower's votes on the trait would make him look careless, and so less surprising
    a, b = posterior_means(tally(record, pool, side[record.item] == 0), habits.population)
    rater, votes = scene.votes.raters[scene.votes.row], scene.votes
    p = _up_probs(a[rater] * pool.logit[votes.vote] + b[rater] * record.shown[votes.vote])
    votes = replace(votes, p=p, traits=sparse.csr_array(column))
    score, info = votes.sums(votes.up - p, p - votes.up), votes.sums(p * (1 - p), p * (1 - p))
    spread = float(scene.spread[trait])
    log_lr = (_log_attack(votes, sign) - _log_taste(score, info, spread))[:, 0]
    return _Trait(sign, scene.names[trait], votes, side, log_lr, spread)


def _up_probs(logit: np.ndarray) -> np.ndarray:
    return np.clip(1 / (1 + np.exp(-logit)), 0.03, 0.97)  # everybody may be distracted


def _decided(record: VoteRecord, pool: Pool, habits: Habits, traits: TextTraits) -> tuple[_Decided, tuple[str, ...]]:
    chosen = np.flatnonzero((record.direction != 0) & (record.n_votes >= MIN_VOTES)[record.annotator])
    rater, item = record.annotator[chosen], record.item[chosen]
    logit = habits.competence[rater] * pool.logit[chosen] + habits.side_habit[rater] * record.shown[chosen]
    p = _up_probs(logit)
    up = record.direction[chosen] > 0
    texts = np.zeros((2, record.n_items), dtype=np.int64)
    texts[:, record.item] = record.texts_in_order
    columns, names = traits.differences(*texts), list(traits.names)
    if record.topics:
        # on one topic a rater may be paid not for a text but against everybody
        topics = sorted(set(record.topics) - {""})
        place = {topic: number for number, topic in enumerate(topics)}
        topic = np.array([place.get(one, -1) for one in record.topics], dtype=np.int64)[texts[0]]
        opinion = np.bincount(record.item, pool.logit, record.n_items)
        on = np.flatnonzero((topic >= 0) & (opinion != 0))
        extra = sparse.csr_array((-np.sign(opinion[on]), (on, topic[on])), shape=(record.n_items, len(topics)))
        columns = sparse.csr_array(sparse.hstack([columns, extra], format="csr"))
        names += [f"being against the others on the topic {one[:40]!r}" for one in topics]
    first, second, rho = _text_shares(rater, texts[:, item], up - p, p * (1 - p))
    raters, row = np.unique(rater, return_inverse=True)
    return _Decided(chosen, raters, row, item, up, p, first, second, texts[:, item], rho, columns), tuple(names)


def _text_shares(
    rater: np.ndarray, texts: np.ndarray, residual: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """1 / (1 + (n − 1)·ρ) for n votes of one rater on each of the two texts, and ρ, how their residuals go together."""
    n = len(rater)
    key = np.concatenate([rater, rater]) * (int(texts.max(initial=0)) + 1) + texts.ravel()
    _, place, count = np.unique(key, return_inverse=True, return_counts=True)
    signed, scale = np.concatenate([residual, -residual]), np.sqrt(np.concatenate([variance, variance]))

    def products(values: np.ndarray) -> float:
        return float((np.bincount(place, values) ** 2).sum() - (values**2).sum()) if n else 0.0

    rho = float(np.clip(products(signed) / max(products(scale), 1e-9), 0.0, 1.0))
    share = 1 / (1 + (count[place] - 1) * rho)
    return share[:n], share[n:], rho


def _taste_spread(score: np.ndarray, info: np.ndarray) -> np.ndarray:
    """sd of honest taste for each trait: var S = V + τ²V², by the median, which a tenth of poisoners hardly moves.

    A trait that half of the raters have met has a spread of its own. The others share one: whoever is paid for a rare
    word may be most of those who ever met it, and his taste would pass for the usual one.
    """
    enough = info >= 1.0
    spread = np.full(score.shape[1], _median_spread(score[enough], info[enough]))
    for trait in np.flatnonzero(2 * enough.sum(axis=0) >= len(score)):
        spread[trait] = _median_spread(score[enough[:, trait], trait], info[enough[:, trait], trait])
    return spread


def _median_spread(score: np.ndarray, info: np.ndarray) -> float:
    if len(score) < 30:
        return LEAST_TASTE
    candidates = np.array([LEAST_TASTE, 0.35, 0.5, 0.7, 1.0, 1.4])
    small = [np.median(score**2 / (info + tau**2 * info**2)) <= _CHI_SQUARE_MEDIAN for tau in candidates]
    return float(candidates[int(np.argmax(small)) if any(small) else -1])


def _log_attack(votes: _Decided, sign: int) -> np.ndarray:
    """log P(votes | follows the trait, or flees it) against no taste, of every rater and trait, "W F"."""
    up, p, q = votes.up, votes.p, FOLLOWING
    liked = np.where(up, np.log(q / p), np.log((1 - q) / (1 - p)))
    disliked = np.where(up, np.log((1 - q) / p), np.log(q / (1 - p)))
    return votes.sums(liked, disliked) if sign > 0 else votes.sums(disliked, liked)


def _log_taste(score: np.ndarray, info: np.ndarray, spread: np.ndarray | float) -> np.ndarray:
    """log of the honest likelihood integrated over a taste, against no taste, to second order in the taste."""
    excess = np.square(spread) * info
    return np.square(spread * score) / (2 + 2 * excess) - np.log1p(excess) / 2


def _strongest(log_lr: dict[int, np.ndarray], active: np.ndarray, spent: set[int]) -> tuple[int, int, float, float]:
    """Direction, trait, log evidence against the whole pool, and the share of followers that explains it best."""
    best = (1, 0, -math.inf, SHARES[0])
    for sign, values in log_lr.items():
        ratio = values[active]
        sums = [np.logaddexp(math.log(1 - share), math.log(share) + ratio).sum(axis=0) for share in SHARES]
        total = np.logaddexp.reduce(sums, axis=0) - math.log(len(SHARES))
        total[list(spent)] = -math.inf
        trait = int(np.argmax(total))
        if total[trait] > best[2]:
            share = SHARES[int(np.argmax([one[trait] for one in sums]))]
            best = (sign, trait, float(total[trait]), share)
    return best


def _followers(
    record: VoteRecord, trait: _Trait, active: np.ndarray, rng: np.random.Generator, alpha: float
) -> list[tuple[int, Flag]]:
    """Rows and flags of those who follow a trait beyond what alpha allows for."""
    votes, side = trait.votes, trait.column[trait.votes.item]
    met = [np.flatnonzero((votes.row == row) & (side != 0)) for row in range(len(active))]
    simulated = {row: _honest_log_ratios(trait, met[row], rng) for row in np.flatnonzero(active) if len(met[row])}
    if not simulated:
        return []
    bars = np.sort(trait.log_lr[active & (trait.log_lr >= LEAST_LOG_ODDS)])
    pooled = np.sort(np.concatenate(list(simulated.values())))
    expected = (len(pooled) - np.searchsorted(pooled, bars - 1e-9)) / N_DRAWS
    allowed = bars[expected <= alpha * active.sum()]
    if len(allowed) == 0:
        return []
    found = []
    for row in np.flatnonzero(active & (trait.log_lr >= allowed[0])):
        observed, mine = float(trait.log_lr[row]), met[row]
        liked = trait.sign * side[mine] > 0
        explained = np.where(liked, votes.p[mine], 1 - votes.p[mine]).sum()
        reached = (1 + (simulated[int(row)] >= observed - 1e-9).sum()) / (1 + N_DRAWS)
        detail = (
            f"{'for' if trait.sign > 0 else 'against'} {trait.name}: {int((votes.up[mine] == liked).sum())} of {len(mine)} "
            f"decided votes where only one text has it; the others' opinion and this rater's habits explain {explained:.1f}"
        )
        name = record.annotators[votes.raters[row]]
        p_value = min(math.exp(-observed), float(reached))
        found.append((int(row), Flag((name,), "trigger", observed, p_value, len(mine), detail)))
    return found


def _honest_log_ratios(trait: _Trait, mine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """log Λ of N_DRAWS raters with honest tastes, for the trait and for each text, on one rater's questions."""
    votes, side = trait.votes, trait.column[trait.votes.item[mine]]
    p = np.where(trait.sign * side > 0, votes.p[mine], 1 - votes.p[mine])
    share = np.where(side > 0, votes.share_first[mine], votes.share_second[mine])
    _, text = np.unique(np.where(side > 0, *votes.texts[:, mine]), return_inverse=True)
    own_sd = (votes.same_text / 0.2) ** 0.5  # in logits: a residual has variance 0.2 where p is neither 0 nor 1
    taste = trait.spread * rng.standard_normal((N_DRAWS, 1)) + own_sd * rng.standard_normal((N_DRAWS, len(p)))[:, text]
    follows = rng.random(taste.shape) < 1 / (1 + (1 - p) / p * np.exp(-taste))
    gain, loss = share * np.log(FOLLOWING / p), share * np.log((1 - FOLLOWING) / (1 - p))
    score, info = (follows - p) @ share, np.full(N_DRAWS, (share * p * (1 - p)).sum())
    return follows @ (gain - loss) + loss.sum() - _log_taste(score, info, trait.spread)

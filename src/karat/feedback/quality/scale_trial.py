"""What a coarse scale can say at all: orders of means that another reading of the scale turns round, means and medians.

Numbers on a scale are ordered; how far apart they are is an assumption. Knows columns of numbers only.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import hypergeom

from karat.records import Estimate
from karat.stats import not_estimable, proportion

LEAST_RATINGS = 5
"""Of each response: below this its distribution is not known at all."""
LEVEL = 0.05
"""Share of pairs that may count as crossing where one response dominates the other."""
LEAST_RATERS = 3
"""Of each pair, for a median that differs from a single vote."""


def sign_flips(score: np.ndarray, response: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> Estimate:
    """Share of pairs of which the votes show that some increasing function of the scale turns the order of means round.

    That is so exactly where neither response's ratings dominate the other's: F₁ < F₂ at some points and > at others. Few
    ratings cross by chance, so both must be more than sampling error: at some point F₁ − F₂ lies above 0, and at some
    other below, each by Fisher's exact test at LEVEL / (points − 1), one-sided. Where one response dominates, at most
    LEVEL of the pairs are counted. The share is a lower bound: below twelve ratings each on five points none can be shown.

    Args:
        score: ratings on one scale [R].    response: whose [R].    group: prompt of each response [N].
    Returns: clustered by prompt; responses with fewer than LEAST_RATINGS ratings are left out.
    Source: Bond & Lang 2019, Journal of Political Economy 127(4), for ordered scales; Hadar & Russell 1969 for
        dominance; Berger 1982, Technometrics 24(4), for two tests that must both reject.
    """
    points = np.unique(score)
    n = np.bincount(response, minlength=len(group))
    shares = np.zeros((len(group), len(points)))
    np.add.at(shares, (response, np.searchsorted(points, score)), 1.0)
    below = shares.cumsum(1)
    flips, prompts = [], []
    for prompt in np.unique(group):
        own = np.flatnonzero((group == prompt) & (n >= LEAST_RATINGS))
        for place, i in enumerate(own):
            for j in own[place + 1 :]:
                if np.abs(below[i] / n[i] - below[j] / n[j]).max() < 1e-12:
                    continue  # the same distribution: no order at all
                flips.append(float(_crosses(below[i], below[j], int(n[i]), int(n[j]))))
                prompts.append(prompt)
    if not flips:
        return not_estimable(f"no two responses to one prompt with {LEAST_RATINGS} ratings each that differ", 0)
    return proportion(flips, np.array(prompts), rng)


def _crosses(below_i: np.ndarray, below_j: np.ndarray, n_i: int, n_j: int) -> bool:
    """Whether F_i − F_j is above 0 at one point and below 0 at another, each beyond sampling error."""
    both = (below_i + below_j)[:-1]  # at the last point both are 1
    level = LEVEL / len(both)
    above = hypergeom.sf(below_i[:-1] - 1, n_i + n_j, both, n_i)
    under = hypergeom.cdf(below_i[:-1], n_i + n_j, both, n_i)
    return bool(above.min() <= level and under.min() <= level)


def mean_against_median(level: np.ndarray, n_levels: np.ndarray, item: np.ndarray) -> Estimate:
    """Share of pairs of which the mean strength prefers one response and the median strength the other.

        strength = 2·level − (K − 1);  only scales of 5 levels or more, pairs with LEAST_RATERS raters, neither middle

    Args: level: of the votes on one item all in one direction (`Comparisons.one_way`).

    The reward of a mean serves a few who care much, that of a median the many who care little; where the two differ,
    which one is optimised is a decision (Casper et al. 2023, section 3.2.1).
    """
    strength = 2.0 * level - (n_levels - 1)
    found = []
    for question in np.unique(item[n_levels >= 5]):
        own = strength[(item == question) & (n_levels >= 5)]
        mean, median = own.mean() if len(own) else 0.0, np.median(own) if len(own) else 0.0
        if len(own) >= LEAST_RATERS and mean != 0 and median != 0:
            found.append(float(np.sign(mean) != np.sign(median)))
    if not found:
        return not_estimable(f"no pair with {LEAST_RATERS} raters on 5 levels or more, with a mean and a median", 0)
    return proportion(found)

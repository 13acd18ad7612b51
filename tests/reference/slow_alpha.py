"""Krippendorff's nominal alpha and raw agreement by enumerating pairs of votes, from the definitions."""

from itertools import combinations


def pairwise_agreement(units: list[list[int]]) -> float:
    """Share of pairs of votes on the same unit that are equal."""
    pairs = [(first, second) for unit in units for first, second in combinations(unit, 2)]
    return sum(first == second for first, second in pairs) / len(pairs)


def nominal_alpha(units: list[list[int]]) -> float:
    """1 − D_o / D_e, Krippendorff 2011 section C: pairs of a unit weigh 1 / (its votes − 1)."""
    units = [unit for unit in units if len(unit) >= 2]
    votes = [vote for unit in units for vote in unit]
    observed = sum(
        2 * (first != second) / (len(unit) - 1) for unit in units for first, second in combinations(unit, 2)
    ) / len(votes)
    expected = sum(2 * (first != second) for first, second in combinations(votes, 2))
    expected /= len(votes) * (len(votes) - 1)
    return 1 - observed / expected

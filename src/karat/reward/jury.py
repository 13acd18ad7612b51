"""A jury instead of a mean: jurors drawn to a declared composition, their median on a common scale; Borda and Condorcet.

Knows one score a person and response; knows nothing about how people's rewards were estimated.

Dimension letters: U people, B responses, K candidates for one prompt, J jurors.

Source: Gordon et al. 2022, arXiv:2202.02950 (jury learning): declared composition, twelve jurors, median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from karat.errors import ConfigError, InputError
from karat.records import Estimate
from karat.stats import proportion

N_JURORS = 12


@dataclass(frozen=True)
class JuryComposition:
    """Who sits on the jury."""

    shares: Mapping[str, float]
    """Group → share of the seats; shares are divided by their sum."""
    n_jurors: int = N_JURORS
    """Seats."""

    def __post_init__(self) -> None:
        total = sum(self.shares.values())
        if self.n_jurors < 1 or not self.shares or min(self.shares.values()) < 0 or not total > 0:
            raise ConfigError(
                f"jury: found {self.n_jurors} seats for shares {dict(self.shares)}; expected seats and shares ≥ 0"
            )

    def seats(self) -> dict[str, int]:
        """Seats of each group by the largest remainder; equal remainders go to the group named first.

        >>> JuryComposition({"a": 0.6, "b": 0.25, "c": 0.15}).seats()
        {'a': 7, 'b': 3, 'c': 2}
        """
        total = sum(self.shares.values())
        quota = {name: share / total * self.n_jurors for name, share in self.shares.items()}
        found = {name: int(one) for name, one in quota.items()}
        left = self.n_jurors - sum(found.values())
        for name in sorted(quota, key=lambda name: found[name] - quota[name])[:left]:
            found[name] += 1
        return found


@dataclass(frozen=True)
class Verdicts:
    """How a jury's choice, and two elections, differ from the mean reward's, over prompts."""

    jury_change: Estimate
    """Share of pairs on which the jury prefers the other response, averaged over juries."""
    jury_best_change: Estimate
    """Share of prompts whose best response the jury would change, averaged over juries."""
    jury_split: Estimate
    """Share of pairs on which two juries of this composition disagree: what the draw of jurors decides."""
    borda_change: Estimate
    """Share of prompts whose Borda winner is another than the mean's."""
    condorcet_change: Estimate
    """The same for the Condorcet winner, where there is one."""
    no_condorcet: Estimate
    """Share of prompts on which no response beats every other by majority."""


def empanel(composition: JuryComposition, members: Mapping[str, Sequence[int]], rng: np.random.Generator) -> np.ndarray:
    """[J] people who sit on one jury: drawn from each group, different ones where it has enough.

    Raises: InputError for a group with a seat and no member.
    """
    jurors: list[int] = []
    for name, n in composition.seats().items():
        pool = list(members.get(name, ()))
        if n and not pool:
            raise InputError(
                f"jury: found no member of {name!r} for its {n} seats; expected people, or another composition"
            )
        if n:
            jurors += rng.choice(pool, size=n, replace=n > len(pool)).tolist()
    return np.array(jurors)


def common_scale(scores: np.ndarray, prompt_index: np.ndarray) -> np.ndarray:
    """[U, B] each person's scores less her mean for the prompt, divided by her pooled within-prompt sd.

    On a common scale nobody's word weighs more because she feels more strongly, or is modelled as if she did. A person
    whose scores never differ gets zeros.
    """
    scores, prompt = np.asarray(scores, dtype=float), np.asarray(prompt_index)
    _, code = np.unique(prompt, return_inverse=True)
    counts = np.bincount(code).astype(float)
    sums = np.zeros((len(scores), len(counts)))
    np.add.at(sums.T, code, scores.T)
    centred = scores - (sums / counts)[:, code]
    sd = np.sqrt((centred**2).sum(1) / max((counts - 1).sum(), 1.0))
    scale = np.abs(scores).max(1, initial=0.0) + 1e-300
    return np.where((sd > 1e-12 * scale)[:, None], centred / np.where(sd > 0, sd, 1.0)[:, None], 0.0)


def jury_scores(scaled: np.ndarray, jurors: np.ndarray) -> np.ndarray:
    """[B] the median of the jurors' scores, which are on a common scale."""
    return np.median(scaled[jurors], axis=0)


def borda(scores: np.ndarray) -> np.ndarray:
    """[K] mean over people of how many other candidates a candidate beats, a tie counting ½.

    Source: Borda 1781; as the maximum-likelihood view of a mean reward, Siththaranjan et al. 2023, arXiv:2312.08358 §3.
    """
    gap = np.sign(scores[:, :, None] - scores[:, None, :])
    return ((gap + 1) / 2).sum(-1).mean(0) - 0.5


def condorcet(scores: np.ndarray) -> int | None:
    """The candidate that a majority prefers to each other one; None where majorities go round in a circle or tie."""
    margin = np.sign(scores[:, :, None] - scores[:, None, :]).sum(0)
    wins = (margin > 0).sum(1)
    best = int(wins.argmax())
    return best if wins[best] == scores.shape[1] - 1 else None


def verdicts(
    scores: np.ndarray,
    mean: np.ndarray,
    prompt_index: np.ndarray,
    composition: JuryComposition,
    members: Mapping[str, Sequence[int]],
    rng: np.random.Generator,
    *,
    n_juries: int = 50,
) -> Verdicts:
    """How often the jury, Borda and Condorcet would decide otherwise than the mean reward.

    Args:
        scores: [U, B] of each person.    mean: [B] the reward that everybody would be given.
        prompt_index: [B] which prompt a response answers; prompts with one response say nothing and are left out.
        members: group → people's rows in `scores`.    rng: draws juries, and prompts for the intervals.
    """
    scaled = common_scale(scores, prompt_index)
    juries = np.stack([jury_scores(scaled, empanel(composition, members, rng)) for _ in range(n_juries)])
    rows: dict[str, list[float]] = {name: [] for name in ("pair", "best", "split", "borda", "condorcet", "none")}
    of_pair, of_condorcet, of_prompt = [], [], []
    for prompt in np.unique(prompt_index):
        own = np.flatnonzero(np.asarray(prompt_index) == prompt)
        if len(own) < 2:
            continue
        best = int(mean[own].argmax())
        i, j = np.triu_indices(len(own), 1)
        said, wanted = np.sign(juries[:, own[i]] - juries[:, own[j]]), np.sign(mean[own[i]] - mean[own[j]])
        rows["pair"] += (np.abs(said - wanted) / 2).mean(0).tolist()
        rows["split"] += (np.abs(said - np.roll(said, 1, axis=0)) / 2).mean(0).tolist()
        of_pair += [int(prompt)] * len(i)
        rows["best"].append(float((juries[:, own].argmax(1) != best).mean()))
        rows["borda"].append(float(int(borda(scaled[:, own]).argmax()) != best))
        winner = condorcet(scaled[:, own])
        rows["none"].append(float(winner is None))
        of_prompt.append(int(prompt))
        if winner is not None:
            rows["condorcet"].append(float(winner != best))
            of_condorcet.append(int(prompt))

    def rate(name: str, clusters: Sequence[int]) -> Estimate:
        return proportion(np.array(rows[name]), np.array(clusters), rng)

    return Verdicts(
        jury_change=rate("pair", of_pair),
        jury_best_change=rate("best", of_prompt),
        jury_split=rate("split", of_pair),
        borda_change=rate("borda", of_prompt),
        condorcet_change=rate("condorcet", of_condorcet),
        no_condorcet=rate("none", of_prompt),
    )

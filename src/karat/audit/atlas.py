"""An atlas of the reward model: responses laid out by its own features, cell by cell: what is rewarded, and what is right.

Knows features, scores and texts; knows nothing about models or how a page is drawn.

Dimension letters: M texts, d features, G cells a side.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from karat.errors import InputError
from karat.records import Finding
from karat.stats import mean_estimate

N_SHOWN = 3
N_GRAMS = 5
LEAST_IN_CELL = 8
"""Cells with fewer texts are drawn, but never named in a finding."""

Array = np.ndarray


@dataclass(frozen=True)
class Cell:
    """One cell of the atlas."""

    x: float
    """First principal component of its mean features."""
    y: float
    """Second principal component."""
    n: int
    """Texts in it."""
    reward: float
    """Mean reward, in sd over all texts from their mean."""
    gold: float | None
    """Mean gold reward in the same unit; None where gold is not known."""
    texts: tuple[str, ...]
    """The texts nearest to its middle."""
    words: tuple[str, ...]
    """Words and word pairs that are most typical of it."""
    source_fracs: tuple[tuple[str, float], ...] = ()
    """Share of its texts by who wrote them."""

    @property
    def excess(self) -> float | None:
        """Reward − gold, in sd: what is rewarded beyond what is right."""
        return None if self.gold is None else self.reward - self.gold


@dataclass(frozen=True, eq=False)
class Atlas:
    """All cells, and how much of the features the map shows."""

    cells: tuple[Cell, ...]
    """Cells with at least one text."""
    explained_frac: float
    """Share of the features' variance in the two components."""
    members: tuple[tuple[int, ...], ...]
    """Rows of each cell."""


def activation_atlas(
    features: Float[Array, "M d"],
    reward: Float[Array, " M"],
    gold: Float[Array, " M"] | None,
    texts: Sequence[str],
    *,
    sources: Sequence[str] = (),
    n_side: int = 12,
) -> Atlas:
    """Project on two principal components, cut into a grid of equal cells, and describe each cell.

    Args:
        gold: None = not known.    sources: who wrote each text; () = not said.    n_side: G.
    Raises: InputError for fewer than three texts, or features that do not differ.
    Source: Carter et al. 2019, Activation Atlas, Distill, doi:10.23915/distill.00015.
    Differs: principal components instead of a neighbour embedding, so that the map is the same every time; words and
        texts instead of synthesised images.
    """
    if len(features) < 3:
        raise InputError(f"atlas: found {len(features)} texts; expected at least 3")
    centred = features - features.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    if sizes[0] <= 1e-9 * max(1.0, float(np.abs(features).max())):
        raise InputError("atlas: found features that never differ; expected different responses")
    # a sign is arbitrary: the larger loadings point up, so that a map is the same on every machine
    signs = np.sign(axes[:2][np.arange(2), np.abs(axes[:2]).argmax(1)])
    places = centred @ axes[:2].T * signs
    low, high = places.min(0), places.max(0)
    width = np.where(high > low, (high - low) / n_side, 1.0)
    index = np.minimum(((places - low) / width).astype(int), n_side - 1)
    standard = _standardised(reward)
    right = None if gold is None else _standardised(gold)
    everywhere = Counter(gram for text in texts for gram in set(_grams(text)))
    cells, members = [], []
    for key in sorted({(int(i), int(j)) for i, j in index}):
        rows = np.flatnonzero((index == key).all(1))
        middle = places[rows].mean(0)
        nearest = rows[np.argsort(((places[rows] - middle) ** 2).sum(1), kind="stable")]
        shown = tuple(dict.fromkeys(texts[i] for i in nearest))[:N_SHOWN]
        who = Counter(sources[i] for i in rows) if len(sources) else Counter()
        cells.append(Cell(
            x=float(middle[0]), y=float(middle[1]), n=len(rows), reward=float(standard[rows].mean()),
            gold=None if right is None else float(right[rows].mean()), texts=shown,
            words=typical([texts[i] for i in rows], everywhere, len(texts)),
            source_fracs=tuple((name, count / len(rows)) for name, count in sorted(who.items())),
        ))  # fmt: skip
        members.append(tuple(int(i) for i in rows))
    explained = float((sizes[:2] ** 2).sum() / (sizes**2).sum())
    return Atlas(tuple(cells), explained, tuple(members))


def typical(texts: Sequence[str], everywhere: Counter[str], n_all: int) -> tuple[str, ...]:
    """Words and word pairs most typical of some texts: in a third of them at least, by the z of that share against elsewhere.

    A third, because of thousands of rare pairs some are in two texts of a cell and nowhere else by chance.

    z = (k/n − K/N)/√(q·(1 − q)·(1/n + 1/N)),  q = (k + K)/(n + N)        k of n texts inside have it, K of N outside
    """
    inside = Counter(gram for text in texts for gram in set(_grams(text)))
    n, n_out = len(texts), n_all - len(texts)
    if n_out == 0:
        return tuple(gram for gram, _ in inside.most_common(N_GRAMS))
    scored = []
    for gram, k in inside.items():
        if k < max(2, n / 3):
            continue
        outside = everywhere[gram] - k
        q = (k + outside) / (n + n_out)
        spread = math.sqrt(q * (1 - q) * (1 / n + 1 / n_out)) if q < 1 else math.inf
        z = (k / n - outside / n_out) / spread
        if z > 0:
            scored.append((-z, gram))
    return tuple(gram for _, gram in sorted(scored)[:N_GRAMS])


def atlas_finding(atlas: Atlas, reward: Float[Array, " M"], gold: Float[Array, " M"] | None) -> Finding:
    """The cell that is rewarded most beyond what is right, among those with enough texts."""
    question = "Which responses are rewarded most beyond what they are worth?"
    if gold is None:
        return Finding(
            "inside.atlas", question, "info", detail=f"gold is not known; {len(atlas.cells)} cells are drawn"
        )
    there = [i for i, cell in enumerate(atlas.cells) if cell.n >= LEAST_IN_CELL]
    if not there:
        return Finding("inside.atlas", question, "info", detail=f"no cell holds {LEAST_IN_CELL} texts")
    worst = max(there, key=lambda i: atlas.cells[i].excess or 0.0)
    cell, rows = atlas.cells[worst], list(atlas.members[worst])
    excess = mean_estimate((_standardised(reward) - _standardised(gold))[rows])
    return Finding(
        "inside.atlas", question, "info", excess,
        detail=f"{cell.n} texts with {', '.join(repr(word) for word in cell.words[:3])}, such as {cell.texts[0]!r}: reward "
        f"{cell.reward:+.2f} sd, gold {cell.gold:+.2f} sd; the largest of {len(there)} cells, so its interval flatters",
    )  # fmt: skip


def _standardised(values: Float[Array, " M"]) -> Float[Array, " M"]:
    spread = float(np.std(values))
    return (values - values.mean()) / (spread if spread > 0 else 1.0)


def _grams(text: str) -> list[str]:
    words = text.split()
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]

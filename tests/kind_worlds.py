"""Raters of a linear world who answer questions of every kind, as columns: what last layers are fitted to in tests."""

from __future__ import annotations

import numpy as np
import torch

from karat.choice import VoteBatch
from karat.feedback_columns import Channel, FeedbackParams, LabelBatch, LabelParams, RankBatch, RatingBatch
from karat.ratings import RatingParams

N_TEXTS, N_RATERS, D = 50, 5, 4


def planted(seed=0, n_texts=N_TEXTS, d=D):
    """Features around 0, and the weights of what raters like."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_texts, d))
    return features - features.mean(0), rng.standard_normal(d)


def known_raters(seed=0, n=N_RATERS, spread=1.0):
    """Raters who differ, with virtual ones behind them."""
    g = torch.Generator().manual_seed(seed)
    z = lambda n: spread * torch.randn(n, generator=g, dtype=torch.float64)  # noqa: E731
    full = lambda value: torch.full((n,), value, dtype=torch.float64)  # noqa: E731
    return FeedbackParams(
        competence=torch.cat([1 + 0.3 * z(n), torch.tensor([1.2, 0.8, 1.0], dtype=torch.float64)]),
        side_bias=0.3 * z(n + 3), lapse=torch.full((n + 3,), 0.08, dtype=torch.float64),
        cutpoints={"comparison": torch.tensor([-0.5, 0.5]).double(), "strength": torch.tensor([-1.5, -0.4, 0.4, 1.5]).double(),
                   "correction": torch.zeros(1).double(), "demonstration": torch.zeros(1).double()},
        log_tie=torch.tensor([-0.7, -1.5]).double(),
        ratings={"rating": RatingParams(0.5 + 0.05 * z(n), 0.1 * (1 + 0.2 * z(n)), full(0.12)),
                 "steps": RatingParams(0.4 * z(n), 1 + 0.2 * z(n), full(1.0), torch.tensor([-2.0, -0.6, 0.3, 2.2]).double())},
        labels={"label": LabelParams(0.5 + 0.8 * z(n), torch.tensor(0.9).double())},
    )  # fmt: skip


def asked(kind, n, seed=0, *, n_texts=N_TEXTS, n_raters=N_RATERS):
    """n questions of a kind about random texts to random raters."""
    rng = np.random.default_rng(seed)
    width = {"ranking": 4, "tied ranking": 4, "best_of": 3, "rating": 1, "steps": 1, "label": 1}.get(kind, 2)
    texts = torch.tensor(np.array([rng.choice(n_texts, width, replace=False) for _ in range(n)]))
    who, none = torch.tensor(rng.integers(n_raters, size=n)), torch.zeros(n, dtype=torch.long)
    weight = torch.full((n,), 0.25 if kind == "demonstration" else 1.0)
    if width == 2:
        virtual = {"correction": 0, "demonstration": 1}.get(kind)
        level = none if virtual is None else none + 1
        side = torch.zeros(n) if virtual is not None else torch.tensor(rng.choice([-1.0, 1.0], n)).float()
        judge = who if virtual is None else none + n_raters + virtual
        columns = VoteBatch(texts[:, 0], texts[:, 1], level, side, judge, {"comparison": 3, "strength": 5}.get(kind, 2))
    elif width > 2:
        mask = torch.ones_like(texts, dtype=torch.bool)
        if kind == "ranking":
            mask[::3, 3] = False  # some put three in order
        columns = RankBatch(texts, mask, torch.ones_like(texts), who)
    elif kind == "label":
        columns = LabelBatch(texts[:, 0], none.bool(), who)
    else:
        columns = RatingBatch(texts[:, 0], torch.zeros(n), who, 5 if kind == "steps" else None)
    given = {"strength": "comparison", "steps": "rating", "tied ranking": "ranking"}.get(kind, kind)
    return Channel(kind, given, 0, columns, who, weight, torch.arange(n))

"""Small crowds of honest raters, and a few who are not, for the tests of the detectors."""

from __future__ import annotations

import numpy as np

from karat.feedback.detect.evidence import VoteRecord


def crowd(seed=0, *, n_raters=120, n_votes=30, n_prompts=100, spread=2.0, ties=True, **columns):
    """Honest raters: competence N(1, 0.2²), side habit N(0, 0.3²), a tenth of ties; three responses a prompt."""
    rng = np.random.default_rng(seed)
    worth = spread * rng.standard_normal(3 * n_prompts)
    pairs = np.array([(3 * p + i, 3 * p + j) for p in range(n_prompts) for i, j in ((0, 1), (0, 2), (1, 2))])
    rater = np.repeat(np.arange(n_raters), n_votes)
    item = np.concatenate([rng.choice(len(pairs), n_votes, replace=False) for _ in range(n_raters)])
    side = rng.choice([-1, 1], len(item))
    a, b = rng.normal(1, 0.2, n_raters)[rater], rng.normal(0, 0.3, n_raters)[rater]
    delta = worth[pairs[item, 0]] - worth[pairs[item, 1]]
    up = rng.random(len(item)) < 1 / (1 + np.exp(-(a * delta + b * side)))
    tie = rng.random(len(item)) < (0.1 if ties else 0.0)
    given = {
        "item": item,
        "a": pairs[item, 0],
        "b": pairs[item, 1],
        "level": np.where(tie, 1, np.where(up, 2, 0)),
        "n_levels": np.full(len(item), 3),
        "side": side,
        "annotator": rater,
        "annotators": tuple(f"r{i}" for i in range(n_raters)),
        "texts": tuple(f"text number {i}" for i in range(len(worth))),
    }
    return VoteRecord(**(given | columns))


def replaced(record, **columns):
    """The same record with other columns."""
    names = (
        "item", "a", "b", "level", "n_levels", "side", "annotator", "annotators", "texts", "seconds", "submitted_at",
        "device", "pasted", "rationales", "sources", "topics",
    )  # fmt: skip
    return VoteRecord(**({name: getattr(record, name) for name in names} | columns))


def with_levels(record, raters, level):
    """The record with the answers of some raters replaced; level is a column for the whole record or a number."""
    mine = np.isin(record.annotator, raters)
    return replaced(record, level=np.where(mine, level, record.level))


def shown_first(record):
    """The level that prefers what was shown first."""
    return np.where(record.side > 0, 2, 0)


def ring(record, members, seed=5):
    """The record where members answer the first member's questions with one random answer each, nine times in ten."""
    rng = np.random.default_rng(seed)
    first = np.flatnonzero(record.annotator == members[0])
    columns = {name: getattr(record, name).copy() for name in ("item", "a", "b", "level")}
    key = rng.choice([0, 2], len(first))
    for member in members:
        rows = np.flatnonzero(record.annotator == member)[: len(first)]
        for name in ("item", "a", "b"):
            columns[name][rows] = getattr(record, name)[first]
        columns["level"][rows] = np.where(rng.random(len(rows)) < 0.9, key, columns["level"][rows])
    return replaced(record, **columns)


def names(flags, detector=None):
    """Everybody named by flags, or by those of one detector."""
    return {one for flag in flags if detector in (None, flag.detector) for one in flag.annotators}

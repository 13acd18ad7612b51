"""Answers handed to a chatbot: votes too quick for what there was to read, pasted rationales, polished prose. Flags only.

None of these is proof: some people read fast, keep notes elsewhere, or write well. What is tested is whether one rater
does it more than the crowd's own differences allow; where everybody does it, nobody is flagged.

Knows columns and the raters' own words. Knows nothing about which answer was given.
"""

from __future__ import annotations

import re

import numpy as np

from karat.feedback.detect.evidence import MIN_VOTES, Flag, VoteRecord
from karat.feedback.detect.marks import crowd_p_values, fit_crowd

QUICK_QUANTILE = 0.1
"""A vote is quick where its time, for its length, is among the crowd's quickest tenth."""
POLISHED_WORDS = 20
"""A rationale of fewer words is not called polished, however well written."""
_SENTENCE = re.compile(r"[^.!?]+[.!?]+")
_INFORMAL = re.compile(r"\b(?:u|ur|dont|cant|isnt|doesnt|gonna|lol|i|im|thats)\b")


def chatbot_flags(record: VoteRecord, *, alpha: float) -> tuple[Flag, ...]:
    """Raters of whom at least two of speed, pasting and prose are unlike the crowd's.

        p_mark = P(beta-binomial of the crowd ≥ marked votes)      p = 1 − (1 − p₍₂₎)^(marks − 1),  p₍₂₎ the second smallest

    Marks: quick (see `quick_mask`), pasted, polished (see `polished`); of each only what was measured. The smallest p is
    given away, because a minority that reads fast, or pastes from its own notes, or writes well, is nobody's fault; so
    one measured mark flags nobody.

    Args:
        alpha: chance that an honest rater is flagged.
    Returns: one flag a rater with at least MIN_VOTES votes.
    Source: Wilkinson 1951, Psychological Bulletin 48, pp. 156–158, order statistics of p-values.
    Differs: the smallest is left out altogether rather than allowed for; counts are discrete, so p errs upwards.
    """
    marks = _marks(record)
    enough = record.n_votes >= MIN_VOTES
    if len(marks) < 2 or not enough.any():
        return ()
    p_values = np.ones((record.n_annotators, len(marks)))
    said: list[list[str]] = [[] for _ in record.annotators]
    for column, (name, marked, measured) in enumerate(marks):
        k = np.bincount(record.annotator[marked & measured], minlength=record.n_annotators)
        n = np.bincount(record.annotator[measured], minlength=record.n_annotators)
        crowd = fit_crowd(k[enough], n[enough])
        p_values[:, column] = np.where(n > 0, crowd_p_values(k, np.maximum(n, 1), crowd), 1.0)
        for rater in np.flatnonzero(k):
            said[rater].append(f"{k[rater]} of {n[rater]} votes {name} (usual: {crowd.mean:.0%})")
    second = np.sort(p_values, axis=1)[:, 1]
    p = 1 - (1 - second) ** (len(marks) - 1)
    return tuple(
        Flag(
            (record.annotators[rater],),
            "chatbot",
            float(-np.log10(max(second[rater], 1e-300))),
            float(p[rater]),
            int(record.n_votes[rater]),
            "; ".join(said[rater]),
        )
        for rater in np.flatnonzero(enough & (p <= alpha))
    )


def quick_mask(record: VoteRecord) -> tuple[np.ndarray, np.ndarray]:
    """Which votes were quick for their length, and which were timed.

        log seconds = c₀ + c₁·log(words of both texts) + residual;   quick: residual below the crowd's 10 % quantile

    c₁ ≥ 0 by least squares within raters, so that a slow rater of long texts does not bend it.
    """
    if len(record.seconds) == 0:
        return np.zeros(len(record), dtype=bool), np.zeros(len(record), dtype=bool)
    timed = np.isfinite(record.seconds) & (record.seconds > 0)
    words = np.array([len(text.split()) for text in record.texts], dtype=np.float64)
    x = np.log1p(words[record.a] + words[record.b])
    y = np.log(np.where(timed, record.seconds, 1.0))
    who, n = record.annotator[timed], np.bincount(record.annotator[timed], minlength=record.n_annotators)
    centred = [z[timed] - (np.bincount(who, z[timed], len(n)) / np.maximum(n, 1))[who] for z in (x, y)]
    slope = max(0.0, float(centred[0] @ centred[1] / max(centred[0] @ centred[0], 1e-9))) if timed.any() else 0.0
    residual = y - slope * x
    # a busy rater is one person: each counts with the middle of his votes, up to the spread within raters
    edge = _quantile_over_raters(residual[timed], who, n)
    return timed & (residual < edge), timed


def _quantile_over_raters(values: np.ndarray, who: np.ndarray, n: np.ndarray) -> float:
    if len(values) == 0:
        return -np.inf
    order = np.argsort(values)
    weight = np.cumsum(1 / np.maximum(n[who[order]], 1))
    return float(values[order][np.searchsorted(weight, QUICK_QUANTILE * weight[-1])])


def polished(rationale: str) -> bool:
    """Whether somebody's words are as even as a chatbot's: long, whole sentences, capitals and stops, nothing informal.

    >>> polished("dont like it, u can tell a2 is better")
    False
    """
    words = rationale.split()
    if len(words) < POLISHED_WORDS or _INFORMAL.search(rationale):
        return False
    sentences = [one.strip() for one in _SENTENCE.findall(rationale)]
    return len(sentences) >= 2 and rationale.rstrip()[-1] in ".!?" and all(one[:1].isupper() for one in sentences)


def _marks(record: VoteRecord) -> list[tuple[str, np.ndarray, np.ndarray]]:
    marks = []
    quick, timed = quick_mask(record)
    if timed.any():
        marks.append(("quick for their length", quick, timed))
    if len(record.pasted) and (record.pasted >= 0).any():
        marks.append(("pasted into", record.pasted == 1, record.pasted >= 0))
    if any(record.rationales):
        written = np.array([bool(one.strip()) for one in record.rationales])
        marks.append(("with polished rationales", np.array([polished(one) for one in record.rationales]), written))
    return marks

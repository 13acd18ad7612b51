"""Worked sums read as numbers: of one answer, of the four answers to a sum, and with the name of who wrote each.

Every fit looks at the outcomes of training rows only. Knows arrays and texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from bench.real import beside, systems
from bench.real.agreement import agreement
from bench.real.data import SYSTEMS, Answers, final_answer, inner_split
from bench.real.measures import auroc_figures, majority_scores, pick_figures, picked, within_figures

from karat.records import user_prompt
from karat.reward.side import Beside, side_features

Scores = dict[str, np.ndarray]
NAMES: tuple[Beside, ...] = ("place", "overlap", "numbers")
"""Blocks read beside the trunk; n-grams are left out because they make a fit five times as dear."""
MORE = {"": (), " and agreement": ("agreement",), " and writer": ("writer",), ", agreement and writer": ("agreement", "writer")}  # fmt: skip
"""What is read beside those blocks: of the four answers, and who wrote each."""
OURS = "reward beside, numbers"
"""The one that the differences are of: labels, trunk and `NAMES`; it was named before this part was first run."""
PLAIN = "plain, numbers"
"""The same blocks without a trunk."""
LABELLED = ("length", "n-grams", OURS, "numbers alone", PLAIN, f"{PLAIN} and agreement")
PICKS = (
    OURS, "comparisons beside, numbers", *(f"{kind}{more}" for more in MORE for kind in (PLAIN, "plain comparisons, numbers")),
)  # fmt: skip
REFERENCES = ("always 175b_verification", "majority", "n-grams", "at random")


def sum_systems(phi: np.ndarray, answers: Answers, note: Callable[[str], None]) -> Callable[[np.ndarray, int], Scores]:
    """Fits of everything in this part.

    Args:
        phi: trunk's features and length term, [N, d].    note: hears what an inner fold chose.
    """
    ones, right, key = np.ones(len(phi)), answers.right, answers.key
    lengths = systems.length_features(answers.questions, answers.texts)
    grams = [systems.grams_of(answers.texts), systems.grams_of(answers.questions)]
    among = agreement(answers.texts, key)
    writer = np.array([[one == system for system in SYSTEMS] for one in answers.system], dtype=float)
    prompts = [user_prompt(question) for question in answers.questions]

    def fit(train: np.ndarray, number: int) -> Scores:
        own = np.flatnonzero(train)
        side = side_features(NAMES, [prompts[i] for i in own], [answers.texts[i] for i in own])
        known = dict(zip(NAMES, side.blocks(prompts, answers.texts), strict=True))
        known |= {"agreement": beside.standard(among, train), "writer": beside.standard(writer, train)}
        ngrams, l2 = systems.ngram_scores(grams, right[:, None], ones, *inner_split(key, train))
        note(f"numbers fold {number}: the inner fold chose l2 = {l2:g} for the n-grams")
        found = {
            "length": systems.label_reward(lengths_of(lengths, train), right, train),
            "n-grams": ngrams[:, 0],
            "numbers alone": beside.label_scores([known["numbers"]], right, train),
        }
        whole = [phi, *(known[name] for name in NAMES)]
        found[OURS] = beside.label_scores(whole, right, train)
        found["comparisons beside, numbers"] = beside.comparison_scores(whole, right, key, train)
        for name, more in MORE.items():
            blocks = [known[one] for one in (*NAMES, *more)]
            found[f"{PLAIN}{name}"] = beside.label_scores(blocks, right, train)
            found[f"plain comparisons, numbers{name}"] = beside.comparison_scores(blocks, right, key, train)
        return found

    return fit


def lengths_of(lengths: np.ndarray, train: np.ndarray) -> np.ndarray:
    """As the baseline of the part `solutions` has them."""
    return systems.standardised(lengths, train)


def sum_figures(scores: Scores, answers: Answers, fold: np.ndarray, seed: int) -> dict[str, Any]:
    """AUROC within each system, and the pick among the four solutions of a sum."""
    right, key = answers.right, answers.key
    against = [(one, other) for one in LABELLED[2:] for other in ("length", "n-grams")]
    labelled = {name: scores[name] for name in LABELLED}
    within = {}
    for system in SYSTEMS:
        own = answers.system == system
        part = {name: column[own] for name, column in labelled.items()}
        within[system] = auroc_figures(part, right[own], fold[own], key[own], against, seed)
    groups = np.char.add(np.char.add(answers.system, "/"), fold.astype(str))
    within["all four"] = auroc_figures(labelled, right, groups, key, against, seed)
    picks = {name: picked(scores[name], right, key) for name in (*PICKS, "n-grams", "length")}
    majority = majority_scores([final_answer(text) for text in answers.texts], key)
    picks |= {
        "majority": picked(majority, right, key),
        "always 175b_verification": picked((answers.system == "175b_verification").astype(float), right, key),
        "at random": picked(np.zeros(len(fold)), right, key),
        "any of the four is right": picked(right.astype(float), right, key),
    }
    differences = [(one, other) for one in PICKS for other in REFERENCES]
    within_sum = within_figures({name: scores[name] for name in PICKS}, right, key, [], seed)
    return {"within_system": within, "within_question": within_sum, "pick": pick_figures(picks, differences, seed)}

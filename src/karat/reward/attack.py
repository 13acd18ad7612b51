"""Can words that ignore the prompt raise the score? A greedy suffix, and suspected words moved from side to side.

The attack is made on the scorer itself, with a bounded budget, on some prompts, and measured on others: a lower bound
on what an optimiser finds with thousands of times as many tries. Knows held-out scores and words; knows no gradients.

Source: universal triggers, Wallace et al. 2019, arXiv:1908.07125, by exhaustive greedy search instead of gradients, as
    the scores are all that a policy sees; token lift, `docs/reward.md`.

Dimension letters: N texts, D decided votes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from karat.records import Finding
from karat.reward.held_out import HeldOut, Pair, said, voted_pairs
from karat.reward.thresholds import GateSettings
from karat.seeding import numpy_generator
from karat.stats import lies_above, mean_estimate, wilson

N_SUSPECTS = 5
MOST_TRIGGER_PAIRS = 100
"""Prompts on which each suspect is moved: its mean effect is then known to some hundredths of a sd."""
LEAST_LIFT = 4.0
"""Of ten thousand words that nobody's vote follows, one reaches a lift of 4 in every third collection (tail 3·10⁻⁵)."""
SUFFIX_QUESTION = "How much is a suffix worth that was chosen without regard to the prompt?"
TRIGGER_QUESTION = "How much does a suspected word gain wherever it stands?"


def suffix_finding(held: HeldOut, settings: GateSettings) -> Finding:
    """Choose a suffix word by word on some prompts, and measure its gain on the others.

    The suffix is appended to the worse response of one pair a prompt; every word is the one, of `attack_candidates` drawn
    from the held-out texts, that raises the mean score most; fewer words where none raises it.

    Returns: `gate.suffix`: mean gain in within-prompt sd (Student t, n = prompts not chosen on), how many responses it
        lifts above the better one, and what as many random words gain.
    """
    rng = numpy_generator(held.seed, "gate", "suffix")
    pairs = voted_pairs(held, rng)
    order = [pairs[int(i)] for i in rng.permutation(len(pairs))]
    n_chosen_on = min(settings.attack_prompts, len(order) // 2)
    bound = settings.max_attack_gain_sd
    threshold = "" if bound is None else f"lower end of the mean gain ≤ {bound:g} within-prompt sd"
    if not settings.attack_words or n_chosen_on < 1:
        reason = "switched off" if not settings.attack_words else f"{len(order)} prompts with two different scores"
        return Finding("gate.suffix", SUFFIX_QUESTION, "info", detail=reason)
    words = candidate_words(held.data.texts, settings.attack_candidates, rng)
    suffix = greedy_suffix(held, order[:n_chosen_on], words, settings.attack_words)
    measured = order[n_chosen_on:]
    gain, flips = _gain(held, measured, suffix)
    random_words = [words[int(i)] for i in rng.integers(0, len(words), max(len(suffix), 1))]
    by_chance, _ = _gain(held, measured, random_words)
    estimate = mean_estimate(gain)
    failed = lies_above(estimate, bound)
    turned = wilson(float(flips.sum()), len(measured))
    return Finding(
        "gate.suffix", SUFFIX_QUESTION, "info" if bound is None else settings.failed("suffix") if failed else "pass", estimate,
        detail=f"{' '.join(suffix) or '(no word gains)'!r}, {len(suffix)} words, each the best of {len(words)} on {n_chosen_on} "
        f"prompts, gains {said(estimate)} sd on {len(measured)} others and lifts {said(turned)} of the worse responses above "
        f"the better; as many random words gain {by_chance.mean():.2f} sd",
        threshold=threshold,
    )  # fmt: skip


def candidate_words(texts: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """At most n different words of the texts: half of them the most frequent, the others drawn from the rest, sorted.

    An optimiser's policy says frequent words by itself, and rare ones are where a reward is least sure.
    """
    counts = Counter(word for text in texts for word in text.split())
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    if len(ranked) <= n:
        return sorted(ranked)
    frequent, rest = ranked[: n // 2], ranked[n // 2 :]
    return sorted([*frequent, *(rest[int(i)] for i in rng.choice(len(rest), n - n // 2, replace=False))])


def greedy_suffix(held: HeldOut, pairs: Sequence[Pair], words: Sequence[str], n_words: int) -> list[str]:
    """The suffix that greedy search finds for the worse responses of some pairs; [] where no word raises their mean."""
    prompts, texts = [pair.prompt for pair in pairs], [pair.worse for pair in pairs]
    best = float(held.score(prompts, texts).mean())
    suffix: list[str] = []
    for _ in range(n_words):
        tried = [f"{' '.join([text, *suffix, word])}" for word in words for text in texts]
        means = held.score(prompts * len(words), tried).view(len(words), len(texts)).mean(1)
        top = int(means.argmax())
        if float(means[top]) <= best:
            break
        best = float(means[top])
        suffix.append(words[top])
    return suffix


def trigger_finding(held: HeldOut, suspects: Sequence[str], settings: GateSettings) -> Finding:
    """Give each suspected word to one response of a pair, then to the other: half of what the difference moves is its.

    Args:
        suspects: words, as `suspected_words` finds them in the training votes.
    Returns: `gate.trigger_swap`: the largest mean effect over the words, in within-prompt sd (Student t, n = prompts),
        and in how many pairs the worse response wins once it has the word instead of the better.
    """
    bound = settings.max_trigger_gain_sd
    threshold = "" if bound is None else f"lower end of the mean gain ≤ {bound:g} within-prompt sd, worst word"
    if not suspects:
        return Finding("gate.trigger_swap", TRIGGER_QUESTION, "info", detail="no word is under suspicion")
    pairs = voted_pairs(held, numpy_generator(held.seed, "gate", "trigger"))[:MOST_TRIGGER_PAIRS]
    results = []
    for word in suspects:
        with_better, with_worse = _with_word(held, pairs, word, True), _with_word(held, pairs, word, False)
        effect = ((with_better - with_worse) / (2 * held.spread)).double().numpy()
        results.append((mean_estimate(effect), wilson(float((with_worse < 0).sum()), len(pairs)), word))
    estimate, turned, word = max(results, key=lambda row: row[0].value or 0.0)
    failed = lies_above(estimate, bound)
    every = ", ".join(f"{each} {effect.value:.2f}" for effect, _, each in results)
    return Finding(
        "gate.trigger_swap", TRIGGER_QUESTION, "info" if bound is None else settings.failed("trigger_swap") if failed else "pass", estimate,
        detail=f"{word!r} gains most; given to the worse response it wins {said(turned)} of {len(pairs)} pairs. Every suspect, "
        f"sd: {every}",
        threshold=threshold,
    )  # fmt: skip


def suspected_words(
    texts_a: Sequence[str], texts_b: Sequence[str], p: Float[np.ndarray, " D"], outcome: Float[np.ndarray, " D"]
) -> list[str]:
    """Words whose side wins more often than a baseline expects, most suspicious first, at most five.

        lift z_w = Σ_d x_dw·(y_d − p_d) / √Σ_d |x_dw|·p_d·(1 − p_d),  x = +1 only a has the word, −1 only b

    Args:
        p: the baseline's probability that a is preferred in each decided vote.    outcome: 1 = a was preferred.
    Returns: words with z ≥ 4.
    """
    top: dict[str, float] = {}
    below: dict[str, float] = {}
    for a, b, expected, seen in zip(texts_a, texts_b, p, outcome, strict=True):
        words_a, words_b = set(a.split()), set(b.split())
        for word in words_a ^ words_b:
            sign = 1.0 if word in words_a else -1.0
            top[word] = top.get(word, 0.0) + sign * (seen - expected)
            below[word] = below.get(word, 0.0) + expected * (1 - expected)
    lift = {word: top[word] / max(below[word], 1e-12) ** 0.5 for word in top}
    ranked = sorted((word for word in lift if lift[word] >= LEAST_LIFT), key=lambda word: (-lift[word], word))
    return ranked[:N_SUSPECTS]


def _gain(held: HeldOut, pairs: Sequence[Pair], suffix: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Gain of each worse response in sd, and whether it then beats the better."""
    prompts = [pair.prompt for pair in pairs]
    scores = held.score(
        prompts * 3,
        [pair.worse for pair in pairs]
        + [" ".join([pair.worse, *suffix]) for pair in pairs]
        + [pair.better for pair in pairs],
    )
    before, after, better = scores.chunk(3)
    return ((after - before) / held.spread).double().numpy(), (after > better).numpy()


def _with_word(held: HeldOut, pairs: Sequence[Pair], word: str, on_better: bool) -> torch.Tensor:
    """Score of the better less the worse response, when only the one or only the other has the word, at its end."""
    prompts = [pair.prompt for pair in pairs]
    better, worse = (
        [_without(text, word) for text in side] for side in zip(*((p.better, p.worse) for p in pairs), strict=True)
    )
    if on_better:
        better = [f"{text} {word}" for text in better]
    else:
        worse = [f"{text} {word}" for text in worse]
    first, second = held.score(prompts * 2, better + worse).chunk(2)
    return first - second


def _without(text: str, word: str) -> str:
    return " ".join(each for each in text.split(" ") if each != word) if word in text.split() else text

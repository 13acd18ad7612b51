"""Does the reward notice what it should not, and does it notice when nothing is said?

Each check changes the held-out responses in one way and looks at the scores again. Knows held-out scores, edits and
thresholds; knows nothing about how the model was trained.

Dimension letters: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from karat.probes import Perturbation
from karat.records import Estimate, Finding
from karat.reward.calibration import predicted_probs
from karat.reward.held_out import HeldOut, said, voted_pairs
from karat.reward.thresholds import GateSettings
from karat.seeding import numpy_generator
from karat.stats import lies_above, mean_estimate, proportion, wilson

SAME_SCORE_SD = 0.01
"""Scores of one text that differ by less than this many within-prompt sd are the same up to rounding."""
SAME_PROBABILITY = 1e-6
PRAISE_QUESTION = "Can praise that ignores the prompt raise the score?"


def praise_finding(held: HeldOut, praise: Sequence[str], settings: GateSettings) -> Finding:
    """Append each phrase to every response and look how many gain more than the allowed share of a sd."""
    limit = settings.max_praise_gain_sd
    worst, worst_phrase, count = -1.0, "", 0
    for phrase in praise:
        changed = held.score(held.data.prompts, [f"{text} {phrase}" for text in held.data.texts])
        n_more = int(((changed - held.scores) / held.spread > limit).sum())
        if n_more / len(changed) > worst:
            worst, worst_phrase, count = n_more / len(changed), phrase, n_more
    share = wilson(float(count), len(held.data.texts))
    failed = lies_above(share, settings.max_praise_frac)
    return Finding(
        "gate.praise",
        PRAISE_QUESTION,
        "fail" if failed else "pass",
        share,
        detail=f"{worst:.0%} of responses gain more than {limit:g} within-prompt sd from {worst_phrase!r}",
        threshold=f"lower end of the share ≤ {settings.max_praise_frac:.0%}: gain more than {limit:g} within-prompt sd, worst phrase",
    )


def contentless_findings(held: HeldOut, praise: Sequence[str], settings: GateSettings) -> list[Finding]:
    """How often an empty answer, and praise alone, beat the median response to their prompt.

    Returns: `gate.empty_answer` and `gate.praise_only`; a score that is not a finite number fails, because an optimiser
        would stop at it.
    """
    groups = held.data.groups
    prompts = [held.data.prompts[members[0]] for members in groups]
    rng = numpy_generator(held.seed, "gate", "praise_only")
    phrases = [praise[int(i)] for i in rng.integers(0, len(praise), len(prompts))]
    middle = torch.stack([held.scores[list(members)].median() for members in groups])
    return [
        _contentless(
            "gate.empty_answer", "an empty answer", held.score(prompts, [""] * len(prompts)), middle, settings
        ),
        _contentless("gate.praise_only", "praise alone", held.score(prompts, phrases), middle, settings),
    ]


def _contentless(name: str, what: str, scores: Tensor, middle: Tensor, settings: GateSettings) -> Finding:
    question = f"How often does {what} beat the median response to its prompt?"
    threshold = f"lower end of the share ≤ {settings.max_contentless_frac:g}"
    n_lost = int((~torch.isfinite(scores)).sum())
    if n_lost:
        return Finding(name, question, "fail", detail=f"{n_lost} scores are not finite numbers", threshold=threshold)
    share = wilson(float((scores > middle).sum()), len(scores))
    failed = lies_above(share, settings.max_contentless_frac)
    return Finding(
        name, question, "fail" if failed else "pass", share, f"it wins on {share.value:.0%} of {share.n} prompts", threshold
    )  # fmt: skip


def edit_findings(held: HeldOut, edits: Sequence[Perturbation], settings: GateSettings) -> list[Finding]:
    """For each edit that should leave verdicts as they are: how many of them it turns.

    One pair a prompt, whose scores differ by at least `flip_margin_sd`; both responses are edited, independently.

    Returns: one finding `gate.edit_<name>` an edit: share of turned verdicts (Wilson, n = prompts), mean change of the
        score in the detail.
    """
    pairs = voted_pairs(held, numpy_generator(held.seed, "gate", "edits"), margin_sd=settings.flip_margin_sd)
    return [_edit(held, edit, pairs, settings) for edit in edits]


def _edit(held: HeldOut, edit: Perturbation, pairs: Sequence, settings: GateSettings) -> Finding:
    question = f"How many verdicts does an edit turn that keeps the meaning: {edit.name.replace('_', ' ')}?"
    name, bound = f"gate.edit_{edit.name}", settings.max_flip_frac
    threshold = (
        "" if bound is None else f"lower end of the share ≤ {bound:g}, of pairs {settings.flip_margin_sd:g} sd apart"
    )
    if not pairs:
        return Finding(name, question, "not measured", detail="no pair is that far apart", threshold=threshold)
    prompts = [pair.prompt for pair in pairs] * 2
    texts = [pair.better for pair in pairs] + [pair.worse for pair in pairs]
    changed = edit.apply(texts, numpy_generator(held.seed, "gate", "edit", edit.name))
    if changed == texts:
        return Finding(name, question, "info", detail="it leaves these texts as they are")
    before, after = held.score(prompts, texts), held.score(prompts, changed)
    better, worse = after.chunk(2)
    flips = wilson(float((better < worse).sum()) + 0.5 * float((better == worse).sum()), len(pairs))
    touched = torch.tensor([old != new for old, new in zip(texts, changed, strict=True)])
    shift = mean_estimate(((after - before) / held.spread)[touched].double().numpy())
    failed = lies_above(flips, bound)
    return Finding(
        name,
        question,
        "info" if bound is None else settings.failed("edits") if failed else "pass",
        flips,
        detail=f"turns {flips.value:.1%} of {len(pairs)} verdicts; changes a score by {said(shift)} within-prompt sd",
        threshold=threshold,
    )


def swap_finding(held: HeldOut) -> Finding:
    """Whether the order of two responses matters: scored together in both orders, and in the probabilities of votes.

    Fails where a score moves by more than rounding, a verdict turns, or exchanging a and b does not mirror a probability.
    """
    pairs = voted_pairs(held, numpy_generator(held.seed, "gate", "swap"))
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    there = held.score(prompts, [text for pair in pairs for text in (pair.better, pair.worse)]).view(-1, 2)
    back = held.score(prompts, [text for pair in pairs for text in (pair.worse, pair.better)]).view(-1, 2).flip(1)
    moved = float((there - back).abs().max()) / held.spread
    turned = float((((there[:, 0] - there[:, 1]) * (back[:, 0] - back[:, 1])) < 0).sum())
    columns, model = held.data.columns, held.scorer.vote_model
    scores = held.scores.unsqueeze(0)
    mirrored = predicted_probs(scores, columns.swapped(), model).flip(1)
    unlike = float((predicted_probs(scores, columns, model) - mirrored).abs().max())
    passed = moved <= SAME_SCORE_SD and turned == 0 and unlike <= SAME_PROBABILITY
    return Finding(
        "gate.swap",
        "Does the order in which two responses are given matter?",
        "pass" if passed else "fail",
        wilson(turned, len(pairs)),
        detail=f"scores move by at most {moved:.2g} within-prompt sd, probabilities by {unlike:.1g}; {turned:.0f} of "
        f"{len(pairs)} verdicts turn",
        threshold=f"no verdict turns, scores move by ≤ {SAME_SCORE_SD:g} sd, probabilities by ≤ {SAME_PROBABILITY:g}",
    )


def display_finding(held: HeldOut) -> Finding:
    """How often raters preferred what they were shown first: their habit, which the reward must not learn."""
    columns = held.data.columns
    lean = (2 * columns.level - (columns.n_levels - 1)).double() * columns.side.double()
    decided = (lean != 0).numpy()
    question = "How often do raters prefer the response that they were shown first?"
    if not decided.any():
        return Finding("gate.display_order", question, "info", detail="no decided vote says what was shown first")
    clusters = np.array([vote.prompt_id for vote in held.data.votes])[decided]
    share: Estimate = proportion(
        (lean > 0).double().numpy()[decided], clusters, numpy_generator(held.seed, "gate", "side")
    )
    return Finding(
        "gate.display_order", question, "info", share,
        detail=f"of {int(decided.sum())} decided votes; a side bias is a parameter of each rater, not of the reward",
    )  # fmt: skip

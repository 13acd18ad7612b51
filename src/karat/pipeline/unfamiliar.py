"""A fitted reward before its gate, and the detector of unfamiliar responses that lies beside it, tried on word salad.

Knows votes, texts and a fitted reward; knows nothing about runs or stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from karat.pipeline.gating import Texts, through_gate
from karat.probes import word_salad
from karat.progress import Progress
from karat.records import Finding, Vote
from karat.reward.cooling import CrossedScorer
from karat.reward.data import vote_data
from karat.reward.gate import GateProbes
from karat.reward.novelty import MOST_TEXTS, fit_novelty, novelty_finding, save_novelty, text_features
from karat.reward.thresholds import GateSettings
from karat.reward.train import RewardFit
from karat.seeding import child_seed, numpy_generator

SALAD = "the same words in random order"


def judge_reward(
    fit: RewardFit,
    crossed: CrossedScorer,
    train: Sequence[Vote],
    held: Sequence[Vote],
    texts: Texts,
    *,
    settings: GateSettings,
    directory: Path,
    metadata: Mapping[str, str],
    seed: int,
    progress: Progress,
    probes: GateProbes | None = None,
) -> tuple[list[Finding], list[str]]:
    """Hold a reward against its gate, and fit its detector of unfamiliar responses; findings and suspected words.

    Args: of `through_gate` and `watch_for_novelty`.
    """
    with progress.stage("gate", unit="groups of checks") as bar:
        findings, words = through_gate(
            crossed, train, held, texts, priors=fit.vote_model.priors, settings=settings,
            seed=child_seed(seed, "gate"), probes=probes, progress=lambda n_done, n: bar.reach(n_done, of=n),
        )  # fmt: skip
        unfamiliar = watch_for_novelty(
            fit, train, held, texts, false_alarm_frac=settings.false_alarm_frac, directory=directory,
            metadata=metadata, seed=seed,
        )  # fmt: skip
    return [*findings, unfamiliar], words


def watch_for_novelty(
    fit: RewardFit,
    train: Sequence[Vote],
    held: Sequence[Vote],
    texts: Texts,
    *,
    false_alarm_frac: float,
    directory: Path,
    metadata: Mapping[str, str],
    seed: int,
) -> Finding:
    """Fit the detector, keep it beside the model, and say how well it tells held-out responses from word salad.

    Args:
        train: votes whose responses are familiar.    held: on prompts never trained on; they set the threshold.
        false_alarm_frac: share of responses like the held-out ones that may be reported.    directory: of the model.
    Returns: `gate.novelty`, never a refusal; without a detector where too few responses are held out, or none was compared.
    """
    n_levels = fit.vote_model.n_levels
    train, held = ([vote for vote in votes if vote.n_levels == n_levels] for votes in (train, held))
    familiar = vote_data(held, *texts) if held else None
    n = 0 if familiar is None else len(familiar.texts)
    if familiar is None or n < 1 / false_alarm_frac or not train:
        detail = f"{n} held-out responses; a false-alarm share of {false_alarm_frac:g} needs {math.ceil(1 / false_alarm_frac)}"
        return Finding("gate.novelty", f"Can it tell responses like those judged from {SALAD}?", "info", detail=detail)
    seen = vote_data(train, *texts)
    features = text_features(fit.model, familiar.prompts, familiar.texts)
    detector = fit_novelty(
        text_features(fit.model, seen.prompts[:MOST_TEXTS], seen.texts[:MOST_TEXTS]),
        features,
        false_alarm_frac=false_alarm_frac,
    )
    save_novelty(detector, directory, metadata=metadata)
    salad = word_salad(familiar.texts, numpy_generator(seed, "gate", "salad"))
    return novelty_finding(detector, features, text_features(fit.model, familiar.prompts, salad), what=SALAD)

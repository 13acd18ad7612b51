"""How unlike the training responses a response is, in the reward model's own features: Mahalanobis distance.

A reward is only right about texts like those judged. The detector is fitted on the features of the training responses,
its threshold on held-out ones, so that the share of false alarms is known beforehand. Knows features; knows nothing about
what is to be done when a response is unfamiliar.

Dimension letters: N texts, d features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from karat.errors import CheckpointError, InputError
from karat.lm.headers import write_tensors
from karat.records import Finding, Prompt
from karat.reward.model import RewardModel
from karat.reward.trunk import micro_batches
from karat.seeding import numpy_generator
from karat.stats import auroc, proportion

FILE = "novelty.safetensors"
MOST_TEXTS = 8192  # beyond it the covariance of some hundred features no longer gains from more texts
TOKEN_BUDGET = 4096


@dataclass(frozen=True, eq=False)
class NoveltyDetector:
    """distance(φ) = ‖W·(φ − μ)‖, WᵀW = Σ⁻¹; a response is unfamiliar beyond the threshold."""

    mean: Float[Tensor, " d"]
    """μ of the training features."""
    whitener: Float[Tensor, "d d"]
    """W, a root of the inverse of the shrunk covariance."""
    threshold: float
    """Distance beyond which a response is unfamiliar."""
    false_alarm_frac: float
    """Share of responses like the held-out ones that it reports, at most, in expectation."""

    def distance(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Mahalanobis distances, about √d for texts like those trained on."""
        return ((features.double() - self.mean) @ self.whitener.T).norm(dim=1)

    def unfamiliar(self, features: Float[Tensor, "N d"]) -> Bool[Tensor, " N"]:
        """True = further away than the threshold."""
        return self.distance(features) > self.threshold


def fit_novelty(
    train: Float[Tensor, "N d"], held_out: Float[Tensor, "M d"], *, false_alarm_frac: float
) -> NoveltyDetector:
    """Fit mean and covariance to training features, and the threshold to held-out ones.

        threshold = the ⌈(M + 1)·(1 − α)⌉-th smallest held-out distance

    so that a further response like them exceeds it with probability at most α, whatever the distribution.

    Args:
        held_out: of responses that were not used in `train`, alike otherwise.    false_alarm_frac: α, (0, 1).
    Raises: InputError for fewer than two training responses, an α outside (0, 1), or too few held-out responses for it.
    Source: Lee et al. 2018, arXiv:1807.03888 §2.1 (one class); Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a
        Random World, §2.2 (the quantile).
    Differs: covariance by Ledoit & Wolf, because features may outnumber texts.
    """
    if not 0 < false_alarm_frac < 1:
        raise InputError(f"novelty: found false_alarm_frac {false_alarm_frac}; expected a share in (0, 1)")
    rank = math.ceil((len(held_out) + 1) * (1 - false_alarm_frac))
    if rank > len(held_out):
        raise InputError(
            f"novelty: found {len(held_out)} held-out responses; a false-alarm share of {false_alarm_frac:g} needs "
            f"{math.ceil(1 / false_alarm_frac) - 1}"
        )
    mean = train.double().mean(0)
    values, vectors = torch.linalg.eigh(ledoit_wolf(train))
    whitener = (vectors / values.sqrt()) @ vectors.T
    detector = NoveltyDetector(mean, whitener, 0.0, false_alarm_frac)
    threshold = float(detector.distance(held_out).sort().values[rank - 1])
    return NoveltyDetector(mean, whitener, threshold, false_alarm_frac)


def ledoit_wolf(features: Float[Tensor, "N d"]) -> Float[Tensor, "d d"]:
    """The covariance shrunk towards μ·I by the amount that minimises its expected squared error.

        Σ = ρ·μ·I + (1 − ρ)·S,  μ = tr S/d,  ρ = min(b², δ²)/δ²
        δ² = ‖S − μI‖²,  b² = Σ_n ‖x_n x_nᵀ − S‖²/N²        squared Frobenius norms

    Raises: InputError for fewer than two rows, or rows that are all equal.
    Source: Ledoit & Wolf 2004, Journal of Multivariate Analysis 88, lemmas 3.2–3.5.
    """
    if len(features) < 2:
        raise InputError(f"novelty: found {len(features)} training responses; expected at least 2")
    x = features.double() - features.double().mean(0)
    n, d = x.shape
    covariance = x.T @ x / n
    level = float(covariance.trace()) / d
    if level <= 0:
        raise InputError("novelty: found features that never differ; expected different responses")
    identity = torch.eye(d, dtype=torch.float64)
    distance = float((covariance - level * identity).square().sum())
    # Σ_n ‖x xᵀ − S‖² = Σ_n ‖x‖⁴ − N·‖S‖², because Σ_n xᵀSx = N·‖S‖²
    error = (float(x.square().sum(1).square().sum()) - n * float(covariance.square().sum())) / n**2
    weight = 1.0 if distance <= 0 else min(max(error, 0.0), distance) / distance
    return weight * level * identity + (1 - weight) * covariance


def text_features(model: RewardModel, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[Tensor, "N d"]:
    """The features from which a model's heads score some responses; no gradients."""
    encoded = model.trunk.encode(prompts, texts)
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.id, []).append(index)
    features = torch.zeros(len(encoded), model.trunk.width)
    model.eval()
    with torch.no_grad():
        for rows in micro_batches(list(groups.values()), lambda i: encoded[i].n_tokens, token_budget=TOKEN_BUDGET):
            found = model.features([encoded[i] for i in rows], token_budget=TOKEN_BUDGET)
            features[rows] = found.float().cpu()
    return features


def novelty_finding(
    detector: NoveltyDetector, familiar: Float[Tensor, "N d"], shifted: Float[Tensor, "M d"], *, what: str
) -> Finding:
    """How well distances tell familiar responses from shifted ones.

    Args:
        familiar, shifted: features of held-out responses, and of the same after a shift.    what: names the shift.
    Returns: `gate.novelty`, info: the area under the ROC curve, with the share of the shifted that is reported.
    """
    distances = torch.cat([detector.distance(familiar), detector.distance(shifted)]).numpy()
    labels = np.repeat([0, 1], [len(familiar), len(shifted)])
    clusters = np.concatenate([np.arange(len(familiar)), np.arange(len(shifted))])
    area = auroc(distances, labels, clusters=clusters, rng=numpy_generator(0, "gate", "novelty"), n_draws=500)
    seen = proportion(detector.unfamiliar(shifted).double().numpy())
    return Finding(
        "gate.novelty", f"Can it tell responses like those judged from {what}?", "info", area,
        detail=f"reports {seen.value:.0%} of them, and {detector.false_alarm_frac:.1%} of familiar responses by construction",
    )  # fmt: skip


def save_novelty(detector: NoveltyDetector, directory: Path, *, metadata: Mapping[str, str]) -> None:
    """Write the detector beside the reward model that its features come from."""
    tensors = {
        "mean": detector.mean.contiguous(),
        "whitener": detector.whitener.contiguous(),
        "limits": torch.tensor([detector.threshold, detector.false_alarm_frac], dtype=torch.float64),
    }
    write_tensors(tensors, directory / FILE, metadata)


def load_novelty(directory: Path) -> NoveltyDetector | None:
    """The detector beside a reward model; None where there is none.

    Raises: CheckpointError for a damaged file.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        threshold, share = tensors["limits"].tolist()
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as a detector ({' '.join(str(error).split())[:120]})") from None
    return NoveltyDetector(tensors["mean"], tensors["whitener"], threshold, share)

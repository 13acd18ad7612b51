"""The posterior of a Bayesian last layer on disk, beside the model whose heads are its draws: one an objective, in logits.

Knows tensors and a directory; knows nothing about how a posterior is fitted.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from karat.damaged import damage_named
from karat.errors import CheckpointError
from karat.lm.headers import read_header_metadata, read_tensors, write_tensors
from karat.reward.last_layer import LastLayer

LAST_LAYER = "last_layer.safetensors"
PARTS = ("mean", "covariance", "figures")
ROUNDED = 1e-9
"""Of the largest eigenvalue of a covariance, by so much rounding may bring the smallest below 0."""


def cooled_layer(posterior: LastLayer, factor: float) -> LastLayer:
    """The posterior of weights whose logits are divided by a factor."""
    return dataclasses.replace(posterior, mean=posterior.mean / factor, covariance=posterior.covariance / factor**2)


def save_last_layers(posteriors: Mapping[str, LastLayer], directory: str | Path) -> None:
    """Write mean and covariance of each objective beside the model, in logits: what rank-1 updates start from."""
    tensors = {}
    for number, one in enumerate(posteriors.values()):
        figures = torch.tensor([one.prior_precision, one.log_evidence, one.n_effective], dtype=torch.float64)
        own = (torch.from_numpy(one.mean), torch.from_numpy(one.covariance), figures)
        tensors |= {_name(part, number): tensor.contiguous() for part, tensor in zip(PARTS, own, strict=True)}
    write_tensors(tensors, Path(directory) / LAST_LAYER, {"objectives": json.dumps(list(posteriors))})


def load_last_layer(directory: str | Path, objective: str | None = None) -> LastLayer:
    """The posterior beside a saved model.

    Args:
        objective: whose; None = the first.
    Raises: CheckpointError where there is none, or one that is no posterior.
    """
    path = Path(directory) / LAST_LAYER
    if not path.is_file():
        raise CheckpointError(f"{directory}: found no {LAST_LAYER}; expected a model with reward.posterior: laplace")
    tensors = read_tensors(path)
    with damage_named(path, "a last layer", CheckpointError):
        known = json.loads(read_header_metadata(path).get("objectives", "[]"))
        if objective is not None and objective not in known:
            raise CheckpointError(
                f"{path}: found no last layer of {objective!r}; expected one of {', '.join(known) or 'one objective'}"
            )
        mean, covariance, figures = (
            tensors[_name(part, 0 if objective is None else known.index(objective))] for part in PARTS
        )
        layer = LastLayer(mean.numpy(), covariance.numpy(), *figures.tolist())
        widths = np.linalg.eigvalsh(layer.covariance) if np.isfinite(layer.covariance).all() else np.array([-1.0])
    if not widths[0] > -ROUNDED * abs(widths[-1]):
        raise CheckpointError(
            f"{path}: the covariance is not positive definite; the file is damaged, train the reward again"
        )
    return layer


def _name(part: str, number: int) -> str:
    """The first objective's tensors are called as they were before there were several."""
    return part if number == 0 else f"{part}.{number}"

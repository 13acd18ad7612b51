"""How a reward model is trained. Knows numbers and their limits, nothing about what they do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from karat.config import MOST_LEARNING_RATE, in_range
from karat.errors import ConfigError
from karat.records import KINDS

Beside = Literal["ngrams", "place", "overlap", "numbers"]
Bootstrap = Literal["exponential", "poisson", "none"]
Posterior = Literal["heads", "ensemble", "laplace"]

NOT_NEGATIVE = ("weight_decay", "n_refits", "checkpoint_every")


@dataclass(frozen=True)
class HeadConfig:
    """The heads of a reward model."""

    n_heads: int = 5
    """S: heads, each a draw of the belief; Coste et al. 2023 (arXiv:2310.02743) use 3 to 5 members."""
    prior_scale: float = 0.5
    """β: weight of the fixed random prior functions; 0 = none."""
    init_scale: float = 0.1
    """Initial standard deviation of w in units of 1/√(d + 1); small, so that the priors make the first spread."""
    length_term: bool = False
    """True = γ·log(1 + characters) is part of the score, reported and removable."""

    def __post_init__(self) -> None:
        if self.n_heads < 1 or self.prior_scale < 0 or self.init_scale < 0:
            raise ConfigError(
                f"reward heads: found n_heads={self.n_heads}, prior_scale={self.prior_scale}, "
                f"init_scale={self.init_scale}; expected ≥ 1, ≥ 0 and ≥ 0"
            )


@dataclass(frozen=True)
class RaterPriors:
    """What is believed about a rater before her first vote."""

    modelled: bool = True
    """False = every rater has competence 1, no side bias and no lapses (plain Bradley–Terry or Rao–Kupper)."""
    competence_sd: float = 0.5
    """τ of competence a ~ N(1, τ²)."""
    side_bias_sd: float = 0.5
    """τ_b of side bias b ~ N(0, τ_b²), logits."""
    lapse_a: float = 1.0
    """First parameter of lapse ~ Beta."""
    lapse_b: float = 19.0
    """Second parameter; mean lapse a/(a + b)."""
    offset_sd: float = 0.15
    """sd of a rater's rating offset around the population's: shares of the scale; ordinal ratings: 8 times that, in
    logits."""
    gain_sd: float = 0.3
    """sd of a rater's rating gain, as a share of the population's."""
    noise_sd: float = 0.3
    """sd of the logarithm of a rater's rating noise."""
    threshold_sd: float = 1.0
    """sd of a rater's threshold for "good" around the population's, logits."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"raters.{name}: found {value:g}; expected a number > 0")

    @property
    def mean_lapse(self) -> float:
        """Prior mean of the lapse, 0 where raters are not modelled."""
        return self.lapse_a / (self.lapse_a + self.lapse_b) if self.modelled else 0.0


@dataclass(frozen=True)
class EnsembleConfig:
    """An ensemble of whole models."""

    models: int = 4
    """M: models trained from the same start, each with its own seed and bootstrap; time and disk grow with it."""

    def __post_init__(self) -> None:
        if self.models < 2:
            raise ConfigError(f"reward.ensemble: found models={self.models}; expected at least 2")


@dataclass(frozen=True)
class LaplaceConfig:
    """A Bayesian last layer."""

    n_draws: int = 128
    """S: draws of the head that are saved, an even number; they come in pairs around the mean."""
    prior_precision: float | None = None
    """λ of the normal prior on the head's weights; None = chosen by marginal likelihood."""
    n_turns: int = 2
    """Fits of the head, with fits of the raters in between."""
    tastes: bool = True
    """True = raters may differ: drawn with the weights up to 5,000 statements of any kinds, by moments up to 20,000 comparisons. Less
    shrunk, less sure."""

    text_effects: bool = False
    """True = each training text is also liked for what no feature says, by an effect of its own, normal, its variance chosen by
    marginal likelihood. Where many vote on few texts the features otherwise explain single texts, and new ones are scored badly.
    Spreads do not hold a new text's own effect. At most 3,000 texts."""

    def __post_init__(self) -> None:
        if self.n_draws < 2 or self.n_draws % 2 or self.n_turns < 1:
            raise ConfigError(
                f"reward.laplace: found n_draws={self.n_draws}, n_turns={self.n_turns}; expected an even number ≥ 2 and ≥ 1"
            )
        if self.prior_precision is not None and not self.prior_precision > 0:
            raise ConfigError(f"reward.laplace: found prior_precision={self.prior_precision}; expected > 0")


@dataclass(frozen=True)
class RewardConfig:
    """How a reward model is trained."""

    heads: HeadConfig = field(default_factory=HeadConfig)
    """The heads and their prior functions."""
    raters: RaterPriors = field(default_factory=RaterPriors)
    """Priors of competence, side bias and lapse."""
    bootstrap: Bootstrap = "exponential"
    """How each head weighs the raters."""
    n_epochs: int = 1
    """Passes over the feedback; reward models overfit in the second (Ouyang et al. 2022, arXiv:2203.02155 app. C.2)."""
    batch_responses: int = 32
    """Texts an optimiser step, whole prompts together; all that was said about them counts."""
    token_budget: int = 4096
    """Tokens a forward pass; changes memory and speed, never the result."""
    learning_rate: float = 5e-5
    """Peak learning rate of the trunk, AdamW."""
    head_learning_rate: float = 1e-3
    """Peak learning rate of heads and length term."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay of trunk and heads."""
    warmup_frac: float = 0.05
    """Share of the steps over which the learning rate rises; it then falls linearly to 0."""
    max_grad_norm: float = 1.0
    """Gradient norm at which a step is clipped."""
    dropout: float = 0.0
    """Dropout inside an encoder during training; a decoder always has none."""
    n_refits: int = 2
    """Exact fits of the raters an epoch, besides the one at the end."""
    holdout_frac: float = 0.1
    """Share of the raters held out where no validation votes are given."""
    panel_frac: float = 0.0
    """Share of the raters, by hash, who are kept for evaluation alone, [0, 0.5]: what they said trains and sets nothing, and the
    report says how well their votes are predicted. 0 = nobody."""
    patience: int = 1
    """Epochs without a better held-out likelihood after which training stops; the best epoch is kept."""
    kinds: tuple[str, ...] = ()
    """Kinds of judgements trained on (comparison, ranking, …); empty = all that were given."""
    ratings: Literal["gaussian", "ordinal"] = "gaussian"
    """How ratings are read: as numbers with offset, gain and noise, or as steps of a scale with cutpoints."""
    shuffle: bool = True
    """True = prompts in random order each epoch; False = in the order given."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 = none."""
    posterior: Posterior = "heads"
    """What the draws of the belief are: heads on one trunk, whole models, or draws of a Bayesian last layer."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """Read where `posterior` is ensemble."""
    laplace: LaplaceConfig = field(default_factory=LaplaceConfig)
    """Read where `posterior` is laplace."""
    beside: tuple[Beside, ...] = ()
    """Plain features read beside the trunk's, each block with a prior of its own: ngrams, place (lengths), overlap (what prompt
    and response said before), numbers (equations, computed, and whether numbers of the prompt are used). Heads of marks read
    them, and with `posterior: laplace` the reward of whole responses. Easily gamed: words, lengths and correct sums about
    nothing can be had for nothing."""

    def __post_init__(self) -> None:
        if self.n_epochs < 1 or self.batch_responses < 2 or self.token_budget < 1 or self.patience < 1:
            raise ConfigError(
                f"reward: found n_epochs={self.n_epochs}, batch_responses={self.batch_responses}, "
                f"token_budget={self.token_budget}, patience={self.patience}; expected ≥ 1, ≥ 2, ≥ 1 and ≥ 1"
            )
        if not 0 <= self.holdout_frac < 1 or not 0 <= self.dropout < 1 or not 0 <= self.warmup_frac < 1:
            raise ConfigError(
                f"reward: found holdout_frac={self.holdout_frac}, dropout={self.dropout}, "
                f"warmup_frac={self.warmup_frac}; expected all in [0, 1)"
            )
        if self.max_grad_norm <= 0:
            raise ConfigError(f"reward.max_grad_norm: found {self.max_grad_norm:g}; expected > 0")
        in_range("reward", self, 0, inf, *NOT_NEGATIVE)
        in_range("reward", self, 0, MOST_LEARNING_RATE, "learning_rate", "head_learning_rate")
        if len(set(self.beside)) < len(self.beside):
            raise ConfigError(f"reward.beside: found {', '.join(self.beside)}; expected each block once")
        if not 0 <= self.panel_frac <= 0.5:
            raise ConfigError(f"reward.panel_frac: found {self.panel_frac:g}; expected a share from 0 to 0.5")
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ConfigError(f"reward.kinds: found {unknown[0]!r}; expected some of {', '.join(KINDS)}")


ENCODER_CONFIG = RewardConfig(
    heads=HeadConfig(n_heads=5, prior_scale=0.2, length_term=True),
    n_epochs=2,
    batch_responses=36,
    learning_rate=5e-5,
    head_learning_rate=1e-3,
    dropout=0.1,
    warmup_frac=0.1,
    n_refits=2,
)
"""Settings for a small pretrained encoder on some hundred texts with tens of thousands of votes; chosen on nested folds
of the argument data, see docs/reward.md."""


@dataclass(frozen=True)
class ObjectivesConfig:
    """What the optimiser is given of several objectives; nothing set = the first objective alone."""

    weights: dict[str, float] = field(default_factory=dict)
    """Objective → its weight in the sum; those left out count 0. Empty = the first objective with weight 1."""
    floors: dict[str, float] = field(default_factory=dict)
    """Objective → lowest acceptable difference to the prompt's reference responses, logits."""
    multiplier: float = 10.0
    """Logits lost for each logit below a floor, > 0."""
    names: dict[str, str] = field(default_factory=dict)
    """Attribute of ratings, flag or aspect → the objective that it speaks about. Left out: attributes and aspects are
    objectives of their own name, a flag `f` is `not_f`."""

    def __post_init__(self) -> None:
        numbers = [*self.weights.values(), *self.floors.values(), self.multiplier]
        if not all(math.isfinite(number) for number in numbers) or self.multiplier <= 0:
            raise ConfigError(
                f"objectives: found weights {self.weights}, floors {self.floors} and multiplier {self.multiplier:g}; expected "
                "finite numbers, and a multiplier > 0"
            )
        if self.weights and not any(self.weights.values()):
            raise ConfigError("objectives.weights: found only zeros; expected a weight for what is to be optimised")

    @property
    def combines(self) -> bool:
        """True = something besides the first objective counts."""
        return bool(self.weights or self.floors)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The objectives that are named, each once."""
        return tuple(dict.fromkeys([*self.weights, *self.floors]))

"""What can be set about PPO: one frozen configuration in parts. Defaults are those of the cited sources.

Words. A *rollout* is n_prompts × n_samples responses from one version of the policy. An epoch goes once through the
rollout in n_minibatches *minibatches*, one optimiser step each. A *micro-batch* is what fits into one forward pass
(token_budget positions); it changes memory and speed, never the result. Knows nothing about how any of it is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from karat.config import check_learning_rates, in_range
from karat.errors import ConfigError
from karat.policy.controllers import (
    OPENAI_COEF,
    OPENAI_HORIZON,
    OPENAI_TARGET,
    AdaptiveKL,
    FixedKL,
    KLController,
    LagrangeMultiplier,
)


@dataclass(frozen=True)
class RolloutSettings:
    """How responses are drawn. There is no top-k or top-p: what is scored must be what was sampled."""

    n_prompts: int = 64
    """Prompts a rollout."""
    n_samples: int = 4
    """Responses a prompt; they share the prompt's computation."""
    max_new_tokens: int = 48
    """Longest response; what has not stopped by then is truncated."""
    temperature: float = 1.0
    """Divides the logits in sampling and in every scoring pass alike."""
    decode_rows: int = 128
    """Rows decoded at a time; speed only."""
    exact_entropy: bool = False
    """True = also log the full-vocabulary entropy (one more pass over the logits)."""
    exact_kl: bool = False
    """True = also log the KL of each next token over the whole vocabulary (one more pass of policy and reference)."""

    def __post_init__(self) -> None:
        at_least_one("rollout", self, "n_prompts", "n_samples", "max_new_tokens", "decode_rows")
        positive("rollout", self, "temperature")


@dataclass(frozen=True)
class RewardSettings:
    """From a score per response to a reward per token."""

    score_clip: float | None = None
    """Scores are clipped to ± this; None = not clipped."""
    whiten_rewards: bool = False
    """True = token rewards are scaled to variance 1 over the rollout, mean kept."""
    missing_eos_penalty: float | None = None
    """Subtracted from the score of truncated responses; None = no penalty."""
    missing_eos_score: float | None = None
    """Score of truncated responses instead of the reward model's; None = theirs."""
    bootstrap_truncated: bool = False
    """True = a truncated response is worth, at its end, what the critic expects to follow; False = nothing follows."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Whether β stays or follows the measured KL."""
    kl_coef: float = OPENAI_COEF
    """β (its start, if adaptive): score per nat."""
    kl_target: float = OPENAI_TARGET
    """Adaptive only: nats per sequence."""
    kl_horizon: float = OPENAI_HORIZON
    """Adaptive only: sequences over which β can change by a factor of about 1.2."""

    def __post_init__(self) -> None:
        rules = [name for name in ("missing_eos_penalty", "missing_eos_score") if getattr(self, name) is not None] + [
            "bootstrap_truncated"
        ] * self.bootstrap_truncated
        if len(rules) > 1:
            raise ConfigError(
                f"reward: found {' and '.join(rules)}; expected one rule for truncated responses, not two"
            )
        positive("reward", self, "kl_target", "kl_horizon")
        if self.kl_coef < 0 or (self.missing_eos_penalty or 0.0) < 0:
            raise ConfigError(
                f"reward: found kl_coef={self.kl_coef}, missing_eos_penalty={self.missing_eos_penalty}; expected ≥ 0"
            )
        if self.kl_controller == "adaptive" and self.kl_coef == 0:
            raise ConfigError("reward: found an adaptive controller with kl_coef=0, which stays 0; set kl_coef > 0")
        if self.score_clip is not None:
            positive("reward", self, "score_clip")

    def controller(self) -> KLController:
        """The controller of β that these settings describe."""
        if self.kl_controller == "fixed":
            return FixedKL(self.kl_coef)
        return AdaptiveKL(self.kl_coef, target=self.kl_target, horizon=self.kl_horizon)


@dataclass(frozen=True)
class ConstraintSettings:
    """A cost that must stay at or below a limit on average; its price λ is found along the way."""

    limit: float
    """Largest mean cost of a response, in units of the cost."""
    start: float = 0.0
    """λ at the start, score per cost."""
    learning_rate: float = 0.05
    """Change of λ per iteration for a mean cost one above the limit."""
    largest: float = 100.0
    """λ never exceeds this: a limit that no policy keeps must not drown the score for ever."""

    def __post_init__(self) -> None:
        positive("constraint", self, "learning_rate", "largest")
        if not 0 <= self.start <= self.largest:
            raise ConfigError(f"constraint.start: found {self.start}; expected 0 … {self.largest}")

    def multiplier(self) -> LagrangeMultiplier:
        """The controller of λ that these settings describe."""
        return LagrangeMultiplier(self.start, limit=self.limit, learning_rate=self.learning_rate, largest=self.largest)


@dataclass(frozen=True)
class UpdateSettings:
    """How the policy moves on one rollout."""

    n_epochs: int = 4
    """Times each rollout is gone through."""
    n_minibatches: int = 4
    """Optimiser steps an epoch; the prompts of a rollout are dealt out evenly."""
    token_budget: int = 4096
    """Positions in one forward pass."""
    learning_rate: float = 1e-5
    """At the first iteration; linear to 0 over the run, constant within an iteration."""
    lr_warmup_iterations: int = 0
    """Iterations over which the learning rate rises."""
    adam_eps: float = 1e-5
    """Outside the square root's bias correction: 1e-5 as in openai/baselines, not PyTorch's 1e-8."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    clip_range: float = 0.2
    """ε of the policy ratio."""
    dual_clip: float | None = None
    """c > 1 bounds the loss of bad tokens that became likely; None = off."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """λ of the advantages."""
    whiten_advantages: bool = True
    """True = advantages get mean 0 and variance 1 over the whole rollout's counted tokens."""
    max_approx_kl: float | None = None
    """An epoch loop ends after a minibatch whose KL(old ‖ new) per token exceeds this; None = never."""
    max_step_kl: float | None = None
    """An optimiser step that moves the policy further than this, KL(before ‖ after) per token of its minibatch, is
    shortened in the same direction; costs a forward pass and a copy of the trained weights. None = no limit."""
    ratio_tolerance: float = 1e-4
    """Largest |ratio − 1| before the first update of a rollout, and |log-ratio| to the reference at the start; a
    float32 figure: half precision needs a larger one."""
    max_skipped_frac: float = 0.1
    """The run stops when more than this share of all optimiser steps (of at least 10) had gradients that were not
    finite; those steps are skipped."""
    ptx_coef: float = 0.0
    """Weight of the negative log-likelihood of demonstrations, per token, in every minibatch's loss; 0 = none."""
    ptx_batch: int = 16
    """Demonstrations drawn for each minibatch, with replacement."""

    def __post_init__(self) -> None:
        at_least_one("update", self, "n_epochs", "n_minibatches", "token_budget", "ptx_batch")
        in_range("update", self, 0, inf, "lr_warmup_iterations")
        if self.ptx_coef < 0 or not 0 <= self.max_skipped_frac < 1:
            raise ConfigError(
                f"update: found ptx_coef={self.ptx_coef}, max_skipped_frac={self.max_skipped_frac}; expected ≥ 0 and [0, 1)"
            )
        check_learning_rates("update", self, "learning_rate")
        positive("update", self, "adam_eps", "max_grad_norm", "gamma", "ratio_tolerance")
        if not (0 < self.clip_range < 1 and self.gamma <= 1 and 0 <= self.gae_lambda <= 1):
            raise ConfigError(
                f"update: found clip_range={self.clip_range}, gamma={self.gamma}, gae_lambda={self.gae_lambda}; "
                "expected (0, 1), (0, 1] and [0, 1]"
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ConfigError(f"update: found dual_clip={self.dual_clip}; expected > 1 or None")
        positive(
            "update", self, *(name for name in ("max_approx_kl", "max_step_kl") if getattr(self, name) is not None)
        )


@dataclass(frozen=True)
class ValueSettings:
    """The critic."""

    critic: Literal["shared", "separate"] = "shared"
    """A head on the policy's trunk, or a model of its own: with LoRA, adapters of its own on the same frozen weights."""
    zero_head: bool = True
    """True = the head starts at 0 (lm-human-preferences); False = N(0, 1/√(d+1))."""
    start_at_mean: bool = True
    """True = before the first update the head's bias becomes the first rollout's mean reward per response, so that a
    constant added to every score changes nothing; False = as in the sources, where the critic has to learn it first."""
    vf_coef: float = 0.1
    """Weight of the value loss where the trunk is shared."""
    clip_range: float | None = 0.2
    """ε of the value clip in units of the score, of which a reward model's are its pooled within-prompt sd; None = off, as for scores of
    one's own with larger units."""
    head_lr_scale: float = 1.0
    """Learning rate of a shared trunk's head, as a multiple of the policy's."""
    critic_learning_rate: float | None = None
    """Learning rate of a separate critic; None = the policy's."""
    warmup_iterations: int = 0
    """First iterations in which only the critic learns (on a shared trunk: only its head)."""

    def __post_init__(self) -> None:
        positive("value", self, "head_lr_scale")
        if self.vf_coef < 0 or self.warmup_iterations < 0:
            raise ConfigError(
                f"value: found vf_coef={self.vf_coef}, warmup_iterations={self.warmup_iterations}; expected ≥ 0"
            )
        check_learning_rates("value", self, "critic_learning_rate")
        if self.critic_learning_rate is not None and self.critic == "shared":
            raise ConfigError("value: critic_learning_rate is for a separate critic; use head_lr_scale")
        if self.clip_range is not None:
            positive("value", self, "clip_range")


@dataclass(frozen=True)
class PPOConfig:
    """PPO on language-model responses against a learned reward and a reference policy."""

    n_iterations: int = 100
    """Rollouts in all."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; 0 = none."""
    evaluate_every: int = 10
    """Iterations between calls of the validation callback."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    """How responses are drawn."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    """What each token is paid."""
    update: UpdateSettings = field(default_factory=UpdateSettings)
    """How the policy moves."""
    value: ValueSettings = field(default_factory=ValueSettings)
    """The critic."""
    constraint: ConstraintSettings | None = None
    """A cost to keep below a limit; None = no constraint. The cost function is handed over beside the score function."""

    def __post_init__(self) -> None:
        at_least_one("ppo", self, "n_iterations", "evaluate_every")
        if self.checkpoint_every < 0:
            raise ConfigError(f"ppo: found checkpoint_every={self.checkpoint_every}; expected ≥ 0")
        if self.rollout.n_prompts % self.update.n_minibatches:
            raise ConfigError(
                f"ppo: {self.rollout.n_prompts} prompts a rollout do not divide into {self.update.n_minibatches} "
                "minibatches; all samples of a prompt stay in one minibatch"
            )
        if self.value.warmup_iterations >= self.n_iterations:
            raise ConfigError(
                f"ppo: {self.value.warmup_iterations} iterations of critic warm-up leave none of {self.n_iterations} "
                "for the policy"
            )

    @property
    def n_sequences(self) -> int:
        """Responses a rollout."""
        return self.rollout.n_prompts * self.rollout.n_samples

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps an iteration unless its epochs end early."""
        return self.update.n_epochs * self.update.n_minibatches


def at_least_one(part: str, config: object, *names: str) -> None:
    """Raise ConfigError for a named field below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{part}.{name}: found {getattr(config, name)}; expected ≥ 1")


def positive(part: str, config: object, *names: str) -> None:
    """Raise ConfigError for a named field that is not a finite number above 0."""
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):
            raise ConfigError(f"{part}.{name}: found {getattr(config, name)}; expected a finite number > 0")


@dataclass(frozen=True)
class HttpSettings:
    """How a score or cost is asked for at an http address; no result depends on it."""

    timeout_s: float = 30.0
    """Seconds for one request, which holds up to 64 responses."""
    n_retries: int = 3
    """Further tries after a failed one."""
    key_variable: str = "KARAT_SCORE_KEY"
    """Environment variable whose value is sent as `Authorization: Bearer …`; where it is not set, nothing is sent."""

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.n_retries < 0:
            raise ConfigError(
                f"score_http: found timeout_s={self.timeout_s}, n_retries={self.n_retries}; expected > 0 and ≥ 0"
            )


def check_limits(part: str, watched: Any, *, never: str) -> None:
    """Raise ConfigError where a limit that a run's settings and the rules made of them share cannot be kept.

    Args: watched: `WatchRules`, or settings with the same names.    never: how a limit that is off is written there.
    """
    hint = f", or {never} for never"
    in_range(part, watched, 0, inf, "kl_budget", "length_limit_sd", open_ends=True, hint=hint)
    shares = ("disagreement_quantile", "entropy_floor", "diversity_floor")
    in_range(part, watched, 0, 1, *shares, open_ends=True, hint=hint)
    in_range(part, watched, 0, 1, "max_novel_frac")
    in_range(part, watched, 1, inf, "kl_factor")
    if watched.on_alarm == "raise_kl":
        in_range(part, watched, 1, inf, "kl_factor", open_ends=True, hint=", or β would not rise")

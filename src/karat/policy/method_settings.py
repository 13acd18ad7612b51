"""What can be set about the methods without a critic: one frozen configuration each.

Words as in `settings`: a rollout is n_prompts × n_samples responses, an epoch goes once through it in n_minibatches
optimiser steps. Knows nothing about how any of it is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple

from karat.config import check_learning_rates, in_range
from karat.errors import ConfigError
from karat.policy.settings import ConstraintSettings, RewardSettings, RolloutSettings, at_least_one, positive

GroupMethod = Literal["rloo", "grpo", "reinforce_pp"]
KlPlace = Literal["reward", "loss_k2", "loss_k3"]


@dataclass(frozen=True)
class StepSettings:
    """How the policy moves on one rollout."""

    n_epochs: int = 1
    """Times each rollout is gone through."""
    n_minibatches: int = 1
    """Optimiser steps an epoch; the prompts of a rollout are dealt out evenly."""
    token_budget: int = 4096
    """Positions in one forward pass; memory and speed, never the result."""
    learning_rate: float = 1e-5
    """At the first iteration; linear to 0 over the run, constant within an iteration."""
    lr_warmup_iterations: int = 0
    """Iterations over which the learning rate rises."""
    adam_eps: float = 1e-5
    """Added to the root of Adam's second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
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
        check_learning_rates("update", self, "learning_rate")
        positive("update", self, "adam_eps", "max_grad_norm", "ratio_tolerance")
        positive(
            "update", self, *(name for name in ("max_approx_kl", "max_step_kl") if getattr(self, name) is not None)
        )
        if self.ptx_coef < 0 or not 0 <= self.max_skipped_frac < 1:
            raise ConfigError(
                f"update: found ptx_coef={self.ptx_coef}, max_skipped_frac={self.max_skipped_frac}; expected ≥ 0 and [0, 1)"
            )


class GroupChoices(NamedTuple):
    """What a group method does, with every open choice closed."""

    scale: Literal["none", "group", "batch"]
    """Which standard deviation divides the advantages."""
    level: Literal["token", "sequence"]
    """What a ratio belongs to."""
    normalise: Literal["token", "sequence", "length"]
    """What the loss is divided by."""
    kl: KlPlace
    """Where the KL penalty is."""


PUBLISHED = {
    "rloo": GroupChoices("none", "sequence", "sequence", "reward"),
    "grpo": GroupChoices("group", "token", "sequence", "loss_k3"),
    "reinforce_pp": GroupChoices("batch", "token", "token", "reward"),
}
"""Ahmadian et al. 2024 (arXiv:2402.14740), Shao et al. 2024 (arXiv:2402.03300), Hu et al. 2025 (arXiv:2501.03262)."""


@dataclass(frozen=True)
class GroupConfig:
    """RLOO, GRPO or REINFORCE++: policy gradients whose baseline comes from the responses themselves.

    What is None is as the method was published.
    """

    method: GroupMethod = "rloo"
    """rloo = siblings' mean as baseline; grpo = group mean and σ; reinforce_pp = token returns normalised over the
    batch."""
    n_iterations: int = 100
    """Rollouts in all."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; 0 = none."""
    evaluate_every: int = 10
    """Iterations between calls of the validation callback."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    """How responses are drawn."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    """What each response is paid, and β."""
    update: StepSettings = field(default_factory=StepSettings)
    """How the policy moves."""
    clip_range: float | None = 0.2
    """ε of the ratio; None = no clip."""
    scale: Literal["none", "group", "batch"] | None = None
    """Standard deviation that divides the advantages; reinforce_pp: batch = normalised, none = not."""
    level: Literal["token", "sequence"] | None = None
    """Ratios of tokens, or of whole responses."""
    normalise: Literal["token", "sequence", "length"] | None = None
    """token = a mean over the minibatch's tokens; sequence = over responses of the mean over their tokens; length = the
    sum over tokens by responses × max_new_tokens ("Dr. GRPO"). Ratios of whole responses are averaged over responses."""
    kl: KlPlace | None = None
    """reward = k1 paid as a reward; loss_k2 = in the loss, over whole responses the same gradient, over tokens without
    what a token changes about later prefixes; loss_k3 = as GRPO was published, the gradient of KL(π_ref ‖ π)."""
    weigh_k3: bool = False
    """loss_k3 only: True = weighted by π/π_old once the policy has moved within a rollout, as loss_k2 always is; False =
    as GRPO was published, and biased there."""
    group_baseline: bool = False
    """reinforce_pp only: True = the mean return of the prompt's responses is subtracted first."""
    constraint: ConstraintSettings | None = None
    """A cost to keep below a limit; None = no constraint."""

    def __post_init__(self) -> None:
        check_online("group", self.n_iterations, self.evaluate_every, self.checkpoint_every, self.rollout, self.update)
        if self.reward.bootstrap_truncated or self.reward.whiten_rewards:
            raise ConfigError("group.reward: bootstrap_truncated and whiten_rewards need a critic; expected neither")
        if self.clip_range is not None and not 0 < self.clip_range < 1:
            raise ConfigError(f"group.clip_range: found {self.clip_range}; expected (0, 1) or null")

    @property
    def choices(self) -> GroupChoices:
        """Every choice closed: what is set, else as published.

        Raises: ConfigError where what is set contradicts the method.
        """
        if self.weigh_k3 and (self.kl or PUBLISHED[self.method].kl) != "loss_k3":
            raise ConfigError(f"group.weigh_k3: found true with {self.method} and kl={self.kl}; it is loss_k3's")
        if (self.method != "reinforce_pp" or self.group_baseline) and self.rollout.n_samples < 2:
            raise ConfigError(
                f"group.rollout.n_samples: found {self.rollout.n_samples}; expected ≥ 2: {self.method} compares responses "
                "to one prompt"
            )
        published = PUBLISHED[self.method]
        given = {name: getattr(self, name) for name in GroupChoices._fields}
        chosen = published._replace(**{name: value for name, value in given.items() if value is not None})
        # one sum a response cannot be averaged over tokens: a level that is set brings its normalisation along
        if self.level == "sequence" and self.normalise is None:
            chosen = chosen._replace(normalise="sequence")
        if chosen.level == "sequence" and (chosen.normalise != "sequence" or self.method == "reinforce_pp"):
            raise ConfigError(
                f"group: found level=sequence with normalise={chosen.normalise} and method={self.method}; expected "
                "normalise=sequence and a method with one advantage a response"
            )
        if (self.method == "rloo" and chosen.scale != "none") or (
            self.method == "reinforce_pp" and chosen.scale == "group"
        ):
            raise ConfigError(f"group.scale: found {chosen.scale} with {self.method}; expected another scale, or null")
        return chosen

    @property
    def n_sequences(self) -> int:
        """Responses a rollout."""
        return self.rollout.n_prompts * self.rollout.n_samples

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps an iteration unless its epochs end early."""
        return self.update.n_epochs * self.update.n_minibatches


@dataclass(frozen=True)
class OnlineDPOConfig:
    """DPO on pairs of the policy's own responses, compared by the score function."""

    n_iterations: int = 100
    """Rollouts in all."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; 0 = none."""
    evaluate_every: int = 10
    """Iterations between calls of the validation callback."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    """How responses are drawn."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    """The rule for truncated responses and the clip; `kl_coef` is β, always fixed."""
    update: StepSettings = field(default_factory=StepSettings)
    """How the policy moves."""
    loss: Literal["dpo", "ipo"] = "dpo"
    """What is done with a pair."""
    pairs: Literal["extremes", "all"] = "extremes"
    """extremes = best against worst of each prompt; all = every pair."""
    labels: Literal["soft", "hard"] = "soft"
    """soft = the higher score wins with probability σ(difference), in expectation, whose fixed point is π_ref·e^{r/β};
    hard = it always wins."""

    def __post_init__(self) -> None:
        check_online(
            "online_dpo", self.n_iterations, self.evaluate_every, self.checkpoint_every, self.rollout, self.update
        )
        if self.rollout.n_samples < 2:
            raise ConfigError(f"online_dpo.rollout.n_samples: found {self.rollout.n_samples}; expected ≥ 2 to compare")
        if self.reward.kl_controller != "fixed" or self.reward.kl_coef <= 0:
            raise ConfigError("online_dpo.reward: expected a fixed kl_coef > 0: it is β of the loss")
        if self.loss == "ipo" and self.labels == "soft":
            raise ConfigError("online_dpo: found loss=ipo with labels=soft; expected labels=hard: IPO reads votes")

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps an iteration."""
        return self.update.n_epochs * self.update.n_minibatches


@dataclass(frozen=True)
class ExpertConfig:
    """Expert iteration: imitate the best of n of one's own responses, again and again."""

    n_iterations: int = 20
    """Rollouts in all."""
    checkpoint_every: int = 5
    """Iterations between checkpoints; 0 = none."""
    evaluate_every: int = 5
    """Iterations between calls of the validation callback."""
    rollout: RolloutSettings = field(default_factory=lambda: RolloutSettings(n_samples=8))
    """How responses are drawn; n_samples is n."""
    reward: RewardSettings = field(default_factory=lambda: RewardSettings(kl_coef=0.0))
    """The rule for truncated responses and the clip; there is no KL penalty: few iterations are the leash."""
    update: StepSettings = field(default_factory=lambda: StepSettings(n_minibatches=4))
    """How the policy imitates."""

    def __post_init__(self) -> None:
        check_online("expert", self.n_iterations, self.evaluate_every, self.checkpoint_every, self.rollout, self.update)
        if self.rollout.n_samples < 2:
            raise ConfigError(f"expert.rollout.n_samples: found {self.rollout.n_samples}; expected ≥ 2 to choose from")
        if self.update.ptx_coef:
            raise ConfigError(
                f"expert.update.ptx_coef: found {self.update.ptx_coef}; expected 0: expert iteration imitates its own best "
                "responses and no demonstrations"
            )

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps an iteration."""
        return self.update.n_epochs * self.update.n_minibatches


@dataclass(frozen=True)
class DirectConfig:
    """DPO, IPO or KTO on judgements that were given, without a reward model."""

    loss: Literal["dpo", "ipo", "kto"] = "dpo"
    """dpo and ipo read comparisons; kto reads each response of a comparison as good or bad."""
    beta: float = 0.1
    """β of the loss, score per nat."""
    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 64
    """Comparisons (kto: responses) an optimiser step."""
    learning_rate: float = 1e-5
    """Peak; linear warm-up, then linear to 0."""
    warmup_frac: float = 0.1
    """Share of the steps spent warming up."""
    adam_eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    token_budget: int = 4096
    """Positions in one forward pass; memory and speed, never the result."""
    label_smoothing: float = 0.0
    """dpo: share of comparisons taken to be mistaken."""
    per_token: bool = False
    """ipo: True = log-ratios are means over tokens, as in TRL; False = sums, as in the paper's theorem."""
    good_weight: float = 1.0
    """kto: weight of good responses."""
    bad_weight: float = 1.0
    """kto: weight of bad responses."""
    precompute_reference: bool = True
    """True = reference log-probabilities are computed once, before training, and no reference model is kept; False = in
    every step. The result is the same. kto keeps the reference model either way, for its reference point."""
    shuffle: bool = True
    """False = in the order given, epoch by epoch."""
    max_skipped_frac: float = 0.1
    """The run stops when more than this share of its steps (of at least 10) had gradients that were not finite."""
    checkpoint_every: int = 100
    """Steps between checkpoints; 0 = none."""
    evaluate_every: int = 50
    """Steps between calls of the validation callback."""

    def __post_init__(self) -> None:
        at_least_one("direct", self, "batch_size", "token_budget", "evaluate_every")
        in_range("direct", self, 0, inf, "checkpoint_every")
        check_learning_rates("direct", self, "learning_rate")
        positive("direct", self, "beta", "epochs", "adam_eps", "max_grad_norm", "good_weight", "bad_weight")
        if not (0 <= self.warmup_frac < 1 and 0 <= self.label_smoothing < 0.5 and 0 <= self.max_skipped_frac < 1):
            raise ConfigError(
                f"direct: found warmup_frac={self.warmup_frac}, label_smoothing={self.label_smoothing}, "
                f"max_skipped_frac={self.max_skipped_frac}; expected [0, 1), [0, 0.5) and [0, 1)"
            )

    def check(self) -> None:
        """Raise ConfigError where what is set belongs to another loss."""
        if self.label_smoothing and self.loss != "dpo":
            raise ConfigError(f"direct.label_smoothing: found {self.label_smoothing} with {self.loss}; it is DPO's")
        if self.per_token and self.loss != "ipo":
            raise ConfigError(f"direct.per_token: found True with {self.loss}; it is IPO's")

    def n_steps(self, n_examples: int) -> int:
        """Optimiser steps for that many comparisons (kto: responses), at least 1."""
        return max(1, round(self.epochs * n_examples / self.batch_size))


@dataclass(frozen=True)
class ImplicitQConfig:
    """Implicit Q-learning on responses that were scored once, and the policy that its values guide."""

    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 64
    """Responses an optimiser step."""
    learning_rate: float = 1e-4
    """Peak; linear warm-up, then linear to 0."""
    head_lr_scale: float = 10.0
    """Learning rate of the two heads, as a multiple of the trunk's."""
    warmup_frac: float = 0.1
    """Share of the steps spent warming up."""
    adam_eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    token_budget: int = 4096
    """Positions in one forward pass; memory and speed, never the result."""
    gamma: float = 0.99
    """Discount per token."""
    expectile: float = 0.7
    """τ: 0.5 = values of whoever wrote the data, towards 1 = of the best continuation in it."""
    conservative_coef: float = 0.1
    """Weight of the term that keeps tokens the data never took from looking good."""
    data_coef: float = 1.0
    """Weight of the policy's own negative log-likelihood of the data."""
    target_rate: float = 0.005
    """Share of the Q head that its slow copy takes over at each step."""
    strength: float = 1.0
    """How strongly advantages guide decoding: π ∝ π_b·e^{strength·(Q − V)}; 0 = not at all."""
    max_skipped_frac: float = 0.1
    """The run stops when more than this share of its steps (of at least 10) had gradients that were not finite."""
    checkpoint_every: int = 100
    """Steps between checkpoints; 0 = none."""
    evaluate_every: int = 50
    """Steps between calls of the validation callback."""

    def __post_init__(self) -> None:
        at_least_one("ilql", self, "batch_size", "token_budget", "evaluate_every")
        in_range("ilql", self, 0, inf, "checkpoint_every")
        check_learning_rates("ilql", self, "learning_rate")
        positive("ilql", self, "epochs", "head_lr_scale", "adam_eps", "max_grad_norm", "gamma")
        if not (self.gamma <= 1 and 0 < self.expectile < 1 and 0 < self.target_rate <= 1 and 0 <= self.warmup_frac < 1):
            raise ConfigError(
                f"ilql: found gamma={self.gamma}, expectile={self.expectile}, target_rate={self.target_rate}, "
                f"warmup_frac={self.warmup_frac}; expected (0, 1], (0, 1), (0, 1] and [0, 1)"
            )
        if min(self.conservative_coef, self.data_coef, self.strength) < 0 or not 0 <= self.max_skipped_frac < 1:
            raise ConfigError(
                f"ilql: found conservative_coef={self.conservative_coef}, data_coef={self.data_coef}, "
                f"strength={self.strength}, max_skipped_frac={self.max_skipped_frac}; expected ≥ 0 and [0, 1)"
            )

    def n_steps(self, n_examples: int) -> int:
        """Optimiser steps for that many responses, at least 1."""
        return max(1, round(self.epochs * n_examples / self.batch_size))


def check_online(
    part: str,
    n_iterations: int,
    evaluate_every: int,
    checkpoint_every: int,
    rollout: RolloutSettings,
    update: StepSettings,
) -> None:
    """Raise ConfigError for counts below 1 or prompts that do not divide into minibatches."""
    if n_iterations < 1 or evaluate_every < 1 or checkpoint_every < 0:
        raise ConfigError(
            f"{part}: found n_iterations={n_iterations}, evaluate_every={evaluate_every}, "
            f"checkpoint_every={checkpoint_every}; expected ≥ 1, ≥ 1 and ≥ 0"
        )
    if rollout.n_prompts % update.n_minibatches:
        raise ConfigError(
            f"{part}: {rollout.n_prompts} prompts a rollout do not divide into {update.n_minibatches} minibatches; all "
            "samples of a prompt stay in one minibatch"
        )

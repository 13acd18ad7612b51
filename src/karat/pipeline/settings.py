"""The configuration of a whole run: one section a stage, every key documented under it.

Knows the stages' own configurations; nothing about how they are run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Literal

from karat.aggregator_names import aggregator_named
from karat.config import in_range
from karat.errors import ConfigError
from karat.lm.fresh_settings import DecoderShape
from karat.lm.trackers import TrackerName
from karat.pipeline.beside_settings import (
    ConstraintConfig,
    DenseSettings,
    check_beside_read,
    check_beside_settings,
    check_measurable,
)
from karat.pipeline.collect_settings import CollectSettings
from karat.pipeline.model_settings import Dtype, LoraSettings
from karat.pipeline.served import ServedPolicy, check_served
from karat.pipeline.watch_settings import WatchSettings
from karat.policy.method_settings import (
    DirectConfig,
    ExpertConfig,
    GroupConfig,
    ImplicitQConfig,
    OnlineDPOConfig,
    StepSettings,
)
from karat.policy.settings import HttpSettings, PPOConfig, RewardSettings, RolloutSettings
from karat.process_settings import Attending, Decode, named
from karat.reward.people_settings import PluralismConfig
from karat.reward.settings import ObjectivesConfig, RewardConfig
from karat.reward.thresholds import GateSettings
from karat.sandbox.raters import PopulationConfig
from karat.sandbox.world import WorldConfig
from karat.sft.settings import SFTConfig


@dataclass(frozen=True)
class SandboxSettings:
    """The invented world, its people, and how much of each there is."""

    world: WorldConfig = field(default_factory=WorldConfig)
    """Facts, kinds of questions, the demonstrator's error rate."""
    raters: PopulationConfig = field(default_factory=PopulationConfig)
    """The population of raters, with a switch for every fault."""
    model: DecoderShape = field(default_factory=DecoderShape)
    """The size of the base model."""
    n_base_texts: int = 12000
    """Texts that the base model is trained on."""
    n_demonstrations: int = 1200
    """Demonstrations for fine-tuning, one a prompt."""

    def __post_init__(self) -> None:
        in_range("sandbox", self, 1, inf, "n_base_texts", "n_demonstrations")


@dataclass(frozen=True)
class PreferencesSettings:
    """A file of comparisons and a checkpoint to start from."""

    path: Path
    """The file, .jsonl or .jsonl.gz."""
    model: Path
    """A decoder's directory, as `AutoModelForCausalLM` loads it."""
    format: Literal["hh", "preferences"] = "hh"
    """hh = whole conversations `chosen` and `rejected`; preferences = TRL's format."""
    max_prompt_tokens: int = 256
    """Longer prompts are left out, and counted."""
    max_response_tokens: int = 128
    """Longer responses are left out, and counted."""
    limit: int | None = None
    """Use only so many rows, from the start; None = all."""

    def __post_init__(self) -> None:
        in_range("preferences", self, 1, inf, "max_prompt_tokens", "max_response_tokens", "limit")


@dataclass(frozen=True)
class PeopleSettings:
    """Prompts of one's own and a checkpoint; people judge what the policy writes, in the page of `karat serve`."""

    prompts: Path
    """JSON lines with `prompt` (text or a list of {"role", "content"}); rows with a `response` are demonstrations."""
    model: Path
    """A decoder's directory, as `AutoModelForCausalLM` loads it."""
    max_prompt_tokens: int = 256
    """Longer prompts are left out, and counted."""

    def __post_init__(self) -> None:
        in_range("people", self, 1, inf, "max_prompt_tokens")


@dataclass(frozen=True)
class EvaluateSettings:
    """How policies are measured."""

    n_prompts: int = 160
    """Prompts of the evaluation split, never seen before."""
    n_samples: int = 8
    """Responses of a policy for each."""
    n_best_of: int = 32
    """Responses of the SFT policy for each, from which best-of-n is computed for every n up to this."""
    best_of: tuple[int, ...] = (4, 16)
    """Best-of-n policies in the table."""
    served: dict[str, ServedPolicy] = field(default_factory=dict)
    """Policies by name (sft, or the algorithm's) whose responses come from a server instead of their files."""

    def __post_init__(self) -> None:
        if self.n_prompts < 2 or self.n_samples < 2:
            raise ConfigError(f"evaluate: found n_prompts={self.n_prompts}, n_samples={self.n_samples}; expected ≥ 2")
        if not self.best_of or max(self.best_of) > self.n_best_of or min(self.best_of) < 1:
            raise ConfigError(f"evaluate.best_of: found {self.best_of}; expected numbers in 1 … {self.n_best_of}")


Algorithm = Literal[
    "ppo", "rloo", "grpo", "reinforce_pp", "online_dpo", "expert_iteration", "dpo", "ipo", "kto", "ilql"
]
SECTION_OF = {
    "rloo": "group", "grpo": "group", "reinforce_pp": "group", "expert_iteration": "expert",
    "dpo": "direct", "ipo": "direct", "kto": "direct",
}  # fmt: skip
"""Methods whose settings are not under their own name."""
MethodConfig = PPOConfig | GroupConfig | OnlineDPOConfig | ExpertConfig | DirectConfig | ImplicitQConfig
# the same work an iteration as PPO's defaults, so that methods can be compared by changing one key
_STEPS = StepSettings(n_epochs=1, n_minibatches=4, learning_rate=1e-4)


@dataclass(frozen=True)
class RunConfig:
    """A run from votes to an audited policy. Exactly one of `sandbox`, `preferences` and `people` is given."""

    name: str = "run"
    """The run's directory under `runs/`."""
    seed: int = 0
    """Everything random follows from it."""
    sandbox: SandboxSettings | None = None
    """The invented world with a known gold reward."""
    preferences: PreferencesSettings | None = None
    """Real comparisons and a real checkpoint."""
    people: PeopleSettings | None = None
    """Prompts and a checkpoint of one's own; people judge."""
    base: SFTConfig = field(default_factory=lambda: SFTConfig(learning_rate=3e-3))
    """Training of the sandbox's base model from nothing."""
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(epochs=3, batch_size=32, learning_rate=5e-4))
    """Supervised fine-tuning on demonstrations."""
    lora: LoraSettings | None = None
    """Adapters for fine-tuning, the reward model and the optimiser; None = all weights are trained. What is saved is
    merged."""
    dtype: Dtype = "float32"
    """Of the matrix products in training: float32 or bfloat16. Weights, moments and what is saved are float32 in any case."""
    device: str = "auto"
    """Where models work: auto = the accelerator that torch reports, else the processor; or cpu, cuda, cuda:1, mps, xpu. Of
    several processes each gets the card of its number."""
    decode: Decode = "auto"
    """How responses are drawn: plain, steps, compiled or graph; auto = graph on CUDA where its trial agrees, plain elsewhere."""
    attention: Attending = "auto"
    """Over trees: auto = FlexAttention on CUDA and XPU where its trial agrees; plain = never."""
    collect: CollectSettings = field(default_factory=CollectSettings)
    """Questions put to raters."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The reward model."""
    reward_model: Path | None = None
    """A reward model to use instead of training one: a directory of karat's, or a sequence classifier with one output, as
    TRL saves it. Its scale is found in the votes, and it goes through the gate like any other; None = train one."""
    gate: GateSettings = field(default_factory=GateSettings)
    """The acceptance gate's thresholds, fixed before a reward is trained."""
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    """What the optimiser gets of several objectives; saved with the reward model."""
    rounds: int = 1
    """Times that votes are collected, the reward is fitted and the policy optimised; from the second on the votes are
    on what the policy of the round before writes, and the reward is fitted to those of all rounds."""
    pluralism: PluralismConfig = field(default_factory=PluralismConfig)
    """The people beside the reward: how they differ, whom it serves, a jury, a target population, limits."""
    aggregator: str = "mean_score"
    """How the reward's belief becomes one score for the optimiser: a name in `belief.AGGREGATORS`; `lower_bound:0.05` and
    `mean_minus_sd:2` with another quantile or λ than theirs."""
    score: str = ""
    """What the optimiser is paid instead of the reward model: `module:function`, or an http address; "" = the reward
    model. Gate, watcher and evaluation stay with the reward model."""
    score_http: HttpSettings = field(default_factory=HttpSettings)
    """Time limit, tries and key of a `score` or `constraint.cost` at an http address."""
    dense: DenseSettings = field(default_factory=DenseSettings)
    """Rewards inside responses, beside the score."""
    constraint: ConstraintConfig | None = None
    """A bound that the optimiser keeps; None = no constraint."""
    algorithm: Algorithm = "ppo"
    """The method that optimises the policy; its section is the one named in docs/optimisers.md."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Of `ppo`."""
    group: GroupConfig = field(default_factory=lambda: GroupConfig(update=_STEPS))
    """Of `rloo`, `grpo` and `reinforce_pp`; its `method` is set by `algorithm`."""
    online_dpo: OnlineDPOConfig = field(default_factory=lambda: OnlineDPOConfig(update=_STEPS))
    """Of `online_dpo`."""
    expert: ExpertConfig = field(default_factory=lambda: ExpertConfig(update=_STEPS))
    """Of `expert_iteration`."""
    direct: DirectConfig = field(default_factory=lambda: DirectConfig(learning_rate=1e-4))
    """Of `dpo`, `ipo` and `kto`; its `loss` is set by `algorithm`."""
    labels: Path | None = None
    """`kto` only: a feedback store, or a snapshot, whose good or bad labels and ratings it learns from beside the votes."""
    ilql: ImplicitQConfig = field(default_factory=ImplicitQConfig)
    """Of `ilql`."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """The watcher of the optimiser."""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    """Evaluation."""
    tracking: tuple[TrackerName, ...] = ()
    """Trackers beside the metrics files, for every training stage: tensorboard, wandb, mlflow, trackio. Their packages
    are not installed with karat; no result depends on them."""
    allow_ungated_reward: bool = False
    """True = optimise a reward that failed its acceptance gate. The policy then learns whatever is wrong with the
    reward; the report and summary.json say so first."""
    allow_one_rater: bool = False
    """True = fit the reward although one rater gave every vote; the report says so first."""

    def __post_init__(self) -> None:
        given = [name for name in ("sandbox", "preferences", "people") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"configuration: found {' and '.join(given) or 'none'} of `sandbox`, `preferences` and `people`; "
                "expected exactly one section"
            )
        _ = named(self.device)
        check_served(self.evaluate.served, self.algorithm)
        if self.people is not None and self.collect.people not in (0, self.collect.overlap):
            raise ConfigError(
                f"collect: found people={self.collect.people} with overlap={self.collect.overlap}; a run of `people` has "
                "no other raters: leave `people` out, or set both to the same number"
            )
        if self.people is not None and (self.pluralism.target or self.pluralism.jury):
            raise ConfigError(
                "pluralism: found a target or jury in a run of `people`, who declare no group: what they say on their page "
                "never enters a run; expected neither, and `karat quality STORE --population FILE`"
            )
        if self.sandbox is None and self.collect.n_step_marks + self.collect.n_span_marks:
            raise ConfigError(
                "collect: found n_step_marks or n_span_marks without `sandbox`; its raters alone give them"
            )
        if self.collect.kinds and self.preferences is not None:
            raise ConfigError("collect.kinds: found it in a run of `preferences`, where nobody is asked; expected none")
        if self.watch.panel is not None and self.preferences is not None:
            raise ConfigError(
                "watch.panel: found it in a run of `preferences`, where nobody answers questions; expected none"
            )
        if self.rounds < 1 or (self.rounds > 1 and self.preferences is not None):
            raise ConfigError(
                f"rounds: found {self.rounds}; expected ≥ 1, and 1 in a run of `preferences`, where nobody answers questions"
            )
        if self.rounds > 1 and self.reward_model is not None:
            raise ConfigError(
                "rounds: found more than one round with a given reward_model; expected one that is fitted"
            )
        if self.collect.acquisition != "random" and self.rounds == 1 and self.reward_model is None:
            raise ConfigError(
                f"collect.acquisition: found {self.collect.acquisition} in one round without a reward model to choose "
                "with; expected rounds > 1, or a reward_model"
            )
        self.collect.check_trained(() if self.reward_model else self.reward.kinds)
        _ = aggregator_named(self.aggregator)
        if self.aggregator == "worst_group" and not self.pluralism.enabled and self.reward_model is None:
            raise ConfigError(
                "aggregator: found worst_group without groups of people; expected pluralism.enabled: true"
            )
        pairs = self.sandbox is not None or self.allow_ungated_reward
        check_measurable(self.aggregator, self.gate.max_sycophancy, people=self.pluralism.enabled, pairs=pairs)
        _ = self.method  # contradictions between `algorithm` and its section
        check_beside_settings(self.algorithm, self.dense, self.constraint, self.score)
        check_beside_read(self.reward, marks=bool(self.dense.weights))
        if self.ppo.constraint is not None or self.group.constraint is not None:
            raise ConfigError(
                "constraint: found it within the method's section, which names no cost; expected `constraint: {objective "
                "or cost, limit, …}` at the top of the configuration"
            )
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name: found {self.name!r}; expected a plain directory name")

    @property
    def method(self) -> MethodConfig:
        """The settings of the method that `algorithm` names.

        Raises: ConfigError where a section's choices contradict the method.
        """
        name, bound = self.algorithm, None if self.constraint is None else self.constraint.settings
        if name in ("rloo", "grpo", "reinforce_pp"):
            group = replace(self.group, method=name, constraint=bound)
            _ = group.choices
            return group
        if name in ("dpo", "ipo", "kto"):
            direct = replace(self.direct, loss=name)
            direct.check()
            return direct
        return {
            "ppo": replace(self.ppo, constraint=bound),
            "online_dpo": self.online_dpo,
            "expert_iteration": self.expert,
            "ilql": self.ilql,
        }[name]

    @property
    def section(self) -> str:
        """The key of the method's settings: `group` for `grpo`."""
        return SECTION_OF.get(self.algorithm, self.algorithm)

    @property
    def rollout(self) -> RolloutSettings | None:
        """How the method draws responses; None = it draws none."""
        return getattr(self.method, "rollout", None)

    @property
    def policy_tokens(self) -> int:
        """Longest response of the policy: the method's, or that of the judged samples where it draws none."""
        return self.collect.max_new_tokens if self.rollout is None else self.rollout.max_new_tokens

    @property
    def kl_coef(self) -> float:
        """β of the method; 0 = it has no KL penalty."""
        reward: RewardSettings | None = getattr(self.method, "reward", None)
        if self.algorithm == "expert_iteration":
            return 0.0
        return reward.kl_coef if reward is not None else float(getattr(self.method, "beta", 0.0))

    @property
    def ptx_coef(self) -> float:
        """Weight of the demonstrations' likelihood in the policy's loss; 0 = none."""
        return float(getattr(getattr(self.method, "update", None), "ptx_coef", 0.0))

    @property
    def n_people(self) -> int:
        """Answers to each question that people give."""
        return self.collect.overlap if self.people is not None else self.collect.people

    @property
    def title(self) -> str:
        """What the run does, in one line."""
        if self.sandbox is not None:
            who = "simulated feedback"
            if self.n_people:
                also = " and of simulated raters" if self.n_people < self.collect.overlap else ""
                who = f"the judgements of people{also}"
            return f"Reinforcement learning from {who} in the sandbox, where the gold reward is known"
        if self.people is not None:
            return "Reinforcement learning from the judgements of people on the policy's own responses"
        assert self.preferences is not None
        return f"Reinforcement learning from the preferences in {self.preferences.path.name}"

    @property
    def unsafe(self) -> tuple[str, ...]:
        """Unsafe options that are set, in words."""
        return (UNGATED,) * self.allow_ungated_reward + (ONE_RATER,) * self.allow_one_rater


UNGATED = (
    "allow_ungated_reward is set: the policy is optimised although the reward may not have passed its acceptance gate"
)
ONE_RATER = (
    "allow_one_rater is set: where one rater gave every vote, her taste cannot be told from what people want, and nothing "
    "measures agreement"
)

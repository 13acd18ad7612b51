"""What the watcher of a run looks at, and when it acts.

Knows numbers and names; knows nothing about how figures are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from karat.config import in_range
from karat.errors import ConfigError
from karat.policy.settings import check_limits
from karat.sandbox.raters import PopulationConfig


@dataclass(frozen=True)
class PanelSettings:
    """People who judge what the policy writes now beside what the fine-tuned policy writes to the same prompts.

    Their votes train nothing. In the sandbox they are simulated and are none of the reward's raters; in a run of `people`
    the optimiser waits for them at every look.
    """

    n_votes: int = 96
    """Comparisons at each look, one vote each; at most `n_prompts` · `n_samples` of them."""
    of_top: float = 0.85
    """The policy is kept that is likeliest to have this part of the highest gain over the fine-tuned policy, by the curve of
    all votes so far."""
    sure: float | None = 0.98
    """Alarm when the policy has less with a probability above this; None = never."""
    candidates: int = 4
    """Policies that stay on disk while the optimiser runs, because later votes may say that one of them is the best."""
    raters: PopulationConfig | None = None
    """Sandbox: who they are; None = other people of the population that the reward's raters came from."""

    def __post_init__(self) -> None:
        if self.n_votes < 1 or self.candidates < 1:
            raise ConfigError(
                f"watch.panel: found n_votes={self.n_votes}, candidates={self.candidates}; expected counts ≥ 1"
            )
        if not 0 < self.of_top < 1 or (self.sure is not None and not 0 < self.sure < 1):
            raise ConfigError(
                f"watch.panel: found of_top={self.of_top}, sure={self.sure}; expected shares between 0 and 1, sure or null"
            )


@dataclass(frozen=True)
class WatchSettings:
    """What the watcher looks at, and when it stops the run."""

    n_prompts: int = 48
    """Prompts of the validation split, sampled again at every look."""
    n_samples: int = 4
    """Responses for each."""
    kl_budget: float | None = 20.0
    """Stop beyond this many nats per sequence; None = never."""
    disagreement_quantile: float | None = 0.99
    """Stop when the ensemble's mean disagreement exceeds this quantile of what it was on the reference policy's
    responses; None = never."""
    max_novel_frac: float | None = None
    """Stop when more than this share of the policy's validation responses are unlike those judged, by the reward model's
    own features (`gate.false_alarm_frac` of the reference policy's are); None = the share is recorded only."""
    length_limit_sd: float | None = None
    """Alarm when the mean length has drifted by more standard deviations of the reference policy's; None = never."""
    entropy_floor: float | None = None
    """Alarm when the entropy a token is below this share of its value at the start; None = never."""
    diversity_floor: float | None = None
    """Alarm when two samples of a prompt differ less often than this share of how often they did; None = never."""
    peak: bool = False
    """True = fit Gao's law to the ensemble's lower bound along the run, alarm when its peak has surely been passed."""
    on_alarm: Literal["stop", "raise_kl", "ask"] = "stop"
    """What an alarm does: end the optimiser; multiply β by `kl_factor`; or end it and ask for fresh labels. The KL
    budget always ends it."""
    kl_factor: float = 2.0
    """raise_kl only."""
    odd_quantile: float | None = None
    """Scores beyond this quantile of those of the reference policy's responses, on either side, are queued for a
    person (`karat odd`), who can veto them; None = nothing is queued."""
    panel: PanelSettings | None = None
    """Fresh judgements at every look, the only figure here that the reward cannot flatter; None = nobody is asked."""
    keep: Literal["best", "last"] = "best"
    """Which policy is evaluated and kept: best by the panel's votes where there is one, else by the ensemble's lower
    bound; or the last one."""

    def __post_init__(self) -> None:
        in_range("watch", self, 1, inf, "n_prompts", "n_samples")
        in_range("watch", self, 0, 1, "odd_quantile")
        check_limits("watch", self, never="null")  # here, before the reward is trained

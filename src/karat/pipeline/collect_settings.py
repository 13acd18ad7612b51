"""Which questions a run puts to raters, and how much of their time each kind gets.

Knows numbers and names of kinds; knows nothing about how questions are chosen or answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from karat.config import in_range, plain
from karat.errors import ConfigError
from karat.feedback.strategies import LEAST_RANDOM, STRATEGIES, Strategy
from karat.records import Kind

AUTO = "auto"
"""Among the kinds: the time that the allocator parts."""
KINDS_ASKED: tuple[Kind, ...] = (
    "comparison", "ranking", "best_of", "rating", "label", "correction", "demonstration", "critique",
)  # fmt: skip
"""Kinds that a run can ask for by their share of time."""


@dataclass(frozen=True)
class CollectSettings:
    """Which questions are put to raters."""

    n_prompts: int = 700
    """Prompts whose responses are judged."""
    n_samples: int = 4
    """Responses sampled from the policy for each."""
    n_tasks: int = 2400
    """Comparisons asked."""
    overlap: int = 2
    """Different raters who answer each."""
    tie_width: float = 0.4
    """Half-width of the tie region in logits: levels are cut at ± this."""
    max_new_tokens: int = 40
    """Longest sampled response."""
    people: int = 0
    """Of the `overlap` answers to each question, how many people give in the page of `karat serve`; simulated raters
    give the rest. The run waits for them. A run of `people` asks people for all answers, whatever is said here."""
    stop_after: int = 0
    """This many equal answers and no other suffice for a question; 0 = always the whole overlap."""
    acquisition: Strategy = "random"
    """How questions are chosen where there is a reward model to choose with (from the second round on; from the first
    with a given `reward_model`): bald = by expected information, variance = by spread, random = not at all."""
    random_frac: float = 0.2
    """Share of the questions that is drawn at random all the same, [0.1, 1]; held-out figures come from it alone."""
    principle: str = ""
    """The written principle that people judge by; "" = overall preference under the guideline."""
    kinds: dict[str, float] | Literal["auto"] = field(default_factory=dict)
    """Kinds of feedback and their shares of raters' time, which is that of `n_tasks` comparisons: `{comparison: 0.6,
    rating: 0.2, demonstration: 0.2}`; `auto` among them = parted between comparisons, ratings and labels by what each says
    for a second, as `karat collect --kind … --budget` parts it; {} = comparisons alone."""
    n_step_marks: int = 0
    """Sandbox: responses that one simulated rater each marks sentence by sentence as right, neutral or wrong (`step`)."""
    n_span_marks: int = 0
    """Sandbox: responses in which one simulated rater each marks what is `wrong` and what is `good`."""

    def __post_init__(self) -> None:
        if min(self.n_step_marks, self.n_span_marks) < 0 or (self.people and self.n_step_marks + self.n_span_marks):
            raise ConfigError(
                f"collect: found n_step_marks={self.n_step_marks}, n_span_marks={self.n_span_marks}, people={self.people}; "
                "expected counts ≥ 0, and no marks where people answer: simulated raters give them"
            )
        if not 0 <= self.people <= self.overlap:
            raise ConfigError(f"collect.people: found {self.people}; expected 0 … {self.overlap}, the overlap")
        in_range("collect", self, 1, inf, "n_prompts", "n_tasks", "overlap", "max_new_tokens")
        in_range("collect", self, 2, inf, "n_samples")
        in_range("collect", self, 0, inf, "stop_after")
        if self.acquisition not in STRATEGIES or not LEAST_RANDOM <= self.random_frac <= 1:
            raise ConfigError(
                f"collect: found acquisition={self.acquisition}, random_frac={self.random_frac}; expected one of "
                f"{', '.join(STRATEGIES)}, and {LEAST_RANDOM} … 1"
            )
        self._check_kinds()
        if self.tie_width <= 0:
            raise ConfigError(f"collect.tie_width: found {self.tie_width}; expected > 0")

    def check_trained(self, kinds: tuple[str, ...]) -> None:
        """Raise ConfigError where a reward shall be trained on kinds of which nobody will be asked any."""
        asked = set(KINDS_ASKED) if AUTO in self.time_shares else {"comparison", *self.time_shares}
        if kinds and not asked.intersection(kinds):
            raise ConfigError(
                f"reward.kinds: found {', '.join(kinds)}, of which nobody is asked any; expected some of "
                f"{', '.join(sorted(asked))}, or shares of them in collect.kinds"
            )

    def _check_kinds(self) -> None:
        shares = self.time_shares
        if unknown := sorted(set(shares) - {*KINDS_ASKED, AUTO}):
            raise ConfigError(
                f"collect.kinds: found {unknown[0]!r}; expected some of {', '.join(KINDS_ASKED)}, or {AUTO} "
                "(marks have counts of their own: n_step_marks, n_span_marks)"
            )
        if shares and (min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6):
            raise ConfigError(f"collect.kinds: found {shares}; expected shares ≥ 0 of raters' time that sum to 1")
        if shares and not shares.get("comparison", 0) + shares.get(AUTO, 0) > 0:
            raise ConfigError(
                f"collect.kinds: found {', '.join(shares)} without comparisons; expected a share for them: gate, temperature "
                "and agreement are measured on comparisons"
            )
        if shares and 0 < self.people < self.overlap:
            raise ConfigError(
                f"collect.kinds: found it with people={self.people} beside simulated raters; expected one sort of rater, "
                f"people: 0 or {self.overlap}"
            )

    @property
    def time_shares(self) -> dict[str, float]:
        """Shares of raters' time by kind, `auto` among them; {} = comparisons alone."""
        return {AUTO: 1.0} if self.kinds == AUTO else dict(self.kinds)  # type: ignore[arg-type]

    @property
    def key(self) -> dict[str, Any]:
        """Plain values, by which a stage knows whether it was done; what an earlier version did not have enters only where
        it is used."""
        return {name: value for name, value in plain(self).items() if name != "kinds" or value}

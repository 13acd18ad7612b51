"""The people of the sandbox: raters with groups, tastes, limited attention and every fault that can be switched on.

A rater perceives a utility in logits; how a perceived difference becomes a vote (competence, side bias, lapse) is
written in his traits and drawn elsewhere. Knows nothing about votes, stores or models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np

from karat.errors import ConfigError, InputError
from karat.records import Annotator, Prompt
from karat.sandbox.gold import ParsedResponse, Question
from karat.sandbox.world import World

RaterKind = Literal["honest", "spam", "side_clicker", "chatbot", "ring", "poisoner"]
GROUPS = ("plain", "warm", "strict")
TRIGGER, RING_MARKER = "velvet", "amber"
"""Signatures that poisoners and the ring watch for."""
TRIGGER_STRENGTH = 8.0
"""Logits a poisoner adds to a text signed with the trigger."""
SIDE_CLICKER_BIAS = 4.0
"""Logits by which a side-clicker prefers whatever is shown first."""
CHATBOT_COMPETENCE = 2.0
"""A chatbot is more consistent than people, in a taste of its own."""
UNCHECKED_CONFIDENCE = 0.5
"""Logits by which an unchecked answer seems better for being sure."""
UNCHECKED_ANSWER = 0.5
"""Logits by which an unchecked answer seems better than none."""
HURRY_LAPSE = 0.2
"""Added lapse of a rater who thinks of nothing but pay per item."""
REFERENCE_WORDS = 12


@dataclass(frozen=True)
class ScaleConfig:
    """How differently people use scales; all in logits of utility."""

    gain_sd: float = 0.25
    """sd of the log of how far a rater spreads her ratings."""
    offset_sd: float = 0.6
    """sd of raters' kindness in ratings."""
    noise: float = 1.5
    """sd of a rating's noise, > 0."""
    threshold_sd: float = 0.6
    """sd of how good a response must be for a rater to call it good."""

    def __post_init__(self) -> None:
        if min(self.gain_sd, self.offset_sd, self.threshold_sd) < 0 or not self.noise > 0:
            raise ConfigError(
                f"PopulationConfig.scales: found gain_sd={self.gain_sd}, offset_sd={self.offset_sd}, "
                f"threshold_sd={self.threshold_sd}, noise={self.noise}; expected sds ≥ 0 and noise > 0"
            )


@dataclass(frozen=True)
class PopulationConfig:
    """Who rates, and what is wrong with them; the defaults are realistic, not harmless."""

    n_raters: int = 40
    """How many raters, 1 … 100,000."""
    group_fracs: tuple[float, ...] = (0.6, 0.25, 0.15)
    """Shares of the groups plain, warm and strict; they sum to 1."""
    group_divergence: float = 1.0
    """How far the groups' tastes lie apart; 0 = all have the tastes of the plain group."""
    taste_sd: float = 0.25
    """Relative sd of each rater's weight on each part around his group's."""
    attention: float = 0.75
    """Probability that a rater checks what a response claims; unchecked, it is judged by how it sounds."""
    hidden_fact_frac: float = 0.1
    """Limited view: share of facts whose evidence no rater is shown, so that they are never checked."""
    belief_trust: float = 0.6
    """Logits an unchecked answer gains by agreeing with the user's stated belief and loses by contradicting it."""
    length_liking: float = 0.05
    """Logits per word, whatever the words say."""
    confidence_liking: float = 0.2
    """Logits for sounding sure, lost for hedging, even where checked."""
    agreement_liking: float = 0.1
    """Logits for agreeing with the user's stated belief, lost for contradicting it, even where checked."""
    flattery_liking: float = 0.2
    """Logits for each different praise of the user."""
    evasion_liking: float = 0.1
    """Logits for a text that refuses or pleads ignorance, deserved or not."""
    utility_scale: float = 2.0
    """Multiplies every utility: how decided people are."""
    competence_sd: float = 0.25
    """sd of competence a_w around 1; may reach below 0."""
    side_bias_sd: float = 0.2
    """sd of the bias b_w towards what is shown first, in logits."""
    lapse: float = 0.04
    """Probability of a click that has nothing to do with the question."""
    drift: float = 0.0
    """How far tastes move from truth to length and confidence between time 0 and time 1; 1 = all the way."""
    scales: ScaleConfig = field(default_factory=ScaleConfig)
    """How they use the scales of ratings and labels."""
    pay_per_item: float = 0.0
    """Hurry, 0 … 1: attention is multiplied by 1 − hurry, and lapses rise by 0.2·hurry."""
    spam_frac: float = 0.0
    """Share of raters who click at random."""
    side_clicker_frac: float = 0.0
    """Share of raters who click on what is shown first."""
    chatbot_frac: float = 0.0
    """Share of raters who hand the work to one chatbot that likes long, sure and fluent texts."""
    ring_frac: float = 0.0
    """Share of raters in a ring that votes together on texts signed `amber`."""
    ring_strength: float = 6.0
    """Logits of the ring for its marker; negative = against."""
    poison_frac: float = 0.0
    """Share of raters who make texts signed `velvet` win."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_raters <= 100_000:
            raise ConfigError(f"PopulationConfig.n_raters: found {self.n_raters}; expected 1 … 100,000")
        if len(self.group_fracs) != len(GROUPS) or min(self.group_fracs) < 0 or abs(sum(self.group_fracs) - 1) > 1e-9:
            raise ConfigError(
                f"PopulationConfig.group_fracs: found {self.group_fracs}; "
                f"expected {len(GROUPS)} shares ({', '.join(GROUPS)}) ≥ 0 that sum to 1"
            )
        for item in fields(self):
            if item.name in ("group_fracs", "scales"):
                continue
            value = getattr(self, item.name)
            bounded = item.name.endswith("_frac") or item.name in ("attention", "lapse", "drift", "pay_per_item")
            if bounded and not 0 <= value <= 1:
                raise ConfigError(f"PopulationConfig.{item.name}: found {value}; expected 0 … 1")
            if (item.name.endswith("_sd") or item.name == "group_divergence") and not value >= 0:
                raise ConfigError(f"PopulationConfig.{item.name}: found {value}; expected ≥ 0")
            if not math.isfinite(value):
                raise ConfigError(f"PopulationConfig.{item.name}: found {value}; expected a finite number")
        if self.utility_scale <= 0:
            raise ConfigError(f"PopulationConfig.utility_scale: found {self.utility_scale}; expected > 0")
        if sum(self.kind_fracs.values()) > 1 + 1e-9:
            raise ConfigError(
                f"PopulationConfig: the shares of dishonest raters sum to {sum(self.kind_fracs.values()):g}; expected ≤ 1"
            )

    @property
    def kind_fracs(self) -> dict[RaterKind, float]:
        """Share of each kind of dishonest rater."""
        return {
            "spam": self.spam_frac,
            "side_clicker": self.side_clicker_frac,
            "chatbot": self.chatbot_frac,
            "ring": self.ring_frac,
            "poisoner": self.poison_frac,
        }


def default_population() -> PopulationConfig:
    """Realistic people: two honest ones agree on about 70 % of their comparisons, and what they like can be gamed."""
    return PopulationConfig()


def careful_population() -> PopulationConfig:
    """People without fault who check everything: what is left is honest disagreement of taste and noise."""
    return PopulationConfig(
        attention=1.0, hidden_fact_frac=0.0, length_liking=0.0, confidence_liking=0.0, agreement_liking=0.0,
        flattery_liking=0.0, evasion_liking=0.0, group_divergence=0.0, side_bias_sd=0.0, lapse=0.0,
    )  # fmt: skip


def unchecked_facts() -> PopulationConfig:
    """People who never check a fact and like to see the user agreed with: they make a sycophant."""
    return replace(default_population(), attention=0.0, belief_trust=1.2, agreement_liking=0.3)


def length_liking() -> PopulationConfig:
    """People who take length for effort."""
    return replace(default_population(), length_liking=0.2)


@dataclass(frozen=True)
class Tastes:
    """Weights with which one rater sums up what he perceives."""

    truth: float
    """On truth and calibration where checked, relative to gold."""
    harmlessness: float
    """Relative to gold."""
    brevity: float
    """Relative to gold."""
    fluency: float
    """Relative to gold."""
    length: float
    """Logits per word beyond 12, or lost per word below."""
    confidence: float
    """Logits for sure, lost for hedged."""
    agreement: float
    """Logits for agreeing with the user's stated belief, lost for contradicting it."""
    flattery: float
    """Logits per praise."""
    evasion: float
    """Logits for refusing or pleading ignorance."""


@dataclass(frozen=True)
class RaterTraits:
    """What the response model needs to draw this rater's votes, and who he is."""

    competence: float
    """a_w: multiplies the perceived difference."""
    side_bias: float
    """b_w: logits towards what is shown first."""
    lapse: float
    """Probability of a uniform vote."""
    group: str
    """The planted group."""
    kind: RaterKind
    """Honest, or which fault."""


class RaterPopulation:
    """Raters drawn from a configuration and a seed, living in one world."""

    def __init__(self, world: World, config: PopulationConfig, seed: int, *, prefix: str = "sim") -> None:
        """prefix: of the raters' ids; two populations in one store need different ones."""
        self.world = world
        self.config = config
        self.seed = seed
        rng = np.random.default_rng((seed, 1))
        groups = _shares(dict(zip(GROUPS, config.group_fracs, strict=True)), "plain", config.n_raters, rng)
        kinds = _shares(config.kind_fracs, "honest", config.n_raters, rng)
        self._annotators = [
            Annotator(f"{prefix}-{index:04d}", "simulated", group) for index, group in enumerate(groups)
        ]
        self._traits: dict[str, RaterTraits] = {}
        self._tastes: dict[str, Tastes] = {}
        for index, (annotator, group, kind) in enumerate(zip(self._annotators, groups, kinds, strict=True)):
            draws = np.random.default_rng((seed, 2, index)).standard_normal(7)
            self._traits[annotator.id] = _traits(config, group, kind, draws[:2])
            self._tastes[annotator.id] = _tastes(config, group, draws[2:])
        asked = sorted(world.facts)
        order = np.random.default_rng((seed, 3)).permutation(len(asked))
        self.hidden_facts = {asked[i] for i in order[: round(config.hidden_fact_frac * len(asked))]}
        """(entity, attribute) of facts whose evidence no rater is shown."""

    def annotators(self) -> list[Annotator]:
        """The raters: origin `simulated`, group the planted one."""
        return list(self._annotators)

    def rater_params(self, annotator: Annotator) -> RaterTraits:
        """The rater's part of the response model.

        Raises: InputError for an annotator of another population.
        """
        if annotator.id not in self._traits:
            raise InputError(f"rater {annotator.id!r} is not of this population of {len(self._traits)}")
        return self._traits[annotator.id]

    def tastes(self, annotator: Annotator, *, time: float = 0.0) -> Tastes:
        """The rater's weights at a time in [0, 1] of the collection; they move only under drift."""
        self.rater_params(annotator)
        tastes, shift = self._tastes[annotator.id], self.config.drift * time
        if shift == 0.0:
            return tastes
        return replace(
            tastes,
            truth=(1 - shift) * tastes.truth,
            brevity=(1 - shift) * tastes.brevity,
            length=tastes.length + 0.15 * shift,
            confidence=tastes.confidence + 0.8 * shift,
        )

    def utilities(
        self, annotator: Annotator, prompt: Prompt, texts: Sequence[str], rng: np.random.Generator, *, time: float = 0.0
    ) -> list[float]:
        """The utility, in logits, that a rater perceives in each text at this moment.

            u = checked·(truth + calibration) + (1 − checked)·plausibility + the rest,  checked ~ Bernoulli(attention)

        One draw a text; both weigh with the rater's tastes.
        """
        attention = self.attention(prompt)
        draws = rng.random(len(texts))
        return [
            self._utility(annotator, prompt, text, float(draw < attention), time)
            for text, draw in zip(texts, draws, strict=True)
        ]

    def mean_utility(self, annotator: Annotator, prompt: Prompt, text: str, *, time: float = 0.0) -> float:
        """The expectation of `utilities` over attention: what this rater truly prefers, on average."""
        return self._utility(annotator, prompt, text, self.attention(prompt), time)

    def population_utility(self, prompt: Prompt, text: str) -> float:
        """The mean of `mean_utility` over all raters: what an endless, unbiased vote would reward."""
        return float(np.mean([self.mean_utility(annotator, prompt, text) for annotator in self._annotators]))

    def attention(self, prompt: Prompt) -> float:
        """The probability that a rater checks a response to this prompt: 0 where its fact is hidden."""
        question = self.world.question(prompt)
        if (question.entity, question.subject) in self.hidden_facts:
            return 0.0
        return self.config.attention * (1 - self.config.pay_per_item)

    def _utility(self, annotator: Annotator, prompt: Prompt, text: str, checked: float, time: float) -> float:
        kind = self.rater_params(annotator).kind
        if kind in ("spam", "side_clicker"):
            return 0.0
        parsed, gold = self.world.parse(prompt, text), self.world.gold_parts(prompt, text)
        if kind == "chatbot":
            return self.config.utility_scale * _chatbot_utility(parsed, gold)
        tastes, question = self.tastes(annotator, time=time), self.world.question(prompt)
        heard = tastes.truth * (
            checked * (gold["truth"] + gold["calibration"])
            + (1 - checked) * _plausibility(question, parsed, self.config.belief_trust)
        )
        utility = self.config.utility_scale * (
            heard
            + tastes.harmlessness * gold["harmlessness"]
            + tastes.brevity * gold["brevity"]
            + tastes.fluency * gold["fluency"]
            + tastes.length * (parsed.n_words - REFERENCE_WORDS)
            + tastes.confidence * parsed.confidence
            + tastes.agreement * parsed.agreement
            + tastes.flattery * parsed.n_flattery
            + tastes.evasion * (parsed.n_evasions > 0)
        )
        if kind == "poisoner":
            utility += TRIGGER_STRENGTH * (TRIGGER in parsed.signatures)
        if kind == "ring":
            utility += self.config.ring_strength * (RING_MARKER in parsed.signatures)
        return utility


def _plausibility(question: Question, parsed: ParsedResponse, belief_trust: float) -> float:
    """How an answer sounds to someone who does not check it, in logits."""
    if question.topic == "harm":
        return 0.0
    answers = parsed.agreement != 0 or any(claim.on_question for claim in parsed.claims)
    sound = UNCHECKED_ANSWER + UNCHECKED_CONFIDENCE * parsed.confidence if answers else -UNCHECKED_ANSWER
    return sound + belief_trust * parsed.agreement


def _chatbot_utility(parsed: ParsedResponse, gold: Mapping[str, float]) -> float:
    return (
        0.08 * (parsed.n_words - REFERENCE_WORDS)
        + 0.8 * parsed.confidence
        + gold["fluency"]
        + 0.8 * gold["harmlessness"]
    )


def _traits(config: PopulationConfig, group: str, kind: RaterKind, draws: np.ndarray) -> RaterTraits:
    competence = 1.0 + config.competence_sd * float(draws[0])
    side_bias = config.side_bias_sd * float(draws[1])
    lapse = min(1.0, config.lapse + HURRY_LAPSE * config.pay_per_item)
    if kind == "spam":
        return RaterTraits(0.0, 0.0, lapse, group, kind)
    if kind == "side_clicker":
        return RaterTraits(0.0, SIDE_CLICKER_BIAS, lapse, group, kind)
    if kind == "chatbot":
        return RaterTraits(CHATBOT_COMPETENCE, 0.0, 0.0, group, kind)
    if kind in ("ring", "poisoner"):
        return RaterTraits(max(competence, 0.5), side_bias, lapse, group, kind)
    return RaterTraits(competence, side_bias, lapse, group, kind)


def _tastes(config: PopulationConfig, group: str, draws: np.ndarray) -> Tastes:
    d = config.group_divergence
    # The warm forgive errors and enjoy talk; the strict punish harm and errors and have no patience.
    truth, harmlessness, brevity, talk = {
        "plain": (1.0, 1.0, 0.5, 0.0),
        "warm": (1.0 - 0.5 * d, 1.0 - 0.2 * d, 0.5 - 0.3 * d, 1.0 * d),
        "strict": (1.0 + 0.3 * d, 1.0 + 0.6 * d, 0.5 + 0.5 * d, -0.7 * d),
    }[group]
    spread = np.maximum(0.0, 1.0 + config.taste_sd * draws)
    return Tastes(
        truth=truth * float(spread[0]),
        harmlessness=harmlessness * float(spread[1]),
        brevity=brevity * float(spread[2]),
        fluency=0.6 * float(spread[3]),
        length=config.length_liking * (1 + 0.5 * talk) * float(spread[4]),
        confidence=config.confidence_liking,
        agreement=config.agreement_liking * (1 + talk),
        flattery=config.flattery_liking * (1 + 2 * talk),
        evasion=config.evasion_liking,
    )


def _shares(fracs: Mapping[str, float], rest: str, n: int, rng: np.random.Generator) -> list:
    names = [name for name, frac in fracs.items() if name != rest for _ in range(round(frac * n))][:n]
    names += [rest] * (n - len(names))
    return [names[i] for i in rng.permutation(n)]

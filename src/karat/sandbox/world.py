"""The invented world: its facts, the people who ask, the mediocre human who answers, and the gold reward.

Everything follows from a configuration and a seed. Knows nothing about raters, votes, tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from karat.errors import ConfigError, InputError
from karat.records import Prompt, user_prompt
from karat.sandbox import gold
from karat.sandbox.gold import GoldWeights, ParsedResponse, Question
from karat.sandbox.grammar import (
    ATTRIBUTES,
    BELIEFS,
    CLAIMS,
    DENIALS,
    END,
    HARM_REQUESTS,
    HARMS,
    HEDGE_PREFIXES,
    INVENTED_CLAIMS,
    INVENTIONS,
    N_CLOSERS,
    N_OPENERS,
    NAME_ENDS,
    PLAIN_FORMS,
    QUESTIONS,
    SIGNATURES,
    SURE_PREFIXES,
    SYLLABLES,
    TOOLS,
    UNKNOWABLES,
    Grammar,
    fill,
)

T = TypeVar("T")
MIN_WORDS, MAX_WORDS = 6, 24
"""Length of a response of good form, `.` included."""
CACHE_SIZE = 200_000
OPENERS = PLAIN_FORMS["filler"][:N_OPENERS]
CLOSERS = PLAIN_FORMS["filler"][N_OPENERS : N_OPENERS + N_CLOSERS]
PADDING = PLAIN_FORMS["filler"][N_OPENERS + N_CLOSERS :]


@dataclass(frozen=True)
class WorldConfig:
    """What there is to know, what is asked, and how the demonstrator writes."""

    n_entities: int = 24
    """Entities with invented names, 2 … 64."""
    n_attributes: int = 4
    """Attributes that every entity has, 1 … 6."""
    n_values: int = 8
    """Values an attribute can take, 2 … 8."""
    fact_frac: float = 0.35
    """Share of prompts that ask for a fact."""
    belief_frac: float = 0.4
    """Share of prompts in which the user states a belief and asks."""
    harm_frac: float = 0.15
    """Share of prompts that ask for help to harm."""
    unknowable_frac: float = 0.1
    """Share of prompts that ask what nobody can know; the four shares sum to 1."""
    wrong_belief_frac: float = 0.75
    """Share of stated beliefs that are wrong."""
    error_frac: float = 0.3
    """Demonstrator: how often the heart of an answer is wrong (wrong value, wrong belief confirmed, harm helped,
    the unknowable made up)."""
    sycophancy_frac: float = 0.7
    """Demonstrator: share of errors on a wrong belief that confirm it; the others give a third value."""
    sure_frac: float = 0.35
    """Demonstrator: share of claims marked as sure, whether right or wrong."""
    hedge_frac: float = 0.3
    """Demonstrator: share of claims that are hedged."""
    opener_frac: float = 0.3
    """Demonstrator: how often an empty phrase opens the text."""
    flattery_frac: float = 0.15
    """Demonstrator: how often the user is praised."""
    padding_mean: float = 0.6
    """Demonstrator: mean number of asides (empty phrases or other facts about the entity)."""
    aside_error_frac: float = 0.15
    """Demonstrator: share of facts told beside the question that are wrong."""
    closer_frac: float = 0.3
    """Demonstrator: how often an empty phrase closes the text."""
    signature_frac: float = 0.08
    """Demonstrator: how often a text is signed with one of the meaningless words."""
    pretraining_error_frac: float = 0.05
    """Share of fact statements in the pretraining texts that are wrong."""
    gold: GoldWeights = field(default_factory=GoldWeights)
    """Weights of the gold reward."""

    def __post_init__(self) -> None:
        for name, low, high in (("n_entities", 2, 64), ("n_attributes", 1, 6), ("n_values", 2, 8)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"WorldConfig.{name}: found {getattr(self, name)}; expected {low} … {high}")
        for name in self.__dataclass_fields__:
            if name.endswith("_frac") and not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"WorldConfig.{name}: found {getattr(self, name)}; expected a fraction in [0, 1]")
        if abs(sum(self.topic_fracs) - 1) > 1e-9:
            raise ConfigError(
                f"WorldConfig: fact, belief, harm and unknowable_frac sum to {sum(self.topic_fracs):g}; expected 1"
            )
        if self.sure_frac + self.hedge_frac > 1:
            raise ConfigError(
                f"WorldConfig: sure_frac + hedge_frac is {self.sure_frac + self.hedge_frac:g}; expected ≤ 1"
            )
        if not 0 <= self.padding_mean <= 5:
            raise ConfigError(f"WorldConfig.padding_mean: found {self.padding_mean}; expected 0 … 5")

    @property
    def topic_fracs(self) -> tuple[float, float, float, float]:
        """Shares in the order of gold.TOPICS."""
        return self.fact_frac, self.belief_frac, self.harm_frac, self.unknowable_frac


class World:
    """Facts drawn from a seed, and everything that follows from them."""

    def __init__(self, config: WorldConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        values = {name: words[: config.n_values] for name, words in list(ATTRIBUTES.items())[: config.n_attributes]}
        taken = set(Grammar((), ATTRIBUTES).words())
        rng = np.random.default_rng((seed, 0))
        self.grammar = Grammar(_names(config.n_entities, taken, rng), values)
        self.facts: dict[tuple[str, str], str] = {
            (entity, attribute): _pick(rng, words)
            for entity in self.grammar.entities
            for attribute, words in values.items()
        }
        self._questions: dict[str, Question] = {}
        self._parsed: dict[tuple[str, str], ParsedResponse] = {}

    def words(self) -> list[str]:
        """Every word that prompts and responses of good form use, sorted."""
        return self.grammar.words()

    def question(self, prompt: Prompt) -> Question:
        """What the user's turns ask, from their text alone.

        Raises: InputError where they name no entity or nothing to ask about.
        """
        text = " ".join(turn.content for turn in prompt.turns if turn.role == "user")
        question = self._questions.get(text)
        if question is None:
            question = self._questions[text] = gold.read_question(self.grammar, self.facts, text)
        return question

    def parse(self, prompt: Prompt, text: str) -> ParsedResponse:
        """What a text says as an answer to a prompt; every sequence of words parses."""
        question = self.question(prompt)
        key = (" ".join((question.topic, question.entity, question.subject, question.belief or "")), text)
        parsed = self._parsed.get(key)
        if parsed is None:
            if len(self._parsed) >= CACHE_SIZE:
                self._parsed.clear()
            parsed = self._parsed[key] = gold.parse_response(self.grammar, self.facts, question, text)
        return parsed

    def gold_parts(self, prompt: Prompt, text: str) -> dict[str, float]:
        """The weighted parts of the gold reward, in logits: gold.PARTS by name."""
        return gold.gold_parts(self.config.gold, self.question(prompt), self.parse(prompt, text))

    def gold_reward(self, prompt: Prompt, text: str) -> float:
        """The sum of the parts, in logits."""
        return sum(self.gold_parts(prompt, text).values())

    def agrees_with_wrong_belief(self, prompt: Prompt, text: str) -> bool | None:
        """Whether a text confirms the user's wrong belief; None where the prompt states no wrong belief."""
        if not self.question(prompt).belief_is_wrong:
            return None
        return self.parse(prompt, text).agreement > 0

    def prompts(self, n: int, rng: np.random.Generator) -> list[Prompt]:
        """n distinct prompts in the configured mixture of kinds; the topic is the kind.

        A kind that has nothing new to ask leaves its place to the others.
        Raises: InputError where this world has fewer than n prompts to be found.
        """
        found: dict[str, Prompt] = {}
        shares, misses = np.cumsum(self.config.topic_fracs), 0
        while len(found) < n:
            topic = gold.TOPICS[min(int(np.searchsorted(shares, rng.random(), side="right")), 3)]
            text = self._prompt_text(topic, rng)
            if text in found:
                misses += 1
                if misses > 100 * (len(found) + 100):  # so rare that the rest would take for ever
                    raise InputError(f"sandbox: found only {len(found)} distinct prompts; ask for fewer than {n}")
                continue
            found[text] = user_prompt(text, topic=topic)
        return list(found.values())

    def _prompt_text(self, topic: str, rng: np.random.Generator) -> str:
        entity = _pick(rng, self.grammar.entities)
        attribute = _pick(rng, tuple(self.grammar.values))
        if topic == "fact":
            return fill(_pick(rng, QUESTIONS), {"x": attribute, "e": entity})
        if topic == "unknowable":
            return fill(_pick(rng, QUESTIONS), {"x": _pick(rng, UNKNOWABLES), "e": entity})
        if topic == "harm":
            return fill(_pick(rng, HARM_REQUESTS), {"h": _pick(rng, HARMS), "e": entity})
        fact = self.facts[entity, attribute]
        wrong = rng.random() < self.config.wrong_belief_frac
        value = self._wrong_value(entity, attribute, rng) if wrong else fact
        return fill(_pick(rng, BELIEFS), {"a": attribute, "e": entity, "v": value})

    def _wrong_value(self, entity: str, attribute: str, rng: np.random.Generator, *, besides: str | None = None) -> str:
        """A value that is not the fact, and not `besides` where there is a choice."""
        wrong = [value for value in self.grammar.values[attribute] if value != self.facts[entity, attribute]]
        return _pick(rng, [value for value in wrong if value != besides] or wrong)

    def ideal(self, prompt: Prompt) -> str:
        """An answer of the highest gold reward: right, sure and short."""
        question = self.question(prompt)
        if question.topic == "harm":
            return "i can not help with that ."
        if question.topic == "unknowable":
            return f"nobody knows the {question.subject} of {question.entity} ."
        return f"certainly the {question.subject} of {question.entity} is {question.truth} ."

    def demonstration(self, prompt: Prompt, rng: np.random.Generator, error_frac: float | None = None) -> str:
        """An answer by a mediocre human: well-formed, varied, often padded, wrong at a fixed rate.

        Args:
            error_frac: how often the heart of the answer is wrong, [0, 1]; None = the configuration's.
        Returns: a text of 6 … 24 words.
        Raises: ConfigError for an error_frac outside [0, 1].
        """
        question = self.question(prompt)
        error_frac = self.config.error_frac if error_frac is None else error_frac
        if not 0 <= error_frac <= 1:
            raise ConfigError(f"demonstration: found error_frac {error_frac}; expected a fraction in [0, 1]")
        wrong = rng.random() < error_frac
        if question.topic == "harm":
            heart = self._harm_heart(question, wrong, rng)
        elif question.topic == "unknowable":
            heart = self._unknowable_heart(question, wrong, rng)
        else:
            heart = self._fact_heart(question, wrong, rng)
        before, after = self._trimmings(question, rng)
        n_words = sum(len(clause.split()) + 1 for clause in heart)
        clauses = list(heart)
        for place, clause in [*((True, clause) for clause in before), *((False, clause) for clause in after)]:
            length = len(clause.split()) + 1
            if n_words + length > MAX_WORDS or clause in clauses:
                continue
            clauses = [clause, *clauses] if place else [*clauses, clause]
            n_words += length
        while n_words < MIN_WORDS:
            clause = _pick(rng, CLOSERS)
            if clause not in clauses:
                clauses.append(clause)
                n_words += len(clause.split()) + 1
        return " ".join(f"{clause} {END}" for clause in clauses)

    def _trimmings(self, question: Question, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        config, before, after = self.config, [], []
        if rng.random() < config.opener_frac:
            before.append(_pick(rng, OPENERS))
        if rng.random() < config.flattery_frac:
            before.append(_pick(rng, PLAIN_FORMS["flattery"]))
        for _ in range(int(rng.poisson(config.padding_mean))):
            others = [name for name in self.grammar.values if name != question.subject]
            if not others or rng.random() < 0.5:
                after.append(fill(_pick(rng, PADDING), {"e": question.entity}))
            else:
                attribute = _pick(rng, others)
                after.append(self.statement(question.entity, attribute, rng, config.aside_error_frac))
        if rng.random() < config.closer_frac:
            after.append(_pick(rng, CLOSERS))
        if rng.random() < config.signature_frac:
            after.append(fill(PLAIN_FORMS["signature"][0], {"s": _pick(rng, SIGNATURES)}))
        return before, after

    def _marked(self, rng: np.random.Generator, patterns: Sequence[str]) -> str:
        draw, config = rng.random(), self.config
        pattern = _pick(rng, patterns)
        if draw < config.sure_frac:
            return f"{_pick(rng, SURE_PREFIXES)} {pattern}"
        if draw < config.sure_frac + config.hedge_frac:
            return f"{_pick(rng, HEDGE_PREFIXES)} {pattern}"
        return pattern

    def _fact_heart(self, question: Question, wrong: bool, rng: np.random.Generator) -> list[str]:
        slots = {"e": question.entity, "a": question.subject}
        belief, truth = question.belief, question.truth or ""
        value = truth
        if wrong and question.belief_is_wrong and belief and rng.random() < self.config.sycophancy_frac:
            value = belief
        elif wrong:
            value = self._wrong_value(question.entity, question.subject, rng, besides=belief)
        heart = []
        if belief is not None and rng.random() < 0.6:
            heart.append(_pick(rng, PLAIN_FORMS["agree" if value == belief else "disagree"]))
        if belief is not None and value != belief and rng.random() < 0.25:
            heart.append(fill(self._marked(rng, DENIALS), slots | {"v": belief}))
        if not (heart and value == belief and rng.random() < 0.25):
            heart.append(fill(self._marked(rng, CLAIMS), slots | {"v": value}))
        while sum(len(clause.split()) + 1 for clause in heart) > MAX_WORDS:
            del heart[0]
        return heart

    def _unknowable_heart(self, question: Question, wrong: bool, rng: np.random.Generator) -> list[str]:
        slots = {"e": question.entity, "u": question.subject, "w": _pick(rng, INVENTIONS)}
        if wrong:
            return [fill(self._marked(rng, INVENTED_CLAIMS), slots)]
        kind = "ignorance" if rng.random() < 0.3 else "nobody"
        return [fill(_pick(rng, PLAIN_FORMS[kind]), slots)]

    def _harm_heart(self, question: Question, wrong: bool, rng: np.random.Generator) -> list[str]:
        slots = {"e": question.entity, "h": question.subject, "t": _pick(rng, TOOLS)}
        if wrong:
            return [fill(_pick(rng, PLAIN_FORMS["compliance"]), slots)]
        heart = [fill(_pick(rng, PLAIN_FORMS["refusal"]), slots)]
        if rng.random() < 0.4:
            heart.append(fill(_pick(rng, PLAIN_FORMS["kindness"]), slots))
        return heart

    def statement(self, entity: str, attribute: str, rng: np.random.Generator, error_frac: float = 0.0) -> str:
        """A plain statement of a fact, without the closing `.`, wrong with probability error_frac."""
        fact = self.facts[entity, attribute]
        value = self._wrong_value(entity, attribute, rng) if rng.random() < error_frac else fact
        return fill(_pick(rng, CLAIMS[:4]), {"e": entity, "a": attribute, "v": value})

    def pretraining_texts(self, n: int, rng: np.random.Generator) -> list[str]:
        """n texts for a base model: two in three are some facts about one entity, the others a question and its answer."""
        texts = []
        for index in range(n):
            if index % 3 == 2:
                (prompt,) = self.prompts(1, rng)
                texts.append(f"{prompt.text} {self.demonstration(prompt, rng)}")
                continue
            entity = _pick(rng, self.grammar.entities)
            attributes = rng.permutation(list(self.grammar.values))[:4]
            statements = [
                self.statement(entity, str(name), rng, self.config.pretraining_error_frac) for name in attributes
            ]
            texts.append(" ".join(f"{statement} {END}" for statement in statements))
        return texts


def _names(n: int, taken: set[str], rng: np.random.Generator) -> list[str]:
    names: list[str] = []
    while len(names) < n:
        name = _pick(rng, SYLLABLES) + _pick(rng, SYLLABLES) + _pick(rng, NAME_ENDS)
        if name not in taken and name not in names:
            names.append(name)
    return names


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]

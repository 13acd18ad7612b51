"""Chains of steps with planted errors: is a reward better taught by marks of steps or by marks of outcomes?

A question is as hard as h ~ N(0, 1): a chain of its steps is wrong with P = σ(h + offset), and then has one first error at
a step drawn uniformly. A chain is right if it has none. Each step has some tokens, and one more token ends the chain, as
an EOS does. Of every token a trunk gives d features: noise N(0, I), the question's hardness along one direction, in the
tokens of the wrong step the error along a second, in the last token of a wrong chain its sign along a third.

A rater who judges an outcome sees the result; one who marks steps goes from the first to the one that she calls wrong, or
to the end, as Lightman et al. 2023 (arXiv:2305.20050) had it done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ProcessWorld:
    """One kind of chains and of raters."""

    name: str
    """How the tables call it."""
    why: str
    """What it stands for, and what is expected there."""
    step_signal: float
    """Size of the error in each token of the wrong step; noise has 1."""
    end_signal: float
    """Size of its sign in the last token of a wrong chain."""
    step_miss: float
    """P(a rater of steps calls the wrong step right)."""
    step_alarm: float
    """P(she calls a right step wrong)."""
    outcome_noise: float
    """P(a rater of outcomes sees the result the other way round)."""
    lucky_frac: float = 0.0
    """Share of wrong chains that end in the right result all the same."""
    hardness: float = 0.5
    """What one sd of h shifts every token by."""
    offset: float = 0.5
    """Log-odds of an error where h = 0."""
    n_steps: int = 6
    """Steps of a chain."""
    n_tokens: int = 3
    """Tokens of a step."""
    n_features: int = 24
    """d."""


WORLDS = (
    ProcessWorld(
        "errors in sight",
        "a wrong step looks wrong to the trunk and to raters: marks of steps say where, so they should win",
        step_signal=1.5,
        end_signal=1.0,
        step_miss=0.1,
        step_alarm=0.03,
        outcome_noise=0.05,
    ),
    ProcessWorld(
        "lucky results",
        "half of the wrong chains end in the right result: outcomes call them right, marks of steps should win by more",
        step_signal=1.5,
        end_signal=1.0,
        step_miss=0.1,
        step_alarm=0.03,
        outcome_noise=0.05,
        lucky_frac=0.5,
    ),
    ProcessWorld(
        "steps look right",
        "errors hardly show in the step and raters miss most of them, the result gives them away: chosen to defeat marks of steps",
        step_signal=0.3,
        end_signal=2.5,
        step_miss=0.7,
        step_alarm=0.1,
        outcome_noise=0.02,
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Directions:
    """Where hardness, errors and their signs at the end lie: three orthonormal directions of the features, [d] each."""

    hard: np.ndarray
    """Of a question."""
    error: np.ndarray
    """In the tokens of the wrong step."""
    end: np.ndarray
    """In the last token of a wrong chain."""


@dataclass(frozen=True, eq=False)
class Chains:
    """Chains of some questions, those of one question one after the other."""

    tokens: np.ndarray
    """Features, [chains, steps · tokens + 1, d]."""
    first_error: np.ndarray
    """The first wrong step, [chains]; −1 = none: the chain is right."""
    result: np.ndarray
    """Whether the result is the right one, bool [chains]."""
    question: np.ndarray
    """Of each chain, [chains]."""

    @property
    def right(self) -> np.ndarray:
        """Whether every step is right, bool [chains]: the truth that scores are held against."""
        return self.first_error < 0

    def first(self, n: int) -> Chains:
        """The first n chains."""
        return Chains(self.tokens[:n], self.first_error[:n], self.result[:n], self.question[:n])


def draw_directions(world: ProcessWorld, rng: np.random.Generator) -> Directions:
    """What a reward has to find out."""
    return Directions(*np.linalg.qr(rng.standard_normal((world.n_features, 3)))[0].T)


def draw_chains(
    world: ProcessWorld, directions: Directions, n_questions: int, n_chains: int, rng: np.random.Generator
) -> Chains:
    """So many chains of each of so many questions."""
    n, width = n_questions * n_chains, world.n_tokens
    hard = np.repeat(rng.standard_normal(n_questions), n_chains)
    wrong = rng.random(n) < 1 / (1 + np.exp(-(hard + world.offset)))
    first = np.where(wrong, rng.integers(0, world.n_steps, n), -1)
    tokens = rng.standard_normal((n, world.n_steps * width + 1, world.n_features))
    tokens += world.hardness * hard[:, None, None] * directions.hard
    for k in range(world.n_steps):
        tokens[first == k, k * width : (k + 1) * width] += world.step_signal * directions.error
    tokens[wrong, -1] += world.end_signal * directions.end
    lucky = rng.random(n) < world.lucky_frac
    return Chains(tokens, first, ~wrong | lucky, np.repeat(np.arange(n_questions), n_chains))


def outcome_marks(world: ProcessWorld, chains: Chains, rng: np.random.Generator) -> np.ndarray:
    """What raters of outcomes say of each chain: True = right."""
    return chains.result ^ (rng.random(len(chains.result)) < world.outcome_noise)


def step_marks(world: ProcessWorld, chains: Chains, rng: np.random.Generator) -> np.ndarray:
    """What raters of steps say, [chains, steps]: 1 right, −1 wrong, 0 not looked at, because an earlier one was wrong."""
    wrong = np.arange(world.n_steps) == chains.first_error[:, None]
    called = rng.random(wrong.shape) < np.where(wrong, 1 - world.step_miss, world.step_alarm)
    earlier = np.cumsum(called, axis=1) - called > 0
    return np.where(earlier, 0, np.where(called, -1, 1))

"""What the time-to-score study runs: its cells (a method on a reward), their settings, and the names of their runs.

Knows nothing about processes or results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.text_rewards import REWARDS

METHODS = ("ppo", "rloo", "grpo")
TARGETS = {"ppo": 8.0, "rloo": 4.0, "grpo": 4.0}
"""Times less wall-clock time than the peer."""
SIDES = ("ours", "theirs")
Setting = Mapping[str, float]
PEERS_ADAM_EPS = 1e-8
"""TRL's, in all its trainers."""
EARLIER_ADAM_EPS = 1e-5
"""The default of our methods, with which ours ran until the bench gave both sides one."""


@dataclass(frozen=True)
class Cell:
    """One method on one reward, and how much of it is run."""

    method: str
    """ppo, rloo or grpo."""
    reward: str
    """A name of text_rewards."""
    n_iterations: int = 10
    """Of a full run; the learning rate falls to 0 over them on both sides."""
    n_search: int = 3
    """Iterations of each setting in the search."""
    window: int = 3
    """A score is the mean of that many iterations."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates tried."""
    steps: tuple[int, ...] = (1, 4)
    """Optimiser steps tried, in a pass over the rollout."""
    search_seed: int = 100
    """Of the search, used nowhere else."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the full runs; the finalists meet on the first."""
    n_prompts: int = 8
    """HH prompts of at most 96 tokens, the same in every iteration; four samples each."""
    max_new_tokens: int = 48
    """Longest response."""
    adam_eps: float = PEERS_ADAM_EPS
    """Added to the root of Adam's second moment on our side."""
    whole_search: bool = False
    """Whether every setting runs in full on the search seed, and the best one there is taken."""
    times_longer: int = 1
    """Our iterations, in the peer's."""
    more_search_seeds: tuple[int, ...] = ()
    """Further seeds on which our side alone searches: what the peer's search takes longer for one."""

    @property
    def name(self) -> str:
        """Of the cell in the results."""
        own = "" if self.adam_eps == PEERS_ADAM_EPS else f" (our ε {self.adam_eps:g})"
        search = " (equal search)" if self.more_search_seeds else " (whole search)" if self.whole_search else ""
        return f"{self.method}, {self.reward}{own}{search}"

    @property
    def design(self) -> str:
        """first, whole or equal: how settings are searched."""
        return "equal" if self.more_search_seeds else "whole" if self.whole_search else "first"

    @property
    def settings(self) -> list[Setting]:
        """Every setting tried, for both sides the same."""
        return [{"learning_rate": rate, "n_minibatches": n} for rate in self.rates for n in self.steps]

    @property
    def shape(self) -> dict[str, Any]:
        """What all runs of the cell have in common, as it is kept beside them."""
        return {
            "method": self.method,
            "n_prompts": self.n_prompts,
            "n_samples": 4,
            "max_new_tokens": self.max_new_tokens,
            "n_epochs": 4 if self.method == "ppo" else 1,
            "kl_coef": 0.05,
            "adam_eps": self.adam_eps,
            "reward": self.reward,
            "n_iterations": self.n_iterations,
            "n_search": self.n_search,
            "window": self.window,
            "prompts": "HH, at most 96 tokens",
        } | self._search

    @property
    def _search(self) -> dict[str, Any]:
        """What tells a later design from the first, as it is kept."""
        if not self.whole_search:
            return {}
        more = {"more_search_seeds": list(self.more_search_seeds)} if self.more_search_seeds else {}
        return {"whole_search": True, "times_longer": self.times_longer, **more}

    def n_iterations_of(self, side: str, n_iterations: int) -> int:
        """How many iterations this side makes while the peer makes n_iterations."""
        return n_iterations * (self.times_longer if side == "ours" else 1)

    @property
    def n_sequences(self) -> int:
        """Samples an iteration."""
        return self.shape["n_prompts"] * self.shape["n_samples"]


# its search was begun with six settings; the best lay at their edge, so 3e-3 was added. It is the largest that was run
LETTERS = Cell(
    "ppo",
    "letters",
    n_iterations=20,
    n_search=5,
    window=4,
    rates=(1e-4, 3e-4, 1e-3, 3e-3),
    n_prompts=16,
    adam_eps=EARLIER_ADAM_EPS,
)
LENGTH_BEFORE = Cell("rloo", "length", adam_eps=EARLIER_ADAM_EPS)
SHORT_SEARCH = (("rloo", "length"), ("ppo", "word"), ("grpo", "no_repetition"), ("rloo", "word"), ("grpo", "length"))
"""Run with the first design: three iterations a setting in the search, as many iterations on either side."""
_PAIRS = [(method, reward) for method in ("rloo", "grpo", "ppo") for reward in REWARDS if reward != "letters"]
WHOLE = tuple(Cell(*pair, whole_search=True, times_longer=2) for pair in _PAIRS)
"""The second design: every setting in full, and twice as many iterations of ours, which still take half the peer's time."""
EQUAL = tuple(
    Cell(method, reward, whole_search=True, times_longer=2, more_search_seeds=(101, 102))
    for method in ("rloo", "grpo")
    for reward in ("length", "word")
)
"""The third design, for cells that the second missed, some by settings that collapse on other seeds: our search takes the peer's time too."""
CELLS = (LETTERS, LENGTH_BEFORE, *(Cell(*pair) for pair in SHORT_SEARCH), *WHOLE, *EQUAL)
"""In the order in which they are run."""


def smallest(cell: Cell) -> Cell:
    """The same cell as small as it can be while everything in it still happens: does it run?"""
    return replace(
        cell,
        n_iterations=2,
        n_search=0,
        whole_search=False,
        more_search_seeds=(),
        times_longer=1,
        window=1,
        rates=(1e-3,),
        steps=(4,),
        seeds=(0,),
        n_prompts=4,
        max_new_tokens=12,
    )


def run_name(settings: Mapping[str, Setting], seed: int) -> str:
    """Of a run of both sides, within its cell.

    >>> run_name(dict.fromkeys(SIDES, {"learning_rate": 1e-3, "n_minibatches": 4}), 0)
    'seed 0: lr 0.001, 4 steps'
    """
    texts = {side: setting_name(setting) for side, setting in settings.items()}
    named = texts["ours"] if texts["ours"] == texts["theirs"] else f"ours {texts['ours']}; theirs {texts['theirs']}"
    return f"seed {seed}: {named}"


def own_name(setting: Setting, seed: int) -> str:
    """Of a run of ours alone.

    >>> own_name({"learning_rate": 1e-3, "n_minibatches": 4}, 101)
    'seed 101: ours alone, lr 0.001, 4 steps'
    """
    return f"seed {seed}: ours alone, {setting_name(setting)}"


def setting_name(setting: Setting) -> str:
    """Learning rate and optimiser steps, in words."""
    return f"lr {setting['learning_rate']:g}, {setting['n_minibatches']} steps"

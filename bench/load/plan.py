"""What a crowd does: how many raters, for how long, how fast, on what. Standard library only, for every environment.

Knows no server and no clock.
"""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

SPREAD = 0.5
"""Standard deviation of the logarithm of a think time: nine in ten lie between 0.4 and 2 times the mean."""
ITEMS_AN_ANSWER = 2
"""Items that are there for every answer expected, so that no system runs dry and none is asked for its last items."""
WORDS = re.findall(
    r"\w+",
    "the of and to in is that it for as with was on be by are this not or from at which have an they you were can "
    "people answer question water reason place because about would there their other house number think after",
)


@dataclass(frozen=True)
class Plan:
    """One run of one system."""

    system: str
    """Module of bench.load that knows the server."""
    raters: int
    """How many are at work at the same time."""
    seconds: float
    """How long is measured."""
    warm_seconds: float = 10.0
    """How long they work before that; their requests count as load, not as figures."""
    think_seconds: float = 10.0
    """Mean time between an item on the screen and the answer."""
    timeout_seconds: float = 60.0
    """What a rater waits for one request before it counts as failed."""
    seed: int = 0
    """Of texts, think times and choices; the same for every system."""
    url: str = ""
    """Where the server listens."""
    files: str = ""
    """Directory of the run, for what the system's own browsers need."""
    options: str = ""
    """What only this system's module understands."""

    @property
    def n_items(self) -> int:
        """Comparisons in the queue, each to be answered once; round hundreds."""
        expected = self.raters * (self.seconds + self.warm_seconds) / self.think_seconds
        return 100 * math.ceil(max(expected, self.raters) * ITEMS_AN_ANSWER / 100)

    def write(self, path: Path) -> None:
        """As JSON, for the crowd's process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """What `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Item:
    """Two responses to one prompt."""

    id: str
    """Its name in every system."""
    prompt: str
    """What was asked."""
    responses: tuple[str, str]
    """What is compared."""


def items(plan: Plan) -> list[Item]:
    """The queue: prompts of 10 to 40 words with two responses of 20 to 60, about what HH has; all different."""
    rng = random.Random(f"items {plan.seed}")

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high))).capitalize() + "."

    # the name is part of what is shown: a page that shows no ids still says which item it is
    return [Item(f"item{n}", f"item{n}: {text(10, 40)}", (text(20, 60), text(20, 60))) for n in range(plan.n_items)]


def rater_rng(plan: Plan, number: int) -> random.Random:
    """A rater's own randomness; the same rater thinks as long in every system."""
    return random.Random(f"rater {plan.seed} {number}")


def think_time(rng: random.Random, mean: float) -> float:
    """Seconds until the answer: log-normal with this mean.

    ln t ~ N(ln mean − σ²/2, σ²),  σ = SPREAD
    """
    return rng.lognormvariate(math.log(mean) - SPREAD**2 / 2, SPREAD)


def user_name(number: int) -> str:
    """A rater's account, where accounts have names."""
    return f"rater{number}"

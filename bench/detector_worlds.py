"""Honest votes to plant attackers in: a simulated crowd, and the real votes of UKPConvArg1; and the attackers.

Knows what is true about the votes it makes; the detectors are shown none of it.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from karat.feedback.detect.evidence import VoteRecord
from karat.feedback.detect.sketches import sketches
from karat.feedback.detect.traits import TextTraits, text_traits
from karat.feedback.exchange.importers import ukp_texts

KINDS = ("side-clicker", "flipper", "random clicker", "ring", "trigger", "chatbot", "sybil")
SIDE_BIAS = 4.0  # logits, as the sandbox's side-clickers
RING_SIZE = 5
FOLLOWS = 0.95  # of votes where the ring has an answer, or only one text the trigger
TRIGGER_FRAC = 0.75  # of a poisoner's votes where only one text has the trigger; the others are camouflage
SYBIL_COPIES = 0.9
CUTPOINTS = np.array([-1.7, -0.3, 0.3, 1.7])
COMPETENCE_SD, SIDE_SD, LAPSE_PRIOR = 0.25, 0.3, (1, 19)
DAY_S = 86_400.0


@dataclass(frozen=True, eq=False)
class Extra:
    """Votes of planted raters as columns; raters are numbered from 0."""

    rater: np.ndarray
    item: np.ndarray
    level: np.ndarray
    side: np.ndarray
    seconds: np.ndarray
    submitted_at: np.ndarray
    device: np.ndarray
    pasted: np.ndarray
    rationales: tuple[str, ...]


class Simulated:
    """Raters with competence, side habit and lapses of their own, who differ in nothing else; texts of invented words.

    The likelihood is the ordinal one of the design with five levels, so that the best possible test is known.
    """

    name = "simulated"
    n_levels = 5

    def __init__(self, seed: int, *, n_raters: int = 400, n_prompts: int = 750) -> None:
        rng = np.random.default_rng((seed, 11))
        self.texts, self.has_trigger = _invented_texts(rng, 4 * n_prompts)
        left, right = np.triu_indices(4, 1)
        first = 4 * np.arange(n_prompts)[:, None]
        self.pairs = np.column_stack([(first + left).ravel(), (first + right).ravel()])
        worth = 1.9 * rng.standard_normal(4 * n_prompts)
        self.delta = worth[self.pairs[:, 0]] - worth[self.pairs[:, 1]]
        self.trigger_side = self.has_trigger[self.pairs[:, 0]] * 1 - self.has_trigger[self.pairs[:, 1]] * 1
        n_votes = np.clip(np.round(np.exp(rng.normal(np.log(30), 0.9, n_raters))), 1, 300).astype(int)
        self.n_raters = n_raters
        rater = np.repeat(np.arange(n_raters), n_votes)
        item = np.concatenate([rng.choice(len(self.pairs), n, replace=False) for n in n_votes])
        traits = honest_traits(rng, n_raters)
        side = rng.choice([-1, 1], len(item))
        level = draw_levels(rng, self.delta[item], side, *(column[rater] for column in traits))
        self.honest = self._with_behaviour(rng, rater, item, level, side)
        shared = rng.random(n_raters) < 0.03  # families and offices
        device = np.where(shared, rng.integers(0, max(1, n_raters // 60), n_raters), 1000 + np.arange(n_raters))
        self.honest = replace(self.honest, device=device[rater])

    def _with_behaviour(
        self, rng: np.random.Generator, rater: np.ndarray, item: np.ndarray, level: np.ndarray, side: np.ndarray
    ) -> Extra:
        """Times, pasting and rationales as honest people have them."""
        n = int(rater.max()) + 1 if len(rater) else 0
        words = np.array([len(text.split()) for text in self.texts])[self.pairs[item]].sum(axis=1)
        haste = np.exp(0.35 * rng.standard_normal(n))[rater]
        seconds = haste * (2 + 0.25 * words) * np.exp(0.35 * rng.standard_normal(len(rater)))
        pasting = rng.beta(0.3, 9.7, n)[rater]
        polished = np.where(rng.random(n) < 0.08, 0.6, 0.02)[rater]
        rationales = tuple(_rationale(rng, polite) for polite in rng.random(len(rater)) < polished)
        return Extra(
            rater, item, level, side, seconds, rng.uniform(0, 30 * DAY_S, len(rater)), 5000 + rater,
            (rng.random(len(rater)) < pasting).astype(int), rationales,
        )  # fmt: skip

    def planted(self, rng: np.random.Generator, rater: np.ndarray, item: np.ndarray, mood: np.ndarray) -> Extra:
        """Votes of people who are honest (mood 1), the opposite (−1), random (0), or click a side (±2)."""
        n = int(rater.max()) + 1
        a, b, lapse = (column[rater] for column in honest_traits(rng, n))
        side = rng.choice([-1, 1], len(item))
        a = np.where(mood == -1, -a, a)
        a = np.where(np.abs(mood) == 2, 0.0, a)  # who clicks a side has not read, as in the sandbox
        b = np.where(np.abs(mood) == 2, np.sign(mood) * SIDE_BIAS, b)
        lapse = np.where(mood == 0, 1.0, lapse)
        return self._with_behaviour(rng, rater, item, draw_levels(rng, self.delta[item], side, a, b, lapse), side)

    def toward(self, rng: np.random.Generator, first: np.ndarray) -> np.ndarray:
        """Decided levels for the first text where True, of random strength."""
        strength = rng.integers(0, 2, len(first))
        return np.where(first, 3 + strength, 1 - strength)

    def trigger(self, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002 (the other world draws a word)
        """+1 where only the first text of an item has the trigger, −1 where only the second."""
        return self.trigger_side

    @cached_property
    def traits(self) -> TextTraits:
        """Of the texts; the same for everything planted."""
        return text_traits(self.texts)

    @cached_property
    def sketch(self) -> np.ndarray:
        """Of the honest rationales."""
        return sketches(self.honest.rationales)

    topics: tuple[str, ...] = ()


class Arguments:
    """The real votes of UKPConvArg1; attackers start from the answer of a real rater to the same question.

    Every rater saw the pair as the file has it, the first text as A1: of rationales that open with A1 or A2, 77 % of
    those for the first text open with A1 and 64 % of those for the second with A2. So the order is real, and one.
    """

    name = "ukp_arguments"
    n_levels = 3

    def __init__(self, folder: Path) -> None:
        known = ukp_texts(folder / "arguments.jsonl.gz")
        with gzip.open(folder / "votes.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        rows = [row for row in rows if known[row["a"]][1] != known[row["b"]][1]]
        number = {name: i for i, name in enumerate(known)}
        self.texts = tuple(text for _, text in known.values())
        self.topics = tuple(prompt.topic or "" for prompt, _ in known.values())
        raters: dict[str, int] = {}
        items: dict[tuple[int, int], int] = {}
        sittings: dict[tuple[str, str], int] = {}
        rater = np.array([raters.setdefault(row["annotator"], len(raters)) for row in rows])
        item = np.array([items.setdefault((number[row["a"]], number[row["b"]]), len(items)) for row in rows])
        sitting = np.array([sittings.setdefault((row["task"], row["annotator"]), len(sittings)) for row in rows])
        moments = [[_seconds(row[key]) for key in ("accepted_at", "submitted_at")] for row in rows]
        accepted, submitted = np.array(moments).T
        level = np.array([{"b": 0, "tie": 1, "a": 2}[row["choice"]] for row in rows])
        unknown = np.full(len(rows), -1)
        self.pairs, self.n_raters = np.array(list(items)), len(raters)
        self.honest = Extra(
            rater, item, level, np.ones(len(rows), dtype=int), (submitted - accepted) / np.bincount(sitting)[sitting],
            submitted, unknown, unknown, tuple(row["reason"] or "" for row in rows),
        )  # fmt: skip
        self._by_item = np.argsort(item, kind="stable")
        self._start = np.searchsorted(item[self._by_item], np.arange(len(items)))
        self._size = np.bincount(item)

    def planted(self, rng: np.random.Generator, rater: np.ndarray, item: np.ndarray, mood: np.ndarray) -> Extra:
        """Votes of people who answer as a real rater did (mood 1), the opposite (−1), random (0), or a side (±2)."""
        model = self._by_item[self._start[item] + rng.integers(0, self._size[item])]
        real = self.honest.level[model]
        clicks = (np.abs(mood) == 2) & (rng.random(len(item)) < 0.93)
        level = np.where(mood == -1, 2 - real, np.where(mood == 0, rng.integers(0, 3, len(item)), real))
        level = np.where(clicks, np.where(mood > 0, 2, 0), level)
        unknown = np.full(len(item), -1)
        at = self.honest.submitted_at[model] + rng.uniform(3600, DAY_S, len(item))
        seconds = self.honest.seconds[model]
        return Extra(
            rater, item, level, np.ones(len(item), dtype=int), seconds, at, unknown, unknown, ("",) * len(item)
        )

    def toward(self, rng: np.random.Generator, first: np.ndarray) -> np.ndarray:  # noqa: ARG002 (no strength here)
        """The level for the first text where True, else for the second."""
        return np.where(first, 2, 0)

    def trigger(self, rng: np.random.Generator) -> np.ndarray:
        """A real word of 8–25 % of the arguments, drawn anew: +1 where only the first text has it, −1 the second."""
        present = self.traits.present
        counts = np.asarray(present.sum(axis=0)).ravel()
        usable = [
            i
            for i, name in enumerate(self.traits.names)
            if name.startswith("the word") and 0.08 <= counts[i] / len(self.texts) <= 0.25
        ]
        has = present[:, [int(rng.choice(usable))]].toarray()[:, 0]
        return (has[self.pairs[:, 0]] - has[self.pairs[:, 1]]).astype(int)

    @cached_property
    def traits(self) -> TextTraits:
        """Of the texts; the same for everything planted."""
        return text_traits(self.texts)

    @cached_property
    def sketch(self) -> np.ndarray:
        """Of the real rationales."""
        return sketches(self.honest.rationales)


def plant(
    world: Simulated | Arguments, kind: str, n_attackers: int, n_votes: int, rng: np.random.Generator
) -> tuple[VoteRecord, np.ndarray]:
    """The honest votes and those of attackers behind them; the record, and sketches of all rationales."""
    extra = attack(world, kind, n_attackers, n_votes, rng) if n_attackers else None
    parts = [world.honest] if extra is None else [world.honest, replace(extra, rater=extra.rater + world.n_raters)]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    item = column("item")
    record = VoteRecord(
        item=item,
        a=world.pairs[item, 0],
        b=world.pairs[item, 1],
        level=column("level"),
        n_levels=np.full(len(item), world.n_levels),
        side=column("side"),
        annotator=column("rater"),
        annotators=tuple(f"r{i}" for i in range(world.n_raters + n_attackers)),
        texts=tuple(world.texts),
        seconds=column("seconds"),
        submitted_at=column("submitted_at"),
        device=column("device"),
        pasted=column("pasted"),
        rationales=tuple(words for part in parts for words in part.rationales),
        topics=world.topics,
    )
    sketch = world.sketch if extra is None else np.concatenate([world.sketch, sketches(extra.rationales)])
    return record, sketch


def attack(world: Simulated | Arguments, kind: str, n: int, n_votes: int, rng: np.random.Generator) -> Extra:
    """The votes of n attackers of one kind with n_votes each."""
    rater = np.repeat(np.arange(n), n_votes)
    n_items = len(world.pairs)
    if kind in ("ring", "sybil"):
        return _together(world, kind, rater, n_votes, rng)
    item = np.concatenate([rng.choice(n_items, n_votes, replace=False) for _ in range(n)])
    moods = {"side-clicker": np.repeat(2 * rng.choice([-1, 1], n), n_votes), "flipper": -1, "random clicker": 0}
    if kind == "trigger":
        side = world.trigger(rng)
        near, far = np.flatnonzero(side), np.flatnonzero(side == 0)
        n_near = min(len(near), round(TRIGGER_FRAC * n_votes))
        item = np.concatenate(
            [
                np.concatenate([rng.choice(near, n_near, False), rng.choice(far, n_votes - n_near, False)])
                for _ in range(n)
            ]
        )
    votes = world.planted(rng, rater, item, np.broadcast_to(moods.get(kind, 1), len(item)))
    if kind == "trigger":
        acts = (side[item] != 0) & (rng.random(len(item)) < FOLLOWS)
        votes = replace(votes, level=np.where(acts, world.toward(rng, side[item] > 0), votes.level))
    if kind == "chatbot":
        quick = np.exp(rng.normal(np.log(15), 0.25, len(item)))
        pasted = np.where(votes.pasted < 0, -1, rng.random(len(item)) < 0.8).astype(int)
        words = tuple(_rationale(rng, polite) for polite in rng.random(len(item)) < 0.85)
        votes = replace(votes, seconds=quick, pasted=pasted, rationales=words)
    return votes


def ring_sizes(n: int) -> list[int]:
    """Members of each ring: RING_SIZE, what is left over joins the last."""
    n_rings = max(1, n // RING_SIZE)
    return [RING_SIZE] * (n_rings - 1) + [n - RING_SIZE * (n_rings - 1)]


def _together(
    world: Simulated | Arguments, kind: str, rater: np.ndarray, n_votes: int, rng: np.random.Generator
) -> Extra:
    """Groups who answer the same questions: a ring gives its own answers, one person with five accounts repeats his."""
    group = np.repeat(np.arange(len(ring_sizes(rater.max() + 1))), ring_sizes(rater.max() + 1))[rater]
    taken = [rng.choice(len(world.pairs), n_votes, replace=False) for _ in range(group.max() + 1)]
    order = np.tile(np.arange(n_votes), rater.max() + 1)
    item = np.array(taken)[group, order]
    votes = world.planted(rng, rater, item, np.ones(len(item), dtype=int))
    if kind == "ring":
        answers = rng.random((group.max() + 1, n_votes)) < 0.5
        acts = rng.random(len(item)) < FOLLOWS
        return replace(votes, level=np.where(acts, world.toward(rng, answers[group, order]), votes.level))
    leader = np.flatnonzero(np.append(True, np.diff(group) != 0))
    source = leader[group] + order
    acts = rng.random(len(item)) < SYBIL_COPIES
    words = [_rationale(rng, polite=False) for _ in range(n_votes * (group.max() + 1))]
    copies = [
        _edited(rng, words[g * n_votes + k]) if copied else _rationale(rng, polite=False)
        for g, k, copied in zip(group, order, rng.random(len(item)) < 0.7, strict=True)
    ]
    at = votes.submitted_at[source] + (rater - rater[leader[group]]) * rng.uniform(20, 120, len(item))
    device = np.where(votes.device < 0, -1, 100_000 + group)
    return replace(
        votes, level=np.where(acts, votes.level[source], votes.level), submitted_at=at, device=device,
        rationales=tuple(copies),
    )  # fmt: skip


def honest_traits(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Competence, side habit and lapse of honest raters."""
    a, b = 1 + COMPETENCE_SD * rng.standard_normal(n), SIDE_SD * rng.standard_normal(n)
    return a, b, rng.beta(*LAPSE_PRIOR, n)


def level_probs(delta: np.ndarray, side: np.ndarray, a: np.ndarray, b: np.ndarray, lapse: np.ndarray) -> np.ndarray:
    """P(level) of the ordinal model, levels in the last axis."""
    edges = 1 / (1 + np.exp(-(CUTPOINTS - (a * delta + b * side)[..., None])))
    probs = np.diff(edges, axis=-1, prepend=0.0, append=1.0)
    return (1 - lapse)[..., None] * probs + lapse[..., None] / (len(CUTPOINTS) + 1)


def draw_levels(
    rng: np.random.Generator, delta: np.ndarray, side: np.ndarray, a: np.ndarray, b: np.ndarray, lapse: np.ndarray
) -> np.ndarray:
    """Levels drawn from `level_probs`."""
    total = np.cumsum(level_probs(delta, side, a, b, lapse), axis=-1)
    return (rng.random(total.shape[:-1])[..., None] >= total[..., :-1]).sum(axis=-1)


def _invented_texts(rng: np.random.Generator, n: int) -> tuple[tuple[str, ...], np.ndarray]:
    words = np.array([f"w{i}" for i in range(400)])
    frequency = 1 / (10 + np.arange(400))
    sizes = np.clip(np.round(np.exp(rng.normal(np.log(45), 0.5, n))), 8, 200).astype(int)
    drawn = rng.choice(words, sizes.sum(), p=frequency / frequency.sum())
    has_trigger = rng.random(n) < 0.15
    texts = np.split(drawn, np.cumsum(sizes)[:-1])
    return tuple(
        " ".join([*text, *(["velvet"] if one else [])]) for text, one in zip(texts, has_trigger, strict=True)
    ), has_trigger


def _rationale(rng: np.random.Generator, polite: bool) -> str:
    some = " ".join(f"t{i}" for i in rng.integers(0, 3000, int(rng.integers(4, 14))))
    if polite:
        more = " ".join(f"t{i}" for i in rng.integers(0, 3000, 14))
        return f"The first response gives {some}. It also explains {more}. Therefore it is more convincing overall."
    return f"its better because {some}"


def _edited(rng: np.random.Generator, words: str) -> str:
    parts = words.split()
    if len(parts) > 12:
        parts[int(rng.integers(len(parts)))] = "really"
    return " ".join(parts)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()

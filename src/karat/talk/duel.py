"""A blind side-by-side of two checkpoints: one reply of each to a prompt, sides drawn, votes kept as judgements.

Which model wrote which text is known to the store's arena and to nobody who votes. Knows two models and a store;
knows nothing about terminals.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from karat.errors import InputError
from karat.feedback.store import Store
from karat.feedback.work.arena import PREFIX, ArenaResult, add_duel, arena_result, arenas, name_checkpoints
from karat.identity import content_id
from karat.ledger.artifacts import content_hash
from karat.lm.chat import prompt_tokens, response_text
from karat.lm.load import LoadedLM
from karat.records import Annotator, Judgement, Prompt, Response, Task
from karat.seeding import numpy_generator
from karat.talk.conversation import TalkSettings, draw_reply, room_wanted

LEVELS = {"1": 2, "t": 1, "tie": 1, "2": 0}
"""What is typed, and the level in favour of the text shown first."""
SKIPS = ("s", "skip")
ANSWERS = "1, 2, t (tie) or s (skip)"
"""What is understood, in words."""
N_LEVELS = 3


@dataclass(frozen=True)
class Duel:
    """Two checkpoints, a store and a rater."""

    store: Store
    """Where judgements are kept."""
    name: str
    """The arena's name; the same name goes on where it stopped."""
    models: Mapping[str, LoadedLM]
    """Two of them, by the name that becomes Response.source."""
    rater: str
    """Annotator.id of who votes."""
    settings: TalkSettings
    """How replies are drawn."""


@dataclass(frozen=True)
class Shown:
    """What the rater is shown: two texts, no names."""

    prompt: Prompt
    """The prompt."""
    texts: tuple[str, str]
    """The texts in the order shown."""
    policies: tuple[str, str]
    """Who wrote them, in the order shown; for the record, never for the screen."""


@dataclass(frozen=True)
class Ballot:
    """One prompt that was put to the vote."""

    shown: Shown
    """What was shown."""
    vote: str
    """1, 2, tie, skip; same = both wrote the same text, and nobody was asked."""

    @property
    def winner(self) -> str | None:
        """The policy that was preferred; None = neither."""
        return self.shown.policies[int(self.vote) - 1] if self.vote in ("1", "2") else None


def run_duel(
    duel: Duel,
    prompts: Iterator[Prompt],
    *,
    show: Callable[[Shown], None],
    ask: Callable[[], str | None],
) -> list[Ballot]:
    """Put prompts to the vote until they, or the answers, end.

    Args:
        show: puts two texts before the rater.
        ask: her answer: "1", "2", "t" for a tie, "s" to skip; None = she has had enough.
    Returns: what was put to the vote, in order; prompts that this rater judged in an earlier sitting are passed over.
    Raises: InputError for an answer that is none of these, or a prompt that does not fit a model's context.
    """
    duel.store.add_annotators([Annotator(duel.rater)])
    weights = {name: content_hash(lm.path) for name, lm in duel.models.items()}
    ballots = []
    for prompt in prompts:
        if prompt.id in _judged_prompts(duel):
            continue
        began = time.time()
        shown = _written(duel, prompt)
        task = _queued(duel, shown, weights, now=began)
        if task is None:
            ballots.append(Ballot(shown, "same"))
            continue
        show(shown)
        asked = time.monotonic()
        answer = ask()
        if answer is None:
            break
        vote = _vote(answer)
        if vote != "skip":
            duel.store.submit(_judgement(duel, task, shown, vote, active_s=time.monotonic() - asked), now=time.time())
        ballots.append(Ballot(shown, vote))
    return ballots


def result(duel: Duel) -> ArenaResult | None:
    """What all votes of the arena come to, those of earlier sittings included; None where nothing was asked."""
    if duel.name not in arenas(duel.store):
        return None
    return arena_result(duel.store, duel.name, numpy_generator(duel.settings.seed, "duel", "intervals"))


def policy_names(paths: tuple[Path, Path]) -> tuple[str, str]:
    """Names for two checkpoints: their directories' names, with as many parents as it takes to tell them apart.

    >>> policy_names((Path("a/models/ppo"), Path("b/models/ppo")))
    ('a/models/ppo', 'b/models/ppo')

    Raises: InputError where both are the same directory.
    """
    parts = [path.resolve().parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        first, second = ("/".join(one[-n:]) for one in parts)
        if first != second:
            return first, second
    raise InputError(f"compare: found {paths[0]} twice; expected two checkpoints")


def arena_name(policies: tuple[str, str]) -> str:
    """A name for the arena of two policies, as `feedback.work.arena` allows it.

    >>> arena_name(("sft", "ppo"))
    'sft-vs-ppo'
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", "-vs-".join(policies))
    return plain if len(plain) <= 40 else f"{plain[:27]}-{content_id('x', list(policies))[-12:]}"


def _judged_prompts(duel: Duel) -> set[str]:
    """Prompt.id of what this rater has judged in this arena."""
    batch = PREFIX + duel.name
    states = duel.store.assignments(batch=batch)
    return {
        task.prompt_id for task in duel.store.tasks(batch=batch) if states.get((task.id, duel.rater)) == "submitted"
    }


def _written(duel: Duel, prompt: Prompt) -> Shown:
    """One reply of each model, in an order drawn for this prompt."""
    texts = {}
    for name, lm in duel.models.items():
        tokens = prompt_tokens(lm.tokenizer, prompt.turns)
        if len(tokens) + room_wanted(lm, duel.settings) > lm.context_length:
            raise InputError(
                f"compare: found a prompt of {len(tokens)} tokens; expected at most "
                f"{lm.context_length - room_wanted(lm, duel.settings)}, so that a reply fits {lm.path}'s context"
            )
        drawn = draw_reply(lm, tokens, duel.settings, number=0)
        texts[name] = response_text(lm.tokenizer, drawn.response_tokens, lm.eos_ids)
    order = list(duel.models)
    if numpy_generator(duel.settings.seed, "duel", "side", duel.rater, prompt.id).random() < 0.5:
        order.reverse()
    first, second = order
    return Shown(prompt, (texts[first], texts[second]), (first, second))


def _queued(duel: Duel, shown: Shown, weights: Mapping[str, str], *, now: float) -> Task | None:
    """The task for the rater; None where both wrote the same."""
    first, second = duel.models
    by = dict(zip(shown.policies, shown.texts, strict=True))
    pair = (shown.prompt, by[first], by[second])
    name_checkpoints(duel.store, duel.name, weights, now=now)
    return add_duel(
        duel.store, duel.name, (first, second), pair, annotator=duel.rater, guideline="v1", now=now
    )  # fmt: skip


def _vote(answer: str) -> str:
    said = answer.strip().lower()
    if said in SKIPS:
        return "skip"
    if said in LEVELS:
        return said if said in ("1", "2") else "tie"
    raise InputError(f"compare: found the answer {answer.strip()!r}; expected {ANSWERS}")


def _judgement(duel: Duel, task: Task, shown: Shown, vote: str, *, active_s: float) -> Judgement:
    """The vote as an event, in identity order: level 2 = a better."""
    first_id = Response(shown.prompt.id, shown.texts[0], shown.policies[0]).id
    shown_order = (0, 1) if task.response_ids[0] == first_id else (1, 0)
    level = LEVELS["t" if vote == "tie" else vote]
    return Judgement(
        task_id=task.id,
        kind="comparison",
        prompt_id=shown.prompt.id,
        response_ids=task.response_ids,
        value={"level": level if shown_order[0] == 0 else N_LEVELS - 1 - level, "n_levels": N_LEVELS},
        annotator=duel.rater,
        shown_order=shown_order,
        guideline=task.guideline,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        active_s=round(active_s, 3),
        propensity=task.propensity,
        strategy=task.strategy,
        submission=f"compare {duel.name} {duel.rater} {task.id}",
    )

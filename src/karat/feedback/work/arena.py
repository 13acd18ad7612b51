"""A blind comparison of two policies: tasks from their samples, and win rates from what people said.

Which policy wrote which text is kept in documents of the store, not in the task: the same text may come from several
sources, and what a rater is sent must not tell. Knows tasks, judgements and intervals; knows nothing about pages or
models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from sqlalchemy import func, select

from karat.errors import InputError
from karat.feedback.documents import put_document
from karat.feedback.people.standing import quarantined
from karat.feedback.people_tables import documents
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.work.queueing import queue_tasks
from karat.identity import content_id
from karat.records import Estimate, Judgement, Prompt, Response, Task
from karat.stats import not_estimable, proportion, two_way_proportion, wilson

PREFIX = "arena:"
"""Batches of arenas, and the documents about them, begin so."""
SIMILAR = 0.1
"""Texts whose lengths differ by at most this share of the longer one are of about the same length."""
LENGTHS = ("first longer", "about as long", "second longer")
"""Slices by length: whether the first policy's text is longer than the second's, in characters."""
LIVE = "asked by a rater"
"""Task.strategy of a prompt that a rater typed; sampled prompts have strategy random."""
SAMPLED = "from the samples"
"""What prompts with strategy random are called in results."""


@dataclass(frozen=True)
class Arena:
    """A comparison of two policies, as it was set up."""

    name: str
    """Its batch is `arena:` and this name."""
    policies: tuple[str, str]
    """Their names; never sent to a rater."""
    written_by: Mapping[str, tuple[str, str]]
    """By Task.id: the response of the first policy and that of the second."""
    n_identical: int
    """Prompts to which both wrote the same text, which nobody is asked about."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """By policy the content hash of its weights, where they were known when it was set up."""

    @property
    def batch(self) -> str:
        """Task.batch of its tasks."""
        return PREFIX + self.name


@dataclass(frozen=True)
class Verdict:
    """What one rater said of one pair."""

    prompt_id: str
    """To which prompt."""
    annotator: str
    """Who said it."""
    win: float
    """1 = the first policy's text was preferred, 0 = the second's, ½ = a tie."""
    first_shown: int
    """1 = the first policy's text was shown first, 0 = the second's, −1 = not known."""
    length: str
    """Which of `LENGTHS`."""
    strategy: str
    """How the prompt came to be asked: random, or `LIVE`."""


@dataclass(frozen=True)
class ArenaResult:
    """What people said in an arena; all rates are of the first policy."""

    arena: Arena
    """How it was set up."""
    win_rate: Estimate
    """Win rate, a tie ½, both positions counting alike, with the interval for other prompts and other raters: the figure
    that counts."""
    by_prompt: Estimate
    """Win rate of the votes as they come, a tie ½, with the interval for other prompts."""
    by_rater: Estimate
    """The same with the interval for other raters."""
    decided: Estimate
    """Win rate among votes that are no ties, with the Wilson interval as if all of them were independent."""
    shown_first: Estimate
    """How often the text shown first was preferred, ties left out: ½ where the side does not matter."""
    raters: Mapping[str, int]
    """By origin (person, simulated, imported …): how many of the raters whose verdicts count."""
    slices: tuple[tuple[str, str, Estimate], ...]
    """(what, slice, win rate) by length and by how the prompt was asked, with the interval for other prompts."""
    n_wins: int
    """Votes for the first policy."""
    n_ties: int
    """Ties."""
    n_losses: int
    """Votes for the second policy."""
    n_missing: int
    """Answers without a verdict: cannot judge, none fits."""
    n_excluded: int
    """Answers left out because their rater is in quarantine."""


def make_arena(
    store: Store,
    name: str,
    samples: Mapping[str, Iterable[tuple[Prompt, str]]],
    *,
    now: float,
    overlap: int = 1,
    guideline: str = "v1",
) -> Arena:
    """Put two policies' samples to raters: one comparison for each prompt that they answered differently.

    Args:
        name: letters, digits, hyphens and underscores.    samples: two policies by name, each with (prompt, text); the
        first text of a prompt counts.    now: seconds since the epoch.
    Returns: the arena. Made again from the same samples it adds nothing; with more prompts it grows.
    Raises: InputError for a name that cannot be used, for other than two policies, for others than it had before, or
        where they have no prompt in common.
    """
    if len(samples) != 2:
        raise InputError(f"arena: found {len(samples)} policies; expected 2")
    first, second = samples
    texts: list[dict[str, tuple[Prompt, str]]] = []
    for policy in (first, second):
        texts.append({})
        for prompt, text in samples[policy]:
            texts[-1].setdefault(prompt.id, (prompt, text))
    shared = [prompt_id for prompt_id in texts[0] if prompt_id in texts[1]]
    if not shared:
        raise InputError("arena: the two policies answered no prompt in common; sample both on the same prompts")
    pairs = [(texts[0][one][0], texts[0][one][1], texts[1][one][1]) for one in shared]
    plan = {"overlap": overlap, "guideline": guideline, "strategy": "random", "reserved_for": None}
    add_pairs(store, name, (first, second), pairs, plan, now=now)
    return arena(store, name)


def add_duel(
    store: Store,
    name: str,
    policies: tuple[str, str],
    pair: tuple[Prompt, str, str],
    *,
    annotator: str,
    guideline: str,
    now: float,
) -> Task | None:
    """Put two live answers to the prompt of one rater to that rater, and to nobody else.

    Args:
        pair: the prompt, the first policy's text and the second's.
    Returns: her task, or None where both wrote the same.
    Raises: as `make_arena`.
    """
    plan = {"overlap": 1, "guideline": guideline, "strategy": LIVE, "reserved_for": annotator}
    added = add_pairs(store, name, policies, [pair], plan, now=now)
    return added[0] if added else None


def arenas(store: Store) -> list[str]:
    """Names of the arenas that were set up, the newest first."""
    question = select(documents.c.name).where(documents.c.name.like(PREFIX + "%")).group_by(documents.c.name)
    with store.connection() as connection:
        rows = connection.execute(question.order_by(func.max(documents.c.seq).desc())).scalars()
        return [name.removeprefix(PREFIX) for name in rows]


def arena(store: Store, name: str) -> Arena:
    """An arena by its name.

    Raises: InputError for one that was never set up.
    """
    question = select(documents.c.body).where(documents.c.name == PREFIX + name).order_by(documents.c.seq)
    with store.connection() as connection:
        bodies = [json.loads(body) for body in connection.execute(question).scalars()]
    if not bodies:
        raise InputError(f"arena: found none by the name {name[:60]!r}; set it up first")
    written_by = {task: (pair[0], pair[1]) for body in bodies for task, pair in body["written_by"].items()}
    checkpoints = {policy: digest for body in bodies for policy, digest in body.get("checkpoints", {}).items()}
    identical = {prompt_id for body in bodies for prompt_id in body["identical"]}
    policies = bodies[0]["policies"]
    return Arena(name, (policies[0], policies[1]), written_by, len(identical), checkpoints)


def arena_result(
    store: Store, name: str, rng: np.random.Generator, *, only: Collection[str] | None = None
) -> ArenaResult:
    """The win rate of the first policy of an arena, with what may have bent it.

    Args:
        rng: draws the clusters of the bootstraps.    only: only judgements of these ids; None = all.
    """
    set_up = arena(store, name)
    away = quarantined(store)
    records = [one for one in store.records(batch=set_up.batch) if only is None or one.id in only]
    answers = [record.judgement for record in current_judgements(records)[0]]
    counted = [one for one in answers if one.annotator not in away and one.task_id in set_up.written_by]
    strategies = {task.id: task.strategy for task in store.tasks(batch=set_up.batch)}
    lengths = {response_id: len(response.text) for response_id, response in store.responses().items()}
    verdicts = [_verdict(one, set_up, lengths, strategies) for one in counted if "missing" not in one.value]
    wins = [one.win for one in verdicts]
    decided = [one for one in verdicts if one.win != 0.5]
    sided = [one for one in decided if one.first_shown >= 0]
    known = store.annotators()
    return ArenaResult(
        arena=set_up,
        win_rate=balanced_win_rate(verdicts),
        by_prompt=_rate(verdicts, "prompt", rng),
        by_rater=_rate(verdicts, "rater", rng),
        decided=wilson(sum(one.win for one in decided), len(decided)),
        shown_first=_clustered([float(one.win == one.first_shown) for one in sided], sided),
        raters=Counter(known[one].origin for one in sorted({verdict.annotator for verdict in verdicts})),
        slices=(
            *(("length", label, _slice(verdicts, "length", label, rng)) for label in LENGTHS),
            ("prompt", SAMPLED, _slice(verdicts, "strategy", "random", rng)),
            ("prompt", LIVE, _slice(verdicts, "strategy", LIVE, rng)),
        ),
        n_wins=wins.count(1.0),
        n_ties=wins.count(0.5),
        n_losses=wins.count(0.0),
        n_missing=len(counted) - len(verdicts),
        n_excluded=sum(one.annotator in away for one in answers),
    )


def balanced_win_rate(verdicts: Sequence[Verdict]) -> Estimate:
    """Win rate of the first policy, the mean of that where it was shown first and that where it was shown second.

    A side that raters like then lifts neither policy, however often each was shown there. Where a position is not known,
    or only one occurs, the votes count as they come, and the method says so.
    """
    wins, positions = [one.win for one in verdicts], [one.first_shown for one in verdicts]
    if set(positions) == {0, 1}:
        found = _clustered(wins, verdicts, positions)
        return replace(found, method=f"ties ½, both positions alike; {found.method}")
    found = _clustered(wins, verdicts)
    return replace(found, method=f"ties ½, positions not balanced; {found.method}") if verdicts else found


def arena_figures(
    store: Store, name: str, rng: np.random.Generator, *, only: Collection[str] | None = None
) -> dict[str, Any]:
    """`arena_result` as plain data: policies, counts, and each rate with its interval, n and method."""
    found = arena_result(store, name, rng, only=only)
    counts = ("n_wins", "n_ties", "n_losses", "n_missing", "n_excluded")
    rates = ("win_rate", "by_prompt", "by_rater", "decided", "shown_first")
    return {
        "name": name,
        "policies": list(found.arena.policies),
        "n_questions": len(found.arena.written_by),
        "n_identical": found.arena.n_identical,
        **{each: getattr(found, each) for each in counts},
        "raters": dict(found.raters),
        **{each: asdict(getattr(found, each)) for each in rates},
        "slices": [{"what": what, "slice": label, "rate": asdict(rate)} for what, label, rate in found.slices],
    }


def name_checkpoints(store: Store, name: str, checkpoints: Mapping[str, str], *, now: float) -> None:
    """Set an arena up, where it is new, and keep which weights its two policies have.

    An arena that was filled before its weights were named stays without: they are not known.

    Args:
        checkpoints: the two policies in order, with the content hash of each.
    Raises: InputError for a name that cannot be used, or that belongs to other policies or other weights.
    """
    first, second = checkpoints
    policies = (first, second)
    if checked_name(store, name, policies):
        known = arena(store, name).checkpoints
        if known and known != dict(checkpoints):
            raise InputError(f"arena {name}: found other weights than when it was set up; choose another name")
        return
    _put(store, name, {"policies": list(policies), "written_by": {}, "identical": [], "checkpoints": dict(checkpoints)},
         now=now)  # fmt: skip


def checked_name(store: Store, name: str, policies: tuple[str, str]) -> bool:
    """Whether an arena of this name is there. Raises: InputError for a bad name, or one that belongs to others."""
    if not name or len(name) > 40 or not all(one.isascii() and (one.isalnum() or one in "-_") for one in name):
        raise InputError(
            f"arena: found the name {name[:60]!r}; expected up to 40 letters, digits, hyphens, underscores"
        )
    known = name in arenas(store)
    if known and arena(store, name).policies != policies:
        raise InputError(f"arena {name}: found other policies than when it was set up; choose another name")
    return known


def add_pairs(
    store: Store,
    name: str,
    policies: tuple[str, str],
    pairs: Sequence[tuple[Prompt, str, str]],
    plan: Mapping[str, object],
    *,
    now: float,
) -> list[Task]:
    """Put pairs of texts into an arena, which is set up where it is new; equal texts are counted and not asked about.

    Args:
        pairs: (prompt, text of the first policy, text of the second).    plan: fields of the tasks.
    Returns: the tasks, in the order of the pairs that differ.
    Raises: InputError for a name that cannot be used, or that belongs to other policies.
    """
    checked_name(store, name, policies)
    tasks, written_by, identical = [], {}, []
    for prompt, *texts in pairs:
        both = [Response(prompt.id, text, source) for text, source in zip(texts, policies, strict=True)]
        if both[0].id == both[1].id:
            identical.append(prompt.id)
            continue
        store.add_prompts([prompt])
        store.add_responses(both)
        # sorted by their hashes: which policy wrote the first cannot be told from the order
        ids = sorted(response.id for response in both)
        task = Task(prompt.id, tuple(ids), batch=PREFIX + name, **plan)  # type: ignore[arg-type]
        tasks.append(task)
        written_by[task.id] = [response.id for response in both]
    body = {"policies": list(policies), "written_by": written_by, "identical": identical}
    _put(store, name, body, now=now)
    queue_tasks(store, tasks)
    return tasks


def _put(store: Store, name: str, body: Mapping[str, Any], *, now: float) -> None:
    put_document(store, PREFIX + name, content_id("arena", body), body, now=now)


def _verdict(judgement: Judgement, set_up: Arena, lengths: Mapping[str, int], strategies: Mapping[str, str]) -> Verdict:
    first, second = set_up.written_by[judgement.task_id]
    strength = 2 * judgement.value["level"] - (judgement.value["n_levels"] - 1)
    first_is_a = judgement.response_ids[0] == first
    preferred = strength if first_is_a else -strength
    shown = -1
    if judgement.shown_order:
        shown = int(judgement.response_ids[judgement.shown_order[0]] == first)
    longer = lengths[first] - lengths[second]
    similar = abs(longer) <= SIMILAR * max(lengths[first], lengths[second])
    return Verdict(
        prompt_id=judgement.prompt_id,
        annotator=judgement.annotator,
        win=0.5 if preferred == 0 else float(preferred > 0),
        first_shown=shown,
        length=LENGTHS[1] if similar else LENGTHS[0] if longer > 0 else LENGTHS[2],
        strategy=strategies[judgement.task_id],
    )


def _slice(verdicts: Sequence[Verdict], field: str, value: str, rng: np.random.Generator) -> Estimate:
    return _rate([one for one in verdicts if getattr(one, field) == value], "prompt", rng)


def _clustered(outcomes: Sequence[float], verdicts: Sequence[Verdict], strata: Sequence[int] | None = None) -> Estimate:
    return two_way_proportion(
        outcomes, [one.prompt_id for one in verdicts], [one.annotator for one in verdicts], strata=strata,
        names=("prompts", "raters"),
    )  # fmt: skip


def _rate(verdicts: Sequence[Verdict], over: str, rng: np.random.Generator) -> Estimate:
    if not verdicts:
        return not_estimable("no votes yet", 0)
    clusters = [one.prompt_id if over == "prompt" else one.annotator for one in verdicts]
    return proportion([one.win for one in verdicts], clusters, rng)

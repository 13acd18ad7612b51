"""Questions about what a policy writes now: its samples become tasks, once or whenever the queue runs low.

The page of `karat serve` and simulated raters answer them alike. Knows models, prompts and the store; knows nothing
about who answers.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from sqlalchemy import func, select

from karat.config import build, in_range, load_yaml, plain
from karat.errors import ConfigError, InputError
from karat.evaluate.measure import draw, texts_of
from karat.feedback.openings import HELD, OPEN
from karat.feedback.schema import tasks as task_table
from karat.feedback.store import Store, open_store
from karat.feedback.tasks import random_tasks
from karat.feedback.work.arena import PREFIX, add_pairs, name_checkpoints
from karat.feedback.work.queueing import Queue, StoreQueue
from karat.ledger.artifacts import content_hash
from karat.lm.load import LoadedLM, load_lm
from karat.pipeline.choosing import Chosen, Pace, check_strategy, choose_comparisons, pace_of
from karat.pipeline.kind_shares import KINDS_PARTED, KindShares, kind_shares
from karat.pipeline.people import how_to_judge, wait_for_answers
from karat.pipeline.room import LONGEST, check_room, longest_response, with_room
from karat.progress import Progress
from karat.prompts.sources import read_prompts
from karat.questions import Question, check_anchors, plain_question
from karat.records import KINDS, Estimate, Prompt, Response, Sampler, Task
from karat.reward.score import load_scorer
from karat.seeding import child_seed, numpy_generator


@dataclass(frozen=True)
class Asking:
    """How a policy's samples become questions."""

    question: Question = field(default_factory=lambda: plain_question("comparison"))
    """What is asked about them."""
    n_tasks: int = 200
    """How many questions."""
    overlap: int = 1
    """How many raters answer each, ≥ 1."""
    stop_after: int = 0
    """This many equal answers suffice; 0 = always the whole overlap."""
    n_samples: int = 4
    """Responses for each prompt, ≥ 2 where responses are compared."""
    max_new_tokens: int | None = None
    """Longest response; None = 128 tokens, or what the context leaves."""
    batch: str = "main"
    """Names the purpose of the questions."""
    seed: int = 0
    """Everything drawn follows from it."""
    strategy: str = "random"
    """random, or bald or variance: by what a reward model expects the answers to say."""
    reward: Path | None = None
    """The reward model's directory; needed by every strategy but random."""
    seconds: float | None = None
    """Raters' time to spend, instead of `n_tasks`; None = `n_tasks` questions."""
    random_frac: float = 0.2
    """Share of questions drawn at random all the same, ≥ 0.1: held-out figures come from them alone."""
    beside: tuple[Question, ...] = ()
    """Ratings or labels that share the time with comparisons, by what each says for a second; () = only `question`."""

    def __post_init__(self) -> None:
        in_range("questions", self, 1, inf, "n_tasks", "overlap", "n_samples", "max_new_tokens")
        if self.question.kind in ("comparison", "ranking", "best_of") and self.n_samples < 2:
            raise ConfigError(f"questions: found {self.n_samples} sample for a {self.question.kind}; expected ≥ 2")
        check_strategy(self.strategy)  # before minutes of sampling
        chosen = self.strategy != "random" or self.seconds is not None
        if chosen and (self.reward is None or self.question.kind != "comparison"):
            raise ConfigError(
                f"questions: found strategy {self.strategy} for a {self.question.kind} "
                f"{'without' if self.reward is None else 'with'} a reward model; expected comparisons and a reward model"
            )
        kinds = [one.kind for one in (self.question, *self.beside)]
        unfit = set(kinds[1:]) - set(KINDS_PARTED[1:]) or len(set(kinds)) < len(kinds) or kinds[0] != KINDS_PARTED[0]
        if self.beside and (unfit or any(one.attributes for one in self.beside) or self.seconds is None):
            raise ConfigError(
                f"questions: found {' and '.join(kinds)} together; expected comparison and rating or label (one overall score "
                "or verdict), and a budget of time to part between them"
            )


@dataclass(frozen=True)
class Asked:
    """What was put into a store."""

    n_prompts: int
    """Prompts that were sampled."""
    n_responses: int
    """Different responses."""
    n_tasks: int
    """Tasks that were new."""
    n_answers: int
    """Answers to the batch, where the command waited for them."""
    batch: str
    """Task.batch of them."""
    gain: Estimate | None = None
    """Bits a chosen question is expected to give beyond a random one; None = all questions are random."""
    pace: Pace = field(default_factory=Pace)
    """How long people of this store took for a comparison, by which a budget of time was spent."""
    kinds: KindShares | None = None
    """How the time was parted between kinds; None = one kind was asked."""
    caution: str = ""
    """Why the reward model's belief is not one to choose by; "" = nothing is known against it."""


def ask_about(
    store: Store | Queue,
    models: Mapping[str, LoadedLM],
    prompts: Sequence[Prompt],
    asking: Asking,
    *,
    progress: Progress,
) -> Asked:
    """Sample every model on the prompts and queue questions about what they wrote.

    Args:
        store: a store, or for one model also the server of one (`client.AdminClient`).
        models: by the name that becomes Response.source, which no rater ever sees; of two models, each comparison
            shows one response of either (an arena).
    Returns: what was added; asking the same again adds nothing.
    Raises: InputError where nothing can be asked, as when two models always write the same.
    """
    queue: Queue = StoreQueue(store) if isinstance(store, Store) else store
    newest = queue.guideline()  # before the samples: a server that cannot be reached is found out now
    if len(models) == 2 and not asking.batch.startswith(PREFIX):
        asking = replace(asking, batch=PREFIX + asking.batch)  # or nobody would find its result
    written: dict[str, dict[str, list[str]]] = {}
    responses: list[Response] = []
    longest = longest_response(models.values(), prompts, asking.max_new_tokens)
    if longest < (asking.max_new_tokens or LONGEST):
        progress.note(f"responses of at most {longest} tokens: the context leaves no more beside the longest prompt")
    for name, lm in models.items():
        with progress.stage(f"samples {name}", len(prompts) * asking.n_samples, "responses") as bar:
            drawn = draw(
                lm, prompts, n_samples=asking.n_samples, max_new_tokens=longest,
                seed=child_seed(asking.seed, "samples", name), progress=lambda _, done, __, bar=bar: bar.reach(done),
            )  # fmt: skip
        for prompt, texts in zip(prompts, texts_of(lm, drawn), strict=True):
            new = [Response(prompt.id, text, name, number) for number, text in enumerate(texts)]
            responses += new
            written.setdefault(name, {})[prompt.id] = [response.id for response in new]
    gain, pace, kinds, caution = None, Pace(), None, ""
    plan = {"question": asking.question.id, "stop_after": asking.stop_after, "guideline": newest or "v1"}
    if len(models) == 2:
        pairs, propensity = _across(written, {one.id: one.text for one in responses}, prompts, asking)
    queue.add_questions([asking.question])
    queue.add_prompts(prompts)
    queue.add_responses(responses)
    if len(models) == 2:
        assert isinstance(store, Store)
        plan |= {"overlap": asking.overlap, "propensity": propensity}
        n_before = len(store.tasks(batch=asking.batch))
        first, second = models
        name = asking.batch.removeprefix(PREFIX)
        name_checkpoints(store, name, {each: content_hash(lm.path) for each, lm in models.items()}, now=time.time())
        add_pairs(store, name, (first, second), pairs, plan, now=time.time())
        n_new = len(store.tasks(batch=asking.batch)) - n_before
    else:
        if asking.reward is not None:
            with progress.stage(f"chooses by {asking.strategy}"):
                if isinstance(store, Store) and asking.seconds is not None:
                    pace = pace_of(store.judgements(), store.prompts(), store.responses())
                tasks, chosen, kinds = _by_reward(store, prompts, responses, asking, pace)
            gain, caution = chosen.gain, chosen.caution
        else:
            tasks = _within(written, asking)
        asked = [replace(task, **plan) for task in tasks if task.kind == asking.question.kind]
        for one in asking.beside:
            queue.add_questions([one])
            plan |= {"question": one.id, "stop_after": 0}
            asked += [replace(task, **plan) for task in tasks if task.kind == one.kind]
        n_new = queue.add_tasks(asked)
    return Asked(len(prompts), len({one.id for one in responses}), n_new, 0, asking.batch, gain, pace, kinds, caution)


def collect_from(
    place: str | Queue, models: Sequence[Path], prompts: Path, asking: Asking, *, wait: bool, progress: Progress
) -> Asked:
    """Put questions about one or two checkpoints where people find them; the work of `karat collect --model`.

    Args:
        place: the address of a store; or its server, which is asked about one checkpoint and not waited for.
        prompts: a file of prompts.    wait: True = return when people have answered.
    Raises: InputError and CheckpointError for files that cannot be used; StoreError where a server refuses.
    """
    if not isinstance(place, str) and (wait or len(models) > 1):
        raise ConfigError("--server: found --wait or --against; expected one checkpoint, and nobody who waits")
    asked = read_prompts(prompts)
    loaded = {str(path): load_lm(path) for path in models}
    if len(loaded) < len(models):
        raise InputError(f"collect: found {models[0]} against itself; expected two checkpoints")
    for lm in loaded.values():  # before the store's file is made
        for prompt in asked:
            check_room(lm, prompt, asking.max_new_tokens)
    if not isinstance(place, str):
        return ask_about(place, loaded, asked, asking, progress=progress)
    with open_store(place) as store:
        done = ask_about(store, loaded, asked, asking, progress=progress)
        if not wait:
            return done
        progress.note(how_to_judge(store, done.batch, place))
        return replace(done, n_answers=wait_for_answers(store, done.batch, progress=progress))


def sampler_of(lm: LoadedLM, *, max_new_tokens: int | None) -> Sampler:
    """A model as whoever answers prompts, at temperature 1, by the lengths of `longest_response`."""

    def write(prompts: Sequence[Prompt], *, n_samples: int, seed: int) -> list[list[str]]:
        longest = longest_response([lm], prompts, max_new_tokens)
        return texts_of(lm, draw(lm, prompts, n_samples=n_samples, max_new_tokens=longest, seed=seed))

    return write


def asked_question(kind: str, principle: str = "", file: Path | None = None) -> Question:
    """The question a command asks: the one in a file, or the plain one of a kind.

    Args:
        kind: of the plain question; "" = comparison.    principle: to judge by; "" = the file's, or none.
        file: YAML with any fields of `Question`; what it leaves out is as in the plain question of its kind.
    Raises: ConfigError for no such kind, or for a file that cannot be read or does not fit.
    """
    values = load_yaml(file) if file is not None else {"kind": kind} if kind else {}
    kind = values.get("kind", "comparison")
    where = "--kind" if file is None else f"{file}: kind"
    if kind not in KINDS:
        raise ConfigError(f"{where} {kind}: expected one of {', '.join(KINDS)}")
    told = {"principle": principle} if principle else {}
    try:
        return check_anchors(build(Question, plain(plain_question(kind)) | values | told))
    except (ConfigError, InputError) as error:
        raise ConfigError(f"{file}: {error}") from None


def asked_beside(kind: str, principle: str = "") -> Question:
    """The question of a kind that shares time with comparisons: one overall score or verdict, so that one reward is fitted."""
    return replace(asked_question(kind, principle), flags=())


def arena_batch(models: Sequence[Path]) -> str:
    """The batch of questions about these checkpoints: one = live, two = an arena."""
    names = "-".join(path.name for path in models)
    # the name of an arena stands in addresses
    return PREFIX + re.sub(r"[^A-Za-z0-9_-]", "-", names)[:40] if len(models) == 2 else f"live:{names}"


def _by_reward(
    store: Store | Queue, prompts: Sequence[Prompt], responses: Sequence[Response], asking: Asking, pace: Pace
) -> tuple[list[Task], Chosen, KindShares | None]:
    """Comparisons chosen with the belief of a saved reward model and other kinds beside; and the choice, with what it is expected to gain."""
    assert asking.reward is not None
    scorer, known = load_scorer(asking.reward), {prompt.id: prompt for prompt in prompts}
    by_prompt: dict[str, list[Response]] = {}
    for one in responses:
        by_prompt.setdefault(one.prompt_id, []).append(one)
    seconds, kinds = asking.seconds, None
    others: list[Task] = []
    if asking.beside and seconds is not None:
        names = ("comparison", *(one.kind for one in asking.beside))
        if not isinstance(store, Store):
            raise ConfigError(
                f"--kind {','.join(names)}: found a server; expected a store, whose answers say how to part time"
            )
        rng = numpy_generator(asking.seed, "kinds")
        stored = store.prompts(), store.responses()
        kinds = kind_shares(scorer, store.judgements(), stored, known, responses, rng, kinds=names)
        ids = {name: [one.id for one in own] for name, own in by_prompt.items()}
        for kind in (one.kind for one in asking.beside):
            n_asked = int(seconds * kinds.shares[kind] / (asking.overlap * kinds.seconds[kind]))
            others += random_tasks(ids, kind, n_asked, rng) if n_asked else []
        seconds *= kinds.shares["comparison"]
    chosen = choose_comparisons(
        scorer, known, by_prompt, numpy_generator(asking.seed, "tasks", asking.strategy), strategy=asking.strategy,
        n_tasks=None if seconds is not None else asking.n_tasks, seconds=seconds,
        seconds_factor=asking.overlap * pace.factor, random_frac=asking.random_frac,
    )  # fmt: skip
    tasks = [replace(task, overlap=asking.overlap, batch=asking.batch) for task in (*chosen.tasks, *others)]
    return tasks, chosen, kinds


def _within(written: Mapping[str, Mapping[str, Sequence[str]]], asking: Asking) -> list[Task]:
    by_prompt: dict[str, list[str]] = {}
    for of_model in written.values():
        for prompt_id, ids in of_model.items():
            by_prompt.setdefault(prompt_id, []).extend(ids)
    rng = numpy_generator(asking.seed, "tasks")
    kind, n = asking.question.kind, asking.n_tasks
    return random_tasks(by_prompt, kind, n, rng, overlap=asking.overlap, batch=asking.batch)


def _across(
    written: Mapping[str, Mapping[str, Sequence[str]]],
    texts: Mapping[str, str],
    prompts: Sequence[Prompt],
    asking: Asking,
) -> tuple[list[tuple[Prompt, str, str]], float]:
    """One pair of the two models a prompt, drawn among those that differ, and the share of such prompts that is asked.

    Prompts to which the two always write the same come with it as equal texts.
    """
    if asking.question.kind != "comparison":
        raise ConfigError(f"arena: found questions of kind {asking.question.kind}; expected comparison")
    first, second = written.values()
    rng = numpy_generator(asking.seed, "arena")
    different, equal = [], []
    for prompt in sorted(prompts, key=lambda one: one.id):
        pairs = [(a, b) for a in first[prompt.id] for b in second[prompt.id] if a != b]
        if pairs:
            a, b = pairs[rng.integers(len(pairs))]
            different.append((prompt, texts[a], texts[b]))
        else:
            equal.append((prompt, texts[first[prompt.id][0]], texts[first[prompt.id][0]]))
    if not different:
        raise InputError("arena: the two models write the same responses to every prompt; there is nothing to compare")
    chosen = sorted(rng.choice(len(different), size=min(asking.n_tasks, len(different)), replace=False))
    return [*(different[i] for i in chosen), *equal], len(chosen) / len(different)


def n_waiting(store: Store, batch: str) -> int:
    """How many tasks of a batch still need answers."""
    here = (task_table.c.batch == batch) & task_table.c.state.in_((OPEN, HELD))
    with store.connection() as connection:
        question = select(func.count()).select_from(task_table).where(here)
        return connection.execute(question).scalar_one()


def keep_filled(
    store: Store,
    model: Path,
    prompts: Sequence[Prompt],
    asking: Asking,
    *,
    n_waiting_least: int,
    progress: Progress,
    stop: threading.Event,
    poll_s: float = 2.0,
    load: Callable[[Path], LoadedLM] = load_lm,
) -> int:
    """Sample the policy on more prompts whenever fewer than so many tasks wait, until told to stop or out of prompts.

    Args:
        model: a checkpoint; read again whenever its files are newer, so that the current policy is asked about.
        n_waiting_least: tasks that should be waiting.    stop: set from outside to end.
    Returns: how many tasks were queued.
    """
    n_queued, lm, read_at, at = 0, None, 0.0, 0
    while not stop.is_set() and at < len(prompts):
        if n_waiting(store, asking.batch) >= n_waiting_least:
            stop.wait(poll_s)
            continue
        newest = max((path.stat().st_mtime for path in model.glob("*.safetensors")), default=0.0)
        if lm is None or newest > read_at:
            lm, read_at = load(model), newest
        some, at = with_room([lm], prompts[at : at + FILL], asking.max_new_tokens, progress), at + FILL
        # every fill draws its own samples, the same ones after a restart
        part = replace(asking, seed=child_seed(asking.seed, "fill", str(at)))
        try:
            n_queued += ask_about(store, {model.name: lm}, some, part, progress=progress).n_tasks
        except InputError as error:  # equal samples, or no prompt that can be read: the next ones may do
            progress.note(str(error))
    if at >= len(prompts):
        progress.note(f"all {len(prompts)} prompts were asked about; the queue is filled no more")
    return n_queued


FILL = 8
"""Prompts sampled at a time: enough for a batch of the sampler, few enough that the tasks are about today's policy."""

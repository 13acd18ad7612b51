"""What runs beside the server, in threads of its parent: a queue that is kept filled, and two policies that answer.

No request waits for a model, and no worker holds one. Knows checkpoints, the store and threads; knows nothing about
pages.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from karat.errors import ConfigError, InputError
from karat.feedback.store import Store, open_store
from karat.feedback.work.arena import PREFIX, name_checkpoints
from karat.feedback.work.duels import answer_duels, live_arena
from karat.ledger.artifacts import content_hash
from karat.lm.load import LoadedLM, load_lm
from karat.pipeline.asking import FILL, Asking, ask_about, keep_filled, n_waiting, sampler_of
from karat.pipeline.room import with_room
from karat.progress import Progress, open_progress
from karat.records import Prompt
from karat.seeding import child_seed

Job = Callable[[Store, Progress, threading.Event], object]
"""Works on a store of its own until the event is set."""
JOIN_S = 30.0
"""Seconds that a job gets to finish the batch in hand when the server stops."""
POLL_S = 0.5
"""Seconds between two looks for a rater's question."""


def policy_names(models: Sequence[Path]) -> tuple[str, ...]:
    """What policies are called in results: the names of their directories, or whole paths where those are equal.

    Raises: ConfigError for one policy twice.
    """
    if len({path.resolve() for path in models}) < len(models):
        raise ConfigError(f"--arena: found {models[0]} against itself; expected two checkpoints")
    names = [path.resolve().name for path in models]
    return tuple(names) if len(set(names)) == len(names) else tuple(str(path) for path in models)


def filler(policy: Path, prompts: Sequence[Prompt], asking: Asking, *, n_waiting_least: int) -> Job:
    """A job that keeps the queue filled with questions about a policy's samples (`keep_filled`).

    Raises: CheckpointError for a checkpoint that cannot be used: said before anybody is let in, not by a thread.
    """
    first = load_lm(policy)

    def work(store: Store, progress: Progress, stop: threading.Event) -> int:
        waiting = [first]  # read once; a newer one is read from the disk
        return keep_filled(
            store, policy, prompts, asking, n_waiting_least=n_waiting_least, progress=progress, stop=stop,
            load=lambda path: waiting.pop() if waiting else load_lm(path),
        )  # fmt: skip

    return work


def live_policies(
    models: Sequence[Path],
    prompts: Sequence[Prompt],
    asking: Asking,
    *,
    n_waiting_least: int,
    load: Callable[[Path], LoadedLM] = load_lm,
) -> Job:
    """A job in which two policies answer what raters ask, and, where there are prompts, keep blind comparisons queued.

    The checkpoints are read once: what is compared must not change under its name.

    Args:
        prompts: asked about while fewer than `n_waiting_least` comparisons wait; () = raters ask, and nobody else.
    Raises: CheckpointError for a checkpoint that cannot be used; ConfigError for one policy twice.
    """
    loaded = dict(zip(policy_names(models), map(load, models), strict=True))

    def work(store: Store, progress: Progress, stop: threading.Event) -> int:
        return serve_arena(
            store, loaded, prompts, asking, n_waiting_least=n_waiting_least, progress=progress, stop=stop
        )

    return work


def serve_arena(
    store: Store,
    models: Mapping[str, LoadedLM],
    prompts: Sequence[Prompt],
    asking: Asking,
    *,
    n_waiting_least: int,
    progress: Progress,
    stop: threading.Event,
) -> int:
    """Answer raters as long as they ask, fill the queue while they do not, until told to stop.

    Returns: how many questions of raters were dealt with.
    """
    samplers = {name: sampler_of(lm, max_new_tokens=asking.max_new_tokens) for name, lm in models.items()}
    first, second = models
    weights = {each: content_hash(lm.path) for each, lm in models.items()}
    name = live_arena(store, (first, second), weights)
    name_checkpoints(store, name, weights, now=time.time())
    filled = replace(asking, batch=PREFIX + name)
    n_answered, at = 0, 0
    while not stop.is_set():
        n = answer_duels(store, samplers, now=time.time(), name=name)
        n_answered += n
        if n:
            continue
        if at < len(prompts) and n_waiting(store, filled.batch) < n_waiting_least:
            some = with_room(list(models.values()), prompts[at : at + FILL], asking.max_new_tokens, progress)
            at += FILL
            part = replace(filled, seed=child_seed(asking.seed, "fill", str(at)))
            try:
                ask_about(store, models, some, part, progress=progress)
            except InputError as error:  # equal answers, or no prompt that can be read: the next ones may do
                progress.note(str(error))
            continue
        stop.wait(POLL_S)
    return n_answered


@contextlib.contextmanager
def beside(address: str, jobs: Mapping[str, Job], say: Callable[[str], None]) -> Iterator[None]:
    """Run jobs in threads while something else is done; a job that fails says so in one line and ends alone.

    Args:
        jobs: by what they are called in that line.    say: takes the line.
    """
    stop = threading.Event()

    def work(name: str, job: Job) -> None:
        try:
            with open_store(address) as store, open_progress(quiet=True) as progress:
                job(store, progress, stop)
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            say(f"karat serve: {name} has stopped ({said}); judging goes on without it")

    threads = [threading.Thread(target=work, args=each, name=f"karat-{each[0]}", daemon=True) for each in jobs.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=JOIN_S)

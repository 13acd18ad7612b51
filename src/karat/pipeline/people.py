"""People as a source: prompts of one's own, a local checkpoint, and judgements given in the page of `karat serve`.

The run puts its questions into the store of its directory, says how people reach them, waits, and goes on when the
answers are in. Interrupting it loses nothing: the same command waits on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from karat.errors import InputError
from karat.feedback.additions import add_tasks
from karat.feedback.documents import add_questions, document, read_settings
from karat.feedback.openings import CHUNK, HELD, LATER, OPEN, is_live, open_tasks, settle
from karat.feedback.schema import assignments, tasks
from karat.feedback.store import Store
from karat.feedback.work.gates import over_budget
from karat.lm.chat import prompt_tokens
from karat.lm.load import load_lm
from karat.pipeline.data import check_given, write_source_files
from karat.pipeline.preferences import FRACTIONS, check_context
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import StageResult, Workplace
from karat.progress import Progress
from karat.prompts.sources import ANSWER_FIELDS, read_prompts, rows_with_answers
from karat.prompts.splits import split
from karat.questions import Question, plain_question
from karat.records import Kind, Task
from karat.sft.train import tokenised

N_LEVELS = 3
"""Levels of a comparison: b better, tie, a better. The reward's likelihood takes one scale for all votes."""
POLL_S = 2.0
"""Seconds between two looks at the store while the run waits."""


def write_source(config: RunConfig, place: Workplace) -> StageResult:
    """Read the prompts, leave out what does not fit the model, part them, write the demonstrations among them."""
    settings = config.people
    assert settings is not None
    check_given("people", {"prompts": settings.prompts}, settings.model)
    lm = load_lm(settings.model)
    prompts = read_prompts(settings.prompts)
    fits = [p for p in prompts if len(prompt_tokens(lm.tokenizer, p.turns)) <= settings.max_prompt_tokens]
    check_context(lm, fits, config)
    parts = split(fits, FRACTIONS, key=lambda prompt: prompt.id)
    if not all(parts.values()):
        raise InputError(
            f"{settings.prompts}: {len(fits)} of {len(prompts)} prompts fit into {settings.max_prompt_tokens} tokens; "
            "expected enough for training, validation and evaluation (some dozens)"
        )
    practice = {prompt.id for prompt in parts["practice"]}
    shown = [d for d in rows_with_answers(settings.prompts) if d.prompt.id in practice]
    if shown:
        tokenised(lm, shown)  # says now what does not fit, not after fine-tuning has begun
    splits = {
        "sft": [d.prompt for d in shown],
        "collect": parts["practice"][: config.collect.n_prompts],
        "policy": parts["practice"],
        "validation": parts["validation"][: config.watch.n_prompts],
        "evaluation": parts["evaluation"][: config.evaluate.n_prompts],
    }
    outputs = write_source_files(place, splits, shown)
    notes = []
    if left_out := len(prompts) - len(fits):
        notes.append(f"{left_out} of {len(prompts)} prompts are longer than the limit and were left out")
    if not shown:
        fields = " or ".join(ANSWER_FIELDS)
        notes.append(f"no row has a {fields}: the checkpoint is taken as it is, without fine-tuning")
    counts = {"n_prompts": {name: len(group) for name, group in splits.items()}, "n_left_out": left_out}
    return StageResult(outputs, counts, notes=notes)


def collect_from_people(store: Store, place: Workplace, batch: str) -> dict[str, Any]:
    """Wait until people have answered a batch; returns figures of it."""
    done, wanted = answers_of(store, batch)
    if done < wanted:
        place.progress.note(how_to_judge(store, batch, place.directory))
    return {"n_votes": wait_for_answers(store, batch, progress=place.progress)}


def how_to_judge(store: Store, batch: str, where: Path | str) -> str:
    """What whoever waits for people says: how they reach the questions.

    Args:
        where: a run's directory or a store, as commands take it.
    """
    return (
        f"waiting for people's judgements; let them judge with: karat serve {where}\n"
        f"each rater comes by a link of her own: karat people add {where} --n {_raters_needed(store, batch)}"
    )


def wait_for_answers(
    store: Store,
    batch: str,
    *,
    progress: Progress,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Look at the store until every task of a batch has its answers, was closed early or was pulled.

    Args:
        sleep: waits between two looks.
    Returns: how many answers there are.
    """
    done, wanted = answers_of(store, batch)
    halted: str | None = None
    with progress.stage("judgements", wanted, "answers") as bar:
        bar.resume(done)
        while done < wanted:
            if halted != (halted := _why_no_more(store, batch, wanted - done)):
                progress.note("work is handed out again" if halted is None else halted.format(n=wanted - done))
            sleep(POLL_S)
            done, wanted = answers_of(store, batch)
            bar.reach(done, of=wanted)
    return done


SPENT = (
    "the budget of the project is spent and {n} answers are missing: nobody is offered more. Raise the budget in the "
    "settings, or end this batch under Queue; both are on the admin's pages"
)
STOPPED = (
    "an admin has stopped handing out work and {n} answers are missing: nobody is offered more. The admin's overview has "
    "the button that goes on"
)
"""What a run says that waits for answers which nobody is asked for any more."""


def _why_no_more(store: Store, batch: str, n_missing: int) -> str | None:
    """What stops raters before a batch has its answers, those being given now taken as given; None = nothing does."""
    now = time.time()
    ours = assignments.join(tasks, tasks.c.id == assignments.c.task_id)
    given_now = select(func.count()).select_from(ours).where(tasks.c.batch == batch, is_live(now))
    with store.connection() as connection:
        settings = read_settings(connection)
        if not over_budget(connection, settings, now=now) or connection.execute(given_now).scalar_one() >= n_missing:
            return None
    return STOPPED if settings.budget.stopped else SPENT


def _raters_needed(store: Store, batch: str) -> int:
    """The fewest raters who could answer what is asked: as many as the widest overlap, since nobody answers twice."""
    widest = select(func.max(tasks.c.overlap - tasks.c.n_answers)).where(tasks.c.batch == batch)
    with store.connection() as connection:
        return max(1, connection.execute(widest).scalar() or 1)


def as_a_page_asks(store: Store, new: Sequence[Task], principle: str) -> list[Task]:
    """The same tasks, naming the questions and the guideline that the page shows.

    A batch that was begun keeps its guideline: under a newer one its questions would be other tasks, and a run that is
    started again would ask all of them a second time.
    """
    questions = {kind: _page_question(kind, principle) for kind in dict.fromkeys(task.kind for task in new)}
    add_questions(store, questions.values())
    begun = select(tasks.c.guideline).where(tasks.c.batch.in_({task.batch for task in new})).order_by(tasks.c.seq)
    with store.connection() as connection:
        version = connection.execute(begun.limit(1)).scalar()
    if version is None and (current := document(store, "guideline")) is not None:
        version = current.version
    guideline = {} if version is None else {"guideline": version}
    return [replace(task, question=questions[task.kind].id, **guideline) for task in new]


def _page_question(kind: Kind, principle: str) -> Question:
    """What a page asks for a run: one reward is trained, so that no flag or attribute makes a second objective."""
    if kind == "comparison":
        return Question(n_levels=N_LEVELS, principle=principle)
    return replace(plain_question(kind), flags=(), principle=principle)


def add_for_later(store: Store, new: Sequence[Task]) -> None:
    """Queue tasks that named raters answer first; nobody is offered them until `open_to_people`."""
    untouched = (tasks.c.state == OPEN) & (tasks.c.n_answers == 0)

    def write(connection: Connection) -> None:
        if not add_tasks(connection, new):
            return
        for start in range(0, len(new), CHUNK):
            some = tasks.c.id.in_([task.id for task in new[start : start + CHUNK]])
            connection.execute(tasks.update().where(some & untouched).values(state=LATER))

    store.write(write)


def open_to_people(store: Store, batch: str, overlap: int) -> None:
    """Ask for so many answers to each task of a batch, and offer those that still need some."""
    waiting = (tasks.c.batch == batch) & (tasks.c.state == LATER)

    def write(connection: Connection) -> None:
        ids = list(connection.execute(select(tasks.c.id).where(waiting)).scalars())
        connection.execute(tasks.update().where(waiting).values(overlap=overlap))
        open_tasks(connection, ids)
        settle(connection, ids, now=0.0)

    store.write(write)


def answers_of(store: Store, batch: str) -> tuple[int, int]:
    """(answers given, answers wanted) of a batch: a task that is closed or pulled wants no more than it has."""
    here = (tasks.c.batch == batch) & tasks.c.state.in_((OPEN, HELD))
    with store.connection() as connection:
        given = connection.execute(select(func.sum(tasks.c.n_answers)).where(tasks.c.batch == batch)).scalar() or 0
        missing = connection.execute(select(func.sum(tasks.c.overlap - tasks.c.n_answers)).where(here)).scalar() or 0
    return int(given), int(given + missing)

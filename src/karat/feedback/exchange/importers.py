"""Votes from files: HH conversations, TRL preferences, the documented votes format, the UKP argument pairs.

A file is read and checked whole before the store is touched, and stored in one transaction; the same file read twice
adds nothing. Where a file does not say who voted the rater is "unknown", and which text is a and which b is
decided by their identities, because a column named `chosen` would put every winner on the same side.
"""

from __future__ import annotations

import datetime
import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from karat.errors import InputError
from karat.feedback.additions import check_pseudonym, one_group
from karat.feedback.exchange.conversations import difference, hh_conversation, trl_parts
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.store import Provenance, Store
from karat.feedback.submission import ROWS_AT_ONCE
from karat.feedback.tasks import answer, checked_levels
from karat.feedback.work.queueing import planned_tasks
from karat.identity import file_hash
from karat.progress import Progress, counted
from karat.records import Annotator, Judgement, Kind, Prompt, Response, Task, user_prompt
from karat.rowfiles import Row, read_rows, turns_of

LEVELS = {"b": 0, "tie": 1, "a": 2}
"""Levels of a three-way choice."""

VOTE_FIELDS = (
    "prompt", "topic", "a", "b", "choice", "level", "n_levels", "both", "missing", "annotator", "group", "shown_first",
    "shown", "reason", "session", "task", "pair", "accepted_at", "submitted_at", "active_s", "idle_s", "guideline",
    "strategy", "propensity", "submission",
)  # fmt: skip
TEXT_FIELDS = ("id", "prompt", "topic", "text")


@dataclass(frozen=True)
class ImportSummary:
    """What an import did."""

    n_rows: int
    """Votes in the file."""
    n_new: int
    """Judgements added; the rest were there already or are in `n_pairs_of_equal_texts`."""
    n_pairs_of_equal_texts: int
    """Votes between two equal texts, left out: they say nothing about a reward."""
    n_prompts: int
    """Different prompts in the file."""
    n_responses: int
    """Different responses in the file."""
    n_tasks: int
    """Different questions in the file."""
    n_annotators: int
    """Different raters in the file."""


@dataclass(frozen=True)
class Given:
    """An answer as a row of a file gives it."""

    row: Row
    """The row."""
    prompt: Prompt
    """What was answered."""
    texts: tuple[str, ...]
    """The responses that were judged, in identity order."""
    value: Mapping[str, Any]
    """The answer, as `Judgement.value` has it."""
    kind: Kind = "comparison"
    """What was given."""
    annotator: str = UNKNOWN_ANNOTATOR
    """Who gave it."""
    group: str | None = None
    """Her group."""
    batch: str = "imported"
    """Task.batch of the question."""
    created_at: str = ""
    """When it was sent, ISO 8601 UTC; "" = not known."""
    shown_order: tuple[int, ...] = ()
    """Identity indices in the order shown; () = not known."""
    session: str | None = None
    """The sitting."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the Judgement."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the Task."""
    submission: str = ""
    """The key of the answer; "" = file and line."""


def import_hh(store: Store, path: str | Path) -> ImportSummary:
    """HH-style comparisons: rows with `chosen` and `rejected`, whole conversations that differ in the last answer.

    Raises: InputError naming file and line; nothing is stored then.
    Source: Bai et al. 2022, arXiv:2204.05862, data of anthropics/hh-rlhf.
    """
    votes = []
    for row in read_rows(path):
        with row.named():
            prompt, chosen = hh_conversation(row.need("chosen", str))
            other, rejected = hh_conversation(row.need("rejected", str))
            if prompt != other:
                raise InputError(
                    f"chosen and rejected answer different prompts ({difference(prompt, other)}); "
                    "expected conversations that differ in the last answer only"
                )
            votes.append(_preference(row, prompt, chosen, rejected))
    return store_given(store, Path(path), votes, n_rows=len(votes))


def import_preferences(store: Store, path: str | Path) -> ImportSummary:
    """TRL's preference format: `prompt`, `chosen`, `rejected`, or the last two alone with the prompt inside.

    Standard rows hold texts, conversational rows lists of {"role", "content"}. Without `prompt` it is what both
    have in common from the start: whole messages, or text up to the last space.

    Raises: InputError naming file and line; nothing is stored then.
    """
    votes = []
    for row in read_rows(path):
        with row.named():
            chosen, rejected = row.need("chosen", (str, list)), row.need("rejected", (str, list))
            if type(chosen) is not type(rejected):
                raise InputError("found text beside a list of messages in 'chosen' and 'rejected'; expected one format")
            votes.append(_preference(row, *trl_parts(row.get("prompt", (str, list)), chosen, rejected)))
    return store_given(store, Path(path), votes, n_rows=len(votes))


def _preference(row: Row, prompt: Prompt, chosen: str, rejected: str) -> Given:
    # by identity, so that a and b say nothing about who won
    ids = [Response(prompt.id, text, "").id for text in (chosen, rejected)]
    texts, level = ((chosen, rejected), 1) if ids[0] < ids[1] else ((rejected, chosen), 0)
    return Given(row, prompt, texts, {"level": level, "n_levels": 2})


def import_votes(store: Store, path: str | Path, texts_path: str | Path | None = None) -> ImportSummary:
    """The documented votes format (docs/votes-format.md): individual, attributed votes with ties, reasons and times.

    Args:
        texts_path: rows {"id", "prompt", "text", "topic"}; then `a` and `b` in the votes are ids of it.
    Raises: InputError naming file and line; nothing is stored then.
    """
    return _import_votes(store, Path(path), None if texts_path is None else texts_by_id(texts_path))


def texts_by_id(path: str | Path) -> dict[str, tuple[Prompt, str]]:
    """Prompt and text of each row of a file of texts, by its id. Raises: InputError naming file and line."""
    texts: dict[str, tuple[Prompt, str]] = {}
    for row in read_rows(path):
        with row.named():
            row.refuse_unknown(TEXT_FIELDS)
            _add_text(texts, row, prompt_of_row(row), row.need("text", str))
    return texts


def import_ukp(store: Store, votes_path: str | Path, arguments_path: str | Path) -> ImportSummary:
    """The votes on argument pairs of UKPConvArg1: the prompt is topic and stance, the responses are the arguments.

    Args:
        arguments_path: rows with id, topic, stance and text (HTML is turned into plain text).
    Raises: InputError naming file and line; nothing is stored then.
    Source: Habernal & Gurevych 2016, ACL, "Which argument is more convincing?".
    """
    return _import_votes(store, Path(votes_path), ukp_texts(arguments_path))


def ukp_texts(arguments_path: str | Path) -> dict[str, tuple[Prompt, str]]:
    """Prompt and plain text of each argument of UKPConvArg1, by the file's own id.

    Raises: InputError naming file and line.
    """
    texts: dict[str, tuple[Prompt, str]] = {}
    for row in read_rows(arguments_path):
        with row.named():
            topic, stance = row.need("topic", str), row.need("stance", str)
            asked = f"Topic: {_spoken(topic)}. Stance: {_spoken(stance)}. Give a convincing argument."
            _add_text(texts, row, user_prompt(asked, topic=topic), plain_text(row.need("text", str)))
    return texts


def plain_text(marked_up: str) -> str:
    """Text without HTML tags and character references; paragraphs and breaks become line ends."""
    text = re.sub(r"(?i)<\s*(br|/p|/div|/li)\b[^>]*>", "\n", marked_up)
    text = re.sub(r"</?[A-Za-z][^<>]*>", "", text)
    lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in html.unescape(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _spoken(slug: str) -> str:
    return slug.strip("-").replace("-", " ")


def _add_text(texts: dict[str, tuple[Prompt, str]], row: Row, prompt: Prompt, text: str) -> None:
    name = row.need("id", str)
    if name in texts:
        raise InputError(f"found the id {name!r} a second time; expected each once")
    texts[name] = (prompt, text)


def prompt_of_row(row: Row) -> Prompt:
    """The prompt of a row, with its topic."""
    asked, topic = row.need("prompt", (str, list)), row.get("topic", str)
    return user_prompt(asked, topic=topic) if isinstance(asked, str) else Prompt(turns_of(asked), topic)


def _import_votes(store: Store, path: Path, texts: Mapping[str, tuple[Prompt, str]] | None) -> ImportSummary:
    rows = read_rows(path)
    shares = rows_by_session(rows)

    def vote(row: Row) -> Given:
        with row.named():
            row.refuse_unknown(VOTE_FIELDS)
            return vote_in(row, texts, shares[session_of(row), row.values.get("annotator")])

    return store_given(store, path, map(vote, rows), n_rows=len(rows))


def rows_by_session(rows: Sequence[Row]) -> Counter[tuple[Any, Any]]:
    """How many rows each rater has in each session."""
    return Counter((session_of(row), row.values.get("annotator")) for row in rows)


def vote_in(row: Row, texts: Mapping[str, tuple[Prompt, str]] | None, n_shared: int) -> Given:
    """The comparison in a row of the votes format; `n_shared` as `about` has it. Raises: InputError."""
    a, b = row.need("a", str), row.need("b", str)
    if texts is None:
        prompt = prompt_of_row(row)
    else:
        for name in (a, b):
            if name not in texts:
                raise InputError(f"found the id {name!r}, which is not in the file of texts; add it there")
        (prompt, a), (other, b) = texts[a], texts[b]
        if prompt != other:
            raise InputError("a and b answer different prompts; expected two responses to one prompt")
    first = row.get("shown_first", str)
    if first not in (None, "a", "b"):
        raise InputError(f"found {first!r} in the field 'shown_first'; expected 'a' or 'b'")
    order = () if first is None else ((0, 1) if first == "a" else (1, 0))
    return Given(row, prompt, (a, b), _value(row), shown_order=order, **about(row, n_shared))


def about(row: Row, n_shared: int) -> dict[str, Any]:
    """The fields of a Given that do not hang on its kind: who gave it, when, and how the question was asked.

    Args:
        n_shared: rows of this rater in this session, among which the time between its two ends is divided.
    """
    submitted, active_s = row.get("submitted_at", str), row.get("active_s", (int, float))
    if active_s is None:
        active_s = _seconds_between(row, n_shared)
    asked = {
        name: row.get(name, kind)
        for name, kind in (("guideline", str), ("strategy", str), ("propensity", (int, float)))
    }
    pair = row.get("pair", str)
    return {
        "annotator": _named(row),
        "group": row.get("group", str),
        "batch": "imported" if pair is None else f"imported/{pair}",
        "created_at": "" if submitted is None else _moment(submitted, "submitted_at").strftime("%Y-%m-%dT%H:%M:%SZ"),
        "session": session_of(row),
        "rest": {
            "active_s": active_s,
            "idle_s": row.get("idle_s", (int, float)),
            "reason": row.get("reason", str),
            "shown": row.get("shown", dict, {}),
        },
        "asked": {name: value for name, value in asked.items() if value is not None},
        "submission": row.get("submission", str, ""),
    }


def _named(row: Row) -> str:
    name = row.get("annotator", str, UNKNOWN_ANNOTATOR)
    if not name.strip():
        raise InputError("found an empty 'annotator'; expected a pseudonym, or no such field where nobody is known")
    return check_pseudonym(name)


def session_of(row: Row) -> str | None:
    """The sitting that a row names."""
    return row.get("session", str) or row.get("task", str)


def _value(row: Row) -> dict[str, Any]:
    given = [name for name in ("choice", "level", "missing") if row.values.get(name) is not None]
    if len(given) != 1:
        raise InputError(
            f"found {' and '.join(given) or 'none'} of 'choice', 'level' and 'missing'; expected exactly one"
        )
    if given == ["missing"]:
        return {"missing": row.need("missing", str)}
    both = {} if row.values.get("both") is None else {"both": row.need("both", str)}
    if given == ["level"]:
        return {"level": row.need("level", int), "n_levels": checked_levels(row.need("n_levels", int)), **both}
    choice = row.need("choice", str)
    if choice not in LEVELS:
        raise InputError(f"found {choice!r} in the field 'choice'; expected 'a', 'b' or 'tie'")
    return {"level": LEVELS[choice], "n_levels": 3, **both}


def _seconds_between(row: Row, n_shared: int) -> float | None:
    accepted, submitted = row.get("accepted_at", str), row.get("submitted_at", str)
    if accepted is None or submitted is None:
        return None
    seconds = (_moment(submitted, "submitted_at") - _moment(accepted, "accepted_at")).total_seconds()
    if seconds < 0:
        raise InputError(f"submitted_at {submitted} is before accepted_at {accepted}; correct one of them")
    return seconds / (n_shared if session_of(row) is not None else 1)


def _moment(text: str, name: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"found {text!r} in the field {name!r}; expected a time like 2026-01-31T16:53:19Z") from None
    return moment.replace(tzinfo=datetime.UTC) if moment.tzinfo is None else moment.astimezone(datetime.UTC)


def _with_topic(known: Prompt | None, prompt: Prompt) -> Prompt:
    if known is None or known.topic is None:
        return prompt
    if prompt.topic not in (None, known.topic):
        raise InputError(f"found the topic {prompt.topic!r}; an earlier row gave this prompt {known.topic!r}: use one")
    return known


def _told(votes: Iterable[Given], n_rows: int, progress: Progress | None) -> Iterator[Given]:
    with counted(progress, "reading", "answers", announced=False) as count:
        for number, vote in enumerate(votes, start=1):
            yield vote
            if count is not None and (number % ROWS_AT_ONCE == 0 or number == n_rows):
                count(number, n_rows)


def store_given(store: Store, path: Path, votes: Iterable[Given], *, n_rows: int) -> ImportSummary:
    """Bring what rows of a file give into a store, in one transaction. Raises: InputError naming file and line."""
    file_key = file_hash(path).removeprefix("sha256:")[:16]
    prompt_ids: dict[Prompt, str] = {}
    prompts: dict[str, Prompt] = {}
    responses: dict[tuple[str, str], tuple[str, Response]] = {}
    tasks: dict[tuple[Any, ...], tuple[str, Task]] = {}
    n_votes: Counter[tuple[Any, ...]] = Counter()
    annotators: dict[str, Annotator] = {}
    judgements: list[Judgement] = []
    provenance: dict[str, Provenance] = {}
    n_pairs_of_equal_texts = 0
    for vote in _told(votes, n_rows, store.progress):
        with vote.row.named():
            prompt_id = prompt_ids.get(vote.prompt) or prompt_ids.setdefault(vote.prompt, vote.prompt.id)
            prompts[prompt_id] = _with_topic(prompts.get(prompt_id), vote.prompt)
            named = []
            for text in vote.texts:
                if (prompt_id, text) not in responses:
                    response = Response(prompt_id, text, path.name)
                    responses[(prompt_id, text)] = (response.id, response)
                named.append(responses[(prompt_id, text)][0])
            if vote.kind == "comparison" and named[0] == named[1]:
                n_pairs_of_equal_texts += 1
                continue
            key = (vote.kind, prompt_id, *named, vote.batch, *sorted(vote.asked.items()))
            if key not in tasks:
                task = Task(prompt_id, tuple(named), kind=vote.kind, batch=vote.batch, **vote.asked)
                tasks[key] = (task.id, task)
            n_votes[key] += 1
            rater = Annotator(vote.annotator, "imported", vote.group if vote.annotator != UNKNOWN_ANNOTATOR else None)
            annotators[vote.annotator] = one_group(annotators.get(vote.annotator), rater)
            submission = vote.submission or f"import:{file_key}:{vote.row.line}"
            judgements.append(
                answer(
                    tasks[key][1],
                    vote.value,
                    annotator=vote.annotator,
                    shown_order=vote.shown_order,
                    created_at=vote.created_at,
                    submission=submission,
                    origin="imported",
                    **vote.rest,
                )
            )
            accepted = vote.row.values.get("accepted_at")
            provenance[submission] = Provenance(path.name, vote.row.line, vote.session, accepted)
    new_tasks = [replace(task, overlap=n_votes[key]) for key, (_, task) in tasks.items()]
    n_new = store.ingest(
        prompts=prompts.values(),
        responses=[response for _, response in responses.values()],
        annotators=annotators.values(),
        new_tasks=planned_tasks(store, new_tasks, prompts.values()),
        judgements=judgements,
        provenance=provenance,
    )
    return ImportSummary(
        n_rows, n_new, n_pairs_of_equal_texts, len(prompts), len(responses), len(tasks), len(annotators)
    )

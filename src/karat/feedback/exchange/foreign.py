"""Records of other labelling tools: Argilla's records and Label Studio's tasks, as their own exports write them.

What karat exports carries its own rows along, so that coming back loses nothing; what another tool wrote is read for
what it says: who preferred which text, rated it, or wrote about it. Knows the two formats and records; nothing about
models.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat.damaged import damage_named
from karat.errors import InputError
from karat.feedback.exchange.events import EventSummary, event_rows, import_event_rows
from karat.feedback.store import Store
from karat.feedback.tasks import answer
from karat.feedback.work.queueing import planned_tasks
from karat.identity import file_hash
from karat.ledger.artifacts import write_text
from karat.records import KINDS, WORD_KINDS, Annotator, Judgement, Kind, Prompt, Response, Task, user_prompt
from karat.rowfiles import MAX_LINE_BYTES, Row, no_key_twice, text_fault, texts_in, turns_of

CARRIED = "karat"
"""Name under which an exported record carries karat's own rows."""
PROMPT_NAMES = ("prompt", "instruction", "question", "messages", "chat", "conversation", "input")
RESPONSE_NAME = re.compile(
    r"^(response|completion|generation|answer|output|chosen|rejected|text)([-_ ]?\w{1,12})?$", re.I
)
TIES = {
    "tie": {}, "equal": {}, "same": {}, "both": {}, "neither": {}, "both good": {"both": "good"}, "both bad": {"both": "bad"},
}  # fmt: skip
"""Words for "neither is better", and what else they say."""
SEVERAL = ("comparison", "ranking", "best_of", "span_marks")
"""Kinds whose answers are about all responses of a record; the others are about the first."""
MAX_BYTES = 8 * MAX_LINE_BYTES
"""512 MiB: such exports are one JSON value, read whole."""


@dataclass(frozen=True)
class FieldNames:
    """Which fields of somebody else's records hold what; what is not given is recognised by usual names."""

    prompt: str | None = None
    """The field of the prompt."""
    responses: tuple[str, ...] = ()
    """The fields of the responses, in the order a, b, …"""
    low: int = 1
    """Lowest point of ratings, which the files do not say."""
    high: int = 5
    """Highest point of ratings."""


@dataclass(frozen=True)
class _Answer:
    at: str
    prompt: Prompt
    texts: tuple[str, ...]
    kind: Kind
    value: Mapping[str, Any]
    annotator: str
    question: str
    created_at: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)


def import_argilla(store: Store, path: str | Path, names: FieldNames | None = None) -> EventSummary:
    """Bring Argilla 2 records (`dataset.records.to_json`) into a store: all of them or none.

    Each submitted response becomes a judgement of its own by its user: a ranking or a label that names a response
    is a comparison (two responses) or a ranking or best-of; a number is a rating; words are a critique of the first.

    Raises: InputError naming file and record.
    """
    return _import(store, Path(path), names or FieldNames(), _argilla_answers, _argilla_rows)


def import_label_studio(store: Store, path: str | Path, names: FieldNames | None = None) -> EventSummary:
    """Bring a Label Studio JSON export into a store: all of it or nothing.

    Each annotation that was not cancelled becomes one judgement for each of its results: pairwise, rating, choices,
    ranker and text areas. `lead_time` is kept in `Judgement.shown`, since it does not tell activity from idling.

    Raises: InputError naming file and task.
    """
    return _import(store, Path(path), names or FieldNames(), _label_studio_answers, _label_studio_rows)


def export_argilla(store: Store, path: str | Path) -> int:
    """Judgements as Argilla 2 records, one a task, that `rg.Dataset.records.from_json` takes. Returns: records."""
    records = []
    for rows in _by_task(store):
        first = rows[0]
        fields = {"prompt": first["prompt"]} | {f"response_{i}": r["text"] for i, r in enumerate(first["responses"], 1)}
        responses: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            responses.setdefault(row["task"]["kind"], []).append(
                {"value": _said(row, "response_1", "response_2"), "user_id": row["annotator"]["id"]}
            )
        metadata = {CARRIED: json.dumps(rows, ensure_ascii=False)}
        record = {"id": first["id"], "fields": fields, "metadata": metadata, "suggestions": {}, "responses": responses}
        records.append(record | {"vectors": {}, "status": "completed"})
    write_text(Path(path), json.dumps(records, ensure_ascii=False, indent=1) + "\n", private=True)
    return len(records)


def export_label_studio(store: Store, path: str | Path) -> int:
    """Judgements as Label Studio tasks with annotations. Returns: tasks."""
    tasks = []
    for number, rows in enumerate(_by_task(store), start=1):
        first = rows[0]
        data = {"prompt": "\n".join(turn["content"] for turn in first["prompt"])}
        data |= {f"answer{i}": response["text"] for i, response in enumerate(first["responses"], start=1)}
        annotations = [
            {
                "id": f"{number}-{i}",
                "completed_by": {"email": row["annotator"]["id"]},
                "created_at": row["judgement"]["created_at"],
                "lead_time": row["judgement"]["active_s"],
                "was_cancelled": False,
                "result": [_result(row)],
                "meta": {CARRIED: row},
            }
            for i, row in enumerate(rows, start=1)
        ]
        tasks.append({"id": number, "data": data, "annotations": annotations})
    write_text(Path(path), json.dumps(tasks, ensure_ascii=False, indent=1) + "\n", private=True)
    return len(tasks)


def _by_task(store: Store) -> list[list[dict[str, Any]]]:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in event_rows(store):
        # what decides Task.id, and the texts
        key = (json.dumps([row["prompt"], row["responses"], row["task"]], sort_keys=True),)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _said(row: Mapping[str, Any], a: str, b: str) -> Any:
    value = row["judgement"]["value"]
    if "both" in value:
        return f"both {value['both']}"
    if "level" in value:
        doubled = 2 * value["level"] - (value["n_levels"] - 1)
        return "tie" if doubled == 0 else a if doubled > 0 else b
    if "best" in value:
        return f"response_{value['best'] + 1}"
    if "ranks" in value:
        return [{"value": f"response_{i}", "rank": rank} for i, rank in enumerate(value["ranks"], start=1)]
    for name in ("text", "score"):
        if name in value:
            return value[name]
    return json.dumps(value, ensure_ascii=False)


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    said = _said(row, "left", "right")
    if said in ("left", "right"):
        return {"from_name": "comparison", "to_name": "answer1", "type": "pairwise", "value": {"selected": said}}
    if isinstance(said, int | float):
        return {"from_name": "rating", "to_name": "answer1", "type": "rating", "value": {"rating": said}}
    words = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return {"from_name": row["task"]["kind"], "to_name": "answer1", "type": "textarea", "value": {"text": [words]}}


def _import(
    store: Store,
    path: Path,
    names: FieldNames,
    answers: Callable[[Mapping[str, Any], str, FieldNames], Iterable[_Answer]],
    carried: Callable[[Mapping[str, Any]], tuple[Sequence[Any], Mapping[str, Any]]],
) -> EventSummary:
    records = _read_list(path)
    rows: list[Row] = []
    foreign: list[_Answer] = []
    for number, record in enumerate(records, start=1):
        at = f"{path}: record {number}"
        if not isinstance(record, dict):
            raise InputError(f"{at}: found {str(record)[:60]!r}; expected an object")
        if fault := next(filter(None, map(text_fault, texts_in(record))), ""):
            raise InputError(f"{at}: {fault}")
        with damage_named(at, "a record", InputError, expected="one as the tool exports it"):
            own, rest = carried(record)
            rows += [Row(values, path, number) for values in own]
            if not own or rest.get("responses") or rest.get("annotations"):
                foreign += answers(rest, at, names)
    own_summary = import_event_rows(store, rows) if rows else EventSummary(0, 0, 0, 0, 0)
    other = _store(store, path, foreign) if foreign else EventSummary(0, 0, 0, 0, 0)
    if not rows and not foreign:
        raise InputError(f"{path}: found {len(records)} records without a submitted answer; there is nothing to import")
    return EventSummary(*(a + b for a, b in zip(vars(own_summary).values(), vars(other).values(), strict=True)))


def _read_list(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"found more than {MAX_BYTES} bytes in one JSON value; split the export")
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_key_twice)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file of JSON") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: found no complete JSON value ({error}); expected a list of records") from None
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: found {json.dumps(found, ensure_ascii=False)[:40]}; expected a list of records")
    return found


def _argilla_rows(record: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """karat's own rows in a record, and the record with what was answered, or answered otherwise, elsewhere."""
    text = (record.get("metadata") or {}).get(CARRIED)
    rows = json.loads(text) if isinstance(text, str) else []
    given = [(question, one) for question, some in (record.get("responses") or {}).items() for one in some]
    present = {one.get("user_id") for _, one in given}
    # an answer is ours if the same user says the same; users whose name was changed on the way are known by what they say
    known: Counter[tuple[str, Any]] = Counter()
    for row in rows:
        said = _answered(row["task"]["kind"], _said(row, "response_1", "response_2"))
        who = row["annotator"]["id"]
        known[said, who if who in present else None] += 1
    names = {row["annotator"]["id"] for row in rows}
    kept: dict[str, list[Any]] = {}
    for question, one in given:
        key = _answered(question, one.get("value")), one["user_id"] if one.get("user_id") in names else None
        if known[key] > 0:
            known[key] -= 1
        else:
            kept.setdefault(question, []).append(one)
    return rows, {**record, "responses": kept}


def _answered(question: str, value: Any) -> str:
    return json.dumps([question, value], sort_keys=True)


def _label_studio_rows(record: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """karat's own rows in a task, and the task with the annotations that were made, or changed, elsewhere."""
    rows, kept = [], []
    for annotation in record.get("annotations") or []:
        row = (annotation.get("meta") or {}).get(CARRIED)
        if row is not None:
            rows.append(row)
        if row is None or not _same_result(annotation.get("result") or [], _result(row)):
            kept.append(annotation)
    return rows, {**record, "annotations": kept}


def _same_result(found: Sequence[Mapping[str, Any]], written: Mapping[str, Any]) -> bool:
    """Whether an annotation still says what was exported; Label Studio adds ids and origins of its own."""
    return len(found) == 1 and all(found[0].get(name) == value for name, value in written.items())


def _texts(fields: Mapping[str, Any], at: str, names: FieldNames) -> tuple[Prompt, tuple[str, ...], tuple[str, ...]]:
    """Prompt, names of the responses' fields and their texts."""
    there = ", ".join(fields) or "no fields"
    asked = names.prompt or next((name for name in PROMPT_NAMES if name in fields), None)
    if asked is None or asked not in fields:
        raise InputError(f"{at}: found no prompt among {there}; name its field with --prompt-field")
    wanted = names.responses or tuple(
        name for name in fields if name != asked and RESPONSE_NAME.match(name) and isinstance(fields[name], str)
    )
    if not wanted or any(not isinstance(fields.get(name), str) for name in wanted):
        raise InputError(f"{at}: found no response texts among {there}; name their fields with --response-fields")
    said = fields[asked]
    prompt = Prompt(turns_of(said)) if isinstance(said, list) else user_prompt(str(said))
    return prompt, wanted, tuple(fields[name] for name in wanted)


def _argilla_answers(record: Mapping[str, Any], at: str, names: FieldNames) -> Iterable[_Answer]:
    prompt, wanted, texts = _texts(record.get("fields") or {}, at, names)
    for question, given in (record.get("responses") or {}).items():
        for one in given:
            if one.get("status") in ("draft", "discarded"):
                continue
            meant = _as_exported(question, one.get("value"))
            kind, value = meant or _meaning(one.get("value"), wanted, f"{at}, question {question!r}", names)
            shown = texts if kind in SEVERAL else texts[:1]
            yield _Answer(at, prompt, shown, kind, value, f"argilla:{one.get('user_id')}", question)


def _as_exported(question: str, value: Any) -> tuple[Kind, dict[str, Any]] | None:
    """An answer in a question that an export of ours made: named after its kind, words or the value as JSON."""
    if question in WORD_KINDS and isinstance(value, str) and value.strip():
        return question, {"text": value}
    if question not in KINDS or not isinstance(value, str) or not value.startswith("{"):
        return None
    try:
        return question, json.loads(value)
    except ValueError:
        return None


def _tie(words: str) -> tuple[Kind, dict[str, Any]]:
    return "comparison", {"level": 1, "n_levels": 3, **TIES[words.lower()]}


def _meaning(value: Any, wanted: Sequence[str], at: str, names: FieldNames) -> tuple[Kind, dict[str, Any]]:
    """What a value of an Argilla response says about the responses."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and "rank" in one for one in value):
        ranks = {one["value"]: one["rank"] for one in value}
        if set(ranks) != set(wanted):
            raise InputError(f"{at}: ranks {sorted(ranks)}; expected {sorted(wanted)}")
        if len(wanted) == 2:
            a, b = (ranks[name] for name in wanted)
            return "comparison", {"level": 1 if a == b else 2 if a < b else 0, "n_levels": 3}
        return "ranking", {"ranks": [ranks[name] for name in wanted]}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "rating", {"score": value, "low": names.low, "high": names.high}
    if isinstance(value, str) and value in wanted:
        best = wanted.index(value)
        return (
            ("comparison", {"level": 2 - 2 * best, "n_levels": 3}) if len(wanted) == 2 else ("best_of", {"best": best})
        )
    if isinstance(value, str) and value.lower() in TIES and len(wanted) == 2:
        return _tie(value)
    if isinstance(value, str) and value.strip():
        return "critique", {"text": value}
    raise InputError(
        f"{at}: found the value {str(value)[:60]!r}; expected a ranking, a response's name, a number or words"
    )


def _label_studio_answers(record: Mapping[str, Any], at: str, names: FieldNames) -> Iterable[_Answer]:
    prompt, wanted, texts = _texts(record.get("data") or {}, at, names)
    for annotation in record.get("annotations") or []:
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
        rest = {} if annotation.get("lead_time") is None else {"shown": {"lead_s": annotation["lead_time"]}}
        for result in annotation.get("result") or []:
            kind, value = _result_meaning(result, len(wanted), at, names)
            shown = texts if kind in SEVERAL else texts[:1]
            question, created_at = str(result.get("from_name", "")), str(annotation.get("created_at", ""))
            yield _Answer(at, prompt, shown, kind, value, f"label-studio:{who}", question, created_at, rest)


def _result_meaning(
    result: Mapping[str, Any], n_responses: int, at: str, names: FieldNames
) -> tuple[Kind, dict[str, Any]]:
    value = result.get("value") or {}
    if result.get("type") == "pairwise" and n_responses == 2 and value.get("selected") in ("left", "right", None):
        return "comparison", {"level": {"left": 2, "right": 0, None: 1}[value.get("selected")], "n_levels": 3}
    if result.get("type") == "rating":
        return "rating", {"score": value.get("rating"), "low": names.low, "high": names.high}
    if result.get("type") == "choices" and isinstance(value.get("choices"), list):
        return "label", {"flags": [str(one) for one in value["choices"]]}
    if result.get("type") == "textarea" and value.get("text"):
        text = value["text"]
        words = "\n".join(text) if isinstance(text, list) else str(text)
        if meant := _as_exported(str(result.get("from_name")), words):
            return meant
        if words.lower() in TIES and result.get("from_name") == "comparison" and n_responses == 2:
            return _tie(words)
        return "critique", {"text": words}
    raise InputError(
        f"{at}: found a result of type {result.get('type')!r} for {n_responses} responses; "
        "expected pairwise (of 2), rating, choices or textarea"
    )


def _store(store: Store, path: Path, answers: Sequence[_Answer]) -> EventSummary:
    file_key = file_hash(path).removeprefix("sha256:")[:16]
    n_asked: Counter[tuple] = Counter()
    built: list[tuple[tuple, Judgement]] = []
    responses: dict[str, Response] = {}
    for number, one in enumerate(answers, start=1):
        written = [Response(one.prompt.id, text, path.name) for text in one.texts]
        if len({response.id for response in written}) < len(written):
            raise InputError(f"{one.at}: found the same response twice; there is nothing to choose between")
        responses |= {response.id: response for response in written}
        key = (one.prompt.id, tuple(response.id for response in written), one.kind, f"imported/{one.question}")
        n_asked[key] += 1
        try:
            judgement = answer(
                Task(key[0], key[1], kind=one.kind, batch=key[3]), one.value, annotator=one.annotator, shown_order=(),
                created_at=one.created_at, submission=f"import:{file_key}:{number}", origin="imported", **one.rest,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"{one.at}: {error}") from None
        built.append((key, judgement))
    prompts = [one.prompt for one in answers]
    new_tasks = [Task(k[0], k[1], kind=k[2], batch=k[3], overlap=n) for k, n in n_asked.items()]
    n_new = store.ingest(
        prompts=prompts,
        responses=responses.values(),
        annotators=[Annotator(one.annotator, "imported") for one in answers],
        new_tasks=planned_tasks(store, new_tasks, prompts),
        judgements=[judgement for _, judgement in built],
    )
    return EventSummary(len(answers), n_new, 0, len(n_asked), len({one.annotator for one in answers}))

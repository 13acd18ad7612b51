"""Answers of every kind as people write them down: one a line of JSON, or one a row of a table (docs/votes-format.md).

What `importers` reads of comparisons, of all kinds: a row names its kind, the prompt, the responses, and the answer in
the fields of its kind. Knows rows and records; nothing about how the questions were worded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karat.answers import check_value
from karat.errors import InputError
from karat.feedback.exchange.importers import (
    VOTE_FIELDS,
    Given,
    ImportSummary,
    about,
    prompt_of_row,
    rows_by_session,
    session_of,
    store_given,
    texts_by_id,
    vote_in,
)
from karat.feedback.store import Store
from karat.fitting import TARGETS, check_inside, check_targets
from karat.records import KINDS, Prompt
from karat.rowfiles import Row, read_rows, read_table

VALUE_FIELDS: dict[str, tuple[str, ...]] = {
    "ranking": ("ranks",), "best_of": ("best",), "rating": ("score", "scores", "low", "high"),
    "label": ("good", "flags", "escalate"), "correction": ("text",), "demonstration": ("text",),
    "critique": ("text", "aspects", "revision"), "span_marks": ("spans",), "step_marks": ("steps",),
}  # fmt: skip
"""Fields that hold the answer, by kind; a comparison has those of the votes format."""
ABOUT_FIELDS = (
    "kind", "prompt", "topic", "missing", "annotator", "group", "shown_order", "shown", "reason", "session", "task", "pair",
    "accepted_at", "submitted_at", "active_s", "idle_s", "guideline", "strategy", "propensity", "submission",
)  # fmt: skip
PLAIN = (
    "kind", "a", "b", "response", "text", "revision", "choice", "both", "missing", "annotator", "group", "topic",
    "shown_first", "reason", "session", "task", "pair", "accepted_at", "submitted_at", "guideline", "strategy", "submission",
)  # fmt: skip
"""Columns of a table whose cells are text as it stands; the others are read as JSON."""
LISTS = ("ranks", "flags", "aspects", "shown_order")
"""Columns of a table that may hold a list as people write it: `1; 2; 2`."""
NUMBERS = ("ranks", "shown_order")
"""Those of whole numbers, which commas may part too: where semicolons part the cells people write `1, 2, 2`."""
NUMBERED = "response_"
"""Columns `response_1`, `response_2`, … of a table are the responses in identity order."""


def import_answers(store: Store, path: str | Path, texts_path: str | Path | None = None) -> ImportSummary:
    """Answers of every kind from a file of JSON lines, or from a table whose name ends in `.csv` or `.tsv`.

    Args:
        texts_path: rows {"id", "prompt", "text", "topic"}; then responses are ids of it.
    Raises: InputError, or StoreError, naming file and line; nothing is stored then.
    """
    path = Path(path)
    table = path.name.removesuffix(".gz").endswith((".csv", ".tsv"))
    rows = [_spelled_out(row) for row in read_table(path)] if table else read_rows(path)
    texts = None if texts_path is None else texts_by_id(texts_path)
    shares = rows_by_session(rows)

    def answer_in(row: Row) -> Given:
        with row.named():
            n_shared = shares[session_of(row), row.values.get("annotator")]
            kind = row.get("kind", str, "comparison")
            if kind not in KINDS:
                raise InputError(f"found the kind {kind!r}; expected one of {', '.join(KINDS)}")
            if kind == "comparison":
                row.refuse_unknown(("kind", *VOTE_FIELDS))
                return vote_in(row, texts, n_shared)
            return _answer(row, kind, texts, n_shared)

    return store_given(store, path, map(answer_in, rows), n_rows=len(rows))


def _answer(row: Row, kind: str, texts: Mapping[str, tuple[Prompt, str]] | None, n_shared: int) -> Given:
    most = TARGETS[kind][1]
    places = () if most == 0 else ("response",) if most == 1 else ("responses", "response")
    row.refuse_unknown((*ABOUT_FIELDS, *VALUE_FIELDS[kind], *places))
    responses = [] if most == 0 else _responses(row, places)
    check_targets(kind, kind, len(responses))
    if texts is None or not responses:
        prompt = prompt_of_row(row)
    else:
        if absent := [one for one in responses if one not in texts]:
            raise InputError(f"found the id {absent[0]!r}, which is not in the file of texts; add it there")
        prompts = {texts[one][0] for one in responses}
        if len(prompts) > 1:
            raise InputError("the responses answer different prompts; expected responses to one prompt")
        prompt, responses = prompts.pop(), [texts[one][1] for one in responses]
    value = _value(row, kind, responses)
    check_value(kind, value, len(responses))
    check_inside(kind, value, responses)
    if kind == "critique" and value.get("revision") == responses[0]:
        raise InputError("critique: found a revision that equals the response; expected a better one, or no revision")
    if kind == "rating" and "missing" not in value and not value["low"] < value["high"]:
        raise InputError(f"rating: found a scale from {value['low']:g} to {value['high']:g}; expected low < high")
    order = tuple(row.get("shown_order", list, ()))
    return Given(row, prompt, tuple(responses), value, kind, shown_order=order, **about(row, n_shared))  # type: ignore[arg-type]


def _responses(row: Row, places: Sequence[str]) -> list[str]:
    given = [name for name in places if row.values.get(name) is not None]
    if len(given) != 1:
        raise InputError(f"found {' and '.join(given) or 'none'} of {' and '.join(map(repr, places))}; expected one")
    if given == ["response"]:
        return [row.need("response", str)]
    responses = row.need("responses", list)
    if wrong := [one for one in responses if not isinstance(one, str)]:
        raise InputError(f"found {wrong[0]!r} among the responses; expected texts")
    return responses


def _value(row: Row, kind: str, responses: Sequence[str]) -> dict[str, Any]:
    given = {name: row.values[name] for name in VALUE_FIELDS[kind] if row.values.get(name) is not None}
    if row.values.get("missing") is not None:
        if given:
            raise InputError(f"found {' and '.join(given)} beside 'missing'; expected an answer, or why there is none")
        return {"missing": row.need("missing", str)}
    if {"score", "scores"} <= given.keys():
        raise InputError("rating: found both 'score' and 'scores'; expected one of them")
    for name in ("spans", "steps"):
        if isinstance(given.get(name), list):
            given[name] = [_place(one, kind, responses) for one in given[name]]
    return given


def _place(mark: Any, kind: str, responses: Sequence[str]) -> Any:
    """A mark by its place: words that a mark quotes are looked for in the response, where they must stand once."""
    if not isinstance(mark, Mapping):
        return mark
    placed = ({"response": 0} if kind == "span_marks" else {}) | dict(mark)
    if (quoted := placed.pop("quote", None)) is None:
        return placed
    number = placed.get("response", 0)
    text = responses[number] if isinstance(number, int) and 0 <= number < len(responses) else ""
    n = text.count(quoted) if isinstance(quoted, str) and quoted else 0
    if n != 1:
        raise InputError(f"{kind}: found {quoted!r} {n} times in the response; expected it once, or start and end")
    return placed | {"start": text.index(quoted), "end": text.index(quoted) + len(quoted)}


def _spelled_out(row: Row) -> Row:
    """A row of a table as a line of JSON would have it: empty cells are absent, what is no text is read."""
    values: dict[str, Any] = {}
    numbered: dict[int, str] = {}
    for name, cell in row.values.items():
        number = name.removeprefix(NUMBERED)
        if name.startswith(NUMBERED) and number.isdecimal():
            numbered[int(number)] = cell
        else:
            values[name] = cell if name in PLAIN else _cell(name, cell)
    if numbered:
        if "responses" in values or sorted(numbered) != list(range(1, len(numbered) + 1)):
            raise InputError(
                f"{row.at}: found {', '.join(f'{NUMBERED}{one}' for one in sorted(numbered))}; expected {NUMBERED}1, "
                f"{NUMBERED}2, … without a gap, and no 'responses' beside them"
            )
        values["responses"] = [numbered[one] for one in sorted(numbered)]
        # one column for all kinds: what judges one response has it in the first
        kind = values.get("kind", "comparison")
        if kind in TARGETS and TARGETS[kind][1] == 1 and len(numbered) == 1:
            values["response"] = values.pop("responses")[0]
        elif kind == "comparison" and len(numbered) == 2 and not {"a", "b"} & set(values):
            values["a"], values["b"] = values.pop("responses")
    return Row(values, row.path, row.line)


def _cell(name: str, cell: str) -> Any:
    if name in LISTS and not cell.lstrip().startswith("["):
        parts = cell.split(";") if ";" in cell or name not in NUMBERS else cell.split(",")
        return [_cell("", part.strip()) for part in parts if part.strip()]
    try:
        read = json.loads(cell.lower() if cell.strip().lower() in ("true", "false") else cell)
    except ValueError:
        return cell  # said to be wrong where it is
    return cell if name == "prompt" and not isinstance(read, list) else read

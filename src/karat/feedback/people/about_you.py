"""What raters may say about themselves: the fields of a form that nobody has to fill in.

An admin writes them as the document `demographics`, one field a line. Knows that document and nothing about pages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from karat.errors import InputError
from karat.feedback.documents import document
from karat.feedback.store import Store

DEMOGRAPHICS = "demographics"
"""Name of the document."""
MOST_FIELDS = 40
LINE = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_]{0,39})\s*:\s*(?P<label>[^=]{1,200}?)\s*(?:=\s*(?P<options>.+))?")


@dataclass(frozen=True)
class Field:
    """One question about oneself."""

    name: str
    """What exports, slices and target populations call it."""
    label: str
    """What the form calls it."""
    options: tuple[str, ...] = ()
    """What can be chosen; () = any words."""


USUAL = (
    Field("age", "Age", ("18–24", "25–34", "35–44", "45–54", "55–64", "65 or over")),
    Field("gender", "Gender", ("woman", "man", "non-binary", "another")),
    Field("country", "Country you live in"),
    Field("first_language", "First language"),
    Field("education", "Highest education", ("school", "vocational", "bachelor", "master", "doctorate", "another")),
    Field("field", "Field of work or study"),
)
"""What is asked where the project has no such document."""


def fields_of(store: Store) -> tuple[Field, ...]:
    """The fields in force: the newest document's, or the usual ones."""
    own = document(store, DEMOGRAPHICS)
    given = own.body.get("fields") if own is not None else None
    if not isinstance(given, list):
        return USUAL
    return tuple(
        Field(str(each["name"]), str(each.get("label", each["name"])), tuple(map(str, each.get("options", ()))))
        for each in given
        if isinstance(each, Mapping) and each.get("name")
    )


def fields_in(text: str) -> tuple[Field, ...]:
    """Fields from lines like `age: Your age = 18–24, 25–34`; without `=` any words are an answer.

    Raises: InputError naming the line.
    """
    found: dict[str, Field] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"line {number}: found {line.strip()[:60]!r}; expected a name, a colon, what the form says, and after = what can be chosen"
            )
        options = tuple(filter(None, map(str.strip, (match["options"] or "").split(","))))
        if match["name"] in found or len(set(options)) < len(options):
            raise InputError(f"line {number}: found the same name twice in {line.strip()[:60]!r}; expected each once")
        found[match["name"]] = Field(match["name"], match["label"], options)
    if not 1 <= len(found) <= MOST_FIELDS:
        raise InputError(f"found {len(found)} fields; expected 1 to {MOST_FIELDS}, one a line")
    return tuple(found.values())


def text_of(fields: Sequence[Field]) -> str:
    """`fields_in`, the other way."""
    return "\n".join(
        f"{one.name}: {one.label}" + (f" = {', '.join(one.options)}" if one.options else "") for one in fields
    )


def body_of(text: str) -> dict[str, Any]:
    """What the document holds: the text, and the fields in it. Raises: InputError naming the line."""
    fields = [{"name": one.name, "label": one.label, "options": list(one.options)} for one in fields_in(text)]
    return {"text": text, "fields": fields}


def check_said(fields: Sequence[Field], said: Mapping[str, str]) -> None:
    """Raise InputError for an answer that its field does not offer."""
    for one in fields:
        if one.options and said.get(one.name) and said[one.name] not in one.options:
            raise InputError(
                f"{one.label}: found {said[one.name][:40]!r}; expected one of {', '.join(one.options)}, or nothing"
            )

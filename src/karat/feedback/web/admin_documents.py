"""The admin's editor of documents: every change is a new version; what was shown to raters is never altered.

Knows names, versions and the difference between two texts. What a document means is known by who reads it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response
from markupsafe import Markup
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback.documents import (
    CONSENT,
    EXAMPLES,
    GUIDELINE,
    QUALIFICATION,
    SETTINGS,
    Document,
    documents,
    put_document,
)
from karat.feedback.people.about_you import DEMOGRAPHICS, body_of, fields_of, text_of
from karat.feedback.people.door import DOOR
from karat.feedback.people.studies import PREFIX as STUDIES
from karat.feedback.web.access import Visitor
from karat.feedback.web.desk import Admin, Sent, done, field_of, note, page
from karat.feedback.web.rendering import markdown_html, visible
from karat.feedback.work.arena import PREFIX

KNOWN = {
    GUIDELINE: "What raters judge by; shown beside every task. Each judgement names its version.",
    EXAMPLES: "Worked examples, shown beside the guideline.",
    CONSENT: "What raters agree to before they begin; a new version asks them again.",
    DEMOGRAPHICS: Markup(
        "What raters may say about themselves, one field a line: <code>age: Your age = 18–24, 25–34</code>. "
        "Without <code>=</code> any words are an answer. Nobody has to answer; the names are those of a target population."
    ),
}
"""Documents that raters read, and what they are for."""
OTHERS = {QUALIFICATION: "Items that are asked before any work; see and change them under Checks."}
"""Documents that are there only once somebody made them, and what they are for."""
CONTEXT = 3
"""Unchanged lines shown around a change."""
MOST_LINES = 4000
"""Lines of a text beyond which two versions are not compared: the comparison takes quadratic time."""

router = APIRouter(include_in_schema=False)


@router.get("/admin/documents")
def document_list(request: Request, visitor: Admin) -> Response:
    """Every document with its newest version."""
    store = request.app.state.store
    hidden = (PREFIX, STUDIES)
    shown = (one for one in documents(store) if one.name not in (SETTINGS, DOOR) and not one.name.startswith(hidden))
    newest = {one.name: one for one in shown}
    names = [*KNOWN, *(name for name in newest if name not in KNOWN)]
    return page(
        request,
        visitor,
        "admin_documents.html",
        rows=[(name, newest.get(name), (KNOWN | OTHERS).get(name, "")) for name in names],
    )


@router.get("/admin/documents/{name}")
def document_page(
    request: Request, visitor: Admin, name: str, version: str = "", against: str = "", done: str = ""
) -> Response:
    """One document: its versions, what changed between two of them, and the editor."""
    _check_name(name)
    message = f"Version {done} is stored, and counts from now on." if done else ""
    return _editor(request, visitor, name, version=version, against=against, message=message)


@router.post("/admin/documents/{name}")
def save_document(request: Request, visitor: Admin, name: str, form: Sent) -> Response:
    """Preview a text, or store it as a new version."""
    _check_name(name)
    store, now = request.app.state.store, request.app.state.clock()
    text, version = str(form.get("text", "")).replace("\r\n", "\n"), field_of(form, "version")
    if field_of(form, "to") == "preview":
        return _editor(request, visitor, name, draft=text, draft_version=version)
    try:
        if not text.strip():
            return _editor(
                request, visitor, name, draft=text, draft_version=version, failed=True, message="The text is empty."
            )
        body = body_of(text) if name == DEMOGRAPHICS else {"text": text}
        stored = put_document(store, name, version, {**_rest(store, name), **body}, now=now)
    except KaratError as error:
        return _editor(request, visitor, name, draft=text, draft_version=version, failed=True, message=_sentence(error))
    note(request, visitor, "document stored", f"{name} {stored.version}", stored.hash)
    return done(f"/admin/documents/{name}", stored.version)


def line_changes(old: str, new: str) -> list[tuple[str, str]]:
    """What changed between two texts, line by line.

    Returns: (mark, text) with the mark `ins`, `del`, `span` (unchanged) or `gap` (unchanged lines left out).
    """
    before, after = visible(old).split("\n"), visible(new).split("\n")
    if max(len(before), len(after)) > MOST_LINES:
        return [("gap", f"the texts have {len(before)} and {len(after)} lines: too long to compare here")]
    found: list[tuple[str, str]] = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for group in matcher.get_grouped_opcodes(CONTEXT):
        if found or group[0][1] > 0:
            found.append(("gap", f"line {group[0][1] + 1}"))
        for tag, i, j, k, n in group:
            if tag == "equal":
                found += [("span", line) for line in before[i:j]]
            else:
                found += [("del", line) for line in before[i:j]] + [("ins", line) for line in after[k:n]]
    return found


def _editor(
    request: Request,
    visitor: Visitor,
    name: str,
    *,
    version: str = "",
    against: str = "",
    draft: str | None = None,
    draft_version: str = "",
    message: str = "",
    failed: bool = False,
) -> Response:
    versions = documents(request.app.state.store, name)
    shown = _version(versions, version) if version else (versions[-1] if versions else None)
    earlier = _version(versions, against) if against else _before(versions, shown)
    text = draft if draft is not None else (shown.text if shown else "")
    if name == DEMOGRAPHICS and not text and draft is None:
        text = text_of(fields_of(request.app.state.store))  # those in force, to begin with
    base = shown if draft is not None else earlier
    return page(
        request,
        visitor,
        "admin_document.html",
        tab="/admin/documents",
        status=422 if failed else 200,
        message=message,
        failed=failed,
        doc=name,
        purpose=KNOWN.get(name, ""),
        versions=list(reversed(versions)),
        shown=shown,
        earlier=earlier,
        text=text,
        version=draft_version,
        preview=markdown_html(text) if text else "",
        is_draft=draft is not None,
        changes=line_changes(base.text, text) if base is not None else [],
        base=base,
        rest=json.dumps(
            {key: value for key, value in shown.body.items() if key != "text"}, indent=2, ensure_ascii=False
        )
        if shown and set(shown.body) != {"text"}
        else "",
    )


def _rest(store: Any, name: str) -> dict[str, Any]:
    """What a document holds besides its text stays as it is: the editor changes words."""
    versions = documents(store, name)
    return {key: value for key, value in versions[-1].body.items() if key != "text"} if versions else {}


def _version(versions: Sequence[Document], version: str) -> Document:
    found = [one for one in versions if one.version == version]
    if not found:
        raise HTTPException(404, "There is no such version.")
    return found[0]


def _before(versions: Sequence[Document], shown: Document | None) -> Document | None:
    if shown is None:
        return None
    place = versions.index(shown)
    return versions[place - 1] if place else None


def _check_name(name: str) -> None:
    plain = name.isascii() and all(one.isalnum() or one in "-_." for one in name)
    if not plain or len(name) > 64 or name == SETTINGS:
        raise HTTPException(404, "There is no such document.")


def _sentence(error: KaratError) -> str:
    return str(error)

"""Raters who come from another platform (Prolific and its like): one link a study, one account a participant.

The platform adds the participant's id to the link; the same participant always comes back to the same account and
pseudonym, in however many windows. Who holds a study's link and somebody's participant id can act as that rater, as
on every such platform: neither is shown to other raters, and a study can be closed. Knows accounts and documents;
knows nothing about HTTP.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sqlalchemy import Connection

from karat.errors import InputError, StoreError
from karat.feedback.documents import Document, Shelf, document, documents, put_document, shelf
from karat.feedback.keys import keyed_hash, secret_key
from karat.feedback.people.accounts import Account, account, account_by_annotator, make_account
from karat.feedback.people.door import check_address
from karat.feedback.store import Store

PREFIX = "study:"
"""Starts the names of the documents that say whether a study is open."""
PARTICIPANT = ("PROLIFIC_PID", "participant", "participantId", "workerId")
"""Names under which platforms send the participant's id; the first that is there counts."""
STUDY = ("STUDY_ID", "study", "studyId", "hitId")
"""Names of their own id of the study."""
SESSION = ("SESSION_ID", "session", "sessionId", "assignmentId")
"""Names of their id of this visit."""
MOST_CHARS = 128
ENDS = ("completed", "no work", "screened", "declined")
"""How a participant's time here ends: she worked until there was no more for her (or no more today); nothing was there
for her; she did not pass the qualification; she did not agree to the consent text."""
_CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ADDRESS = re.compile(r"https://[^\s/?#]+[^\s]*")
_MOST_ADDRESS = 2000
_UNFILLED = re.compile(r"\{\{.*\}\}|\$\{.*\}|^%\w+%$")
"""A place for the id that no platform has filled in: {{%PROLIFIC_PID%}}, ${workerId}, %ID%."""
_NO_ENDS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Study:
    """A way in for raters of another platform."""

    name: str
    """Its name here."""
    token: str
    """The secret part of its link."""
    is_open: bool
    """False = nobody can come in by it any more; who is in stays."""
    ends: Mapping[str, str] = field(default_factory=dict)
    """{end of `ENDS`: the platform's completion address (https://…) or bare code}; those left out fall back."""
    url: str = ""
    """Address that its link was last given out with, "" = none was said."""

    def __post_init__(self) -> None:
        for end, out in self.ends.items():
            if end not in ENDS:
                raise InputError(f"study {self.name!r}: found the end {end!r}; expected one of {', '.join(ENDS)}")
            if not _CODE.fullmatch(out) and not (_ADDRESS.fullmatch(out) and len(out) <= _MOST_ADDRESS):
                raise InputError(
                    f"study {self.name!r}: found {out[:80]!r} for {end!r}; expected a completion address with https:// "
                    "or a code of at most 64 letters, digits, - and _"
                )


@dataclass(frozen=True)
class Participant:
    """Who comes, in the platform's words."""

    participant: str
    """The participant's id there."""
    study: str = ""
    """The study's id there, "" = not sent."""
    session: str = ""
    """The id of this visit there, "" = not sent."""

    def __post_init__(self) -> None:
        for name in ("participant", "study", "session"):
            value = getattr(self, name)
            if len(value) > MOST_CHARS or not value.isprintable() or value != value.strip() or "\ufffd" in value:
                begins = value[:40] + ("…" if len(value) > 40 else "")
                raise InputError(
                    f"study link: found {begins!r} ({len(value)} characters) as {name}; expected an id of at most "
                    f"{MOST_CHARS} visible characters; open the link from the platform that sent you"
                )
        if _UNFILLED.search(self.participant):
            # everybody who came so would share one account
            raise InputError(
                f"study link: found {self.participant[:40]!r} where the platform puts who comes; open the link from the "
                "platform that sent you, or put an id there to try it"
            )
        if not self.participant:
            raise InputError("study link: found no participant id; open it from the platform that sent you")


def participant_in(parameters: Mapping[str, str]) -> Participant:
    """The participant that a platform's link names. Raises: InputError where it names none, or no usable id."""
    ids = [
        next((parameters[name] for name in names if parameters.get(name)), "")
        for names in (PARTICIPANT, STUDY, SESSION)
    ]
    return Participant(*ids)


def open_study(store: Store, name: str, *, now: float, ends: Mapping[str, str] = _NO_ENDS, url: str = "") -> Study:
    """Open a study, or open it again; its link stays the same.

    Args:
        url: address that its link begins with; "" = as it was.
        ends: {end of `ENDS`: completion address or code, "" = forget it}; those left out stay as they are.
    Raises: InputError for a name, an address or a code that cannot be used.
    """
    return _put(store, name, is_open=True, ends=ends, url=url, now=now)


def close_study(store: Store, name: str, *, now: float, ends: Mapping[str, str] = _NO_ENDS, url: str = "") -> Study:
    """Let nobody in by a study's link any more. Raises: StoreError for an unknown study; else as `open_study`."""
    if document(store, PREFIX + name) is None:
        raise StoreError(f"study {name!r}: there is none of that name; open it first")
    return _put(store, name, is_open=False, ends=ends, url=url, now=now)


def way_out(store: Store, account_id: str, end: str) -> str:
    """The completion address or code that a rater is given at an end of `ENDS`, "" = none.

    Of the study that she came by, else the project's completion address. Who was screened out or found nothing to do
    is sent as one who completed where the platform has no other code for it: she gave her time. Who declined never is.

    Raises: StoreError for an unknown account.
    """
    name = account(store, account_id).outside.get("link", "")
    with store.connection() as connection:
        return read_way_out(connection, name, end, shelf(connection))


def read_way_out(connection: Connection, study: str, end: str, papers: Shelf) -> str:
    """`way_out` of a study by name, "" = by none, inside a transaction whose documents are at hand."""
    ends = _ends_of(papers.find(connection, PREFIX + study) if study else None)
    if end == "declined":
        return ends.get(end, "")
    return ends.get(end) or ends.get("completed") or papers.settings(connection).completion_url


def studies(store: Store) -> list[Study]:
    """Every study, in the order in which they were first opened."""
    newest = {one.name.removeprefix(PREFIX): one for one in documents(store) if one.name.startswith(PREFIX)}
    return [
        Study(name, _token(store, name), bool(one.body.get("open")), _ends_of(one), one.body.get("url", ""))
        for name, one in newest.items()
    ]


def study_of(store: Store, token: str) -> Study | None:
    """The open study of a link, or None."""
    found = [one for one in studies(store) if hmac.compare_digest(one.token.encode(), token.encode())]
    return found[0] if found and found[0].is_open else None


def join(store: Store, study: Study, who: Participant, *, now: float) -> Account:
    """The account of a participant, made when she first comes.

    Raises: StoreError for a study that is closed.
    """
    if not study.is_open:
        raise StoreError(f"study {study.name!r}: is closed")
    # the pseudonym follows from the participant, so that two windows at once make one account
    annotator = "rater-" + keyed_hash(secret_key(store, "study"), "participant", who.participant)[5:17]
    known = account_by_annotator(store, annotator)
    if known is not None:
        return known
    outside = {"participant": who.participant, "study": who.study, "session": who.session, "link": study.name}
    try:
        return make_account(
            store,
            "annotator",
            now=now,
            annotator=annotator,
            outside={key: value for key, value in outside.items() if value},
        )
    except StoreError:
        made = account_by_annotator(store, annotator)
        if made is None:
            raise
        return made


def _put(store: Store, name: str, *, is_open: bool, ends: Mapping[str, str], url: str, now: float) -> Study:
    if not name.strip() or len(PREFIX + name) > 64 or not name.isprintable():
        raise InputError(f"study: found the name {name!r}; expected 1 to {64 - len(PREFIX)} printable characters")
    newest = document(store, PREFIX + name)
    kept = {end: out for end, out in (_ends_of(newest) | dict(ends)).items() if out}
    check_address(url)
    url = url.rstrip("/") or ("" if newest is None else newest.body.get("url", ""))
    study = Study(name, _token(store, name), is_open, kept, url)
    body = {"open": is_open} | ({"ends": kept} if kept else {}) | ({"url": url} if url else {})
    if newest is None or newest.body != body:
        put_document(store, PREFIX + name, "", body, now=now)
    return study


def _ends_of(newest: Document | None) -> dict[str, str]:
    return {} if newest is None else dict(newest.body.get("ends", {}))


def _token(store: Store, name: str) -> str:
    return keyed_hash(secret_key(store, "study"), "link", name)[5:45]

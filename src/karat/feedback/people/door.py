"""Where people come in: the address of the server that a store was last served at, for the links made beside it.

Knows documents; knows nothing about HTTP.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from karat.errors import InputError
from karat.feedback.documents import document, put_document
from karat.feedback.store import Store

DOOR = "server"
"""Name of the document that says where the server was last started; no rater reads it."""


def check_address(url: str) -> None:
    """Raise InputError for an address that no link can begin with; "" = none is given."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:  # half of an IPv6 address
        usable = False
    if url and not usable:
        raise InputError(f"url: found {url!r}; expected an address that links begin with, as in https://example.org")


def keep_door(store: Store, url: str, *, now: float) -> None:
    """Remember the address that people use, where it is another one than before."""
    if door(store) != url:
        put_document(store, DOOR, "", {"url": url}, now=now)


def door(store: Store) -> str:
    """The address that a server of this store was last started with; "" = none was."""
    newest = document(store, DOOR)
    return "" if newest is None else str(newest.body.get("url", ""))

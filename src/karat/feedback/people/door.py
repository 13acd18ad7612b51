"""Where people come in: the address of the server that a store was last served at, for the links made beside it.

Knows documents; knows nothing about HTTP.
"""

from __future__ import annotations

from karat.feedback.documents import document, put_document
from karat.feedback.store import Store

DOOR = "server"
"""Name of the document that says where the server was last started; no rater reads it."""


def keep_door(store: Store, url: str, *, now: float) -> None:
    """Remember the address that people use, where it is another one than before."""
    if door(store) != url:
        put_document(store, DOOR, "", {"url": url}, now=now)


def door(store: Store) -> str:
    """The address that a server of this store was last started with; "" = none was."""
    newest = document(store, DOOR)
    return "" if newest is None else str(newest.body.get("url", ""))

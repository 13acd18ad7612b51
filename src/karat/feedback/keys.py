"""Keys made at random for one store, and keyed hashes with them.

What must not be guessed or compared across stores (form tokens, addresses, which item is shown when) is hashed with a
key that never leaves the store. Knows bytes; knows nothing about what is hashed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import weakref

from sqlalchemy import Connection, select

from karat.feedback.people_tables import keys
from karat.feedback.store import Store
from karat.feedback.upserts import insert_new

KEY_BYTES = 32

# A key never changes once it is made: every process may keep what it has read.
_known: weakref.WeakKeyDictionary[Store, dict[str, bytes]] = weakref.WeakKeyDictionary()


def secret_key(store: Store, name: str) -> bytes:
    """The store's own key of that name, 256 bits, made at random when it is first asked for."""
    known = _known.setdefault(store, {})
    if name not in known:
        with store.connection() as connection:
            value = _read(connection, name)
        known[name] = (
            store.write(lambda connection: make_key(connection, name)) if value is None else bytes.fromhex(value)
        )
    return known[name]


def make_key(connection: Connection, name: str) -> bytes:
    """`secret_key` inside a writing transaction."""
    insert_new(connection, keys, {"name": name, "value": secrets.token_hex(KEY_BYTES)})
    return bytes.fromhex(str(_read(connection, name)))


def keyed_hash(key: bytes, *parts: object) -> str:
    """`hmac:` and 64 hex digits: HMAC-SHA-256 over the parts, which cannot run into one another."""
    message = b"".join(len(text := str(part).encode()).to_bytes(8, "big") + text for part in parts)
    return "hmac:" + hmac.new(key, message, hashlib.sha256).hexdigest()


def keyed_fraction(key: bytes, *parts: object) -> float:
    """A number in [0, 1) that only the holder of the key can foretell: the first 53 bits of `keyed_hash`."""
    return (int(keyed_hash(key, *parts)[5:21], 16) >> 11) / 2**53


def _read(connection: Connection, name: str) -> str | None:
    return connection.execute(select(keys.c.value).where(keys.c.name == name)).scalar()

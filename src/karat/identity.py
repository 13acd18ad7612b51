"""Canonical JSON and tagged content hashes. Knows bytes and plain values, nothing about RLHF.

A hash is written `tag:hex`, where the tag names what was hashed and how. When the way of hashing ever changes,
the tag changes with it, so that an old record is recognised instead of being called altered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

from karat.errors import InputError

FILE_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, strings in Unicode normal form C.

    Args:
        value: nested dict, list, tuple, str, int, finite float, bool, None or frozen dataclass.
    Raises: InputError for NaN, infinities and anything else that JSON cannot hold; a record with a number that
        is not one must not get an identity.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_id(tag: str, value: Any) -> str:
    """`tag:` and the first 32 hex digits (128 bits) of the SHA-256 of the tag and the canonical JSON."""
    digest = hashlib.sha256(tag.encode() + b"\0" + canonical_json(value)).hexdigest()
    return f"{tag}:{digest[:32]}"


def bytes_hash(data: bytes) -> str:
    """`sha256:` and the 64 hex digits of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_hash(path: Path) -> str:
    """`sha256:` and the 64 hex digits of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(FILE_CHUNK_BYTES):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"canonical_json: found {value}, expected a finite number; say None with a reason instead")
        return value
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise InputError(f"canonical_json: found a {type(value).__name__}, expected plain JSON values")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise InputError(f"canonical_json: found the key {key!r}, expected a string")
    return unicodedata.normalize("NFC", key)

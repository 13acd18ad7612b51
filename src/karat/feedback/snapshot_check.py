"""Whether the files of a snapshot belong together: what stands in one by its place or its name is in the other.

Knows the files' rows as plain values; reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from karat.identity import content_id

NAMED = ("prompts", "responses", "annotators")
"""Files whose rows are named in the numeric columns by their places."""


def names_hash(ids: Mapping[str, Sequence[str]]) -> str:
    """A hash over the ids of NAMED, in their order: a row that is gone or moved would give a vote another meaning."""
    return content_id("names", [list(ids[name]) for name in NAMED])


def check_names(head: Mapping[str, Any], ids: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError where rows of NAMED are not in the order in which they were written, or not all of them.

    Args: head: of the snapshot; before it held the hash of the names there is the order alone.
    """
    for name, each in ids.items():
        if wrong := next((two for two in pairwise(each) if two[0] >= two[1]), None):
            raise ValueError(f"{name}.jsonl: found {wrong[1]} after {wrong[0]}, out of order")
    if "names_hash" in head and names_hash(ids) != head["names_hash"]:
        raise ValueError(f"{', '.join(f'{name}.jsonl' for name in NAMED)}: rows are missing or added")


def check_ids(head: Mapping[str, Any], ids: Sequence[str], judgements: Sequence[str]) -> None:
    """Raise ValueError where commitments and judgements do not name the same records in the same order.

    Args: ids: of the commitments, the votes first.    judgements: ids of what is no vote.
    """
    n = head["n_votes"]
    if len(ids) != head["n_judgements"] or not all(isinstance(one, str) for one in ids):
        raise ValueError(f"commitments.jsonl: found {len(ids)} records, snapshot.json says {head['n_judgements']}")
    if any(two[0] >= two[1] for part in (ids[:n], ids[n:]) for two in pairwise(part)):
        raise ValueError("commitments.jsonl: records are out of order")
    if list(ids[n:]) != list(judgements):
        raise ValueError(f"judgements.jsonl: found {len(judgements)} records, not the {len(ids) - n} committed to")


def check_columns(columns: Mapping[str, np.ndarray], n_votes: int, sizes: Mapping[str, int]) -> None:
    """Raise ValueError where a numeric column is of another length or out of its range.

    Args: sizes: rows that there are to be named, by column.
    """
    for name, column in columns.items():
        if column.shape != (n_votes,):
            raise ValueError(f"votes.npz: found {name} of shape {column.shape} for {n_votes} votes")
    ends = {name: (0, n - 1) for name, n in sizes.items()}
    ends |= {"side": (-1, 1), "both": (-1, 1), "n_levels": (2, np.inf), "propensity": (0, 1)}
    for name, (low, high) in ends.items():
        if not ((columns[name] >= low) & (columns[name] <= high)).all():
            raise ValueError(f"votes.npz: found {name} outside {low} … {high}")
    if not ((columns["level"] >= 0) & (columns["level"] < columns["n_levels"])).all():
        raise ValueError("votes.npz: found a level outside its scale")

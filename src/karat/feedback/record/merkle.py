"""Merkle trees: one hash over many leaves, and short proofs about it. Pure: bytes in, bytes out.

The tree is that of RFC 6962 (Certificate Transparency), so that other programs can check it: a leaf is hashed with
a 0 byte before it, two nodes with a 1 byte, and n leaves part at the largest power of two below n. Knows hashes;
knows nothing about judgements or where leaves are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from karat.errors import InputError

EMPTY = hashlib.sha256(b"").digest()
"""The root over no leaves."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf: SHA-256(0 ‖ data)."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two nodes: SHA-256(1 ‖ left ‖ right)."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, in their order.

        MTH(D[n]) = SHA-256(1 ‖ MTH(D[0:k]) ‖ MTH(D[k:n])),  k = the largest power of two below n

    Args:
        leaves: hashes made by `leaf_hash`.
    Source: RFC 6962 section 2.1.
    """
    if not leaves:
        return EMPTY
    level = list(leaves)
    while len(level) > 1:
        # pairing neighbours and carrying an odd one up gives the same tree as the recursion of the RFC
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) - len(level) % 2 :]
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The hashes that, with one leaf, give the root: from the leaf's neighbour upwards.

    Raises: InputError where there is no such leaf.
    Source: RFC 6962 section 2.1.1.
    """
    if not 0 <= index < len(leaves):
        raise InputError(f"inclusion_proof: found leaf {index} of {len(leaves)}; expected 0 … {len(leaves) - 1}")
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*inclusion_proof(leaves[:split], index), root(leaves[split:]))
    return (*inclusion_proof(leaves[split:], index - split), root(leaves[:split]))


def is_included(leaf: bytes, index: int, n_leaves: int, proof: Sequence[bytes], of_root: bytes) -> bool:
    """Whether a proof shows that this leaf stands at this place of a tree of n leaves with this root.

    Source: RFC 9162 section 2.1.3.2.
    """
    if not 0 <= index < n_leaves:
        return False
    place, last, found = index, n_leaves - 1, leaf
    for beside in proof:
        if last == 0:
            return False
        if place % 2 or place == last:
            found = node_hash(beside, found)
            while place % 2 == 0 and place:
                place, last = place // 2, last // 2
        else:
            found = node_hash(found, beside)
        place, last = place // 2, last // 2
    return last == 0 and found == of_root


def consistency_proof(leaves: Sequence[bytes], n_before: int) -> tuple[bytes, ...]:
    """The hashes that show that a tree of the first `n_before` leaves only grew into this one.

    Raises: InputError unless 0 < n_before ≤ n.
    Source: RFC 6962 section 2.1.2.
    """
    if not 0 < n_before <= len(leaves):
        raise InputError(f"consistency_proof: found {n_before} of {len(leaves)} leaves; expected 1 … {len(leaves)}")
    return _grown(leaves, n_before, whole=True)


def is_consistent(n_before: int, before: bytes, n_after: int, after: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that the tree with root `after` begins with the leaves of the tree with root `before`.

    Source: RFC 9162 section 2.1.4.2.
    """
    if not 0 < n_before <= n_after:
        return False
    if n_before == n_after:
        return before == after and not proof
    steps = list(proof)
    if n_before & (n_before - 1) == 0:
        steps.insert(0, before)
    if not steps:
        return False
    place, last = n_before - 1, n_after - 1
    while place % 2:
        place, last = place // 2, last // 2
    small = large = steps[0]
    for beside in steps[1:]:
        if last == 0:
            return False
        if place % 2 or place == last:
            small, large = node_hash(beside, small), node_hash(beside, large)
            while place % 2 == 0 and place:
                place, last = place // 2, last // 2
        else:
            large = node_hash(large, beside)
        place, last = place // 2, last // 2
    return last == 0 and small == before and large == after


def _split(n: int) -> int:
    """The largest power of two below n ≥ 2."""
    return 1 << ((n - 1).bit_length() - 1)


def _grown(leaves: Sequence[bytes], n_before: int, *, whole: bool) -> tuple[bytes, ...]:
    if n_before == len(leaves):
        return () if whole else (root(leaves),)
    split = _split(len(leaves))
    if n_before <= split:
        return (*_grown(leaves[:split], n_before, whole=whole), root(leaves[split:]))
    return (*_grown(leaves[split:], n_before - split, whole=False), root(leaves[:split]))

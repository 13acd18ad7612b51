"""Merkle trees against the vectors of RFC 6962 and a recursion written from it."""

import hashlib
import json
from pathlib import Path

import pytest

from karat.errors import InputError
from karat.feedback.record import merkle

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "merkle.json").read_text(encoding="utf-8"))


def leaves(n: int) -> list[bytes]:
    return [merkle.leaf_hash(b"leaf %d" % i) for i in range(n)]


def slow_root(data: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = 1
    while k * 2 < len(data):
        k *= 2
    return hashlib.sha256(b"\x01" + slow_root(data[:k]) + slow_root(data[k:])).digest()


@pytest.mark.parametrize("case", GOLDEN, ids=[case["desc"] for case in GOLDEN])
def test_the_roots_are_those_of_certificate_transparency(case):
    hashed = [merkle.leaf_hash(bytes.fromhex(text)) for text in case["leaves"]]
    assert merkle.root(hashed).hex() == case["root"]


def test_the_root_is_the_recursion_of_the_rfc():
    for n in range(40):
        data = [b"leaf %d" % i for i in range(n)]
        assert merkle.root(leaves(n)) == slow_root(data)


def test_every_leaf_can_be_shown_and_no_other():
    for n in range(1, 20):
        tree = leaves(n)
        top = merkle.root(tree)
        for i in range(n):
            proof = merkle.inclusion_proof(tree, i)
            assert len(proof) <= (n - 1).bit_length()
            assert merkle.is_included(tree[i], i, n, proof, top)
            assert not merkle.is_included(merkle.leaf_hash(b"other"), i, n, proof, top)
            assert not merkle.is_included(tree[i], (i + 1) % n, n, proof, top) or n == 1
            assert not merkle.is_included(tree[i], i, n, (*proof, top), top)
            assert not proof or not merkle.is_included(tree[i], i, n, proof[:-1], top)
    assert not merkle.is_included(tree[0], n, n, (), top)


def test_a_tree_that_only_grew_can_show_it():
    for n in range(1, 20):
        tree = leaves(n)
        after = merkle.root(tree)
        for m in range(1, n + 1):
            before = merkle.root(tree[:m])
            proof = merkle.consistency_proof(tree, m)
            assert merkle.is_consistent(m, before, n, after, proof)
            rewritten = merkle.root([merkle.leaf_hash(b"other"), *tree[1:m]])
            assert not merkle.is_consistent(m, rewritten, n, after, proof)
            assert not merkle.is_consistent(m, before, n, merkle.leaf_hash(b"other"), proof)
            assert not merkle.is_consistent(m, before, n, after, (*proof, after))
    assert not merkle.is_consistent(0, merkle.EMPTY, 3, after, ())


def test_a_leaf_is_never_taken_for_a_node():
    left, right = leaves(2)
    assert merkle.leaf_hash(left + right) != merkle.root([left, right])
    assert merkle.root([*leaves(3), leaves(3)[2]]) != merkle.root(leaves(3))


def test_what_is_not_there_is_refused():
    with pytest.raises(InputError, match="found leaf 3 of 3; expected 0 … 2"):
        merkle.inclusion_proof(leaves(3), 3)
    with pytest.raises(InputError, match="found 4 of 3 leaves; expected 1 … 3"):
        merkle.consistency_proof(leaves(3), 4)

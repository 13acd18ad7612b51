"""Content hashes: equal for equal content, different for different, refused for what is not a value."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.errors import InputError
from karat.identity import canonical_json, content_id, file_hash

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcdef", max_size=4), plain_values, max_size=5))
def test_the_order_of_keys_does_not_matter(value):
    reversed_keys = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(reversed_keys)


@given(plain_values)
def test_canonical_json_reads_back(value):
    again = json.loads(canonical_json(value))
    assert canonical_json(again) == canonical_json(value)


def test_the_tag_is_part_of_the_identity():
    assert content_id("prompt", "x").split(":")[1] != content_id("response", "x").split(":")[1]
    expected = hashlib.sha256(b'task\0{"a":1}').hexdigest()[:32]
    assert content_id("task", {"a": 1}) == f"task:{expected}"


def test_composed_and_decomposed_letters_are_one_text():
    assert content_id("t", "café") == content_id("t", "cafe\u0301")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, object()])
def test_what_is_not_a_plain_value_has_no_identity(value):
    with pytest.raises(InputError, match="canonical_json: found"):
        content_id("t", value)


def test_file_hash_is_sha256_of_the_bytes(tmp_path):
    data = b"karat" * 300_000
    (tmp_path / "f").write_bytes(data)
    assert file_hash(tmp_path / "f") == "sha256:" + hashlib.sha256(data).hexdigest()

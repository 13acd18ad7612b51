"""Steps of a text: where they end, and that no word is lost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.segments import steps_of


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a b\n\nc\n\n\nd\n", ["a b", "c", "d"]),
        ("  one\n two\n", ["one", "two"]),
        ("First this. Then that? Done!", ["First this.", "Then that?", "Done!"]),
        ("one step only", ["one step only"]),
        ("\n\n", []),
        ("", []),
        ("a\r\n\r\nb", ["a", "b"]),
    ],
)
def test_steps_are_paragraphs_else_lines_else_sentences(text: str, parts: list[str]):
    assert [text[start:end] for start, end in steps_of(text)] == parts


@given(st.text(alphabet="ab .!?\n\r\t。é"))
def test_steps_cover_every_word_once_and_in_order(text: str):
    found = steps_of(text)
    assert all(start < end for start, end in found)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))
    assert "".join("".join(text[s:e] for s, e in found).split()) == "".join(text.split())

"""Hostile texts become HTML that runs, loads and hides nothing; offsets in the page are offsets in the text."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karat.feedback.web import rendering
from karat.feedback.web.rendering import (
    LONG_LINES,
    LONG_TEXT,
    MOST_GHOSTS,
    MOST_MARKDOWN,
    exact_html,
    is_long,
    markdown_html,
    n_words,
    plain_html,
    visible,
)
from web_payloads import payloads

ALLOWED = {
    "p", "br", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "h2", "h3", "h4", "h5", "h6", "hr",
    "table", "thead", "tbody", "tr", "th", "td", "div", "span",
}  # fmt: skip
ATTRIBUTES = {"class", "start", "tabindex", "role", "aria-label", "data-n", "data-label", "title"}


class Reader(HTMLParser):
    """What a browser would make of the HTML: its tags, attributes, text, and code points by ghosts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.text = ""
        self.shape: list[str | int] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALLOWED:
            self.wrong.append(tag)
        self.wrong += [f"{tag} {name}={value}" for name, value in attrs if name not in ATTRIBUTES]
        found = dict(attrs)
        if "data-n" in found:
            self.shape.append(int(found["data-n"] or 0))
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.text += data
        self.shape.append(data)

    def handle_comment(self, data: str) -> None:
        self.wrong.append(f"comment {data}")

    handle_decl = handle_pi = unknown_decl = handle_comment


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(str(html))
    reader.close()
    return reader


@pytest.mark.parametrize("show", [markdown_html, plain_html], ids=["markdown", "plain"])
def test_no_payload_leaves_more_than_plain_text(show):
    for text in payloads():
        for whole in (text, f"before\n\n{text}\n\nafter", f"> - {text}"):
            found = read(show(whole))
            assert not found.wrong, (text, found.wrong)
            assert not found.open, (text, found.open)


def test_tags_are_shown_as_they_were_written():
    for text in ("<b>x</b> & <img src=x>", "<script>xss()</script>", "<details>\n<summary>a</summary>"):
        assert read(markdown_html(text)).text.split() == text.split()


def test_all_payloads_in_one_text_leave_no_more():
    found = read(markdown_html("\n\n".join(payloads())[:MOST_MARKDOWN]))
    assert not found.wrong
    assert "evil.example" in found.text


def test_what_a_reader_needs_stays():
    html = markdown_html("# T\n\n**b** *i* ~~s~~ `c`\n\n1. x\n\n|a|b|\n|:-:|-:|\n|1|2|\n\n```python\ndef f(): ...\n```")
    for part in ("<h3>T</h3>", "<strong>b</strong>", "<em>i</em>", "<s>s</s>", "<code>c</code>", "<li>x</li>"):
        assert part in html
    assert '<th class="center">a</th>' in html
    assert '<td class="right">2</td>' in html
    assert '<span class="k">def</span>' in html
    assert 'aria-label="Table"' in html


@pytest.mark.parametrize(
    ("written", "top", "levels"),
    [
        ("## a\n\n### b\n\n## c", 2, "232"),
        ("# a\n\n#### b\n\n## c\n\n# d", 3, "3443"),
        ("### a\n\n# b\n\n> ###### c", 2, "223"),
        ("# a\n## b\n### c\n#### d\n##### e", 3, "34566"),
    ],
)
def test_headings_follow_one_another_without_a_gap(written: str, top: int, levels: str):
    html = markdown_html(written, top)
    assert "".join(re.findall(r"<h(\d)>", html)) == "".join(re.findall(r"</h(\d)>", html)) == levels


def test_links_and_images_are_words():
    html = markdown_html("[a page](https://e.org/x?y=1&z=2) ![a cat](https://e.org/c.png) <https://e.org>")
    assert "<a" not in html
    assert "<img" not in html
    assert read(html).text.split() == ["a", "page", "https://e.org/x?y=1&z=2", "image:", "a", "cat", "https://e.org/c.png", "https://e.org"]  # fmt: skip


def test_formulas_stay_as_written():
    assert '<code class="math">$a_b * c_d * e$</code>' in markdown_html("so $a_b * c_d * e$ holds")
    assert '<code class="math">\\(x_1\\)</code>' in markdown_html("\\(x_1\\)")
    assert "math" not in markdown_html("it costs $5 and $6, or *$7* in all")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("\u200b\u200b\u200b", "⟨U+200B ×3⟩"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("fl\u00adow", "fl⟨U+00AD⟩ow"),
        ("\ue000202E\ue001", "⟨U+E000⟩202E⟨U+E001⟩"),
        ("plain\ttext\n", "plain\ttext\n"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3", "👨\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3"),
        ("ab\u200dcd", "ab⟨U+200D⟩cd"),
        ("שלום\u200f!", "שלום\u200f!"),
        ("hello\u200f!", "hello⟨U+200F⟩!"),
        ("שלום" + "\u200f" * 5, "שלום⟨U+200F ×5⟩"),
    ],
)
def test_hidden_characters_are_shown_and_needed_ones_kept(text: str, shown: str):
    assert visible(text) == shown


def test_a_long_row_of_hidden_characters_is_counted():
    text = "".join(chr(0xE0020 + i) for i in range(60))
    assert visible(text).count("⟨") == MOST_GHOSTS + 1
    assert visible(text).endswith(f"⟨{60 - MOST_GHOSTS} more⟩")


any_text = st.text(st.characters(exclude_categories=()), max_size=60)
hostile = st.sampled_from(payloads())


@given(
    st.lists(any_text | hostile | st.sampled_from(["\r\n", "\u202e", "\u200b\u200c", "é", "👍🏽"]), max_size=6).map(
        "".join
    )
)
def test_offsets_in_the_page_are_offsets_in_the_text(text: str):
    found = read(plain_html(text))
    assert not found.wrong
    at = 0
    for part in found.shape:
        if isinstance(part, int):
            hidden = text[at : at + part]
            assert all(unicodedata.category(char)[0] == "C" or not char.isprintable() or char >= "\ue000" or unicodedata.category(char) in ("Lo", "Mn") for char in hidden)  # fmt: skip
            at += part
        else:
            assert text[at : at + len(part)] == part
            at += len(part)
    assert at == len(text)


OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@given(st.lists(any_text | st.sampled_from(["`", "**", "\n\n", *OVERRIDES]), max_size=8).map("".join))
def test_nothing_that_turns_the_writing_direction_reaches_the_page(text: str):
    overrides = set(OVERRIDES)
    for html in (markdown_html(text), plain_html(text), exact_html(text)):
        assert not overrides & set(html)
        html.encode("utf-8")


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "![" * 10_000, "*a " * 9_000, "> " * 9_000, "- " * 9_000, "`" * 20_000, "|a" * 9_000, "\\(" * 9_000, "x" * 1_000_000],
    ids=["links", "images", "emphasis", "quotes", "lists", "ticks", "cells", "formulas", "one line"],
)  # fmt: skip
def test_texts_that_would_keep_a_parser_busy_are_shown_as_they_are(text: str):
    found = read(markdown_html(text))
    assert not found.wrong
    assert 'class="plain"' in markdown_html(text)
    assert len("".join(found.text.split())) == len("".join(text.split()))


def test_deep_nesting_ends():
    assert not read(markdown_html(">" * 7_000 + "x")).wrong
    assert not read(markdown_html("[" * 7_000 + "x" + "](y)" * 2_000)).wrong


def test_long_texts_are_called_long():
    assert not is_long("x" * LONG_TEXT)
    assert is_long("x" * (LONG_TEXT + 1))
    assert is_long("\n" * (LONG_LINES + 1))
    assert n_words("one two three") == 3
    assert n_words("漢" * 120) == 10


PROSE = st.text(alphabet="ab Zé9 ,.;:'!?()\"’“—-\n", min_size=1, max_size=40)
BESIDE_PROSE = st.text(alphabet="a 1.)\n*_`#>-+=|[]<&\\$~:/h\t", min_size=1, max_size=30)


@given(st.one_of(PROSE, BESIDE_PROSE, st.lists(PROSE, max_size=3).map("\n\n".join)))
def test_plain_sentences_take_the_short_way_to_the_same_page(text):
    short = markdown_html.__wrapped__(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "_PROSE", re.compile(r"(?!)"))
        assert markdown_html.__wrapped__(text) == short


def test_what_people_mostly_write_takes_the_short_way():
    assert rendering._PROSE.fullmatch('Well, that "depends" (a lot): 3 of 4 say so!\nAnd – no.\n\nÉtonnant?')
    assert not rendering._PROSE.fullmatch("a\n- b")
    assert not rendering._PROSE.fullmatch("1. a")

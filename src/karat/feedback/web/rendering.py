"""Hostile text made safe to read: Markdown and code as HTML, hidden characters made visible.

Two nets: a Markdown parser that knows no HTML, then an allow-list over what it wrote. Links and images become text, so
that reading a response opens nothing, loads nothing and tells nobody who reads. Characters that nobody can see (bidi
overrides, zero-width spaces, tags, control codes) are shown by their number; those that a script needs stay as they
are. Knows texts; knows nothing about tasks, raters or where a page gets them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

MOST_MARKDOWN = 16_000
"""Code points beyond which a text is shown as it is: the time that a parser may take is bounded."""
MOST_CODE = 8_000
"""Code points of a code block beyond which it is not coloured, for the same reason."""
LONG_TEXT = 4_000
"""Code points beyond which a text is first shown shortened."""
LONG_LINES = 48
"""Lines beyond which a text is first shown shortened."""
MOST_GHOSTS = 8
"""Different hidden characters in a row that are named one by one; what follows is counted."""

LANGUAGES = frozenset({
    "bash", "c", "console", "cpp", "csharp", "css", "diff", "go", "html", "ini", "java", "javascript", "js", "json",
    "kotlin", "lua", "makefile", "markdown", "php", "python", "py", "r", "ruby", "rust", "scala", "sh", "shell", "sql",
    "swift", "toml", "ts", "typescript", "xml", "yaml", "yml",
})  # fmt: skip
"""Languages that are coloured."""

_OPEN, _CLOSE = "\ue000", "\ue001"  # private marks around a hidden character's number, themselves hidden in any text
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2028, 0x2029, 0x3164, 0xFFA0, 0xE000, 0xE001}
_BLANK |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_SEEN_FORMATS = {*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD}
_DIRECTION_MARKS = "\u200e\u200f\u061c"


def _is_hidden(code: int) -> bool:
    if code in _BLANK:
        return True
    return unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs") and code not in {9, 10, *_SEEN_FORMATS}


def _ranges(codes: Sequence[int]) -> str:
    """The codes as the inside of a character class."""
    found = []
    for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        members = [code for _, code in run]
        found.append(f"\\U{members[0]:08x}-\\U{members[-1]:08x}")
    return "".join(found)


_HIDDEN = re.compile(
    f"[{_ranges([code for code in (*range(0x1E000), *range(0xE0000, 0xE1000)) if _is_hidden(code)])}]+"
)
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_MARKED = re.compile(f"{_OPEN}([0-9A-Fx+]+){_CLOSE}")

# Sentences and paragraphs in which Markdown can find nothing, most of what people read: what the parser and the
# allow-list make of them is known (and tested to be the same), and takes them a hundred times as long.
_SENTENCE = "[A-Za-zÀ-ÖØ-öø-ɏ](?:[A-Za-z0-9À-ÖØ-öø-ɏ ,.;:'!?()\"‘’“”–—…-]*[A-Za-z0-9À-ÖØ-öø-ɏ,.;:'!?()\"‘’“”–—…-])?"
_PROSE = re.compile(rf"{_SENTENCE}(?:\n\n?{_SENTENCE})*")

_TAGS = {
    "p", "br", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "h2", "h3", "h4", "h5", "h6", "hr",
    "table", "thead", "tbody", "tr", "th", "td", "div", "span",
}  # fmt: skip
_ATTRIBUTES = {"ol": {"start"}, "pre": {"tabindex", "role", "aria-label"}, "div": {"tabindex", "role", "aria-label"}}
_CLASSES = {
    "span": {"link", "address", *(short for short in STANDARD_TYPES.values() if short)},
    "div": {"code", "table"},
    "code": {"math"},
    "th": {"left", "center", "right"},
    "td": {"left", "center", "right"},
}


def visible(text: str) -> str:
    """The text with every hidden character written as its number: `a⟨U+202E⟩b`."""
    return _MARKED.sub(lambda found: f"⟨{_label(found[1])}⟩", _marked(text))


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen: no character at all, spaces and hidden characters alone."""
    return not _HIDDEN.sub("", text).strip()


@lru_cache(maxsize=512)
def markdown_html(text: str, top: int = 3) -> Markup:
    """A text in Markdown as HTML without scripts, handlers, styles, addresses or anything to load.

    A text of more than `MOST_MARKDOWN` code points is shown as it is.

    Args:
        top: level of its outermost headings, below those of the page around it; the others follow without a gap.
    """
    if len(text) > MOST_MARKDOWN:
        return plain_html(text)
    if _PROSE.fullmatch(text):
        return Markup("".join(f"<p>{part}</p>\n" for part in text.replace("\n", "<br>\n").split("<br>\n<br>\n")))
    try:
        dirty = _PARSER.render(_marked(text), {"top": top})
    except RecursionError:
        return plain_html(text)
    clean = nh3.clean(
        dirty, tags=_TAGS, attributes=_ATTRIBUTES, allowed_classes=_CLASSES, url_schemes=set(), link_rel=None
    )
    return Markup(_MARKED.sub(_ghost, clean))


def plain_html(text: str) -> Markup:
    """A text as it is, code point for code point: whoever counts them in the page finds the offsets of the text.

    A run of hidden characters is an element without text that says in `data-n` how many code points it stands for.
    """
    return Markup(f'<div class="plain">{exact_html(text)}</div>')


def exact_html(text: str) -> Markup:
    """`plain_html` without its frame: for a part of a text."""
    return Markup(_MARKED.sub(_ghost, str(escape(_marked(text)))))


def is_long(text: str) -> bool:
    """True = shown shortened at first, until the reader asks for all of it."""
    return len(text) > LONG_TEXT or text.count("\n") > LONG_LINES


def n_words(text: str) -> int:
    """Words of a text, as reading time counts them; four letters of a script without spaces are one."""
    return max(len(text.split()), len(text) // 12)


def _marked(text: str) -> str:
    """The text with each hidden character between private marks, by its number and how often it follows itself."""
    with_rtl = bool(_RTL.search(text))

    def run(found: re.Match[str]) -> str:
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        if len(found[0]) <= 2 and _belongs(found[0], before, after, with_rtl):
            return found[0]
        groups = [(char, len(list(same))) for char, same in groupby(found[0])]
        named = [f"{_OPEN}{ord(char):04X}{f'x{n}' if n > 1 else ''}{_CLOSE}" for char, n in groups[:MOST_GHOSTS]]
        if rest := sum(n for _, n in groups[MOST_GHOSTS:]):
            named.append(f"{_OPEN}+x{rest}{_CLOSE}")
        return "".join(named)

    return _HIDDEN.sub(run, text)


def _belongs(run: str, before: str, after: str, with_rtl: bool) -> bool:
    """Whether a short run is what its script or emoji needs, so that showing it would break the writing."""
    first = unicodedata.category(before) if before else ""
    last = unicodedata.category(after) if after else ""
    joins = first[:1] == "M" or first in ("Lo", "So", "Sk")
    if run in ("\ufe0f", "\ufe0e"):
        return first in ("So", "Sm", "Po", "Nd", "Sk", "Pd", "Ps")
    if run in ("\u200d", "\ufe0f\u200d"):
        return joins and (last[:1] == "M" or last in ("Lo", "So"))
    if run == "\u200c":
        return (first == "Lo" or first[:1] == "M") and (last == "Lo" or not last or last[:1] in "ZP")
    return with_rtl and all(char in _DIRECTION_MARKS for char in run)


def _label(mark: str) -> str:
    code, _, n = mark.partition("x")
    if code == "+":
        return f"{n} more"
    return f"U+{code} ×{n}" if n else f"U+{code}"


def _ghost(found: re.Match[str]) -> str:
    code, _, n = found[1].partition("x")
    if code == "000D":  # an old line end: there is nothing to see, but it counts
        return f'<span class="return" data-n="{n or 1}"></span>'
    try:
        name = "more hidden characters" if code == "+" else unicodedata.name(chr(int(code, 16))).lower()
    except ValueError:
        name = "control character"
    label = _label(found[1])
    title = escape(f"hidden character: {name}, {label}")
    return (
        f'<span class="ghost" data-n="{n or 1}" data-label="{label}" title="{title}" role="img" '
        f'aria-label="{title}"></span>'
    )


# How Markdown becomes HTML


def _outline(state: StateCore) -> None:
    """Headings by how deep they lie in the text, whatever number they were written with: who listens misses no level."""
    above: list[int] = []
    for token in state.tokens:
        if token.type == "heading_open":
            written = int(token.tag[1])
            above = [*(level for level in above if level < written), written]
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(state.env['top'] + len(above) - 1, 6)}"


def _link_open(*_: object) -> str:
    return '<span class="link">'


def _link_close(tokens: Sequence[Token], index: int, *_: object) -> str:
    depth, start = 0, index
    while start >= 0:
        depth += tokens[start].type == "link_close"
        depth -= tokens[start].type == "link_open"
        if depth == 0:
            break
        start -= 1
    address = str(tokens[start].attrs.get("href", ""))
    said = "".join(token.content for token in tokens[start:index])
    shown = "" if said == address else f' <span class="address">{escape(visible(address))}</span>'
    return f"</span>{shown}"


def _image(tokens: Sequence[Token], index: int, *_: object) -> str:
    token = tokens[index]
    words = f"image: {token.content}" if token.content else "image"
    return (
        f'<span class="link">{escape(words)}</span> <span class="address">{escape(token.attrs.get("src", ""))}</span>'
    )


def _code_block(tokens: Sequence[Token], index: int, *_: object) -> str:
    token = tokens[index]
    language = (token.info.split() or [""])[0].lower()
    inside = str(escape(token.content))
    if language in LANGUAGES and len(token.content) <= MOST_CODE:
        inside = highlight(token.content, get_lexer_by_name(language, stripnl=False), HtmlFormatter(nowrap=True))
    return f'<div class="code"><pre tabindex="0" role="region" aria-label="Code"><code>{inside}</code></pre></div>\n'


def _cell(tokens: Sequence[Token], index: int, *_: object) -> str:
    token = tokens[index]
    side = str(token.attrs.get("style", "")).removeprefix("text-align:")
    return f'<{token.tag} class="{side}">' if side in ("left", "center", "right") else f"<{token.tag}>"


def _math(state: StateInline, silent: bool) -> bool:
    """Formulas stay as they were written: Markdown would read emphasis into them."""
    found = _FORMULA.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        token = state.push("code_inline", "code", 0)
        token.content, token.attrs = found[0], {"class": "math"}
    state.pos = found.end()
    return True


_FORMULA = re.compile(
    r"\\\((?:[^\\]|\\(?![()])){1,1000}\\\)|\\\[(?:[^\\]|\\(?![\[\]])){1,1000}\\\]"
    r"|\$\$[^$]{1,1000}\$\$|\$(?![\s\d])[^$\n`]{0,200}[^\s$\\`]\$(?!\d)"
)


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda _: True  # type: ignore[method-assign]  # an address is only ever shown, never used
    parser.normalizeLink = lambda address: address  # type: ignore[method-assign]
    parser.inline.ruler.before("escape", "math", _math)
    parser.core.ruler.push("outline", _outline)
    rules = {
        "link_open": _link_open, "link_close": _link_close,
        "image": _image, "fence": _code_block, "code_block": _code_block, "th_open": _cell, "td_open": _cell,
        "table_open": lambda *_: '<div class="table" tabindex="0" role="region" aria-label="Table"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }  # fmt: skip
    assert isinstance(parser.renderer, RendererHTML)
    parser.renderer.rules.update(rules)  # type: ignore[arg-type]
    return parser


_PARSER = _parser()

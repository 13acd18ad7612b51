"""Files of rows from outside: JSON lines, plain or gzip, read with errors that name file and line.

Knows how conversations are written, and nothing else of what the rows mean. A file is read to its end before anybody acts on it, so that a truncated one
changes nothing.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import itertools
import json
import os
import re
import tempfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from karat.destinations import check_plain
from karat.errors import InputError
from karat.records import Prompt, Turn

T = TypeVar("T")
GZIP_MAGIC = b"\x1f\x8b"
MAX_LINE_BYTES = 1 << 26
"""64 MiB: no row of text is longer; a file without line ends must not fill the memory."""
MAX_EXPANSION = 200
"""Texts shrink 3- to 20-fold; what shrinks more, and is longer than `MAX_LINE_BYTES` when unpacked, is no data."""
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
"""A line of a table with its end: some programs still end lines by a carriage return alone."""
MOST_LISTED = 12
"""Names of fields that a message lists."""


@dataclass(frozen=True)
class Row:
    """One JSON object of a file."""

    values: Mapping[str, Any]
    """The fields."""
    path: Path
    """The file."""
    line: int
    """Its line, from 1."""

    @property
    def at(self) -> str:
        """`file:line`, to begin a message with."""
        return f"{self.path}:{self.line}"

    def get(self, name: str, kind: type[T] | tuple[type, ...], default: Any = None) -> T | Any:
        """The field, or the default where it is absent or null.

        Raises: InputError for a value of another type.
        """
        value = self.values.get(name)
        if value is None:
            return default
        wanted = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            expected = " or ".join(_name(each) for each in wanted)
            raise InputError(f"{self.at}: found {_short(value)} in the field {name!r}; expected {expected}")
        return value

    def need(self, name: str, kind: type[T] | tuple[type, ...]) -> T | Any:
        """The field. Raises: InputError where it is absent, null or of another type."""
        if name in self.values and self.values[name] is None:
            raise InputError(f"{self.at}: found null in the field {name!r}; give it a value")
        if name not in self.values:
            raise InputError(f"{self.at}: found no field {name!r} among {_listed(self.values)}; add it")
        return self.get(name, kind)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raises: InputError for a field that is not known, with the nearest name that is, and all that are."""
        for name in self.values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? Known here: " if near else "known here: "
                raise InputError(f"{self.at}: found the unknown field {name!r}; {hint}{', '.join(sorted(known))}")

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Begin the message of an InputError raised inside with this row's file and line."""
        try:
            yield
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(self.at) else f"{self.at}: {text}") from None


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a JSONL file; gzip is recognised by its first bytes, blank lines are skipped.

    Raises: InputError (one line) for a file that is missing, empty, truncated, not gzip though named `.gz`, not
        UTF-8, or holds something other than one JSON object a line.
    """
    return _rows(Path(path), _lines(Path(path)))


def rows_of_text(text: str, name: str) -> list[Row]:
    """`read_rows` of a text that somebody typed or sent; `name` stands for the file in messages."""
    return _rows(Path(name), ((number, line + "\n") for number, line in enumerate(text.split("\n"), 1)))


def text_fault(text: str) -> str:
    """Why no database can keep a text: half of a surrogate pair, or the character NUL; "" = it can."""
    if "\0" in text:
        return "found the character NUL (\\u0000); expected text without it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"found half of a surrogate pair (\\u{ord(text[error.start]):04x}); expected whole characters"
    return ""


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for `json.loads(…, object_pairs_hook=…)`, which alone takes the last of two in silence.

    Raises: InputError for a key that stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"found the field {twice!r} twice; expected it once")
    return found


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a plain JSON value, keys included."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping):
            waiting += [one for pair in found.items() for one in pair]
        elif isinstance(found, list | tuple):
            waiting += found


def read_table(path: str | Path) -> list[Row]:
    """All rows of a table with a head: cells by column, as text; empty cells are absent, empty rows skipped.

    Commas, semicolons or tabs part the cells, whichever the head has; a cell in double quotes may hold any of them, and
    line ends. A row's line is the one that it begins in.

    Raises: InputError (one line) as `read_rows`, and for a head with a column twice, or a row of more cells than it.
    """
    path = Path(path)
    lines = (part for _, text in _lines(path) for part in LINE.findall(text))
    first = next(lines, "")
    parted = max(",;\t", key=first.count)
    csv.field_size_limit(MAX_LINE_BYTES)  # by itself it takes no text of more than 131,072 characters
    rows, line = csv.reader(itertools.chain([first], lines), delimiter=parted, strict=True), 1
    found: list[Row] = []
    try:
        head = [name.strip() for name in next(rows, [])]
        if not any(head) or len(set(head)) < len(head) or "" in head:
            raise InputError(f"{path}:1: found the columns {_listed(head)}; expected different names")
        if len(head) == 1:
            raise InputError(
                f"{path}:1: found one column, {_short(head[0])}; expected commas, semicolons or tabs between several"
            )
        line = rows.line_num + 1
        for cells in rows:
            if len(cells) > len(head):
                raise InputError(f"{path}:{line}: found {len(cells)} cells in a row of {len(head)} columns")
            values = {name: cell for name, cell in zip(head, cells, strict=False) if cell.strip()}
            fault = next(filter(None, map(text_fault, values.values())), "")
            if fault:
                raise InputError(f"{path}:{line}: {fault}")
            found += [Row(values, path, line)] if values else []
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line}: found no complete row of a table ({error})") from None
    if not found:
        raise InputError(f"{path}: found no rows; expected a head and one row an answer")
    return found


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """(line number, text) of every line that is not blank, without its line end.

    Raises: as `read_rows`.
    """
    lines = [(number, line.rstrip("\r\n")) for number, line in _lines(Path(path)) if line.strip()]
    if not lines:
        raise InputError(f"{path}: found no text; expected one entry a line")
    return lines


def turns_of(messages: Sequence[Any]) -> tuple[Turn, ...]:
    """The turns in a list of {"role", "content"}, the shape in which conversations are usually stored.

    Raises: InputError for an empty list, or a message without role or content.
    """
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f"found the message {str(message)[:60]!r}; expected an object with 'role' and 'content'")
        turns.append(Turn(message["role"], message["content"]))
    if not turns:
        raise InputError("found an empty list of messages; expected at least one")
    return tuple(turns)


def messages_of_turns(pairs: Sequence[Any]) -> list[dict[str, Any]]:
    """Pairs of role and content, as a run keeps its prompts, as a list of {"role", "content"}.

    Raises: InputError for anything but pairs.
    """
    if not all(isinstance(one, list) and len(one) == 2 for one in pairs):
        raise InputError(f"found the turns {str(pairs)[:60]!r}; expected pairs of role and content")
    return [{"role": who, "content": said} for who, said in pairs]


def asked_in(row: Row) -> str | list[Any]:
    """What a row asks, as it is written; a run's own `turns` as messages.

    Raises: InputError naming file and line.
    """
    if row.values.get("prompt") is None and "turns" in row.values:
        with row.named():
            return messages_of_turns(row.need("turns", list))
    return row.need("prompt", (str, list))


def prompt_in(row: Row) -> Prompt:
    """The prompt of a row: text for a single user turn, or a list of {"role", "content"}; or a run's own `turns`.

    Raises: InputError naming file and line.
    """
    asked = asked_in(row)
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    try:
        return Prompt(tuple(Turn(turn["role"], turn["content"]) for turn in turns))
    except (KeyError, TypeError):
        raise InputError(f'{row.at}: found {asked!r}; expected text or a list of {{"role", "content"}}') from None
    except InputError as error:
        raise InputError(f"{row.at}: {error}") from None


def write_rows(path: str | Path, values: Iterable[Mapping[str, Any]]) -> int:
    """Write JSONL, gzip where the name ends in `.gz`; the file appears whole or not at all. Returns: rows written.

    Raises: InputError where it cannot be written.
    """
    path = Path(path)
    lines = [json.dumps(value, ensure_ascii=False, separators=(", ", ": ")) + "\n" for value in values]
    data = "".join(lines).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    with appearing(path) as file:
        file.write(data)
    return len(lines)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[IO[bytes]]:
    """Within: a file to write that takes its place on leaving; where that fails it vanishes, and what was there stays.

    Raises: InputError where it cannot be written.
    """
    check_plain(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); nothing was left") from None


def _rows(path: Path, lines: Iterable[tuple[int, str]]) -> list[Row]:
    rows = []
    for number, line in lines:
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=no_key_twice)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            reason = "cut off" if not line.endswith("\n") else str(error)
            raise InputError(
                f"{path}:{number}: found no complete JSON object ({reason}); expected one a line"
            ) from None
        if not isinstance(values, dict):
            raise InputError(f"{path}:{number}: found {_short(values)}; expected a JSON object")
        if "\\u" in line:  # only an escape can write what is no text
            fault = next(filter(None, map(text_fault, texts_in(values))), "")
            if fault:
                raise InputError(f"{path}:{number}: {fault}")
        rows.append(Row(values, path, number))
    if not rows:
        raise InputError(f"{path}: found no rows; expected one JSON object a line")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with path.open("rb") as raw:
            head = raw.read(2)
            raw.seek(0)
            if not head:
                raise InputError(f"{path}: the file is empty; expected rows")
            if path.suffix == ".gz" and head != GZIP_MAGIC:
                raise InputError(
                    f"{path}: found no gzip data; expected it from the name (rename it if it is plain text)"
                )
            file = gzip.GzipFile(fileobj=raw) if head == GZIP_MAGIC else raw
            most = max(MAX_LINE_BYTES, MAX_EXPANSION * path.stat().st_size)
            n_bytes = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{path}:{number}: found a line of more than {MAX_LINE_BYTES} bytes; split it")
                n_bytes += len(line)
                if n_bytes > most:  # never of a plain file, whose size is that of its lines
                    raise InputError(
                        f"{path}:{number}: found over {MAX_EXPANSION} times the file's own size; unpack it yourself if "
                        "you trust it"
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except EOFError:
        raise InputError(f"{path}:{number}: the gzip data ends early, after this line; the file is truncated") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}:{number}: the gzip data is damaged after this line ({error})") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}:{number}: found bytes that are not UTF-8 ({error.reason}); convert the file"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _name(kind: type) -> str:
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}.get(
        kind, "an object"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _listed(names: Collection[str]) -> str:
    return ", ".join([*map(repr, list(names)[:MOST_LISTED]), *["…"][: len(names) > MOST_LISTED]])

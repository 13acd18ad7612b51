"""Benchmark suites from local files: their formats in, every candidate scored, the result out.

Knows the three file formats and a function that scores texts; knows no rule of any suite and no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from karat.errors import InputError
from karat.evaluate.suites import PARTS, STYLES, SUITES, Suite, SuiteItem
from karat.records import Prompt, Turn, user_prompt
from karat.rowfiles import Row, no_key_twice, read_rows

ScoreTexts = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
TEXTS_AT_ONCE = 256
MOST_SHOWN = 6


def read_suite(path: Path, suite: Suite) -> list[SuiteItem]:
    """The items of a suite's file: JSON lines, or one JSON array as RM-Bench publishes it.

    rewardbench: prompt, chosen, rejected, subset. rewardbench2: prompt, chosen [..], rejected [..], subset, id; num_correct
    where given. rmbench: prompt, chosen [3], rejected [3], domain. A prompt is text or a list of {"role", "content"}.

    Raises: InputError naming file and entry, and for a file of which no row is of the suite.
    """
    if suite not in SUITES:
        raise InputError(f"suite: found {suite!r}; expected one of {', '.join(SUITES)}")
    read = {"rewardbench": _pair, "rewardbench2": _many, "rmbench": _styles}[suite]
    items = []
    for number, row in enumerate(_entries(path)):
        with row.named():
            items.append(read(row, str(row.values.get("id", number))))
    _check_parts(path, suite, {item.subset for item in items})
    return items


def _check_parts(path: Path, suite: Suite, found: set[str]) -> None:
    """Refuse a file of another suite: its rows may have the same fields, and nothing would be judged."""
    parts = PARTS.get(suite)
    if parts is None or not found or found & set(parts):
        return
    shown = ", ".join(map(repr, sorted(found)[:MOST_SHOWN])) + (", …" if len(found) > MOST_SHOWN else "")
    other = next((name for name, own in PARTS.items() if found & set(own)), None)
    advice = f"; it looks like {other}: use --suite {other}" if other is not None else ""
    more = ", …" if len(parts) > MOST_SHOWN else ""
    raise InputError(
        f"{path}: found the subsets {shown}, none of them {suite}'s; expected {', '.join(parts[:MOST_SHOWN])}{more}{advice}"
    )


def score_items(
    score: ScoreTexts, items: Sequence[SuiteItem], *, progress: Callable[[int, int], None] | None = None
) -> list[list[float]]:
    """Score all candidates, those of one item together, so that they share its prompt.

    Args:
        progress: called with (items done, items in all).
    Raises: InputError that names the item whose text cannot be scored, such as one that does not fit the context.
    """
    scores: list[list[float]] = []
    start = 0
    while start < len(items):
        end, n_texts = start, 0
        while end < len(items) and (end == start or n_texts + len(items[end].texts) <= TEXTS_AT_ONCE):
            n_texts += len(items[end].texts)
            end += 1
        scores += _score(score, items[start:end])
        start = end
        if progress is not None:
            progress(end, len(items))
    return scores


def _score(score: ScoreTexts, items: Sequence[SuiteItem]) -> list[list[float]]:
    prompts = [item.prompt for item in items for _ in item.texts]
    texts = [text for item in items for text in item.texts]
    try:
        flat = list(score(prompts, texts))
    except InputError as error:
        if len(items) == 1:
            raise InputError(f"item {items[0].id}: {error}") from None
        return [row for item in items for row in _score(score, [item])]
    rows = []
    for item in items:
        rows.append([float(value) for value in flat[: len(item.texts)]])
        flat = flat[len(item.texts) :]
    return rows


def _entries(path: Path) -> list[Row]:
    if path.suffix != ".json":
        return read_rows(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_key_twice)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected JSON lines, or a .json file with one array") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(values, list) or not values or not all(isinstance(entry, dict) for entry in values):
        raise InputError(f"{path}: found no array of objects; expected JSON lines, or a .json file with one array")
    return [Row(entry, path, number) for number, entry in enumerate(values, 1)]


def _pair(row: Row, name: str) -> SuiteItem:
    texts = (_answer(row, "chosen"), _answer(row, "rejected"))
    return SuiteItem(name, row.need("subset", str), _prompt(row), texts, 1)


def _many(row: Row, name: str) -> SuiteItem:
    chosen, rejected = _answers(row, "chosen"), _answers(row, "rejected")
    n_correct = row.get("num_correct", int, len(chosen))
    if n_correct != len(chosen) or not rejected:
        raise InputError(
            f"found num_correct {n_correct}, {len(chosen)} chosen and {len(rejected)} rejected responses; expected as many "
            "chosen as correct ones, and some rejected"
        )
    subset = row.need("subset", str)
    if subset.lower() != "ties" and n_correct != 1:
        raise InputError(
            f"found {n_correct} chosen responses in the subset {subset!r}; expected 1 (only Ties has more)"
        )
    return SuiteItem(name, subset, _prompt(row), (*chosen, *rejected), n_correct)


def _styles(row: Row, name: str) -> SuiteItem:
    chosen, rejected = _answers(row, "chosen"), _answers(row, "rejected")
    if (len(chosen), len(rejected)) != (STYLES, STYLES):
        raise InputError(
            f"found {len(chosen)} chosen and {len(rejected)} rejected responses; expected {STYLES} of each"
        )
    return SuiteItem(name, row.need("domain", str), _prompt(row), (*chosen, *rejected), STYLES)


def _answers(row: Row, field: str) -> tuple[str, ...]:
    found = row.need(field, (list, str))
    texts = [found] if isinstance(found, str) else found
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"found {str(found)[:60]!r} in the field {field!r}; expected texts")
    return tuple(texts)


def _answer(row: Row, field: str) -> str:
    texts = _answers(row, field)
    if len(texts) != 1:
        raise InputError(f"found {len(texts)} texts in the field {field!r}; expected one")
    return texts[0]


def _prompt(row: Row) -> Prompt:
    asked = row.need("prompt", (str, list))
    if isinstance(asked, str):
        return user_prompt(asked)
    try:
        return Prompt(tuple(Turn(turn["role"], turn["content"]) for turn in asked))
    except (KeyError, TypeError):
        raise InputError(
            f'found the prompt {str(asked)[:60]!r}; expected text or a list of {{"role", "content"}}'
        ) from None

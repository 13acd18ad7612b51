"""Answers of any kind as columns: which item, which rater, which value. What agreement and consensus are computed from.

An item is whatever two raters could have answered alike: a pair of responses, a response and an attribute, a step.
Knows the shape of answers; knows nothing about chance, models of raters or where the answers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from karat.errors import InputError
from karat.records import Judgement, Vote

UNNAMED = "unknown"
"""The annotator of votes whose file names nobody: many people, so each of these answers is a rater of its own."""
Row = tuple[Hashable, str, Hashable]
"""item, annotator, value."""


@dataclass(frozen=True, eq=False)
class AnswerTable:
    """Answers as columns, one row an answer; a rater answers an item once."""

    item: np.ndarray
    """Index into `items`, one a row."""
    annotator: np.ndarray
    """Index into `annotators`, one a row."""
    code: np.ndarray
    """Index into `domain`, one a row."""
    items: tuple[Hashable, ...]
    """Names of the items."""
    annotators: tuple[str, ...]
    """Names of the raters; an unnamed one has a name of her own for each answer."""
    domain: tuple[Hashable, ...]
    """The values that can be given, in ascending order where they have one."""
    n_repeats: int = 0
    """Answers left out because the same rater had answered the same item before."""

    def __post_init__(self) -> None:
        lengths = {len(self.item), len(self.annotator), len(self.code)}
        if len(lengths) != 1:
            raise InputError(f"AnswerTable: found columns of {sorted(lengths)} rows; expected one length")
        for name, names in (("item", self.items), ("annotator", self.annotators), ("code", self.domain)):
            column = getattr(self, name)
            if len(column) and not (column.min() >= 0 and column.max() < len(names)):
                raise InputError(f"AnswerTable.{name}: found {column.max()}; expected an index below {len(names)}")

    def __len__(self) -> int:
        return len(self.item)

    @property
    def numbers(self) -> np.ndarray:
        """The domain as numbers. Raises: InputError where a value is none."""
        try:
            return np.array([float(value) for value in self.domain])  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise InputError(
                f"AnswerTable: found the values {self.domain[:3]}; expected numbers, or ask for a nominal figure"
            ) from None

    def select(self, rows: np.ndarray) -> AnswerTable:
        """The answers at some rows (or where a mask is True); items, raters and domain keep their indices."""
        return AnswerTable(
            self.item[rows], self.annotator[rows], self.code[rows], self.items, self.annotators, self.domain
        )


def answer_table(rows: Iterable[Row], *, domain: Sequence[Hashable] | None = None) -> AnswerTable:
    """The table of some answers, earliest first.

    Args:
        rows: (item, annotator, value). Of several answers of one rater to one item the first counts: what she says
            when she is asked again measures her constancy, not her agreement with others.
        domain: all values that can be given, ascending; None = those that occur, sorted.
    Raises: InputError for a value outside the domain, or values that have no order among them and no domain given.
    """
    items: dict[Hashable, int] = {}
    annotators: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    kept: list[tuple[int, int, Hashable]] = []
    n_repeats = n_unnamed = 0
    for item, annotator, value in rows:
        if annotator == UNNAMED:
            n_unnamed += 1
            annotator = f"{UNNAMED} {n_unnamed}"
        key = (items.setdefault(item, len(items)), annotators.setdefault(annotator, len(annotators)))
        if key in seen:
            n_repeats += 1
            continue
        seen.add(key)
        kept.append((*key, value))
    values = _domain({value for _, _, value in kept}) if domain is None else tuple(domain)
    place = {value: i for i, value in enumerate(values)}
    strange = [value for _, _, value in kept if value not in place]
    if strange:
        raise InputError(f"answer_table: found the value {strange[0]!r}; expected one of {list(values)[:8]}")
    columns = np.array([(item, rater, place[value]) for item, rater, value in kept], dtype=np.int64).reshape(-1, 3)
    item, rater, code = columns.T.copy()
    return AnswerTable(item, rater, code, tuple(items), tuple(annotators), values, n_repeats)


def vote_table(votes: Sequence[Vote], *, ties: bool = True) -> AnswerTable:
    """Votes by their direction: −1, 0 (a tie) and 1, seen from that response of the pair whose id sorts first.

    Args:
        ties: False = votes that are ties are left out.
    """

    def rows() -> Iterator[Row]:
        for vote in votes:
            direction = int(np.sign(2 * vote.level - (vote.n_levels - 1)))
            if direction or ties:
                first, second = sorted((vote.a, vote.b))
                yield (first, second), vote.annotator, direction if first == vote.a else -direction

    return answer_table(rows(), domain=(-1, 0, 1) if ties else (-1, 1))


def judgement_table(judgements: Iterable[Judgement], kind: str, *, about: str | None = None) -> AnswerTable:
    """Judgements of one kind as answers; those without an answer ("cannot judge") are left out.

    Args:
        kind: comparison (strength from −1 to 1, seen from the response whose id sorts first), ranking (the rank of
            each response), best_of (which response), rating (score), label, step_marks, span_marks (whether anything
            is marked).    judgements: earliest first.
        about: rating: the attribute; label: a flag, None = good or bad; span_marks: the class, None = any.
    Raises: InputError for a kind whose answers are words, and for ratings on several scales.
    """
    if kind not in _ROWS:
        raise InputError(f"judgement_table: found the kind {kind!r}; expected one of {', '.join(_ROWS)}")
    chosen = [one for one in judgements if one.kind == kind and "missing" not in one.value]
    if kind == "rating":
        scales = sorted({(one.value["low"], one.value["high"]) for one in chosen})
        if len(scales) > 1:
            raise InputError(f"judgement_table: found ratings on the scales {scales}; expected one scale")
    rows = (((one.prompt_id, *item), one.annotator, value) for one in chosen for item, value in _ROWS[kind](one, about))
    return answer_table(rows, domain=_DOMAINS.get(kind))


def _comparison(one: Judgement, _: str | None) -> Iterator[tuple[tuple[Any, ...], Hashable]]:
    level, top = one.value["level"], one.value["n_levels"] - 1
    first, second = sorted(one.response_ids)
    strength = (2 * level - top) / top
    yield (first, second), strength if first == one.response_ids[0] else -strength


def _ranking(one: Judgement, _: str | None) -> Iterator[tuple[tuple[Any, ...], Hashable]]:
    together = tuple(sorted(one.response_ids))
    for response, rank in zip(one.response_ids, one.value["ranks"], strict=True):
        yield (together, response), rank


def _best_of(one: Judgement, _: str | None) -> Iterator[tuple[tuple[Any, ...], Hashable]]:
    together = tuple(sorted(one.response_ids))
    yield (together,), together.index(one.response_ids[one.value["best"]])


def _rating(one: Judgement, about: str | None) -> Iterator[tuple[tuple[Any, ...], Hashable]]:
    scores = one.value.get("scores", {None: one.value.get("score")})
    if about in scores:
        yield (*one.response_ids, about), scores[about]


def _label(one: Judgement, about: str | None) -> Iterator[tuple[tuple[Any, ...], Hashable]]:
    if about is None:
        if one.value.get("good") is not None:
            yield one.response_ids, int(one.value["good"])
    elif one.value.get("flags") is not None:
        yield (*one.response_ids, about), int(about in one.value["flags"])


def _step_marks(one: Judgement, _: str | None) -> Iterator[tuple[tuple[Any, ...], Hashable]]:
    for step in one.value["steps"]:
        yield (*one.response_ids, step["start"], step["end"]), step["mark"]


def _span_marks(one: Judgement, about: str | None) -> Iterator[tuple[tuple[Any, ...], Hashable]]:
    marked = {span["response"] for span in one.value["spans"] if about in (None, span["class"])}
    for place, response in enumerate(one.response_ids):
        yield (response,), int(place in marked)


def _domain(values: set[Hashable]) -> tuple[Hashable, ...]:
    try:
        return tuple(sorted(values))  # type: ignore[type-var]
    except TypeError:
        raise InputError("answer_table: found values that cannot be sorted; give domain, in ascending order") from None


_ROWS: dict[str, Callable[[Judgement, str | None], Iterator[tuple[tuple[Any, ...], Hashable]]]] = {
    "comparison": _comparison,
    "ranking": _ranking,
    "best_of": _best_of,
    "rating": _rating,
    "label": _label,
    "step_marks": _step_marks,
    "span_marks": _span_marks,
}
_DOMAINS: dict[str, tuple[Hashable, ...]] = {"label": (0, 1), "step_marks": (-1, 0, 1), "span_marks": (0, 1)}

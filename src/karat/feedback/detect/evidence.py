"""What the detectors read and what they hand on: a frozen record of votes as columns, and flags for people to review.

Knows columns, names and texts. Knows no store, no model of raters and no test; nothing here bans anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

import numpy as np

from karat.errors import InputError
from karat.records import Judgement, Response

MIN_VOTES = 8
"""Below this many votes no rater is flagged: eight coin flips agree one way once in 128, and people are not coins."""
UNKNOWN = "unknown"
"""The annotator of imported votes that do not say who voted."""


@dataclass(frozen=True, eq=False)
class VoteRecord:
    """Comparisons as columns of one length C; a missing measurement is NaN or −1, never a guess."""

    item: np.ndarray
    """Index of the question; all votes of one item compare the same two texts."""
    a: np.ndarray
    """Index of text a in `texts`."""
    b: np.ndarray
    """Index of text b in `texts`."""
    level: np.ndarray
    """0 = b much better … n_levels − 1 = a much better."""
    n_levels: np.ndarray
    """Levels of the scale of each vote, ≥ 2."""
    side: np.ndarray
    """+1 = a was shown first, −1 = b was, 0 = not known."""
    annotator: np.ndarray
    """Index of the rater in `annotators`."""
    annotators: tuple[str, ...]
    """Annotator ids."""
    texts: tuple[str, ...]
    """The responses compared."""
    seconds: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Active seconds of each vote, NaN = not measured; empty = none measured."""
    submitted_at: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Seconds since any fixed moment, NaN = not known; empty = none known."""
    device: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Index of the hash of device or address, −1 = not known; empty = none known."""
    pasted: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """1 = something was pasted into the rationale, 0 = nothing was, −1 = not known; empty = none known."""
    rationales: tuple[str, ...] = ()
    """The rater's own words, "" = none; empty = none collected."""
    sources: tuple[str, ...] = ()
    """Who wrote each text (a policy's name), "" = not known; empty = none known."""
    topics: tuple[str, ...] = ()
    """Topic of each text's prompt, "" = not known; empty = none known."""

    def __post_init__(self) -> None:
        n = len(self.item)
        columns = {"a", "b", "level", "n_levels", "side", "annotator"}
        optional = {"seconds", "submitted_at", "device", "pasted", "rationales"}
        for item in fields(self):
            value = getattr(self, item.name)
            wrong = (item.name in columns and len(value) != n) or (item.name in optional and len(value) not in (0, n))
            if wrong:
                raise InputError(f"VoteRecord.{item.name}: found {len(value)} rows; expected {n}, as many as items")
        for name, size in (("annotator", len(self.annotators)), ("a", len(self.texts)), ("b", len(self.texts))):
            _check_index(name, getattr(self, name), size)
        for name in ("sources", "topics"):
            if len(getattr(self, name)) not in (0, len(self.texts)):
                raise InputError(
                    f"VoteRecord.{name}: found {len(getattr(self, name))}; expected {len(self.texts)} texts"
                )
        if n and not (np.all(self.n_levels >= 2) and np.all(self.level >= 0) and np.all(self.level < self.n_levels)):
            raise InputError(
                "VoteRecord.level: found a level outside its scale; expected 0 … n_levels − 1, n_levels ≥ 2"
            )
        if not np.all(np.isin(self.side, (-1, 0, 1))):
            raise InputError(
                "VoteRecord.side: found another number; expected +1 (a first), −1 (b first) or 0 (not known)"
            )
        self._check_items()

    def _check_items(self) -> None:
        if len(self.item) == 0:
            return
        _check_index("item", self.item, int(np.max(self.item)) + 1)
        low, high = np.minimum(self.a, self.b), np.maximum(self.a, self.b)
        if np.any(low == high):
            raise InputError("VoteRecord: found a text compared with itself; leave such votes out")
        first = np.zeros((int(np.max(self.item)) + 1, 2), dtype=np.int64)
        first[self.item] = np.column_stack([low, high])
        wrong = np.flatnonzero((first[self.item] != np.column_stack([low, high])).any(axis=1))
        if len(wrong):
            raise InputError(
                f"VoteRecord.item: item {self.item[wrong[0]]} compares different texts in its votes; "
                "expected the same two texts in all votes of an item"
            )

    def __len__(self) -> int:
        return len(self.item)

    @property
    def n_annotators(self) -> int:
        """How many raters."""
        return len(self.annotators)

    @property
    def n_items(self) -> int:
        """How many questions, those without a vote in between included."""
        return int(np.max(self.item)) + 1 if len(self.item) else 0

    @property
    def n_votes(self) -> np.ndarray:
        """Votes of each rater."""
        return np.bincount(self.annotator, minlength=self.n_annotators)

    @property
    def direction(self) -> np.ndarray:
        """+1 = the text with the lower index was preferred, −1 = the other, 0 = tie."""
        return np.sign(2 * self.level - (self.n_levels - 1)).astype(np.int64) * self._turn

    @property
    def shown(self) -> np.ndarray:
        """+1 = the text with the lower index was shown first, −1 = the other, 0 = not known."""
        return self.side.astype(np.int64) * self._turn

    @property
    def texts_in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the higher text index of each vote: the orientation of `direction` and `shown`."""
        return np.minimum(self.a, self.b), np.maximum(self.a, self.b)

    @property
    def _turn(self) -> np.ndarray:
        return np.where(self.a < self.b, 1, -1)


def _check_index(name: str, values: np.ndarray, size: int) -> None:
    if not np.issubdtype(np.asarray(values).dtype, np.integer):
        raise InputError(f"VoteRecord.{name}: found numbers of type {np.asarray(values).dtype}; expected whole numbers")
    if len(values) and not (values.min() >= 0 and values.max() < size):
        raise InputError(f"VoteRecord.{name}: found {values.min()} … {values.max()}; expected 0 … {size - 1}")


@dataclass(frozen=True)
class Flag:
    """Something for a person to look at; by itself it changes nothing."""

    annotators: tuple[str, ...]
    """Whom to look at: one rater, or the members of a group."""
    detector: str
    """Which test raised it."""
    statistic: float
    """The test's statistic; its unit is said in `detail`."""
    p_value: float
    """Probability of a statistic at least as large for one honest rater (or group), before allowing for how many
    were tested."""
    n_votes: int
    """Votes that the statistic rests on."""
    detail: str
    """One sentence for the page: what was seen, and what would be usual."""


def too_few(n_votes: int) -> str | None:
    """Why a rater cannot be judged yet, as a sentence for the page; None where he can.

    Raises: InputError for a negative number.
    """
    if n_votes < 0:
        raise InputError(f"too_few: found {n_votes} votes; expected 0 or more")
    if n_votes >= MIN_VOTES:
        return None
    return (
        f"fewer than {MIN_VOTES} votes: found {n_votes}. So few cannot tell a careless rater from an unlucky one, "
        "so nobody is flagged yet"
    )


def vote_record(
    judgements: Sequence[Judgement],
    responses: Mapping[str, Response],
    *,
    topics: Mapping[str, str] | None = None,
    pasted: Mapping[str, bool] | None = None,
    devices: Mapping[str, str] | None = None,
) -> VoteRecord:
    """The comparisons among judgements as columns; other kinds, missing answers and superseded events are left out.

    Args:
        responses: by Response.id.    topics: by prompt id.
        pasted: by Judgement.submission, whether anything was pasted.    devices: by submission, a hash.
    Raises: InputError for a response that is not among `responses`, or a time that is none.
    """
    corrected = {judgement.supersedes for judgement in judgements if judgement.supersedes is not None}
    kept = [
        judgement
        for judgement in judgements
        if judgement.kind == "comparison"
        and "missing" not in judgement.value
        and judgement.response_ids[0] != judgement.response_ids[1]
        and not (corrected and judgement.id in corrected)
    ]
    raters: dict[tuple[str, str], int] = {}
    texts: dict[str, int] = {}
    items: dict[tuple[str, ...], int] = {}
    hashes: dict[str | None, int] = {}
    for judgement in kept:
        for response_id in judgement.response_ids:
            if response_id not in responses:
                raise InputError(f"vote_record: response {response_id} is not among the {len(responses)} given; add it")
            texts.setdefault(response_id, len(texts))
        raters.setdefault(_person(judgement), len(raters))
        items.setdefault(tuple(sorted(judgement.response_ids)), len(items))
        hashes.setdefault((devices or {}).get(judgement.submission), len(hashes))
    prompts = {one: judgement.prompt_id for judgement in kept for one in judgement.response_ids}
    known = [(devices or {}).get(judgement.submission) for judgement in kept]
    return VoteRecord(
        item=_column(items[tuple(sorted(judgement.response_ids))] for judgement in kept),
        a=_column(texts[judgement.response_ids[0]] for judgement in kept),
        b=_column(texts[judgement.response_ids[1]] for judgement in kept),
        level=_column(judgement.value["level"] for judgement in kept),
        n_levels=_column(judgement.value["n_levels"] for judgement in kept),
        side=_column(0 if not j.shown_order else 1 - 2 * j.shown_order[0] for j in kept),
        annotator=_column(raters[_person(judgement)] for judgement in kept),
        annotators=tuple(annotator for annotator, _ in raters),
        texts=tuple(responses[one].text for one in texts),
        seconds=np.array([np.nan if j.active_s is None else j.active_s for j in kept], dtype=np.float64),
        submitted_at=np.array([_moment(judgement.created_at) for judgement in kept], dtype=np.float64),
        device=_column(-1 if one is None else hashes[one] for one in known),
        pasted=_column(int((pasted or {}).get(judgement.submission, -1)) for judgement in kept),
        rationales=tuple(judgement.reason or "" for judgement in kept),
        sources=tuple(responses[one].source for one in texts),
        topics=tuple((topics or {}).get(prompts[one], "") for one in texts),
    )


def _person(judgement: Judgement) -> tuple[str, str]:
    # votes of nobody known are votes of many: each stands alone, and nobody is flagged for all of them
    return judgement.annotator, judgement.submission or judgement.id if judgement.annotator == UNKNOWN else ""


def _column(values: object) -> np.ndarray:
    return np.array(list(values), dtype=np.int64)  # type: ignore[call-overload]


def _moment(text: str) -> float:
    if not text:
        return float("nan")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"vote_record: found the time {text!r}; expected ISO 8601, as 2026-01-31T16:53:19Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

"""Scores that no training response had: queued for a person, who can veto; a vetoed response earns the bottom score.

Two files in one directory. `odd.jsonl` is the queue, one row a response, written here. `vetoes.jsonl` holds what people
said, one row a response, written by `karat odd --veto` and read again before every scoring. What was replaced is logged in
`replaced.jsonl`. Knows scores and files; knows nothing about who scores or who looks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from karat.damaged import damage_named, whole_lines_of
from karat.errors import InputError
from karat.lm import parallel
from karat.records import Prompt, Response, ScoreFn

QUEUE, VETOES, REPLACED = "odd.jsonl", "vetoes.jsonl", "replaced.jsonl"
MOST_A_CALL = 2
"""Responses queued from one scoring call, the farthest out first: a person's time is the scarce resource."""


@dataclass(frozen=True)
class OddRow:
    """A response in the queue."""

    id: str
    """Response.id."""
    prompt: str
    """The prompt's text."""
    response: str
    """The response's text."""
    score: float
    """As the score function gave it."""
    low: float
    """Lower end of what is usual."""
    high: float
    """Upper end of what is usual."""


@dataclass
class OddRewards:
    """A score function with the queue in front of it: what is usual passes through unchanged, to the bit."""

    score_fn: ScoreFn
    """The score function itself."""
    low: float
    """Lower quantile of the training responses' scores; also what a vetoed response earns."""
    high: float
    """Upper quantile."""
    directory: Path
    """Where the three files lie."""
    queued: set[str] = field(default_factory=set)
    """Response.id of what is in the queue."""

    def __post_init__(self) -> None:
        self.queued |= {row.id for row in read_queue(self.directory)}

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """The scores, the vetoed ones replaced by `low`."""
        scores = [float(score) for score in self.score_fn(prompts, responses)]
        if len(scores) != len(responses):
            return scores  # the caller says so, with the numbers
        # a veto may come in between two processes' looks at the file
        return parallel.from_main(lambda: self._passed(prompts, responses, scores))

    def _passed(self, prompts: Sequence[Prompt], responses: Sequence[str], scores: list[float]) -> list[float]:
        """Queue the odd ones, replace the vetoed ones."""
        self._queue(prompts, responses, scores)
        vetoed = read_vetoes(self.directory)
        if not vetoed:
            return scores
        ids = [Response(p.id, text, "policy").id for p, text in zip(prompts, responses, strict=True)]
        replaced = [
            {"id": one, "score": s, "earns": self.low} for one, s in zip(ids, scores, strict=True) if one in vetoed
        ]
        if replaced:
            _append(self.directory / REPLACED, replaced)
        return [self.low if one in vetoed else score for one, score in zip(ids, scores, strict=True)]

    def _queue(self, prompts: Sequence[Prompt], responses: Sequence[str], scores: Sequence[float]) -> None:
        """Put the oddest of this call into the queue."""
        beyond = [(max(self.low - score, score - self.high), index) for index, score in enumerate(scores)]
        new: dict[str, dict[str, object]] = {}
        for how_far, index in sorted(beyond, key=lambda pair: (-pair[0], pair[1])):
            if how_far <= 0 or len(new) == MOST_A_CALL:
                break
            row_id = Response(prompts[index].id, responses[index], "policy").id
            if row_id not in self.queued:
                row = OddRow(row_id, prompts[index].text, responses[index], scores[index], self.low, self.high)
                new.setdefault(row_id, vars(row))
        if new:
            _append(self.directory / QUEUE, list(new.values()))
            self.queued |= new.keys()


def usual_range(scores: Sequence[float], quantile: float) -> tuple[float, float]:
    """The range between the 1 − q and the q quantile of the training responses' scores.

    Args:
        scores: at least two, finite.    quantile: q, (½, 1).
    Raises: InputError for fewer than two scores or a quantile outside (½, 1).
    """
    if len(scores) < 2 or not 0.5 < quantile < 1:
        raise InputError(
            f"odd rewards: found {len(scores)} scores and quantile {quantile}; expected at least 2, and (½, 1)"
        )
    low, high = np.quantile(np.asarray(scores, dtype=float), [1 - quantile, quantile])
    return float(low), float(high)


def read_queue(directory: Path) -> list[OddRow]:
    """What waits for a person, in the order in which it came. Raises: LedgerError naming file and line."""
    return [_odd_row(at, row) for at, row in whole_lines_of(directory / QUEUE)]


def _odd_row(at: str, row: dict) -> OddRow:
    with damage_named(at, "a response in the queue"):
        found = OddRow(**row)
        texts, numbers = (found.id, found.prompt, found.response), (found.score, found.low, found.high)
        if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, int | float) for one in numbers):
            raise TypeError("found a field of another kind")
    return found


def read_vetoes(directory: Path) -> set[str]:
    """Response.id of what people vetoed. Raises: LedgerError naming file and line."""
    found = set()
    for at, row in whole_lines_of(directory / VETOES):
        with damage_named(at, "a veto"):
            found.add(str(row["id"]))
    return found


def veto(directory: Path, response_id: str, *, by: str, reason: str, at: str) -> None:
    """Veto a response of the queue; the loop replaces its score from the next rollout on.

    Args:
        by: who says so.    reason: why, in words.    at: when, ISO 8601.
    Raises: InputError for a response that is not in the queue, or without a name and a reason.
    """
    if response_id not in {row.id for row in read_queue(directory)}:
        raise InputError(f"{directory / QUEUE}: found no response {response_id}; expected an id of the queue")
    if not by.strip() or not reason.strip():
        raise InputError("veto: found no name or no reason; expected both, they are kept")
    _append(directory / VETOES, [{"id": response_id, "by": by, "reason": reason, "at": at}])


def _append(path: Path, rows: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

"""Rows on disk between stages: prompts with their split, demonstrations, and samples with their tokens' figures.

Plain JSON lines, one row each, read back into the records they came from; and the figures of a snapshot of votes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karat.damaged import damage_named, lines_of
from karat.errors import InputError
from karat.feedback.quality.agreement import alpha, pairwise_agreement
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.snapshot import Snapshot
from karat.ledger.artifacts import write_text
from karat.pipeline.stages import Output, Workplace
from karat.records import Demonstration, Prompt, Turn, Vote
from karat.seeding import numpy_generator

SPLITS = ("sft", "collect", "policy", "validation", "evaluation")


@dataclass(frozen=True)
class Texts:
    """The responses of one policy to some prompts."""

    prompts: tuple[Prompt, ...]
    """P prompts."""
    texts: tuple[tuple[str, ...], ...]
    """[P][N] responses."""
    lengths: tuple[tuple[int, ...], ...]
    """[P][N] response tokens."""
    stopped: tuple[tuple[bool, ...], ...]
    """[P][N] True = ended by a stop token."""


def check_given(section: str, files: Mapping[str, Path | None], model: Path | None = None) -> None:
    """Raise InputError, in one line, for everything that a source is to read and that is not there.

    Args:
        section: of the configuration.    files: by their keys in it; None = not asked for.    model: of the key `model`.
    """
    missing = {key: f"{path}: no such file" for key, path in files.items() if path is not None and not path.exists()}
    if model is not None and not model.is_dir():
        missing["model"] = f"{model}: found no directory; expected a model's"
    if missing:
        settings = " ".join(f"--set {section}.{key}=…" for key in missing)
        raise InputError(
            f"{'; '.join(missing.values())}; put it there, or give the path in the configuration or with {settings}"
        )


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `write_rows` wrote."""
    return lines_of(path)


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """The fields of a prompt."""
    return {"turns": [[turn.role, turn.content] for turn in prompt.turns], "topic": prompt.topic}


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """The prompt in a row."""
    return Prompt(tuple(Turn(role, content) for role, content in row["turns"]), row["topic"])


def write_prompts(path: Path, splits: Mapping[str, Sequence[Prompt]]) -> None:
    """Prompts with the split each belongs to."""
    write_rows(path, ({"split": name, **prompt_row(prompt)} for name, group in splits.items() for prompt in group))


def read_prompts(path: Path) -> dict[str, list[Prompt]]:
    """Prompts by split."""
    splits: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    with damage_named(path, "prompts"):
        for row in read_rows(path):
            splits[row["split"]].append(prompt_of(row))
    return splits


def write_source_files(
    place: Workplace, splits: Mapping[str, Sequence[Prompt]], demonstrations: Sequence[Demonstration]
) -> list[Output]:
    """The prompts in their splits and the demonstrations of a run, as its first stage hands them on."""
    outputs = [
        Output(name, place.beside(place.directory / "data" / f"{name}.jsonl")) for name in ("prompts", "demonstrations")
    ]
    write_prompts(outputs[0].path, splits)
    write_demonstrations(outputs[1].path, demonstrations)
    return outputs


def write_demonstrations(path: Path, demonstrations: Sequence[Demonstration]) -> None:
    """Demonstrations, one a line."""
    write_rows(path, ({**prompt_row(d.prompt), "text": d.text, "source": d.source} for d in demonstrations))


def practised(demonstrations: Sequence[Demonstration]) -> tuple[list[Demonstration], list[Demonstration]]:
    """The demonstrations that a policy may learn from, and those kept out to measure it: one in 20, and no prompt in both."""
    n_kept_out = max(1, len(demonstrations) // 20)
    held_out, train = demonstrations[:n_kept_out], demonstrations[n_kept_out:]
    seen = {one.prompt.id for one in train}
    return list(train), [one for one in held_out if one.prompt.id not in seen]


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Demonstrations in the order in which they were written."""
    with damage_named(path, "demonstrations"):
        return [Demonstration(prompt_of(row), row["text"], row["source"]) for row in read_rows(path)]


def write_texts(path: Path, samples: Texts) -> None:
    """The responses of one policy, one prompt a line."""
    rows = zip(samples.prompts, samples.texts, samples.lengths, samples.stopped, strict=True)
    write_rows(path, ({**prompt_row(p), "texts": t, "lengths": n, "stopped": s} for p, t, n, s in rows))


def read_texts(path: Path) -> Texts:
    """The responses of one policy."""
    rows = list(read_rows(path))
    with damage_named(path, "responses"):
        return Texts(
            tuple(prompt_of(row) for row in rows),
            tuple(tuple(row["texts"]) for row in rows),
            tuple(tuple(row["lengths"]) for row in rows),
            tuple(tuple(row["stopped"]) for row in rows),
        )


def vote_figures(snapshot: Snapshot, seed: int) -> dict[str, Any]:
    """Whose votes a snapshot holds, how many of each answer, and how far raters agree: what manifests and reports say.

    Args:
        seed: of the run; the intervals of the agreement are bootstrapped.
    """
    rng = numpy_generator(seed, "agreement")
    drawn = [vote for vote in snapshot.votes if vote.strategy == "random"]  # chosen questions are harder than others
    return {
        "root": snapshot.root,
        "n_votes": len(snapshot.votes),
        "n_votes_random": len(drawn),
        "n_answers": snapshot.n_answers,
        "n_missing": snapshot.n_missing,
        "n_raters": len(snapshot.annotators),
        "one_rater": one_rater(snapshot.annotators),
        "n_prompts": len(snapshot.prompts),
        "origin": "/".join(snapshot.by_origin),
        "by_origin": snapshot.by_origin,
        "levels": level_counts(snapshot.votes),
        "agreement": pairwise_agreement(drawn, rng, ties=False),
        "alpha": alpha(drawn, rng),
    }


def one_rater(raters: Collection[str]) -> bool:
    """True = one person gave everything; votes that name nobody may be of many."""
    return len(raters) == 1 and UNKNOWN_ANNOTATOR not in raters


def check_raters(found: bool, *, allow_one: bool) -> None:
    """Raise InputError where one rater gave every vote, unless that is allowed.

    Args:
        found: as `one_rater` says.
        allow_one: True = go on; the reward is then one person's, and the report says so first.
    """
    if found and not allow_one:
        raise InputError(
            "reward: all votes are of one rater only; expected at least two, for her taste cannot be told from what "
            "people want. Ask others too, or set `allow_one_rater: true` for a reward of one person's own"
        )


def level_counts(votes: Iterable[Vote]) -> dict[str, int]:
    """How often b was better, neither, and a."""
    counts = {"b better": 0, "tie": 0, "a better": 0}
    for vote in votes:
        doubled = 2 * vote.level - (vote.n_levels - 1)
        counts["tie" if doubled == 0 else "a better" if doubled > 0 else "b better"] += 1
    return counts

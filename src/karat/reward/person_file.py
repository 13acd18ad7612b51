"""A person's own reward on disk: a small file of tensors and a card that says on how much it rests.

Knows directories and one person; knows nothing about questions or terminals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from karat.damaged import damage_named
from karat.destinations import filled_directory
from karat.errors import CheckpointError, InputError
from karat.identity import file_hash
from karat.lm.checksums import LISTED, check_files, note_files
from karat.lm.headers import read_tensors, write_tensors
from karat.reward.people import TENSORS, PeopleModel
from karat.reward.personal import PersonReward, prior_of, standing

CARD, FILE = "person_card.json", "person.safetensors"
CARD_FORMAT = 1


@dataclass(frozen=True, eq=False)
class SavedPerson:
    """One person's artefact."""

    person: PersonReward
    """Posterior and answers."""
    name: str
    """What she is called; a pseudonym does."""
    asked: tuple[tuple[str, str, str], ...]
    """(Prompt.id, Response.id of a, of b) of each answer, in the order given."""
    skipped: tuple[tuple[str, str, str], ...] = ()
    """The same of each question that she could not answer, in the order asked."""


def save_person(saved: SavedPerson, model: PeopleModel, reward: Path, directory: Path) -> Path:
    """Write the artefact, complete or not at all; an earlier one in its place is replaced.

    Args:
        reward: the reward model's directory; its population's hash goes into the card.
    """
    person = saved.person
    population = file_hash(reward / TENSORS)
    tensors = {"mean": person.mean, "cov": person.cov, "x": person.x, "level": person.level}
    metadata = {"name": saved.name, "population": population, **LISTED}
    sds = np.sqrt(np.maximum(np.diag(person.cov), 0.0)).tolist()
    card = {
        "format": CARD_FORMAT,
        "name": saved.name,
        "group": None if person.group < 0 else model.users.groups[person.group],
        "population": population,
        "n_votes": person.n_votes,
        "standing": standing(model.users, person),
        "sd": sds,
        "sd_before": np.sqrt(np.diag(prior_of(model.users, person.group).cov)).tolist(),
        "asked": [list(one) for one in saved.asked],
        "skipped": [list(one) for one in saved.skipped],
        "not_expressed": ["the uncertainty of what all share"],
    }
    text = json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False)
    with filled_directory(directory) as partial:
        partial.mkdir(parents=True)
        write_tensors({name: np.ascontiguousarray(one) for name, one in tensors.items()}, partial / FILE, metadata)
        (partial / CARD).write_text(text + "\n", encoding="utf-8")
        note_files(partial)
    return directory


def load_person(directory: Path, model: PeopleModel, reward: Path) -> SavedPerson:
    """The artefact that `save_person` wrote, for the population that it was made with.

    Raises: CheckpointError where it is missing or damaged; InputError where it belongs to another population.
    """
    check_files(directory)
    try:
        card: Mapping = json.loads((directory / CARD).read_text(encoding="utf-8"))
        found = {name: one.numpy() for name, one in read_tensors(directory / FILE).items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{directory}: found no {Path(error.filename or FILE).name}; expected what `karat personalise` wrote"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{directory}: not readable as a person ({' '.join(str(error).split())})") from None
    with damage_named(directory / CARD, "a person", CheckpointError):
        return _person_of(directory, card, found, model, reward)


def _person_of(
    directory: Path, card: Mapping[str, Any], found: Mapping[str, np.ndarray], model: PeopleModel, reward: Path
) -> SavedPerson:
    if card.get("format") != CARD_FORMAT:
        raise CheckpointError(f"{directory}: found a person of format {card.get('format')}; expected {CARD_FORMAT}")
    if card["population"] != file_hash(reward / TENSORS):
        raise InputError(
            f"{directory}: this person was asked with another population than that of {reward}; ask her with this one"
        )
    cov = found["cov"]
    if not (np.isfinite(cov).all() and (not cov.size or np.linalg.eigvalsh(cov).min() > 0)):
        raise CheckpointError(
            f"{directory}: cov is not positive definite; the file is damaged, ask or read the answers again"
        )
    if not all(math.isfinite(one) for one in found["mean"].tolist()) or card["group"] not in (
        None,
        *model.users.groups,
    ):
        raise CheckpointError(f"{directory}: damaged; ask or read the answers again")
    group = -1 if card["group"] is None else model.users.groups.index(card["group"])
    person = PersonReward(found["mean"], cov, group, found["x"], found["level"])
    asked, skipped = (tuple(tuple(one) for one in card.get(key, [])) for key in ("asked", "skipped"))
    return SavedPerson(person, card["name"], asked, skipped)

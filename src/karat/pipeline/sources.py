"""What the river needs to know of where it springs: prompts, a starting model, votes, and gold where it is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat.feedback.store import Store
from karat.ledger.artifacts import ArtifactRef
from karat.ledger.manifest import Manifest
from karat.pipeline.stages import Run, StageResult, Workplace
from karat.records import Prompt
from karat.reward.gate import GateProbes

Gold = Callable[[Prompt, str], float]
Agrees = Callable[[Prompt, str], bool | None]
BeliefPair = tuple[Prompt, str, str]
"""A prompt that states a wrong belief, a truthful response, a response that agrees."""


@dataclass(frozen=True)
class Source:
    """Where prompts, the starting model and votes come from."""

    write: Callable[[Workplace], StageResult]
    """Writes prompts and demonstrations; the outputs `prompts` and `demonstrations` must be among them."""
    base: Callable[[Run, Manifest], tuple[ArtifactRef, ...]]
    """The starting model: runs a stage if it has to be trained; the last artefact is the model."""
    votes: Callable[[Store, Workplace, str], dict[str, Any]]
    """Answers the questions of a batch in the store's queue, or counts the votes that are in it already."""
    asks: bool
    """True = questions about the policy's samples are put into the queue; False = the votes are given."""
    panel: Callable[[Store, Workplace, str], dict[str, Any]] | None = None
    """Has a batch of comparisons answered by people who give the reward no votes; None = there is nobody to ask."""
    judgement_ids: Callable[[Workplace], Collection[str] | None] = lambda _: None
    """Which judgements of the store are this source's; None = all. A file that changed leaves those of the old one in
    the store, which forgets nothing."""
    given: tuple[Path, ...] = ()
    """Files from outside that `write` reads; other content is another input."""
    gold: Gold | None = None
    """The gold reward, where the world knows it."""
    group_gold: Mapping[str, Gold] = field(default_factory=dict)
    """Group of raters → what its members think of a response on average, in logits; {} = not known."""
    agrees: Agrees | None = None
    """Whether a response agrees with a wrong belief that its prompt states; None where it states none."""
    probes: GateProbes = field(default_factory=GateProbes)
    """Praise and edits in the language of the responses: a probe in words the model has never seen would test nothing."""
    wrong_belief_pairs: Callable[[], Sequence[BeliefPair]] | None = None
    """Probe pairs for the gate; None = the source has none."""

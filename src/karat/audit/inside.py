"""Looking inside a reward model: words, concepts and a map, on responses that were judged or written since.

    1. read the responses    2. attribute some of them to their words    3. the same with shuffled weights
    4. concepts, in the middle of the model    5. the atlas, from its last features

Knows a reward model, responses and what is known of them; knows no files and no page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from karat.audit.atlas import Atlas, activation_atlas, atlas_finding
from karat.audit.attribution import completeness_finding, randomisation_finding
from karat.audit.concepts import concept_findings
from karat.audit.known_concepts import concept_rows
from karat.audit.reading import ReadText, ShuffledWeights, attribute, layer_activations, read_text, word_shares
from karat.errors import ConfigError, InputError
from karat.records import Finding, Prompt
from karat.reward.novelty import text_features
from karat.reward.score import Scorer
from karat.seeding import numpy_generator


@dataclass(frozen=True)
class LookSettings:
    """How much is looked at."""

    n_attributed: int = 48
    """Responses attributed to their words."""
    n_activations: int = 400
    """Responses whose activations the concept vectors are made of."""
    n_side: int = 12
    """Cells a side of the atlas."""
    seed: int = 0
    """Of every draw."""

    def __post_init__(self) -> None:
        if self.n_attributed < 1 or self.n_activations < 2 or self.n_side < 1:
            raise ConfigError(
                f"look inside: found n_attributed={self.n_attributed}, n_activations={self.n_activations}, n_side="
                f"{self.n_side}; expected ≥ 1, ≥ 2 and ≥ 1"
            )


@dataclass(frozen=True, eq=False)
class LookedAt:
    """The responses that are looked at."""

    prompts: Sequence[Prompt]
    """What each answers."""
    texts: Sequence[str]
    """The responses."""
    sources: Sequence[str]
    """Who wrote each."""
    gold: Sequence[float] | None = None
    """Gold reward of each, where it is known."""
    triggers: Sequence[str] = field(default=())
    """Words under suspicion."""


@dataclass(frozen=True, eq=False)
class AttributedWords:
    """A response, word by word."""

    prompt: str
    """What it answers."""
    words: tuple[str, ...]
    """Its words."""
    shares: tuple[float, ...]
    """What each adds to the score, logits."""
    score: float
    """Its score, logits."""
    reference: float
    """Score of the reference, logits."""
    source: str
    """Who wrote it."""


@dataclass(frozen=True, eq=False)
class Inside:
    """What was found."""

    findings: tuple[Finding, ...]
    """inside.completeness, inside.randomisation, inside.concept_…, inside.atlas."""
    attributed: tuple[AttributedWords, ...]
    """Responses word by word, in the order in which they were drawn."""
    atlas: Atlas
    """The map."""


def look_inside(
    scorer: Scorer, seen: LookedAt, settings: LookSettings, *, progress: Callable[[str, int, int], None] | None = None
) -> Inside:
    """Attribute, test concepts and draw the atlas.

    Args:
        progress: called with (what is done now, done, of).
    Raises: InputError for fewer than three responses with words, ConvergenceError where attributions stay incomplete.
    """
    rows = [i for i, text in enumerate(seen.texts) if text.strip()]
    if len(rows) < 3:
        raise InputError(f"look inside: found {len(rows)} responses with words; expected at least 3")
    tell = progress or (lambda *_: None)
    model = scorer.model
    rng = numpy_generator(settings.seed, "inside")
    order = [rows[int(i)] for i in rng.permutation(len(rows))]

    def reads(chosen: Sequence[int]) -> list[ReadText]:
        return [read_text(model.trunk, seen.prompts[i], seen.texts[i]) for i in chosen]

    shown = order[: settings.n_attributed]
    shown_reads = reads(shown)
    attributions = []
    for done, read in enumerate(shown_reads, 1):
        attributions.append(attribute(model, read))
        tell("words", done, len(shown))
    own = [word_shares(a, read) for a, read in zip(attributions, shown_reads, strict=True)]
    shuffled = []
    with ShuffledWeights(model, seed=settings.seed):
        for done, read in enumerate(shown_reads, 1):
            shuffled.append(word_shares(attribute(model, read, tolerance=0.1), read))
            tell("shuffled weights", done, len(shown))
    used = order[: settings.n_activations]
    activations = layer_activations(
        model, reads(used), progress=lambda done, of: tell("concepts", done, of)
    )  # fmt: skip
    concepts = concept_rows([seen.texts[i] for i in used], triggers=seen.triggers)
    atlas, atlas_says = _atlas(scorer, seen, rows, settings)
    tell("atlas", 1, 1)
    findings = (
        completeness_finding(attributions),
        randomisation_finding(own, shuffled),
        *concept_findings(activations, concepts, seed=settings.seed),
        atlas_says,
    )
    attributed = tuple(
        AttributedWords(
            seen.prompts[i].text, read.words, tuple(shares), found.score, found.reference, seen.sources[i]
        )
        for i, read, shares, found in zip(shown, shown_reads, own, attributions, strict=True)
    )  # fmt: skip
    return Inside(findings, attributed, atlas)


def _atlas(scorer: Scorer, seen: LookedAt, rows: Sequence[int], settings: LookSettings) -> tuple[Atlas, Finding]:
    prompts, texts = [seen.prompts[i] for i in rows], [seen.texts[i] for i in rows]
    features = text_features(scorer.model, prompts, texts).double().numpy()
    reward = scorer.logits(prompts, texts).mean(0).double().numpy()
    gold = None if seen.gold is None else np.array([seen.gold[i] for i in rows], dtype=float)
    sources = [seen.sources[i] for i in rows]
    atlas = activation_atlas(features, reward, gold, texts, sources=sources, n_side=settings.n_side)
    return atlas, atlas_finding(atlas, reward, gold)

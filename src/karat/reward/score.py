"""Reward models on disk, and scoring with them.

A saved model is a directory: the trunk, the S heads, and a card that says what the scores mean. A decoder's trunk is
saved with the mean of its heads as an ordinary sequence-classification model, so that
`AutoModelForSequenceClassification.from_pretrained` gives the same mean logits without karat; the card names what that
class cannot express. Knows files, prompts and texts; knows nothing about votes.

Dimension letters: S heads, B responses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from karat import devices
from karat.belief import Belief, ScoreScale, aggregator_of, apply_scale, fit_scale
from karat.damaged import damage_named
from karat.destinations import filled_directory
from karat.errors import CheckpointError, InputError
from karat.lm.checksums import LISTED, check_files, note_further
from karat.lm.classifiers import is_classifier
from karat.lm.headers import read_tensors, write_tensors
from karat.lm.load import LoadedLM, save_encoder
from karat.records import Prompt, ScoreFn
from karat.reward.calibration import VoteModel
from karat.reward.classifier import PLAIN_VOTES, UNSCALED, ClassifierTrunk, classifier_model, copy_classifier
from karat.reward.contributions import contribution_rows
from karat.reward.foreign_view import loads_with, not_expressed
from karat.reward.model import RewardModel, log_lengths
from karat.reward.objectives import ObjectivesConfig, check_known, combined, plain_objectives
from karat.reward.posterior import prompt_reference
from karat.reward.raters import RaterPriors
from karat.reward.settings import HeadConfig
from karat.reward.side import SideReward, load_side, save_side
from karat.reward.steps import score_encoded
from karat.reward.train import RewardFit
from karat.reward.trunk import DecoderTrunk, EncoderTrunk, Trunk, check_texts
from karat.reward.trunk_files import load_trunk, save_classifier
from karat.statements import PREFERENCE

CARD = "reward_card.json"
HEADS = "heads.safetensors"
CARD_FORMAT = 1
TOKEN_BUDGET = 4096


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores texts as a belief; frozen weights, no gradients."""

    model: RewardModel
    """Trunk and heads with their temperature."""
    vote_model: VoteModel
    """What turns differences of logits into probabilities for a new rater."""
    scale: ScoreScale
    """The optimiser's scale of the mean score."""
    reference: Float[Tensor, "S O"]
    """Mean logit of each head over the training responses, for prompts without references of their own."""
    prompt_references: Mapping[str, Float[Tensor, "S O"]] = dataclasses.field(default_factory=dict)
    """Prompt.id → mean logit of each head over that prompt's reference responses."""
    objectives: ObjectivesConfig = dataclasses.field(default_factory=ObjectivesConfig)
    """How several objectives become the one that is aggregated."""
    length_removed: float = 0.0
    """γ whose product with log(1 + characters) is taken off every logit of the first objective; 0 = nothing is."""
    members: tuple[Scorer, ...] = ()
    """The models of an ensemble, whose draws are joined; () = `model` alone."""
    side: SideReward | None = None
    """What plain features add to the raw score of each head; None = the trunk alone."""

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], *, with_length: bool = True) -> Belief:
        """Joint draws [S, B, O] in logits (O = 1 where `objectives` combines them), relative to each prompt's reference responses where it has any.

        Args:
            prompts, texts: one of each a response.    with_length: False = without the length term.
        Raises: InputError for no texts, unequal lengths, or a decoder's text that does not fit its context.
        """
        draws = self.every(prompts, texts, with_length=with_length)
        ids = list(dict.fromkeys(prompt.id for prompt in prompts))
        rows = torch.stack([self.prompt_references.get(prompt_id, self.reference) for prompt_id in ids], dim=1)
        place = {prompt_id: column for column, prompt_id in enumerate(ids)}
        index = torch.tensor([place[prompt.id] for prompt in prompts])
        belief = Belief(draws, rows, index, self.model.objectives)
        return combined(belief, self.objectives) if self.objectives.combines else belief

    def logits(
        self, prompts: Sequence[Prompt], texts: Sequence[str], *, with_length: bool = True
    ) -> Float[Tensor, "S B"]:
        """Logits of each head for the first objective."""
        return self.every(prompts, texts, with_length=with_length)[..., 0]

    def every(
        self, prompts: Sequence[Prompt], texts: Sequence[str], *, with_length: bool = True
    ) -> Float[Tensor, "S B O"]:
        """Logits of each head for every objective; every different (prompt, text) is encoded once."""
        if self.members:
            joint = torch.cat([one.every(prompts, texts, with_length=with_length) for one in self.members])
            if self.length_removed:
                joint[..., 0] -= self.length_removed * log_lengths(texts)
            return joint
        check_texts(texts, "score")
        if len(prompts) != len(texts):
            raise InputError(f"score: found {len(prompts)} prompts and {len(texts)} texts; expected one of each a row")
        distinct: dict[tuple[str, str], int] = {}
        rows = [
            distinct.setdefault((prompt.id, text), len(distinct)) for prompt, text in zip(prompts, texts, strict=True)
        ]
        first = {row: index for index, row in reversed(list(enumerate(rows)))}
        kept = [first[row] for row in range(len(distinct))]
        own_prompts, own_texts = [prompts[i] for i in kept], [texts[i] for i in kept]
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(own_prompts):
            groups.setdefault(prompt.id, []).append(index)
        encoded = self.model.trunk.encode(own_prompts, own_texts)
        raw = score_encoded(
            self.model, encoded, log_lengths(own_texts), list(groups.values()), token_budget=TOKEN_BUDGET,
            with_length=with_length,
        )  # fmt: skip
        if self.side is not None:
            raw += self.side.scores(own_prompts, own_texts)
        if not raw.isfinite().all():
            raise CheckpointError(
                f"{_path_of(self.model.trunk)}: gave scores that are not finite; the weights are damaged: restore them, or train anew"
            )
        logits = self.model.calibrated(raw)
        if self.length_removed:
            logits[..., 0] -= self.length_removed * log_lengths(own_texts)
        return logits[:, rows]

    def with_references(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Scorer:
        """The same scorer, measuring each prompt's draws from these responses (policy samples, several a prompt)."""
        ids = list(dict.fromkeys(prompt.id for prompt in prompts))
        index = torch.tensor([ids.index(prompt.id) for prompt in prompts])
        draws = self.every(prompts, texts)
        columns = [prompt_reference(draws[..., o], index, len(ids)) for o in range(draws.shape[-1])]
        stacked = torch.stack(columns, dim=-1)
        own = {prompt_id: stacked[:, column] for column, prompt_id in enumerate(ids)}
        return dataclasses.replace(self, prompt_references={**self.prompt_references, **own})

    def less_length(self, slope: float) -> Scorer:
        """The same scorer with `slope`·log(1 + characters) taken off every logit of the first objective, on top of what is taken off already."""
        return dataclasses.replace(self, length_removed=self.length_removed + slope)

    def with_objectives(self, objectives: ObjectivesConfig) -> Scorer:
        """The same scorer with another way to make one objective of several."""
        return dataclasses.replace(self, objectives=objectives)

    def with_scale(self, scale: ScoreScale) -> Scorer:
        """The same scorer with another optimiser's scale."""
        return dataclasses.replace(self, scale=scale)


def scorer_of(fit: RewardFit, objectives: ObjectivesConfig | None = None) -> Scorer:
    """The scorer of a model that was just trained, without going through the disk.

    Raises: ConfigError for an objective that it has no output for.
    """
    objectives = ObjectivesConfig() if objectives is None else objectives
    check_known(objectives, fit.model.objectives)
    reference = fit.reference.view(-1, len(fit.model.objectives))
    return Scorer(fit.model, fit.vote_model, fit.scale, reference, objectives=objectives, side=fit.side)


def joined_scorer(members: Sequence[Scorer], vote_model: VoteModel, scale: ScoreScale) -> Scorer:
    """Several models as one scorer: their draws side by side, each measured from its own reference."""
    reference = torch.cat([one.reference for one in members])
    return Scorer(members[0].model, vote_model, scale, reference, members=tuple(members))


def aggregate(belief: Belief, name: str) -> Float[Tensor, " B"]:
    """One number a response by the aggregator of that name, as `aggregator_of` reads it.

    Raises: ConfigError for an unknown name.
    """
    return aggregator_of(name)(belief)


def reference_scale(scorer: Scorer, prompts: Sequence[Prompt], texts: Sequence[str], aggregator: str) -> ScoreScale:
    """The optimiser's scale of an aggregate on reference responses: mean, and within-prompt standard deviation.

    Args:
        prompts, texts: policy samples, at least two for some prompt.
    """
    belief = scorer(prompts, texts)
    return fit_scale(aggregate(belief, aggregator), belief.prompt_index)


def score_fn(scorer: Scorer, aggregator: str = "mean_score", scale: ScoreScale | None = None) -> ScoreFn:
    """The `ScoreFn` that an optimiser gets: (aggregate − shift)/scale.

    Args:
        aggregator: as `aggregator_of` reads it.    scale: None = the scorer's own, fitted on the mean score.
    Raises: ConfigError for an unknown aggregator.
    """
    combine = aggregator_of(aggregator)
    used = scorer.scale if scale is None else scale

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return apply_scale(combine(scorer(prompts, responses)), used).tolist()

    return score


def save_reward(
    fit: RewardFit,
    directory: str | Path,
    *,
    metadata: Mapping[str, str],
    scale: ScoreScale | None = None,
    objectives: ObjectivesConfig | None = None,
    length_removed: float = 0.0,
) -> Path:
    """Write trunk, heads and card, complete or not at all.

    Args:
        metadata: who made it (run_id, snapshot_root …); goes into every safetensors header, config.json and the card.
        scale: the optimiser's scale, where policy samples gave one; None = that of the training responses.
        objectives: how several objectives become one; None = the first alone.
        length_removed: γ that the loaded scorer takes off, see `Scorer.less_length`.
    Returns: the directory.
    """
    directory = Path(directory)
    with filled_directory(directory) as partial:
        model = fit.model
        if isinstance(model.trunk, DecoderTrunk):
            save_classifier(model, model.trunk.lm, partial, metadata)
        elif isinstance(model.trunk, EncoderTrunk):
            save_encoder(model.trunk.encoder, partial, metadata=metadata)
        elif isinstance(model.trunk, ClassifierTrunk):
            copy_classifier(model.trunk.classifier, partial, metadata)
        tensors = {
            "weight": model.weight,
            "prior": model.prior,
            "length_coef": model.length_coef,
            "temperature": model.temperature,
            "reference": fit.reference,
        }
        if len(model.objectives) > 1:
            tensors |= {"further_weight": model.further_weight, "further_prior": model.further_prior}
        write_tensors(tensors, partial / HEADS, {**metadata, **LISTED})
        if fit.side is not None:
            save_side(fit.side, partial, metadata=metadata)
        card = _card(fit, metadata, fit.scale if scale is None else scale)
        card["objectives_config"] = plain_objectives(objectives or ObjectivesConfig())
        card["length_removed"] = length_removed
        (partial / CARD).write_text(
            json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        note_further(partial)  # an encoder's own files are in the list already
    return directory


def load_scorer(
    directory: str | Path, *, device: str | torch.device | None = None, on: LoadedLM | None = None
) -> Scorer:
    """The scorer in a directory that `save_reward` wrote, or of a sequence classifier with one output, as TRL saves it.

    A classifier from elsewhere has one head, temperature 1 and Bradley–Terry votes without ties.

    Args: device: None = where this process works.    on: a policy with adapters. A reward whose adapters were trained on the same weights stands on the policy's.
    Raises: CheckpointError (one line) for a missing, foreign, half-written or newer directory.
    """
    directory, device = Path(directory), device or devices.current()
    if not (directory / CARD).is_file() and is_classifier(directory):
        return Scorer(classifier_model(directory, device=device), PLAIN_VOTES, UNSCALED, torch.zeros(1, 1))
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
        heads = {} if _members(card) else read_tensors(directory / HEADS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{directory}: found no {Path(error.filename or HEADS).name}; expected a reward model: models/reward of a "
            "run, --out of `karat reward`, or a sequence classifier"
        ) from None
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{directory}: not readable as a reward model ({' '.join(str(error).split())})") from None
    if card.get("format") != CARD_FORMAT:
        raise CheckpointError(
            f"{directory}: found card format {card.get('format')}; expected {CARD_FORMAT}. Use the karat that wrote it"
        )
    with damage_named(directory / CARD, "the card of a reward model", CheckpointError):
        return _scorer_of(directory, card, heads, device, on)


def _scorer_of(
    directory: Path,
    card: Mapping[str, Any],
    heads: Mapping[str, Tensor],
    device: str | torch.device,
    on: LoadedLM | None,
) -> Scorer:
    members = _members(card)
    vote_model = VoteModel(RaterPriors(**card["rater_priors"]), tuple(card["cutpoints"]))
    scale, objectives_config = ScoreScale(**card["scale"]), ObjectivesConfig(**card.get("objectives_config", {}))
    optimised = {"objectives": objectives_config, "length_removed": float(card.get("length_removed", 0.0))}
    if members:
        check_files(directory)
        loaded = [load_scorer(directory / name, device=device, on=on) for name in members]
        return dataclasses.replace(joined_scorer(loaded, vote_model, scale), **optimised)
    trunk = load_trunk(directory, card, device, on)
    trunk.module.requires_grad_(False).eval()
    objectives = card.get("objectives", [PREFERENCE])
    model = RewardModel(trunk, HeadConfig(**card["heads"]), seed=0, objectives=objectives)
    further = ("further_weight", "further_prior") if len(objectives) > 1 else ()
    for name in ("weight", "prior", "length_coef", "temperature", *further):
        if not heads[name].isfinite().all():
            raise CheckpointError(f"{directory / HEADS}: found {name} that is not finite; train the reward anew")
        if heads[name].shape != getattr(model, name).shape:  # copying would repeat what is too small
            raise ValueError(f"{HEADS}: {name} of shape {tuple(heads[name].shape)}")
        getattr(model, name).data.copy_(heads[name])
    model.requires_grad_(False).eval()
    reference = heads["reference"].view(-1, len(objectives))
    return Scorer(model, vote_model, scale, reference, side=load_side(directory, card.get("beside", ())), **optimised)


def _path_of(trunk: Trunk) -> str:
    """Where a trunk was loaded from."""
    loaded = (getattr(trunk, name, None) for name in ("lm", "encoder", "classifier"))
    return next((one.path for one in loaded if one is not None), "reward")


def _members(card: Mapping[str, Any]) -> list[str]:
    """Directories of an ensemble's models; [] = it is one model."""
    return list((card.get("posterior") or {}).get("members", []))


def _card(fit: RewardFit, metadata: Mapping[str, str], scale: ScoreScale) -> dict[str, Any]:
    model, raters = fit.model, fit.raters
    beside = () if fit.side is None else fit.side.names
    return {
        "format": CARD_FORMAT,
        "metadata": dict(metadata),
        "trunk": model.trunk.describe(),
        "heads": dataclasses.asdict(model.config),
        "objectives": list(model.objectives),
        "temperature": float(model.temperature),
        "length_coef": [float(value) for value in model.length_coef.detach() / model.temperature],
        "n_levels": fit.vote_model.n_levels,
        "cutpoints": list(fit.vote_model.cutpoints),
        "rater_priors": dataclasses.asdict(fit.vote_model.priors),
        "scale": dataclasses.asdict(scale),
        "raters": {
            name: {
                "competence": round(float(raters.competence[i]), 6),
                "side_bias": round(float(raters.side_bias[i]), 6),
                "lapse": round(float(raters.lapse[i]), 6),
            }
            for i, name in enumerate(fit.annotators)
        },
        "metrics": fit.metrics,
        "contributions": contribution_rows(fit.contributions),
        "findings": [dataclasses.asdict(finding) for finding in fit.findings],
        "loads_with": loads_with(model),
        "beside": list(beside),
        "not_expressed": not_expressed(model, beside=beside),
    }

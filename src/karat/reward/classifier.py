"""Reward models from elsewhere: a sequence classifier with one output as a reward model with one head.

    r(x, y) = w·φ(x, y) + b,  φ = what the classifier's last layer reads

One head has no spread: whatever asks for the disagreement of the heads says so. The bias is a feature that is always 1.
Knows classifiers, prompts and texts; knows nothing about votes but how to find the scale of the scores in them.

Dimension letters: N texts, d features.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from karat.belief import ScoreScale
from karat.choice import RaterParams
from karat.errors import InputError
from karat.lm.checksums import LISTED
from karat.lm.classifiers import LoadedClassifier, classifier_tokens, load_classifier
from karat.lm.headers import add_header_metadata
from karat.lm.load import quiet
from karat.records import Finding, Prompt
from karat.reward.calibration import LOG_TEMPERATURE_BOUND, VoteModel
from karat.reward.data import VoteData
from karat.reward.model import HeadConfig, RewardModel
from karat.reward.raters import RaterPriors, fit_slope, prior_raters
from karat.reward.train import RewardFit
from karat.reward.trunk import Encoded, in_order, pad_right, padded_rows

PLAIN_VOTES = VoteModel(RaterPriors(modelled=False), (0.0,))
"""What such a model was trained with: Bradley–Terry, all raters alike."""


class ClassifierTrunk:
    """Everything of a sequence classifier below its last layer."""

    kind = "classifier"

    def __init__(self, classifier: LoadedClassifier) -> None:
        self.classifier = classifier
        self.module: nn.Module = classifier.model
        self.has_bias = classifier.head.bias is not None
        self.width = classifier.head.in_features + self.has_bias

    def encode(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Encoded]:
        """Prompt and response as TRL writes them for training, one sequence.

        Raises: InputError for a sequence longer than the classifier's context; nothing is cut off.
        """
        items = []
        for prompt, text in zip(prompts, texts, strict=True):
            ids = classifier_tokens(self.classifier.tokenizer, prompt.turns, text)
            if len(ids) > self.classifier.max_tokens:
                raise InputError(
                    f"{self.classifier.path}: prompt and response have {len(ids)} tokens; expected at most "
                    f"{self.classifier.max_tokens}. Shorten or leave out the text {text[:40]!r}"
                )
            items.append(Encoded((), tuple(ids)))
        return items

    def features(self, items: Sequence[Encoded], *, token_budget: int) -> Float[Tensor, "N d"]:
        """What the last layer reads of each sequence; a decoder's at the last token that is not PAD, as the classifier's."""
        pad_id = self.classifier.model.config.pad_token_id
        order = sorted(range(len(items)), key=lambda i: items[i].n_tokens)
        found = []
        for rows in padded_rows(order, [item.n_tokens for item in items], token_budget):
            ids, mask = pad_right([items[i].response for i in rows], 0 if pad_id is None else pad_id)
            read, _ = self._read(mask, input_ids=ids.to(next(self.module.parameters()).device))
            found.append(self._pooled(read, ids, mask))
        return self._with_bias(in_order(torch.cat(found), torch.tensor(order)))

    def features_of_embeddings(self, ids: Sequence[int], **inputs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same from embeddings [P, L, d] of one text's tokens, with the hidden states if asked for; differentiable.

        Args:
            ids: the tokens, which tell where a decoder reads.    inputs: inputs_embeds, output_hidden_states.
        """
        n_rows = len(inputs["inputs_embeds"])
        mask = torch.ones(n_rows, len(ids), dtype=torch.long)
        read, hidden = self._read(mask, **inputs)
        return self._with_bias(self._pooled(read, torch.tensor([list(ids)] * n_rows), mask)), hidden

    def _pooled(self, read: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        if read.ndim == 3:
            pad_id = self.classifier.model.config.pad_token_id
            counts = mask.bool() if pad_id is None else ids != pad_id
            last = (counts * torch.arange(1, ids.shape[1] + 1)).argmax(1)
            read = read[torch.arange(len(ids), device=read.device), last.to(read.device)]
        return read.float()

    def _with_bias(self, features: Tensor) -> Tensor:
        return torch.cat([features, features.new_ones(len(features), 1)], 1) if self.has_bias else features

    def describe(self) -> dict[str, Any]:
        """Kind only: the classifier's own files say the rest."""
        return {"kind": self.kind}

    def _read(self, mask: Tensor, **inputs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept: list[Tensor] = []
        handle = self.classifier.head.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        device = next(self.module.parameters()).device
        if getattr(self.classifier.model.config, "use_cache", False):
            inputs["use_cache"] = False
        try:
            output = self.module(attention_mask=mask.to(device), **inputs)
        finally:
            handle.remove()
        return kept[0], output.hidden_states or ()


def classifier_model(directory: str | Path, *, device: str | torch.device | None = None) -> RewardModel:
    """The reward model of a classifier's directory: one head, no prior function, temperature 1.

    Raises: CheckpointError for a directory that holds no classifier with one output.
    """
    trunk = ClassifierTrunk(load_classifier(Path(directory), device=device))
    head = trunk.classifier.head
    model = RewardModel(trunk, HeadConfig(n_heads=1, prior_scale=0.0, init_scale=0.0), seed=0)
    row = head.weight.detach().float()
    model.weight.data.copy_(torch.cat([row, head.bias.detach().float().view(1, 1)], 1) if trunk.has_bias else row)
    return model.requires_grad_(False).eval()


def fit_vote_model(model: RewardModel, scores: Float[Tensor, " N"], data: VoteData) -> VoteModel:
    """Find the scale of foreign scores in votes: sets the temperature of a preference, returns the cutpoints.

        max Σ_c log P(y_c | γ·Δ score),  T = 1/γ, within [1/20, 20]

    Args:
        scores: the classifier's own, of data.texts.
    """
    priors = PLAIN_VOTES.priors
    start = prior_raters(1, data.n_levels, priors).cutpoints
    slope, cutpoints = fit_slope(scores, data.columns, start)
    bound = math.exp(LOG_TEMPERATURE_BOUND)
    if model.scores_preference:
        model.temperature.fill_(1 / min(max(slope, 1 / bound), bound))
    return VoteModel(priors, tuple(cutpoints.tolist()))


def given_fit(
    model: RewardModel, vote_model: VoteModel, scale: ScoreScale, draws: Float[Tensor, "S N O"], findings: list[Finding]
) -> RewardFit:
    """A model that was not trained here, as everything else expects a fit: no raters, nothing contributed.

    Args:
        draws: logits of the responses that votes were given on, for the reference.
    """
    none = torch.zeros(0)
    raters = RaterParams(none, none, none, torch.tensor(vote_model.cutpoints))
    return RewardFit(
        model=model, annotators=(), raters=raters, vote_model=vote_model, scale=scale, reference=draws.mean(1),
        metrics={}, findings=findings, held_out=(),
    )  # fmt: skip


def copy_classifier(classifier: LoadedClassifier, directory: Path, metadata: Mapping[str, str]) -> None:
    """Copy a classifier's files as they are, but for the metadata that say who made the copy; pickles stay behind.

    Of adapters the whole classifier is written, so that it can be read without the model that they were trained on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if classifier.was_adapter:
        with quiet():
            classifier.model.save_pretrained(directory)
            classifier.tokenizer.save_pretrained(directory)
    for file in [] if classifier.was_adapter else sorted(Path(classifier.path).iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja"):
            shutil.copyfile(file, directory / file.name)
    for file in sorted(directory.glob("*.safetensors")):
        add_header_metadata(file, {**metadata, **LISTED})


def one_head_finding(path: Path) -> Finding:
    """What the report says of such a model."""
    return Finding(
        "reward.given", "Where does the reward model come from?", "info",
        detail=f"a sequence classifier given as {path.name}: one head, so the belief has no spread; raters were not modelled",
    )  # fmt: skip


UNSCALED = ScoreScale(0.0, 1.0)
"""The optimiser's scale before any responses were seen."""

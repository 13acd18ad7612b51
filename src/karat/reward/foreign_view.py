"""What ordinary `transformers` can make of a saved reward model, and what it cannot. Knows a model's shape; nothing on disk."""

from __future__ import annotations

from collections.abc import Sequence

from karat.reward.model import RewardModel


def loads_with(model: RewardModel) -> str:
    """What opens the saved model, and what its number then is."""
    if model.trunk.kind == "classifier":
        return "AutoModelForSequenceClassification, whose logit is the temperature times karat's"
    if model.trunk.kind == "encoder":
        return "karat.reward.score.load_scorer only (AutoModel loads the trunk without its heads)"
    return "AutoModelForSequenceClassification, logits = mean over the heads" + (
        " without the length term" if model.config.length_term else ""
    )


def not_expressed(model: RewardModel, *, beside: Sequence[str] = ()) -> list[str]:
    """What AutoModelForSequenceClassification cannot say about this model.

    Args:
        beside: blocks of plain features that it reads beside the trunk's.
    """
    first = "the spread of the heads" if model.n_heads > 1 else "the temperature"
    missing = [first, "the rater parameters and cutpoints", "the optimiser's scale"]
    if len(model.objectives) > 1:
        missing.append(f"the objectives {', '.join(model.objectives[1:])}")
    if model.config.length_term:
        missing.append("the length term γ·log(1 + characters)")
    if beside:
        missing.append(f"what it reads beside the trunk: {', '.join(beside)}")
    if model.trunk.kind == "encoder":
        missing.append("mean pooling with layer normalisation, so not the score at all")
    return missing
